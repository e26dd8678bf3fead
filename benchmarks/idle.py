"""What a machine pays every five minutes: a check-in with nothing to do."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report import Row
from benchmarks.timing import measure
from turku_core.local.turku import Machine

_RUNS = 15
_MIB = 1024 * 1024


def measure_idle_checkin(machine: Machine, say: Callable[[str], None]) -> list[Row]:
    """Measure the CPU and the peak memory of check-ins of a machine that has nothing due."""
    command = machine.command("turku-agent-ping")
    measure(command)
    usages = [measure(command) for _ in range(_RUNS)]
    cpu = [usage.cpu_seconds for usage in usages]
    peak = [usage.peak_bytes / _MIB for usage in usages]
    say(f"idle check-in: {max(cpu):.2f} s of CPU and {max(peak):.1f} MiB at most")
    return [
        Row.single("idle check-in, CPU", "s", cpu, bound=0.25),
        Row.single("idle check-in, peak memory", "MiB", peak, bound=35),
    ]

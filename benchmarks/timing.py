"""Running a program to its end and measuring it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turku_core.errors import TurkuError

_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Usage:
    """What one run took: seconds on the clock, seconds of CPU, and bytes at its peak."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(command: Sequence[str]) -> Usage:
    """Run a program and return what it and its children took (wait4(2)).

    What was written before is on the disk first, so that nobody pays for another's writes.

    Raises:
        TurkuError: It failed.
    """
    os.sync()
    path = shutil.which(command[0]) or command[0]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_LAUNCHER), path, *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    )
    seconds, cpu, peak, code = done.stdout.split()
    if code != "0":
        raise TurkuError(f"{path} failed with exit code {code}: {done.stderr.strip()}")
    return Usage(float(seconds), float(cpu), int(peak) * 1024)

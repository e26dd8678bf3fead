"""``make bench``: every number that the design promises, measured on this machine now.

python -m benchmarks [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks import tree
from benchmarks.backups import ROUNDS, measure_backups
from benchmarks.checkins import MACHINES, measure_checkins
from benchmarks.idle import measure_idle_checkin
from benchmarks.report import Row, as_json, print_report
from turku_core.configuration import write_durably
from turku_core.errors import TurkuError
from turku_core.local.turku import LocalTurku

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Measure everything, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the table as JSON too")
    arguments = parser.parse_args()
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    try:
        with tempfile.TemporaryDirectory(prefix="turku-bench-") as folder:
            rows = measure(Path(folder), say)
    except TurkuError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("make bench: interrupted; everything is cleaned up.", file=sys.stderr)
        return 130
    print()
    print_report(rows)
    if arguments.json:
        report = as_json(rows, conditions())
        write_durably(arguments.json.absolute(), json.dumps(report, indent=2) + "\n", 0o644)
    return 0


def measure(folder: Path, say: Callable[[str], None]) -> list[Row]:
    """Measure with one local Turku for the backups, and one for the crowd of machines."""
    rows = []
    with LocalTurku(folder / "backups") as turku:
        rows += measure_backups(turku, folder, say)
        idle = turku.add_machine("idle", {})
        rows += measure_idle_checkin(idle, say)
    with LocalTurku(folder / "crowd", has_worker=False) as turku:
        rows += measure_checkins(turku, say)
    return rows


def conditions() -> dict[str, object]:
    """Return what the numbers were measured with."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "small_files": tree.SMALL_FILES,
        "large_bytes": tree.LARGE_FILES * tree.LARGE_BYTES,
        "rounds": ROUNDS,
        "machines": MACHINES,
        "network": "loopback",
        "ssh": "the same sshd for both",
    }


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End with everything cleaned up, which no second signal breaks off."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())

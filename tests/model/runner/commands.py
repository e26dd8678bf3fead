"""Commands of the host."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class MachineError(Exception):
    """A machine could not be made, or a command on it failed."""


def run(command: Sequence[str], given: str = "") -> str:
    """Run a command of the host and return what it printed. Raises MachineError."""
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        raise MachineError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout

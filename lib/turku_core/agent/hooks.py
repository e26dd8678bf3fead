"""The programs that a machine runs around its backups and restores."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from turku_core.agent.processes import (
    LineReader,
    ProgramMissing,
    Stop,
    Waiter,
    end,
    printable,
    start,
)
from turku_core.errors import TurkuError

logger = logging.getLogger(__name__)


class HookFailed(TurkuError):
    """A hook is missing, ended with an error, or took too long."""


def hook_environment(
    source: str, path: Path, outcome: str | None, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return a hook's environment.

    Args:
        source: The source's name, in ``TURKU_SOURCE``.
        path: The folder that is backed up or restored into, in ``TURKU_PATH``.
        outcome: How it went, in ``TURKU_OUTCOME``; None for a hook that runs before.
        inherited: The agent's own environment.
    """
    environment = {
        key: value for key, value in inherited.items() if not key.startswith(("TURKU_", "RSYNC_"))
    }
    environment |= {"TURKU_SOURCE": source, "TURKU_PATH": str(path)}
    if outcome is not None:
        environment["TURKU_OUTCOME"] = outcome
    return environment


def run_hook(
    program: Path,
    *,
    source: str,
    path: Path,
    timeout: float,
    stop: Stop,
    outcome: str | None = None,
) -> None:
    """Run a hook and wait for it. What it prints goes to the log, line by line.

    Args:
        program: An executable's absolute path. It gets no arguments.
        timeout: Seconds; after them the hook and what it started are killed.
        stop: Ends the hook early when it is set.

    Raises:
        HookFailed: With a sentence that names the hook.
        Interrupted: The agent was told to stop.
    """
    logger.info("source %s: running %s", source, program)
    try:
        process = start(
            [str(program)],
            folder=Path("/"),
            environment=hook_environment(source, path, outcome, os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except ProgramMissing as error:
        raise HookFailed(
            f"The hook {program} is missing or not executable: put it there, or mend the source's "
            "file in sources.d."
        ) from error
    try:
        code = _follow(process, source, program, timeout, stop)
    finally:
        assert process.stdout is not None
        if process.poll() is None:
            end([process])
        process.stdout.close()
    if code:
        raise HookFailed(f"The hook {program} ended with {_meaning(code)}.")


def _follow(
    process: subprocess.Popen[bytes], source: str, program: Path, timeout: float, stop: Stop
) -> int:
    """Log what the hook prints until it has ended; return its exit code."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    # The hook's end is an event of its own: something it left running may keep its output open.
    ended = os.pidfd_open(process.pid)
    waiter = Waiter(stop)
    try:
        output = LineReader(process.stdout)
        waiter.add(output)
        waiter.add(ended)
        while True:
            left = deadline - time.monotonic()
            ready = waiter.wait(max(0.0, left))
            if output in ready:
                for line in output.read():
                    logger.info("source %s: %s: %s", source, program.name, printable(line))
                if output.ended:
                    waiter.remove(output)
            if ended in ready:
                return process.wait()
            if left <= 0:
                raise HookFailed(
                    f"The hook {program} was ended after {timeout:.0f} seconds; let it do less, or "
                    "raise the source's hook_timeout."
                )
    finally:
        waiter.close()
        os.close(ended)


def _meaning(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

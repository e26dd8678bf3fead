"""Running other programs so that none of them outlives the agent."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from turku_core.errors import TurkuError

GRACE_SECONDS = 5.0
"""How long a program may take to end by itself after SIGTERM."""

LINE_BYTES_MAX = 16 * 1024 * 1024
"""A longer line is cut; the longest that is meant is a list of some 50,000 snapshots."""

_CHUNK_BYTES = 65536


class ProgramMissing(TurkuError):
    """A program that is to be run isn't there, or isn't executable."""


class Interrupted(Exception):
    """The agent was told to stop while it waited for something."""


class Stop:
    """Tells every thread that waits on descriptors that the agent is to stop."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._event = threading.Event()

    def set(self) -> None:
        """Stop; once set it stays set."""
        self._event.set()
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"x")

    def is_set(self) -> bool:
        """Say whether the agent is to stop."""
        return self._event.is_set()

    def fileno(self) -> int:
        """Return a descriptor that is readable from the moment on that the stop is set."""
        return self._read

    def close(self) -> None:
        """Close the descriptors; nobody may wait on them any more."""
        os.close(self._read)
        os.close(self._write)


def make_guarded_command(command: Sequence[str]) -> list[str]:
    """Return the command, changed to be killed when the thread that starts it ends.

    prctl(2), PR_SET_PDEATHSIG: so a SIGKILL of the agent ends what it started. setpriv(1) is part
    of util-linux, which every Debian and Ubuntu has.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


def start(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program as the leader of its own process group, bound to the calling thread's life.

    Args:
        command: The program and its arguments; no shell is involved.
        folder: The working folder.
        environment: The whole environment; nothing is inherited.
        stdin, stdout, stderr: As for `subprocess.Popen`.

    Raises:
        ProgramMissing: There is no such program.
    """
    guarded = make_guarded_command(command)
    for program in (guarded[0], command[0]):
        if shutil.which(program, path=environment.get("PATH")) is None:
            raise ProgramMissing(f"The program {program} is missing or not executable.")
    return subprocess.Popen(
        guarded,
        cwd=folder,
        env=dict(environment),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        bufsize=0,
        start_new_session=True,
    )


def end(processes: Iterable[subprocess.Popen[bytes]], grace: float = GRACE_SECONDS) -> None:
    """End programs with everything in their process groups: SIGTERM, and SIGKILL after `grace`."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()
    for process in running:
        # What the leader left behind in its group.
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    # The leader's number is the group's; a group lives on while any member does, so the number
    # can't have been given to strangers.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class LineReader:
    """Cuts what a descriptor delivers into lines, without ever waiting for more.

    Attributes:
        count: How many bytes were read so far.
        ended: Whether there will be no more.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        os.set_blocking(self._descriptor, False)
        self._buffer = bytearray()
        self.count = 0
        self.ended = False

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._descriptor

    def read(self) -> list[str]:
        """Return the lines that are complete now, without their ends, the last one at the end."""
        while not self.ended:
            try:
                chunk = os.read(self._descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                break
            self.ended = not chunk
            self.count += len(chunk)
            self._buffer += chunk
            if self.ended or b"\n" in chunk or len(self._buffer) > LINE_BYTES_MAX:
                return self._complete_lines()
        return []

    def _complete_lines(self) -> list[str]:
        *lines, rest = bytes(self._buffer).split(b"\n")
        if rest and (self.ended or len(rest) > LINE_BYTES_MAX):
            lines.append(rest)
            rest = b""
        self._buffer = bytearray(rest)
        return [line.decode("utf-8", "surrogateescape").rstrip("\r") for line in lines]


class Waiter:
    """Waits until one of several descriptors has something, the agent is to stop, or time is up."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._selector = selectors.DefaultSelector()
        self._selector.register(stop, selectors.EVENT_READ)

    def add(self, readable: Any) -> None:
        """Wait for `readable` too."""
        self._selector.register(readable, selectors.EVENT_READ)

    def remove(self, readable: Any) -> None:
        """Don't wait for `readable` any more."""
        self._selector.unregister(readable)

    def wait(self, seconds: float | None = None) -> list[Any]:
        """Return what is readable; nothing when `seconds` have passed.

        Raises:
            Interrupted: The agent is to stop.
        """
        ready = [key.fileobj for key, _ in self._selector.select(seconds)]
        if self._stop.is_set():
            raise Interrupted("The agent was told to stop.")
        return ready

    def close(self) -> None:
        """Let the descriptors go; they aren't closed."""
        self._selector.close()


def printable(text: str, length_max: int = 500) -> str:
    """Return text from elsewhere as it may stand in a log or on a terminal."""
    cut = text if len(text) <= length_max else text[:length_max] + "..."
    return "".join(character if character.isprintable() else "?" for character in cut)

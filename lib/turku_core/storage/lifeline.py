"""A session's tie to its agent: it ends with the SSH connection, and with it all it has begun."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

GRACE_SECONDS = 20.0
_POLL_MILLISECONDS = 500


class Lifeline:
    """Says when the session is over.

    sshd keeps the forced command's standard output open for as long as the connection lives, and
    ends the connection when its keepalives (`ClientAliveInterval`) aren't answered. The kernel
    then reports the closed pipe at once, with nothing written to it. Standard input alone is no
    sign: an agent may close its side after the request.
    """

    def __init__(self, output: int, grace_seconds: float = GRACE_SECONDS) -> None:
        self._output = output
        self._grace = grace_seconds
        self._ended = threading.Event()
        self._closed = threading.Event()
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why the session is over, as a sentence; empty while it isn't."""
        return self._reason

    def cancelled(self) -> bool:
        """Say whether the session is over."""
        return self._ended.is_set()

    def end(self, reason: str) -> None:
        """End the session."""
        if not self._ended.is_set():
            self._reason = reason
            self._ended.set()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the connection and the signals while the context lasts (main thread only).

        Whoever works in the session asks `cancelled`. If the context hasn't ended some seconds
        after the session has, what it began is killed and the process ends: a session that hangs
        in a place where nobody asks must not hold its locks.
        """
        signals = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
        previous = {each: signal.signal(each, self._on_signal) for each in signals}
        woken, wake = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._watch, args=(woken,), name="lifeline", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            os.close(wake)
            thread.join()
            os.close(woken)
            for each, handler in previous.items():
                signal.signal(each, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.end(f"The session was ended by {signal.Signals(number).name}.")

    def _watch(self, woken: int) -> None:
        """Watch until the context ends, which closes the other side of `woken`."""
        poller = select.poll()
        poller.register(self._output, 0)
        poller.register(woken, 0)
        while not self._closed.is_set():
            if self._ended.is_set():
                if not self._closed.wait(self._grace):
                    logger.error("The session hangs after its end and is killed.")
                    kill_children()
                    os._exit(1)
                return
            if any(descriptor == self._output for descriptor, _ in poller.poll(_POLL_MILLISECONDS)):
                self.end("The agent's SSH connection ended.")


def kill_children(number: int = signal.SIGKILL) -> list[int]:
    """Send a signal to every process that this one has begun, and to their process groups.

    Returns:
        The children's process ids.
    """
    children = children_of(os.getpid())
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(child) == child:
                os.killpg(child, number)
            else:
                os.kill(child, number)
    return children


def children_of(process: int) -> list[int]:
    """Return the ids of a process's children (proc(5), /proc/pid/task/tid/children)."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(each) for each in path.read_text("ascii").split()]
    return found

"""What a session says to the agent: JSON events to ours, lines of text to others."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

WRITE_SECONDS = 120.0
_PIPE_BUF = 4096
"""What a pipe that poll(2) calls writable takes without blocking (pipe(7))."""

_PROGRESS_SECONDS = 0.5


class Voice:
    """Speaks on a descriptor. A listener who is gone, or half dead, is told nothing more.

    Args:
        descriptor: A pipe or a socket.
        on_gone: Is told, once, why nobody listens any more.
        events: Whether to speak in JSON events.
        write_seconds: How long the listener may take nothing.
    """

    def __init__(
        self,
        descriptor: int,
        on_gone: Callable[[str], None],
        *,
        events: bool = False,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._descriptor = descriptor
        self._on_gone = on_gone
        self._gone = False
        self.events = events
        self._write_seconds = write_seconds
        self._progress_at = 0.0

    def message(self, text: str) -> None:
        """Say a sentence."""
        self._say({"event": "message", "message": text}, text)

    def source(self, name: str, outcome: str, message: str) -> None:
        """Say how a source fared: ``received``, ``partial``, ``failed`` or ``later``."""
        self._say(
            {"event": "source", "source": name, "outcome": outcome, "message": message},
            f"{name}: {outcome}. {message}".rstrip(),
        )

    def progress(self, source: str, count: int, percent: float | None) -> None:
        """Say how far a source is, in bytes and percent, now and then."""
        now = time.monotonic()
        if not self.events or now - self._progress_at < _PROGRESS_SECONDS:
            return
        self._progress_at = now
        event = {"event": "progress", "source": source, "bytes": count, "percent": percent}
        self._say(event, "")

    def change(self, line: str) -> None:
        """Say what a dry run would change, in rsync's itemised form."""
        self._say({"event": "change", "message": line}, line)

    def result(self, *, ok: bool, message: str, files: int = 0, count: int = 0) -> None:
        """Say how a restore ended, with files and bytes sent."""
        self._say(
            {"event": "result", "ok": ok, "message": message, "files": files, "bytes": count},
            message,
        )

    def snapshots(self, snapshots: Sequence[dict[str, Any]]) -> None:
        """Say which snapshots there are."""
        self._say(
            {"event": "snapshots", "snapshots": list(snapshots)},
            "\n".join(f"{each['source']} {each['id']} {each['taken_at']}" for each in snapshots)
            or "There are no snapshots.",
        )

    def _say(self, event: dict[str, Any], text: str) -> None:
        line = json.dumps(event) if self.events else _printable(text)
        try:
            self._write(line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError:
            self._lose("The agent's SSH connection ended.")

    def _write(self, data: bytes) -> None:
        """Write in pieces that never block, whatever the reader does."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        rest = memoryview(data)
        while rest and not self._gone:
            if poller.poll(self._write_seconds * 1000):
                rest = rest[os.write(self._descriptor, rest[:_PIPE_BUF]) :]
            else:
                self._lose("The agent doesn't read what the session says.")

    def _lose(self, reason: str) -> None:
        if not self._gone:
            self._gone = True
            self._on_gone(reason)


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)

"""A bound on how long a call may take altogether, whatever it waits for.

A timeout of `requests` counts from one byte to the next: a server, or a proxy before it, that
lets a byte through now and then would hold the caller for days. Here each connection's socket is
kept at hand, and shut down when the time is over.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import requests.adapters
import urllib3
import urllib3.connection


class Deadline:
    """The sockets of one call, and whether its time is over."""

    def __init__(self) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def watch(self, connected: socket.socket) -> None:
        """Shut this socket down when the time is over."""
        with self._lock:
            # The connection may let go of its own while the answer is still being read.
            self._sockets.append(connected.dup())
            if self.passed:
                _shut(self._sockets)

    def end(self) -> None:
        """The time is over."""
        with self._lock:
            self.passed = True
            _shut(self._sockets)

    def close(self) -> None:
        """Let the sockets go."""
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()


def _shut(sockets: list[socket.socket]) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class _Present(threading.local):
    deadline: Deadline | None = None


_present = _Present()


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Bound the calls that this thread makes over an `Adapter` while the context lasts."""
    bound = Deadline()
    timer = threading.Timer(seconds, bound.end)
    timer.daemon = True
    _present.deadline = bound
    timer.start()
    try:
        yield bound
    finally:
        timer.cancel()
        _present.deadline = None
        bound.close()


class _Connection(urllib3.connection.HTTPConnection):
    """A connection whose socket is watched during each request."""

    _twin: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        # TLS takes the socket itself over, and this one goes on to name the connection.
        self._twin = connected.dup()
        self._watch()
        return connected

    def putrequest(self, *arguments: Any, **keywords: Any) -> None:
        self._watch()
        super().putrequest(*arguments, **keywords)

    def close(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None
        super().close()

    def _watch(self) -> None:
        if _present.deadline is not None and self._twin is not None:
            _present.deadline.watch(self._twin)


class _SecureConnection(_Connection, urllib3.connection.HTTPSConnection):
    """The same with TLS: what stands above comes before urllib3's own, of both kinds."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class Adapter(requests.adapters.HTTPAdapter):
    """Connects like its parent, and keeps the sockets at hand for a `deadline`."""

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """Make the pools' manager, with pools of ours."""
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

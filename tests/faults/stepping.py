"""Inside a program: be killed, or wait for a test, at one of the steps that leave something behind.

A step is what the interpreter tells its audit hooks of (sys.addaudithook): a file that is opened to
be written, renamed or removed, a lock, a program that is started, a connection. So every state
that the program goes through on its way from one effect to the next is reached, and the program
itself knows nothing of it.

A test lays a plan, a small JSON file; the next program of that name takes it, if it is the one that
is meant, and from then on counts its steps:

    {"at": 17, "signal": 9, "word": "create"}

Before its 17th step it sends itself the signal; with signal 0 it writes its number into NAME.waits
and goes on when that file is gone. NAME.steps lists the steps. This file imports nothing but the
standard library, for borg runs in the distribution's Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_STEPS = frozenset(
    {
        "fcntl.flock",
        "os.chmod",
        "os.chown",
        "os.kill",
        "os.killpg",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "socket.bind",
        "socket.connect",
        "sqlite3.connect",
        "subprocess.Popen",
        "tempfile.mkdtemp",
    }
)
_LOOK_SECONDS = 0.002
_WAIT_SECONDS_MAX = 60.0


class Steps:
    """Counts the steps of this process, and does at one of them what the plan says."""

    def __init__(self, folder: Path, name: str, plan: dict[str, Any]) -> None:
        self._at = plan["at"]
        self._signal = plan["signal"]
        self._waits = folder / f"{name}.waits"
        self._log = os.open(
            folder / f"{name}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._process = os.getpid()
        self._count = 0
        self._lock = threading.Lock()
        self._busy = threading.local()

    def step(self, what: str) -> None:
        """Count one, and be killed, or wait, if it is the one."""
        if getattr(self._busy, "is_busy", False) or os.getpid() != self._process:
            return
        self._busy.is_busy = True
        try:
            with self._lock:
                self._count += 1
                count = self._count
                os.write(self._log, f"{count} {what}\n".encode("utf-8", "backslashreplace"))
            if count == self._at:
                if self._signal:
                    os.kill(self._process, self._signal)
                else:
                    self._wait()
        finally:
            self._busy.is_busy = False

    def _wait(self) -> None:
        self._waits.write_text(str(self._process))
        deadline = time.monotonic() + _WAIT_SECONDS_MAX
        while self._waits.exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an event of the interpreter's."""
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, (str, bytes)) or not isinstance(flags, int):
                return
            if not flags & _WRITES or os.fsdecode(path).startswith("/dev/"):
                return
        elif event not in _STEPS:
            return
        if arguments and "__pycache__" in str(arguments[0]):
            return
        self.step(f"{event} {' '.join(map(str, arguments[:2]))}"[:200])


def begin(folder: Path, name: str) -> None:
    """Take the plan for the program of this name, if there is one that means this run of it."""
    plan = _take(folder, name, sys.argv)
    if plan is not None:
        sys.addaudithook(Steps(folder, name, plan).audit)


def _take(folder: Path, name: str, words: Iterable[str]) -> dict[str, Any] | None:
    path = folder / f"{name}.plan"
    try:
        plan: dict[str, Any] = json.loads(path.read_bytes())
        if plan.get("word") is not None and plan["word"] not in words:
            return None
        path.unlink()
    except FileNotFoundError:
        return None
    return plan


class Application:
    """The API's WSGI application: a step before, after, and at each statement of a call.

    With the file API.twice, each call is made twice and its first answer lost, as if the caller
    had not got it and called again.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], folder: Path) -> None:
        self._application = application
        self._folder = folder

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one call."""
        call = environment["PATH_INFO"].rpartition("/")[2]
        if (self._folder / "API.twice").exists():
            self._answer_for_nobody(environment)
        plan = _take(self._folder, "API", [call])
        if plan is None:
            return self._application(environment, start)
        steps = Steps(self._folder, "API", plan)
        with _statements(steps):
            steps.step(f"{call} begins")
            answer = list(self._application(environment, start))
            steps.step(f"{call} is done")
        return answer

    def _answer_for_nobody(self, environment: dict[str, Any]) -> None:
        import io

        body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        copy = {**environment, "wsgi.input": io.BytesIO(body)}
        list(self._application(copy, lambda *_: None))
        environment["wsgi.input"] = io.BytesIO(body)


@contextlib.contextmanager
def _statements(steps: Steps) -> Iterator[None]:
    from django.db import connection

    def around(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        steps.step(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(around):
        yield


def begin_api(folder: Path) -> None:
    """Let the API that this process serves go by plans."""
    from unittest import mock

    from turku_core.api import serve

    class Server(serve.Server):
        def load(self) -> Any:
            return Application(super().load(), folder)

    mock.patch.object(serve, "Server", Server).start()

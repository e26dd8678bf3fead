"""Processes that are looked after: started, waited for, and all gone in the end.

Whoever uses this becomes the "subreaper" of everything below it (prctl(2)), so that a process
whose parent ended, such as sshd's process of a session, is still found and ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from turku_core.errors import TurkuError

_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2), linux/prctl.h"""

_TERM_SECONDS = 15.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Service:
    """A process that is to run until it is told to end, and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    log_begins: int
    """How many bytes the log held before this run."""

    def output(self) -> str:
        """Return what the process has said so far."""
        with self.log.open("rb") as file:
            file.seek(self.log_begins)
            return file.read().decode("utf-8", "replace")

    def has_ended(self) -> bool:
        """Say whether the process is gone."""
        return self.process.poll() is not None


class Processes:
    """The services of one supervisor."""

    def __init__(self, logs: Path) -> None:
        """Take the folder for the logs, and become the subreaper of what is started."""
        self._logs = logs
        self.services: list[Service] = []
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Service:
        """Start a service whose output goes to a log of its name."""
        path = self._logs / f"{name}.log"
        with path.open("ab") as log:
            begins = log.tell()
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )
        service = Service(name, process, path, begins)
        self.services.append(service)
        return service

    def wait_for_line(self, service: Service, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until the service has said something that matches, and return the match.

        Raises:
            TurkuError: It ended, or didn't say it in time; the message has its last words.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + seconds
        while True:
            ended = service.has_ended()
            found = compiled.search(service.output())
            if found is not None:
                return found
            if ended:
                raise ServiceEnded(f"{service.name} ended: {_last_words(service)}")
            if time.monotonic() > deadline:
                raise TurkuError(
                    f"{service.name} did not start within {seconds:.0f} s: {_last_words(service)}"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.process.wait(_POLL_SECONDS)

    def wait(self, others: Sequence[int]) -> list[int]:
        """Wait until a service ends or one of some file descriptors is readable.

        Returns:
            Those of `others` that are readable.
        """
        watched = {
            os.pidfd_open(service.process.pid): service
            for service in self.services
            if not service.has_ended()
        }
        try:
            ready, _, _ = select.select([*watched, *others], [], [])
        finally:
            for descriptor in watched:
                os.close(descriptor)
        return [descriptor for descriptor in others if descriptor in ready]

    def stop(self, services: Sequence[Service] | None = None) -> None:
        """End some services, or everything below this process, and wait until it is gone.

        Each is asked with SIGTERM, the last started first; what stays is killed.
        """
        for service in reversed(self.services if services is None else services):
            if not service.has_ended():
                service.process.terminate()
            try:
                service.process.wait(_TERM_SECONDS)
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait()
            self.services = [known for known in self.services if known is not service]
        if services is None:
            _end_descendants()


class ServiceEnded(TurkuError):
    """A service ended although nobody had told it to."""


def _last_words(service: Service) -> str:
    lines = service.output().strip().splitlines()[-5:]
    return f"{' / '.join(lines) or 'it said nothing'} (see {service.log})"


def _end_descendants() -> None:
    _end_each(signal.SIGTERM, _TERM_SECONDS / 3)
    _end_each(signal.SIGKILL, _TERM_SECONDS)


def _end_each(number: signal.Signals, seconds: float) -> None:
    """Send a signal to every descendant, again as new ones appear, until there is none."""
    told: set[int] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _reap()
        left = list(_descendants(os.getpid()))
        if not left:
            return
        for pid in left:
            if pid not in told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
                told.add(pid)
        time.sleep(_POLL_SECONDS)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(ancestor: int) -> Iterator[int]:
    """Yield the processes below one (proc_pid_stat(5): the fourth field is the parent)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):
            parent = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(entry.name))
    waiting = list(children.get(ancestor, []))
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def retry_on_end(attempts: int, start: Callable[[], Service]) -> Service:
    """Start a service that may find its port taken, up to `attempts` times."""
    for _ in range(attempts - 1):
        with contextlib.suppress(ServiceEnded):
            return start()
    return start()

"""A local Turku, started and stopped from Python: what ``turku-local`` and tests use."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from turku_core.configuration import ensure_private_folder
from turku_core.errors import TurkuError
from turku_core.local import parts
from turku_core.local.layout import Layout, make_layout, program
from turku_core.local.supervisor import Running, read_running
from turku_core.storage.queue import Queue
from turku_core.storage.reports import Spool
from turku_core.storage.settings import Paths

RUN_SECONDS = 3600.0
_POLL_SECONDS = 0.02
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Machine:
    """A machine of a local Turku: an agent's root, and what can be done with it."""

    name: str
    root: Path

    @property
    def uuid(self) -> str:
        """The machine's UUID, once it is registered."""
        identity = self.root / "var/lib/turku-agent/config.d/identity.json"
        value: str = json.loads(identity.read_text("utf-8"))["machine_uuid"]
        return value

    def write_source(self, name: str, settings: Mapping[str, Any]) -> None:
        """Drop a source's file into ``sources.d``."""
        folder = self.root / "etc/turku-agent/sources.d"
        parts.write_configuration(folder, f"{name}.json", {name: dict(settings)})

    def snapshots(self) -> list[dict[str, Any]]:
        """Return what ``turku-agent-ping --list --json`` says, the oldest first."""
        answer = json.loads(self.run("turku-agent-ping", "--list", "--json").output)
        listed: list[dict[str, Any]] = answer["snapshots"]
        return listed

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return the command of one of the agent's programs for this machine."""
        return [program(name), "--root", str(self.root), *arguments]

    def run(self, name: str, *arguments: str, check: bool = True) -> Finished:
        """Run one of the agent's programs, such as ``turku-agent-ping``, to its end."""
        return run_command(self.command(name, *arguments), check=check)


@dataclass(frozen=True)
class Finished:
    """What a program did."""

    exit_code: int
    output: str
    errors: str


def run_to_end(
    command: Sequence[str], output: int | None, errors: int | None = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; when this process is interrupted, let it clean up first.

    Args:
        command: The program and its arguments.
        output, errors: As `subprocess.Popen` takes them; None is where ours go.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        text=True,
        errors="surrogateescape",
    )
    try:
        said, complained = process.communicate(timeout=RUN_SECONDS)
    except BaseException:
        process.terminate()
        try:
            process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise
    return subprocess.CompletedProcess(
        process.args, process.returncode, said or "", complained or ""
    )


def run_command(command: Sequence[str], *, check: bool = True) -> Finished:
    """Run a program to its end.

    Raises:
        TurkuError: It failed and `check` is true.
    """
    done = run_to_end(command, subprocess.PIPE)
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).encode("utf-8", "replace").decode()
        raise TurkuError(f"{Path(command[0]).name} failed with exit code {done.returncode}: {said}")
    return Finished(done.returncode, done.stdout, done.stderr)


class LocalTurku:
    """A whole Turku in one folder: an API, an SSH daemon, a storage unit and its worker.

    As a context manager it runs as long as the block, and never outlives this process. Its
    processes run as the user who starts it.

    Args:
        folder: Is made when it isn't there; what is in it is used again.
        api_settings: Further settings of the API (``etc/turku-api/config.d``).
        storage_settings: Further settings of the storage unit, such as ``snapshot_mode``.
        has_worker: Whether the storage unit's worker runs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        api_settings: Mapping[str, Any] | None = None,
        storage_settings: Mapping[str, Any] | None = None,
        has_worker: bool = True,
    ) -> None:
        self.layout: Layout = make_layout(folder)
        self._api_settings = dict(api_settings or {})
        self._storage_settings = dict(storage_settings or {})
        self._has_worker = has_worker
        self._supervisor: subprocess.Popen[str] | None = None

    def __enter__(self) -> LocalTurku:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> Running:
        """Where it is.

        Raises:
            TurkuError: It was never started.
        """
        running = read_running(self.layout)
        if running is None:
            raise TurkuError(f"There is no Turku in {self.layout.folder}: start it first.")
        return running

    def start(self, *, detached: bool = False) -> Running:
        """Start everything and wait until it runs.

        Args:
            detached: Whether it is to go on when this process has ended.

        Raises:
            TurkuError: Something didn't start; nothing of it is left running.
        """
        ensure_private_folder(self.layout.folder)
        ensure_private_folder(self.layout.logs)
        self._write_settings()
        command = [sys.executable, "-m", "turku_core.local.supervisor", str(self.layout.folder)]
        command += [] if detached else ["--lifeline"]
        command += [] if self._has_worker else ["--no-worker"]
        with (self.layout.logs / "supervisor.log").open("ab") as log:
            supervisor = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            running = self._wait_for_announcement(supervisor)
        except BaseException:
            _end(supervisor)
            raise
        if not detached:
            self._supervisor = supervisor
        return running

    def _write_settings(self) -> None:
        for part, root, values in (
            ("turku-api", self.layout.api, self._api_settings),
            ("turku-storage", self.layout.storage, self._storage_settings),
        ):
            if values:
                parts.write_configuration(root / "etc" / part / "config.d", "50-wish.json", values)

    def _wait_for_announcement(self, supervisor: subprocess.Popen[str]) -> Running:
        assert supervisor.stdout is not None
        line = supervisor.stdout.readline()
        answer = json.loads(line) if line else {"error": "The supervisor ended without a word."}
        if "error" in answer:
            supervisor.wait()
            raise TurkuError(f"{answer['error']} More is in {self.layout.logs}.")
        return Running(**answer)

    def stop(self) -> bool:
        """End everything and wait until it is gone; return whether it ran at all."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            was_running = supervisor.poll() is None
            _end(supervisor)
            return was_running
        return stop_detached(self.layout)

    def update_storage(self) -> None:
        """Let the storage unit fetch the list of machines, as its timer does every few minutes."""
        self.storage_run("turku-storage-update-config")

    def api_run(self, *arguments: str, check: bool = True) -> Finished:
        """Run one of ``turku-api``'s commands to its end."""
        command = [program("turku-api"), "--root", str(self.layout.api), *arguments]
        return run_command(command, check=check)

    def storage_run(self, name: str, *arguments: str, check: bool = True) -> Finished:
        """Run one of the storage unit's programs to its end."""
        command = [program(name), "--root", str(self.layout.storage), *arguments]
        return run_command(command, check=check)

    def backup_now(self, machine: Machine) -> None:
        """Make all sources of a machine due at its next check-in."""
        self.api_run("backup-now", machine.uuid)

    def wait_until_committed(self, seconds: float = RUN_SECONDS) -> None:
        """Wait until the worker has made every snapshot that is due, and the API knows of it.

        Raises:
            TurkuError: A snapshot couldn't be made, or not in time.
        """
        paths = Paths(self.layout.storage)
        deadline = time.monotonic() + seconds
        while True:
            jobs = Queue(paths.queue).jobs()
            failed = [job for job in jobs if job.error]
            if failed:
                raise TurkuError(
                    f"The worker can't make snapshot {failed[0].snapshot}: {failed[0].error}"
                )
            if not jobs and not Spool(paths.reports).waiting():
                return
            if time.monotonic() > deadline:
                raise TurkuError(f"The worker wasn't done within {seconds:.0f} s.")
            time.sleep(_POLL_SECONDS)

    def add_machine(
        self, name: str, sources: Mapping[str, Mapping[str, Any]], **settings: Any
    ) -> Machine:
        """Make a machine with its sources and register it; the storage unit knows it then.

        Args:
            name: Its ``unit_name``, and the name of its folder.
            sources: The settings of each source by its name.
            settings: Further settings of the agent (``etc/turku-agent/config.d``).
        """
        keys = json.loads(self.layout.registration_keys.read_text("utf-8"))
        root = parts.set_up_machine(
            self.layout, name, self.running.api_url, keys["machine"], settings
        )
        machine = Machine(name, root)
        for source, values in sources.items():
            machine.write_source(source, values)
        machine.run("turku-update-config")
        self.update_storage()
        return machine


def is_up(layout: Layout) -> bool:
    """Say whether the folder's Turku runs: whether its supervisor holds the lock."""
    try:
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def stop_detached(layout: Layout) -> bool:
    """End a Turku that was started detached and wait until it is gone.

    Returns:
        Whether it was up.
    """
    running = read_running(layout)
    if running is None or not is_up(layout):
        return False
    with contextlib.suppress(ProcessLookupError), _process(running.pid) as supervisor:
        signal.pidfd_send_signal(supervisor, signal.SIGTERM)
        # It ends when everything is gone.
        select.select([supervisor], [], [])
    return True


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """Give a descriptor of a process, which is readable when that has ended (pidfd_open(2))."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end(supervisor: subprocess.Popen[str]) -> None:
    """Ask the supervisor to end and wait for it; it ends its services within bounded time."""
    supervisor.terminate()
    for stream in (supervisor.stdin, supervisor.stdout):
        if stream is not None:
            stream.close()
    supervisor.wait()

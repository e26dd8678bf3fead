"""The process that a local Turku lives in: it starts the parts, and ends them when it ends.

    python -m turku_core.local.supervisor FOLDER [--lifeline] [--no-worker]

Once everything runs, one line of JSON on standard output says where; when it can't, the line says
why. It ends on SIGTERM, SIGINT or, with ``--lifeline``, when its standard input closes, so that it
never outlives who started it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from turku_core.configuration import ensure_private_folder, write_durably
from turku_core.errors import FAILED, TurkuError
from turku_core.local import parts
from turku_core.local.layout import Layout, make_layout, program
from turku_core.local.processes import Processes, Service, ServiceEnded, retry_on_end

logger = logging.getLogger(__name__)

_START_SECONDS = 60.0
_ATTEMPTS = 5
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Running:
    """Where a running local Turku is; the content of ``local.json``."""

    pid: int
    api_port: int
    ssh_port: int
    ssh_user: str

    @property
    def api_url(self) -> str:
        """The base URL of the v1 calls."""
        return f"https://{parts.ADDRESS}:{self.api_port}/v1"

    @property
    def admin_url(self) -> str:
        """The administration site."""
        return f"https://{parts.ADDRESS}:{self.api_port}/admin/"


class AlreadyRunning(TurkuError):
    """The folder's Turku is up."""


def main() -> NoReturn:
    """Run the supervisor, and end the process."""
    parser = argparse.ArgumentParser(prog="turku-local-supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lifeline", action="store_true")
    parser.add_argument("--no-worker", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        supervise(
            make_layout(arguments.folder),
            has_lifeline=arguments.lifeline,
            has_worker=not arguments.no_worker,
        )
    except _Stopped:
        logger.info("told to end")
    except TurkuError as error:
        logger.error("%s", error)
        _announce({"error": str(error)})
        sys.exit(FAILED)
    sys.exit(0)


class _Stopped(BaseException):
    """A signal asked this process to end."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped


def supervise(layout: Layout, *, has_lifeline: bool, has_worker: bool) -> None:
    """Start everything, announce it, and keep it until told to end."""
    ensure_private_folder(layout.folder)
    ensure_private_folder(layout.logs)
    with _locked(layout):
        processes = Processes(layout.logs)
        try:
            running = _start(layout, processes, has_worker=has_worker)
            _announce(asdict(running))
            if not has_lifeline:
                _let_go_of_output()
            _keep(processes, has_lifeline=has_lifeline)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            processes.stop()


@contextlib.contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    """Hold the folder's lock, which tells everyone that its Turku is up."""
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, layout.folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock; whoever only looks whether it is held lets go of it at once."""
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
        else:
            return
    raise AlreadyRunning(f"The Turku in {folder} is already up.")


def read_running(layout: Layout) -> Running | None:
    """Return where the folder's Turku was started last, whether or not it still runs."""
    try:
        return Running(**json.loads(layout.state.read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _start(layout: Layout, processes: Processes, *, has_worker: bool) -> Running:
    before = read_running(layout)
    user = parts.user_name()
    api_port = _start_api(layout, processes, before.api_port if before else 0)
    keys = parts.ensure_registration_keys(layout)
    parts.ensure_admin(layout)
    ssh_port, host_key = _start_sshd(layout, processes, user, before.ssh_port if before else 0)
    running = Running(os.getpid(), api_port, ssh_port, user)
    parts.set_up_storage(
        layout,
        running.api_url,
        keys["storage"],
        {
            "ssh_ping_host": parts.ADDRESS,
            "ssh_ping_port": ssh_port,
            "ssh_ping_user": user,
            "ssh_ping_host_keys": [host_key],
        },
    )
    write_durably(layout.state, json.dumps(asdict(running), indent=2) + "\n", 0o600)
    parts.run_program("turku-storage-update-config", "--root", str(layout.storage))
    if has_worker:
        processes.start(
            "worker", [program("turku-storage-worker"), "--root", str(layout.storage), "--verbose"]
        )
    return running


def _start_api(layout: Layout, processes: Processes, port: int) -> int:
    """Start the API on its port of last time when that is still free, and return the port."""
    port = port if port and parts.is_free(port) else 0
    parts.set_up_api(layout, port, datetime.now(timezone.utc))
    service = processes.start(
        "api", [program("turku-api"), "--root", str(layout.api), "serve", "--migrate"]
    )
    found = processes.wait_for_line(service, r"^The API listens on \S+:(\d+)\s*$", _START_SECONDS)
    return int(found[1])


def _start_sshd(layout: Layout, processes: Processes, user: str, port: int) -> tuple[int, str]:
    """Start the SSH daemon, and return its port and its host key's public line."""
    wish = port if port and parts.is_free(port) else None
    chosen, host_key = 0, ""

    def start() -> Service:
        nonlocal wish, chosen, host_key
        # Somebody may take a free port before sshd does: it then ends, and another is tried.
        chosen, wish = wish or parts.free_port(), None
        configuration, host_key = parts.set_up_sshd(layout, chosen, user)
        service = processes.start("sshd", parts.sshd_command(configuration))
        processes.wait_for_line(service, r"^Server listening on ", _START_SECONDS)
        return service

    retry_on_end(_ATTEMPTS, start)
    return chosen, host_key


def _keep(processes: Processes, *, has_lifeline: bool) -> None:
    """Watch over the services until the lifeline breaks."""
    lifeline = [sys.stdin.fileno()] if has_lifeline else []
    while True:
        readable = processes.wait(lifeline)
        if readable and not os.read(readable[0], 1024):
            logger.info("the lifeline is closed")
            return
        for service in processes.services:
            if service.has_ended():
                raise ServiceEnded(
                    f"{service.name} ended with exit code {service.process.returncode}, and the "
                    f"rest with it: see {service.log}."
                )


def _announce(values: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(values), flush=True)


def _let_go_of_output() -> None:
    """Close the pipe of whoever waited for the announcement."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()

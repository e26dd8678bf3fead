"""A storage unit for its own tests: real sshd, rsync and snapshots, and a stand-in for the API."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.sshd import Sshd, running_sshd
from tests.support.stand_in_api import StandInApi, running_api

SECONDS = 60


@dataclass
class Unit:
    """A storage unit in a folder of its own."""

    root: Path
    sshd: Sshd
    api: StandInApi
    volume: Path
    clients: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.root / "var/lib/turku-storage"

    @property
    def log(self) -> str:
        """What its sessions have logged."""
        path = self.state / "sessions.log"
        return path.read_text() if path.exists() else ""

    def configure(self, **values: Any) -> None:
        """Write its configuration."""
        folder = self.root / "etc/turku-storage/config.d"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "api_url": self.api.url,
            "api_auth_name": "storages",
            "api_auth_secret": "registration-secret",
            "ssh_ping_host": "127.0.0.1",
            "ssh_ping_port": self.sshd.port,
            "ssh_ping_host_keys": [self.sshd.host_key],
            "snapshot_mode": "link-dest",
            "volumes": {"main": {"path": str(self.volume), "accept_new_high_water_pct": 99}},
            **values,
        }
        (folder / "10-test.json").write_text(json.dumps(settings))

    @staticmethod
    def program(name: str) -> str:
        """Return the path of a console script."""
        return str(Path(sys.executable).parent / name)

    def run(self, program: str, *arguments: str, code: int | None = 0) -> str:
        """Run one of its console scripts and return what it printed on both outputs."""
        done = subprocess.run(
            [self.program(program), *arguments, "--root", str(self.root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            text=True,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout
        return done.stdout

    def run_json(self, *arguments: str, code: int = 0) -> Any:
        """Run ``turku-storage`` with ``--json`` and return what it printed for a program."""
        done = subprocess.run(
            [self.program("turku-storage"), *arguments, "--json", "--root", str(self.root)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def drain(self) -> str:
        """Let the worker do everything that is due."""
        return self.run("turku-storage-worker", "--once", code=None)

    def snapshots(self, machine: Machine, source: str = "docs") -> list[str]:
        """Return the ids of a source's snapshots that are on record."""
        folder = self.volume / "machines" / machine.uuid / source / "snapshots"
        return sorted(path.stem for path in folder.glob("[0-9]*.json"))


@dataclass
class Machine:
    """An agent of v1's form: an rsync daemon on this host's loopback, and ssh to the unit."""

    unit: Unit
    folder: Path
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    port: int = 0
    login: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The tree of its source ``docs``."""
        return self.folder / "data"

    @property
    def public_key(self) -> str:
        """Its SSH public key."""
        return (self.folder / "key.pub").read_text().strip()

    def assigned(self) -> dict[str, Any]:
        """What the API says of it to the storage unit."""
        return {
            "unit_name": f"unit-{self.uuid[:4]}",
            "service_name": "web",
            "environment_name": "test",
            "comment": "",
            "ssh_public_key": self.public_key,
        }

    def source(self, **values: Any) -> dict[str, Any]:
        """Return the source ``docs`` as the API describes it."""
        return {
            "path": str(self.data),
            "retention": "last 5 days, earliest of month",
            "bwlimit": "",
            "filter": [],
            "exclude": [],
            "shared_service": False,
            "large_rotating_files": False,
            "large_modifying_files": False,
            "snapshot_mode": None,
            "preserve_hard_links": True,
            **values,
        }

    def schedule(self, **sources: dict[str, Any]) -> None:
        """Let the API have sources due: ``docs`` as it is, unless others are given."""
        self.unit.api.answers["storage_ping_checkin"] = {
            "machine": {
                "uuid": self.uuid,
                "unit_name": "unit",
                "scheduled_sources": sources or {"docs": self.source()},
            }
        }

    @contextlib.contextmanager
    def daemon(self, **modules: Path) -> Iterator[None]:
        """Run its rsync daemon; a module ``turku_restore`` is the writable one."""
        self.login = {"username": secrets.token_hex(8), "password": secrets.token_hex(16)}
        passwords = self.folder / "secrets"
        passwords.write_text(f"{self.login['username']}:{self.login['password']}\n")
        passwords.chmod(0o600)
        lines = ["use chroot = no", "list = no"]
        if os.geteuid() == 0:
            lines += ["uid = 0", "gid = 0"]
        for name, path in (modules or {"docs": self.data}).items():
            module = name.replace("_", "-")
            lines += [
                f"[{module}]",
                f"path = {path}",
                f"auth users = {self.login['username']}",
                f"secrets file = {passwords}",
                f"read only = {'no' if module == 'turku-restore' else 'yes'}",
            ]
        configuration = self.folder / "rsyncd.conf"
        configuration.write_text("\n".join(lines) + "\n")
        with _serving(["rsync", "--daemon", f"--config={configuration}"]) as self.port:
            yield

    def connect(self) -> Connection:
        """Open an SSH session with a tunnel of the unit's sshd's choice."""
        return Connection(self)

    def ask(self, request: dict[str, Any], *, half_close: bool = True) -> Spoken:
        """Open a session, send a request, and return how it ended."""
        connection = self.connect()
        connection.send(request)
        return connection.finish(half_close=half_close)

    def connect_without_tunnel(self, request: dict[str, Any]) -> Spoken:
        """Open a session that needs no tunnel, send a request, and return how it ended."""
        self.port = 0
        return self.ask(request)

    def check_in(self, *sources: str) -> Spoken:
        """Check in with these sources (``docs``)."""
        with self.daemon():
            return self.ask({"action": "checkin", "sources": self.logins(*sources or ("docs",))})

    def logins(self, *names: str) -> dict[str, dict[str, str]]:
        """Return the request's ``sources`` for these modules."""
        return dict.fromkeys(names, self.login)


@dataclass(frozen=True)
class Spoken:
    """How a session ended, and what the unit said in events."""

    code: int
    output: str
    errors: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events, in order."""
        return [json.loads(line) for line in self.output.splitlines()]

    def outcome(self, source: str) -> str:
        """Return how a source fared."""
        for event in self.events:
            if event["event"] == "source" and event["source"] == source:
                return str(event["outcome"])
        raise AssertionError(self.output + self.errors)

    @property
    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]


class Connection:
    """One ssh of a machine, as a process."""

    def __init__(self, machine: Machine) -> None:
        key = machine.folder / "key"
        options = ["-R", f"0:127.0.0.1:{machine.port}"] if machine.port else []
        self.process = subprocess.Popen(
            [*machine.unit.sshd.client_command(key, options), "turku-ping-remote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        machine.unit.clients.append(self.process)
        self.port: int | None = None
        if options:
            assert self.process.stderr is not None
            line = self.process.stderr.readline()
            found = re.search(r"Allocated port (\d+)", line)
            assert found is not None, line + self.process.stderr.read()
            self.port = int(found[1])

    def send(self, request: dict[str, Any]) -> None:
        """Send a request with the tunnel's port, asking for events."""
        whole = {"verbose": True, "events": True, "port": self.port, **request}
        self.send_raw(json.dumps(whole) + "\n.\n")

    def send_raw(self, text: str) -> None:
        """Send bytes of one's own making."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def read_messages(self, until: str) -> list[str]:
        """Return the messages up to the one that begins so."""
        assert self.process.stdout is not None
        messages: list[str] = []
        while not messages or not messages[-1].startswith(until):
            line = self.process.stdout.readline()
            assert line, messages
            messages.append(json.loads(line)["message"])
        return messages

    def finish(self, *, half_close: bool = True) -> Spoken:
        """Wait for the end and return how it was."""
        if half_close:
            output, errors = self.process.communicate(timeout=SECONDS)
        else:
            assert self.process.stdout is not None and self.process.stderr is not None
            output, errors = self.process.stdout.read(), self.process.stderr.read()
            self.process.wait(SECONDS)
        return Spoken(self.process.returncode, output, errors)

    def kill(self) -> None:
        """End it as a lost network would, without a goodbye."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=SECONDS)


def wait_for(condition: Any, seconds: float = SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't come to pass"
        time.sleep(0.05)


@contextlib.contextmanager
def _serving(command: list[str]) -> Iterator[int]:
    """Run a command for each connection, as inetd does, and yield the port."""
    children: list[subprocess.Popen[bytes]] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    children.append(
                        subprocess.Popen(
                            command,
                            stdin=connection.fileno(),
                            stdout=connection.fileno(),
                            stderr=subprocess.DEVNULL,
                        )
                    )

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)
            for child in children:
                child.kill()
                child.wait()


@pytest.fixture
def api() -> Iterator[StandInApi]:
    """A stand-in for the API."""
    with running_api() as running:
        yield running


@pytest.fixture
def unit(api: StandInApi) -> Iterator[Unit]:
    """A storage unit that is configured but not registered."""
    folder = Path(tempfile.mkdtemp(prefix="turku-unit-"))
    root = folder / "root"
    volume = folder / "volume"
    volume.mkdir(mode=0o700)
    (root / "var/lib/turku-storage").mkdir(mode=0o700, parents=True)
    keys = root / "var/lib/turku-storage/.ssh/authorized_keys"
    try:
        with running_sshd(authorized_keys=keys) as sshd:
            made = Unit(root, sshd, api, volume)
            made.configure()
            yield made
            for client in made.clients:
                client.kill()
                client.communicate()
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder in which a session whose client was killed may still write its last."""
    deadline = time.monotonic() + SECONDS
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        assert time.monotonic() < deadline, f"{folder} can't be removed"
        time.sleep(0.1)


@pytest.fixture
def machine(unit: Unit) -> Iterator[Machine]:
    """A machine that is assigned to the unit and can log in, with a small tree."""
    yield add_machine(unit)


def add_machine(unit: Unit) -> Machine:
    """Make a machine and let the unit know of it."""
    folder = Path(tempfile.mkdtemp(prefix="machine-", dir=unit.root.parent))
    made = Machine(unit, folder)
    made.data.mkdir()
    (made.data / "one").write_text("first")
    (made.data / "sub").mkdir()
    (made.data / "sub/two").write_text("second")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    answer = unit.api.answers["storage_update_config"]
    assert isinstance(answer, dict)
    answer["machines"][made.uuid] = made.assigned()
    unit.run("turku-storage-update-config")
    made.schedule()
    return made

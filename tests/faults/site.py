"""A whole Turku in a network of its own, whose network fails, and what is to be true afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tests.faults.bad_api import BadApi, bad_api
from tests.faults.wire import NAME, Names, Wire, name_server, own_network, with_name_server
from turku_core.errors import TRY_AGAIN_LATER
from turku_core.local.layout import program
from turku_core.local.turku import Finished, LocalTurku, Machine
from turku_core.protocol.client import Client
from turku_core.storage import slots
from turku_core.storage.listeners import read_listeners
from turku_core.storage.settings import Paths

SOURCE = "docs"
_POLL_SECONDS = 0.05
_BUSY = "is at work already"
"""What a session says of a source that the worker proves or expires at that moment."""

_OF_A_SESSION = ("sshd: ", "ssh -F", "rsync ", "turku-storage-ping", "turku-agent-ping")

QUICK: Mapping[str, tuple[str, ...]] = {
    "ssh": ("ServerAliveInterval=2", "ServerAliveCountMax=5", "ConnectTimeout=10"),
    "sshd": ("ClientAliveInterval=2", "ClientAliveCountMax=4", "LoginGraceTime=20"),
}
"""Keepalives in seconds instead of quarters of a minute; otherwise ssh and sshd are as ever."""

PLAIN: Mapping[str, tuple[str, ...]] = {"ssh": (), "sshd": ()}


@dataclass
class Site:
    """An API, a storage unit and a machine, and the states that its source went through."""

    folder: Path
    wire: Wire
    names: Names
    turku: LocalTurku
    api: BadApi
    machine: Machine
    source: Path
    dice: random.Random
    generations: dict[str, dict[str, bytes]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    """Snapshots that have been listed."""
    session_bytes: int = 0
    """How many bytes a session takes, as the first clean run measured."""

    def __post_init__(self) -> None:
        self._client = Client([self.turku.running.api_url], self.turku.layout.ca_certificate)
        self._listeners = self._ports()

    @property
    def paths(self) -> Paths:
        """Where the storage unit keeps its files."""
        return Paths(self.turku.layout.storage)

    @property
    def ssh_port(self) -> int:
        """Where the storage unit's sshd listens."""
        return self.turku.running.ssh_port

    def change(self, size: int = 150_000) -> str:
        """Let the source be another, and return the name of its state."""
        name = f"state {len(self.generations)}"
        files = {
            "name": name.encode(),
            "data": self.dice.randbytes(size),
            f"only in {name}": self.dice.randbytes(self.dice.randrange(3000)),
            "same": b"same" * 100,
        }
        for path in self.source.iterdir():
            if path.name not in files:
                path.unlink()
        for each, content in files.items():
            if each != "same" or not (self.source / each).exists():
                (self.source / each).write_bytes(content)
        self.generations[name] = files
        return name

    def make_due(self) -> None:
        """Ask for a backup, past the proxy."""
        self._client.call("agent_backup_now", {"machine": self.login, "sources": []})

    @property
    def login(self) -> dict[str, str]:
        """What the machine shows to the API."""
        path = self.machine.root / "var/lib/turku-agent/config.d/identity.json"
        identity = json.loads(path.read_text())
        return {"uuid": identity["machine_uuid"], "secret": identity["machine_secret"]}

    def run(self, name: str, *arguments: str, seconds: float) -> Finished:
        """Run one of the agent's programs; it has to end by itself in that time."""
        command = with_name_server(self.folder, self.machine.command(name, *arguments))
        return run_in_time(command, seconds)

    def ping(self, *, seconds: float) -> Finished:
        """Let the machine check in; once more while the worker itself is busy with the source."""
        deadline = time.monotonic() + seconds
        while True:
            before = len(self.log())
            done = self.run("turku-agent-ping", seconds=seconds)
            is_busy = done.exit_code == TRY_AGAIN_LATER and _BUSY in self.log()[before:]
            if not is_busy or time.monotonic() > deadline:
                return done
            self.later()
            self.make_due()

    def settle(self, seconds: float) -> None:
        """Wait until nothing of a session is left; it has to be so in that time."""
        deadline = time.monotonic() + seconds
        while left := self._left():
            assert time.monotonic() < deadline, f"still there after {seconds} s: {left}"
            time.sleep(_POLL_SECONDS)

    def _left(self) -> list[str]:
        left = [f"process {each}" for each in self._processes()]
        left += [f"slot of {each.machine}" for each in slots.running(self.paths.slots)]
        left += [f"port {each}" for each in self._ports() - self._listeners]
        sessions = self.machine.root / "run/turku-agent/sessions"
        if sessions.is_dir():
            left += [f"folder {each.name}" for each in sessions.iterdir() if each.is_dir()]
        return left

    @staticmethod
    def _processes() -> list[str]:
        """Return the programs of sessions in this network namespace."""
        own = os.readlink("/proc/thread-self/ns/net")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(path / "ns/net") != own:
                    continue
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                is_listener = words.startswith("sshd: ") and "[listener]" in words
                if any(each in words for each in _OF_A_SESSION) and not is_listener:
                    found.append(words)
        return found

    @staticmethod
    def _ports() -> set[int]:
        return {each.port for each in read_listeners(Path("/proc/thread-self/net"))}

    def later(self) -> None:
        """Let two hours go by for the leases: what was handed out, and not used, is given back.

        Before that, see that they would have ended by themselves.
        """
        with self.database() as rows:
            limit = datetime.now(timezone.utc) + timedelta(minutes=11)
            for (until,) in rows.execute(
                "SELECT lease_until FROM turku_api_source WHERE lease_until IS NOT NULL"
            ):
                lease = datetime.fromisoformat(until).replace(tzinfo=timezone.utc)
                assert lease < limit, "a lease that outlives its session"
            before = datetime.now(timezone.utc) - timedelta(hours=2)
            # What is leased is looked at again when the lease is over.
            leased = "SELECT machine_id FROM turku_api_source WHERE lease_until IS NOT NULL"
            query = f"UPDATE turku_api_machine SET next_due_at = ? WHERE id IN ({leased})"
            rows.execute(query, (f"{before:%Y-%m-%d %H:%M:%S}",))
            query = "UPDATE turku_api_source SET next_due_at = ? WHERE lease_until IS NOT NULL"
            rows.execute(query, (f"{before:%Y-%m-%d %H:%M:%S}",))
            rows.execute(
                "UPDATE turku_api_source SET lease_until = ?, leased_at = ? "
                "WHERE lease_until IS NOT NULL",
                (f"{before:%Y-%m-%d %H:%M:%S}", f"{before - timedelta(1):%Y-%m-%d %H:%M:%S}"),
            )

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Open the API's database."""
        (path,) = (self.turku.layout.api / "var/lib/turku-api").glob("*.sqlite3")
        connection = sqlite3.connect(path, timeout=30)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def clean_run(self) -> None:
        """Do what has to go well when nothing is in the way: a backup, from end to end."""
        self.wire.heal()
        self.api.spoil("", "", 0)
        self.later()
        state = self.change()
        self.make_due()
        is_first = not self.session_bytes
        if is_first:
            self.wire.count(self.ssh_port)
        done = self.ping(seconds=240)
        assert done.exit_code == 0, (done, self.log()[-2000:])
        if is_first:
            self.session_bytes = self.wire.counted()
            self.wire.heal()
        self.turku.wait_until_committed(240)
        self.settle(240)
        assert state in self.held().values(), f"the clean run's {state} is not kept"

    def trees(self) -> dict[str, Path]:
        """Return the snapshots that are listed, and where the files of each lie."""
        folder = self.turku.layout.volume / "machines" / self.machine.uuid / SOURCE / "snapshots"
        return {path.stem: path.with_suffix("") for path in folder.glob("*.json")}

    def held(self) -> dict[str, str]:
        """Return which state of the source each snapshot that is listed says to hold."""
        return {name: (tree / "name").read_text() for name, tree in self.trees().items()}

    def count_lost(self) -> int:
        """Return how many snapshots are not what they should be, gone, or untold.

        Each must hold exactly one state of the source; none that was listed before may be missing,
        and none that the API was told of. The API must know of each: nothing waits to be reported.
        """
        trees = self.trees()
        wrong = [name for name, tree in trees.items() if not self._is_whole(tree)]
        with self.database() as rows:
            reported = {
                name
                for (name,) in rows.execute(
                    "SELECT snapshot FROM turku_api_backup WHERE outcome IN ('succeeded','partial')"
                )
            }
        missing = (self.seen | reported) - set(trees)
        untold = set(trees) - reported
        self.seen |= set(trees)
        return len(wrong) + len(missing) + len(untold)

    def _is_whole(self, tree: Path) -> bool:
        found = {path.name: path.read_bytes() for path in tree.iterdir()}
        return found == self.generations.get(found.get("name", b"").decode())

    def restore(self) -> int:
        """Restore the newest snapshot as the machine does; return how many files came wrong."""
        target = self.folder / "restored"
        options = ("--restore", "--source", SOURCE, "--target", str(target))
        done = self.run("turku-agent-ping", *options, seconds=240)
        assert done.exit_code == 0, done
        found = {path.name: path.read_bytes() for path in target.iterdir()}
        shutil.rmtree(target)
        expected = self.generations[f"state {len(self.generations) - 1}"]
        return sum(found.get(name) != expected.get(name) for name in found.keys() | expected)

    def log(self) -> str:
        """Return the log of the storage unit's sessions."""
        path = self.paths.session_log
        return path.read_text(errors="replace") if path.exists() else ""


def run_in_time(command: Sequence[str], seconds: float) -> Finished:
    """Run a program that has to end by itself in that time, and to say no traceback."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    assert "Traceback" not in errors, errors
    return Finished(process.returncode, output, errors)


@contextlib.contextmanager
def running_site(dice: random.Random, options: Mapping[str, tuple[str, ...]]) -> Iterator[Site]:
    """Run a site while the context lasts (root only).

    Args:
        dice: Chance.
        options: Further options of ssh and sshd.
    """
    folder = Path(tempfile.mkdtemp(prefix="turku-net-"))
    former = os.environ["PATH"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(os.environ.__setitem__, "PATH", former)
        os.environ["PATH"] = f"{_make_programs(folder / 'bin', options)}:{former}"
        wire = stack.enter_context(own_network())
        names = stack.enter_context(name_server())
        settings = {"snapshot_mode": "link-dest"}
        turku = LocalTurku(folder / "t", storage_settings=settings, has_worker=False)
        stack.enter_context(turku)
        upstream = turku.running.api_url
        proxy = bad_api(folder / "proxy", upstream, ["127.0.0.1", NAME], dice)
        api = stack.enter_context(proxy)
        reach: dict[str, Any] = {
            "api_url": api.url(),
            "api_ca_certificate": str(api.ca_certificate),
        }
        configuration = turku.layout.storage / "etc/turku-storage/config.d"
        values = {**reach, "ssh_ping_host": NAME}
        (configuration / "60-proxy.json").write_text(json.dumps(values))
        stack.enter_context(_worker(turku))
        source = folder / "source"
        source.mkdir()
        machine = turku.add_machine("machine", {SOURCE: {"path": str(source)}}, **reach)
        yield Site(folder, wire, names, turku, api, machine, source, dice)


def _make_programs(folder: Path, options: Mapping[str, tuple[str, ...]]) -> Path:
    """Put programs there that run ssh and sshd with further options."""
    folder.mkdir()
    for name, values in options.items():
        real = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        words = " ".join(f"-o {value}" for value in values)
        (folder / name).write_text(f'#!/bin/sh\nexec {real} {words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@contextlib.contextmanager
def _worker(turku: LocalTurku) -> Iterator[None]:
    command = [program("turku-storage-worker"), "--root", str(turku.layout.storage)]
    with (turku.layout.logs / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(60)

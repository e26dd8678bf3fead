"""A whole Turku whose programs can be killed at any step, and what must hold of it afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.faults.disks import Disk, made_disk
from tests.support.trees import Entry, describe_tree, differences
from turku_core.checked_json import dumps, read_json
from turku_core.local.layout import program
from turku_core.local.turku import LocalTurku, Machine
from turku_core.storage import expiry, restore
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.ping import make_catalogue
from turku_core.storage.queue import Queue
from turku_core.storage.records import Record
from turku_core.storage.reports import Spool
from turku_core.storage.settings import Settings, read_settings
from turku_core.storage.slots import running
from turku_core.storage.snapshots import Environment
from turku_core.storage.worker import expiry_report

RUN_SECONDS = 120.0
GONE_SECONDS = 60.0
"""Within it everything that a killed program had begun must be gone; most of it is at once."""

MODES = ("borg", "link-dest", "none", *(["btrfs"] if os.geteuid() == 0 else []))
"""Snapshot modes, and what their sources are called. Who isn't root can't mount a btrfs."""

_DISK_MIB = 1024
_LOOK_SECONDS = 0.01
_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2), linux/prctl.h"""

_STEPPING = Path(__file__).with_name("stepping.py")
_PROGRAMS = {
    "turku-agent-ping": "agent.commands:agent_ping",
    "turku-update-config": "agent.commands:update_config",
    "turku-storage": "storage.commands:storage",
    "turku-storage-expire": "storage.commands:expire",
    "turku-storage-ping": "storage.commands:ping",
    "turku-storage-update-config": "storage.commands:update_config",
    "turku-storage-worker": "storage.commands:worker",
    "turku-api": "api.commands:main",
}
_SCRIPT = """\
#!{python}
import os, sys
from pathlib import Path
sys.path.insert(0, {stepping!r})
import stepping
del sys.path[0]
os.environ["PATH"] = {bin!r} + ":" + os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
os.environ["TMPDIR"] = {temporary!r}
stepping.{begin}
from turku_core.{module} import {function}
sys.exit({function}())
"""
_BORG = """\
#!{python}
import runpy, sys
from pathlib import Path
sys.path.insert(0, {stepping!r})
import stepping
del sys.path[0]
stepping.begin(Path({plans!r}), "borg")
sys.argv[0] = {borg!r}
runpy.run_path({borg!r}, run_name="__main__")
"""


def make_programs(folder: Path) -> Path:
    """Make a virtual environment beside ours whose programs go by plans; return its Python.

    It shares our installed packages, so that they are the programs that `make test` installs.
    """
    programs, plans, temporary = folder / "bin", folder / "plans", folder / "tmp"
    for each in (programs, plans, temporary):
        each.mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = programs / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    common = {"stepping": str(_STEPPING.parent), "plans": str(plans), "bin": str(programs)}
    for name, entry in _PROGRAMS.items():
        module, _, function = entry.partition(":")
        begin = f"begin(Path({str(plans)!r}), {name!r})"
        if name == "turku-api":
            begin = f"begin_api(Path({str(plans)!r}))"
        values = {"module": module, "function": function, "begin": begin}
        text = _SCRIPT.format(python=python, temporary=str(temporary), **values, **common)
        _write_program(programs / name, text)
    borg = shutil.which("borg")
    assert borg is not None, "Install borgbackup."
    interpreter = Path(borg).read_text("utf-8").splitlines()[0].removeprefix("#!").strip()
    _write_program(programs / "borg", _BORG.format(python=interpreter, borg=borg, **common))
    return python


def _write_program(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    path.chmod(0o755)


@dataclass
class Ran:
    """How a program ended, and the steps it went through when it had a plan."""

    code: int
    errors: str
    steps: list[str] = field(default_factory=list)


@dataclass
class World:
    """A Turku with one machine, and what is known of its backups.

    Attributes:
        folder: Where all of it lies.
        sources: The folders that are backed up, by the source's name, which is its mode's.
        volume: Where the storage unit keeps them.
        disk: What is mounted there; None where it is a plain folder.
        storage: The root of the storage unit.
        due: The sources that change and are backed up.
        trees: When a backup was begun, and what the sources that were due held then.
    """

    folder: Path
    turku: LocalTurku
    machine: Machine
    dice: random.Random
    sources: dict[str, Path]
    volume: Path
    disk: Disk | None
    storage: Path
    due: Collection[str] = ()
    trees: list[tuple[datetime, dict[str, dict[bytes, Entry]]]] = field(default_factory=list)
    generation: int = 0
    _descendants_before: set[int] = field(default_factory=set)

    # Programs and plans.

    @property
    def plans(self) -> Path:
        """Where programs find what they are to do."""
        return self.folder / "env/plans"

    @property
    def temporary(self) -> Path:
        """The folder for temporary files of the API and the storage unit."""
        return self.folder / "env/tmp"

    @contextlib.contextmanager
    def planned(self, name: str, at: int, number: int, word: str | None = None) -> Iterator[None]:
        """Lay a plan for the next run of a program; what nobody has taken is taken away again."""
        plan = self.plans / f"{name}.plan"
        (self.plans / f"{name}.steps").unlink(missing_ok=True)
        temporary = plan.with_suffix(".new")
        temporary.write_text(json.dumps({"at": at, "signal": number, "word": word}))
        temporary.rename(plan)
        try:
            yield
        finally:
            plan.unlink(missing_ok=True)
            (self.plans / f"{name}.waits").unlink(missing_ok=True)

    def steps(self, name: str) -> list[str]:
        """Return the steps that the last run with a plan went through."""
        try:
            return (self.plans / f"{name}.steps").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []

    def command(self, name: str, *words: str) -> list[str]:
        """Return the command of a program of the machine or the storage unit."""
        root = self.storage if "storage" in name else self.machine.root
        return [program(name), "--root", str(root), *words]

    def start(
        self,
        name: str,
        *words: str,
        output: int = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program, with some more in its environment."""
        return subprocess.Popen(
            self.command(name, *words),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, name: str, *words: str) -> Ran:
        """Run a program to its end."""
        return finish(self.start(name, *words))

    def waiting(self, name: str, process: subprocess.Popen[str]) -> int | None:
        """Return who waits at the step of its plan; None when `process` has ended before."""
        path = self.plans / f"{name}.waits"
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(path.read_text())
            if process.poll() is not None:
                return None
            time.sleep(_LOOK_SECONDS)
        raise AssertionError(f"{name} neither came to its step nor ended")

    def go_on(self, name: str) -> None:
        """Let who waits at its step go on."""
        (self.plans / f"{name}.waits").unlink(missing_ok=True)

    # What happens to it.

    def change(self) -> None:
        """Change every source that is due, and note what is in it."""
        self.generation += 1
        due = {name: self.sources[name] for name in self.due}
        for path in due.values():
            (path / "changing").write_text(f"{self.generation}\n")
            (path / f"only {self.generation}").write_bytes(self.dice.randbytes(3000))
            (path / f"only {self.generation - 2}").unlink(missing_ok=True)
            (path / "large").write_bytes(self.dice.randbytes(256 * 1024))
        now = datetime.now(timezone.utc)
        trees = {name: describe_tree(path) for name, path in due.items()}
        self.trees.append((now, trees))

    def make_due(self) -> None:
        """Let some hours pass: leases and pauses after failures end, and sources get due."""
        queue = self.settings().paths.queue
        for path in queue.glob("*.json"):
            path.write_text(dumps({**read_json(path), "not_before": None}))
        with self.database() as database:
            make_due(database, self.due)

    @contextlib.contextmanager
    def only_due(self, names: Collection[str]) -> Iterator[None]:
        """Let these sources change and be backed up, and no others, while the context lasts."""
        former, self.due = self.due, names
        try:
            yield
        finally:
            self.due = former

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Open the API's database, for one transaction."""
        path = self.turku.layout.api / "var/lib/turku-api/turku.sqlite3"
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database, database:
            yield database

    def converge(self) -> None:
        """Do what happens next anyway: a backup, the worker's round, expiry with its sweeping."""
        self.make_due()
        if self.catalogue().pending() or Queue(self.settings().paths.queue).jobs():
            # What was frozen before is committed first, as it would be in the meantime.
            self.run("turku-storage-worker", "--once")
        self.change()
        self.make_due()
        backed_up = self.run("turku-agent-ping")
        assert backed_up.code == 0, backed_up
        self.expire()
        worked = self.run("turku-storage-worker", "--once")
        assert worked.code == 0, worked

    def expire(self) -> None:
        """Run expiry, which sweeps as well."""
        settings = self.settings()
        catalogue = make_catalogue(settings)
        spool = Spool(settings.paths.reports)
        now = datetime.now(timezone.utc)
        report = expiry.run(
            catalogue,
            Environment(settings.paths.state),
            now,
            floor=settings.expiry_floor,
            grace=settings.expiry_grace,
            default_retention=settings.default_retention,
            tell=lambda change: spool.add(expiry_report(change), now),
        )
        assert report.problems == (), report
        assert report.changes == (), report

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[Callable[[], None]]:
        """Give a way to make the volume what it is now, again and again."""
        copy = self.folder / "copy"
        with self.database() as database:
            states = database.execute("SELECT state, id FROM turku_api_snapshot").fetchall()
        if self.disk is None:
            subprocess.run(["cp", "-a", str(self.volume), str(copy)], check=True)
        else:
            self.disk.unmount()
            self.disk.keep(copy)
            self.disk.mount()

        def put_back() -> None:
            if self.disk is None:
                shutil.rmtree(self.volume)
                subprocess.run(["cp", "-a", str(copy), str(self.volume)], check=True)
            else:
                self.disk.unmount()
                self.disk.bring_back(copy)
                self.disk.mount()
            shutil.rmtree(self.settings().paths.state / "borg", ignore_errors=True)
            with self.database() as database:
                database.executemany("UPDATE turku_api_snapshot SET state = ? WHERE id = ?", states)

        try:
            yield put_back
        finally:
            if self.disk is None:
                shutil.rmtree(copy)
            else:
                copy.unlink()

    # What must hold of it.

    def settings(self) -> Settings:
        """Return the storage unit's settings."""
        return read_settings(self.storage)

    def catalogue(self) -> Catalogue:
        """Return what lies on its volume."""
        return make_catalogue(self.settings())

    def listed(self) -> dict[tuple[str, str], Record]:
        """Return the snapshots that are listed, by source and id."""
        listing = self.catalogue().listing(self.machine.uuid)
        assert listing.problems == (), listing.problems
        return {(record.source, record.id): record for _, record in listing.records}

    def reported(self) -> set[tuple[str, str]]:
        """Return the source and id of each snapshot that the API takes to be there."""
        with self.database() as database:
            rows = database.execute(
                "SELECT source.name, snapshot.name FROM turku_api_snapshot snapshot "
                "JOIN turku_api_source source ON source.id = snapshot.source_id "
                "JOIN turku_api_machine machine ON machine.id = source.machine_id "
                "WHERE machine.uuid = ? AND snapshot.state != 'removed'",
                (self.machine.uuid,),
            )
            return {(name, snapshot) for name, snapshot in rows}

    def expected(self, record: Record) -> Mapping[bytes, Entry]:
        """Return what the source held when a snapshot was taken."""
        known = [
            trees[record.source]
            for began, trees in self.trees
            if began <= record.taken_at and record.source in trees
        ]
        return known[-1]

    def wrong_in(self, record: Record) -> list[str]:
        """Restore a snapshot, and return what isn't as it was."""
        catalogue = self.catalogue()
        chosen = restore.choose_snapshot(catalogue, record.machine, record.source, record.id)
        target = self.folder / "restored"
        try:
            restored = restore.restore_to_folder(
                chosen, target, Environment(self.settings().paths.state)
            )
            assert restored.ok, restored
            return differences(self.expected(record), describe_tree(target))
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def lost(self, *, restores: int = 1, unwanted: Set[tuple[str, str]] = frozenset()) -> list[str]:
        """Return what was lost: a reported snapshot that isn't there, or one that isn't whole.

        Args:
            restores: How many of the older snapshots are restored, beside the newest of each
                source.
            unwanted: What may be gone, since its policy doesn't want it.
        """
        listed = self.listed()
        # In mode none there is one snapshot, which ends as the next pull begins.
        wanted = {key for key in self.reported() if key[0] != "none"}
        gone = wanted - listed.keys() - unwanted
        found = [f"{each} was reported and is gone" for each in gone]
        newest = [max(key for key in listed if key[0] == name) for name in self.names(listed)]
        older = sorted(listed.keys() - set(newest))
        for key in (*newest, *self.dice.sample(older, min(restores, len(older)))):
            record = listed[key]
            if record.partial or record.damaged or record.recovered:
                found.append(f"{key} is not whole: {record.summary or record.damaged}")
            found += [f"{key}: {line}" for line in self.wrong_in(record)]
        return found

    def names(self, listed: Mapping[tuple[str, str], Record]) -> list[str]:
        """Return the sources that have snapshots."""
        return sorted({name for name, _ in listed})

    def require_converged(self) -> None:
        """See that the last backup is a snapshot of each source, and everybody knows it."""
        listed = self.listed()
        began = self.trees[-1][0]
        fresh = {name for (name, _), record in listed.items() if record.taken_at >= began}
        assert fresh == set(self.due)
        assert self.reported() == set(listed), self.reported() ^ set(listed)
        paths = self.settings().paths
        assert Queue(paths.queue).jobs() == []
        assert Spool(paths.reports).waiting() == 0
        assert Spool(paths.reports).refused() == 0
        assert running(paths.slots) == []
        assert list(paths.runs.iterdir()) == []

    def require_nothing_left(self) -> None:
        """See that no process, listener, lock or mount is left. Waits for what is just ending."""
        deadline = time.monotonic() + GONE_SECONDS
        while left := self.left():
            if time.monotonic() > deadline:
                raise AssertionError(f"left behind after {GONE_SECONDS:.0f} s: {left}")
            time.sleep(_LOOK_SECONDS)

    def left(self) -> list[str]:
        """Return what still runs, listens, is locked or mounted."""
        services, others = self.processes()
        found = [f"process {pid}: {describe(pid)}" for pid in others]
        found += [f"port {port}" for port in listening_ports(services) - self._own_ports()]
        found += [f"lock {path}" for path in locked_below(self.folder, self.volume)]
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
        return [*found, *(line for line in mounts if str(self.folder) in line)]

    def _own_ports(self) -> set[int]:
        return {self.turku.running.api_port, self.turku.running.ssh_port}

    def processes(self) -> tuple[set[int], set[int]]:
        """Return the services' processes, and what else there is of our making."""
        supervisor = self.turku.running.pid
        services = {supervisor}
        for child in children_of(supervisor):
            if "sshd" in describe(child):
                services.add(child)
            elif "turku-api" in describe(child):
                services |= {child, *children_of(child)}
        reap(os.getpid(), keep=supervisor)
        # The supervisor adopts what sshd leaves, and takes leave of it when it ends itself.
        dead = {child for child in children_of(supervisor) if is_dead(child)}
        others = descendants_of(os.getpid()) - services - dead
        return services, others - self._descendants_before

    def secrets_left(self) -> list[str]:
        """Return the files that hold a secret, or half of something, and should be gone."""
        places = (
            self.machine.root / "var",
            self.machine.root / "run",
            self.storage / "var",
            self.volume / "machines",
            self.turku.layout.api / "var",
            self.temporary,
        )
        found = []
        for place in places:
            for path in place.rglob("*"):
                name = path.name
                is_half = name.endswith(".tmp") or name.startswith((".restore-", ".removing-"))
                is_session = path.parent.name == "sessions" and name != ".lock"
                # When it starts, borg tries itself and the system, with files and folders that are
                # empty or hold an empty index.
                is_temporary = place == self.temporary and _holds_something(path)
                if is_half or is_session or is_temporary or ".borg.new" in name:
                    found.append(str(path))
        return found


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:8] not in (b"", b"BORG_IDX")


def make_due(database: sqlite3.Connection, names: Collection[str] | None = None) -> None:
    """Let some hours pass for the API: leases and pauses end, and sources are due.

    Args:
        database: The API's.
        names: Those sources alone, and the others tomorrow; None: all of them.
    """
    database.execute(
        "UPDATE turku_api_source SET failures = 0, requested_at = NULL, "
        "next_due_at = datetime('now', '+1 day'), "
        "leased_at = iif(leased_at IS NULL, NULL, datetime('now', '-3 hours')), "
        "lease_until = iif(lease_until IS NULL, NULL, datetime('now', '-2 hours'))"
    )
    if names is None:
        names = [name for (name,) in database.execute("SELECT name FROM turku_api_source")]
    database.executemany(
        "UPDATE turku_api_source SET requested_at = datetime('now', '-1 minute'), "
        "next_due_at = datetime('now', '-1 minute') WHERE name = ?",
        [(name,) for name in names],
    )
    database.execute("UPDATE turku_api_restoreorder SET not_before = ordered_at")
    database.execute(
        "UPDATE turku_api_machine SET next_due_at = datetime('now', '-1 minute'), "
        "next_order_at = iif(next_order_at IS NULL, NULL, datetime('now', '-1 minute'))"
    )


def finish(process: subprocess.Popen[str]) -> Ran:
    """Wait for a program's end; who never ends is killed, and the test fails."""
    try:
        _, errors = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        raise AssertionError(f"{process.args!r} did not end: {errors}") from None
    return Ran(process.returncode, errors)


def children_of(pid: int) -> list[int]:
    """Return the children of a process (proc(5))."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(each) for each in path.read_text("ascii").split()]
    return found


def descendants_of(pid: int) -> set[int]:
    """Return everything below a process."""
    found: set[int] = set()
    waiting = children_of(pid)
    while waiting:
        child = waiting.pop()
        found.add(child)
        waiting += children_of(child)
    return found


def describe(pid: int) -> str:
    """Return a process's command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def is_dead(pid: int) -> bool:
    """Say whether a process has ended, and only its parent doesn't know yet (proc_pid_stat(5))."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def reap(pid: int, keep: int) -> None:
    """Take leave of children that have ended and that nobody waits for: those we have adopted."""
    for child in children_of(pid):
        if child != keep and is_dead(child):
            with contextlib.suppress(OSError):
                os.waitpid(child, os.WNOHANG)


def listening_ports(processes: set[int]) -> set[int]:
    """Return the TCP ports that some processes listen on (proc(5), /proc/net/tcp: state 0A)."""
    ports = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text("ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                ports[f"socket:[{words[9]}]"] = int(words[1].rpartition(":")[2], 16)
    found = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return {port for socket, port in ports.items() if socket in found}


def locked_below(*places: Path) -> list[str]:
    """Return the files below some folders that somebody holds a lock on (flock(2)).

    The lock of the Turku itself, in the first folder, isn't meant.
    """
    found = []
    for parent, folders, files in itertools.chain.from_iterable(map(os.walk, places)):
        for name in (*files, *folders):
            path = Path(parent, name)
            if "lock" not in name and parent.rpartition("/")[2] not in ("slots", "runs", "queue"):
                continue
            if path == places[0] / "t/lock" or path.is_symlink():
                continue
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(str(path))
                finally:
                    os.close(descriptor)
    return found


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Adopt what our programs leave behind, so that it can be found (prctl(2))."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextlib.contextmanager
def make_world(folder: Path, dice: random.Random, modes: Collection[str]) -> Iterator[World]:
    """Make a Turku whose worker runs only when it is told to, and a machine.

    The machine has a source for each mode. Where btrfs is among these, it is the volume's as well.
    """
    patch = pytest.MonkeyPatch()
    before = descendants_of(os.getpid())
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(made_disk("btrfs", _DISK_MIB)) if "btrfs" in modes else None
        volume = folder / "t/volume" if disk is None else disk.place
        stack.enter_context(subreaper())
        context = stack.enter_context(patch.context())
        context.setattr(sys, "executable", str(make_programs(folder / "env")))
        place = {"path": str(volume), "accept_new_high_water_pct": 100}
        turku = LocalTurku(
            folder / "t", storage_settings={"volumes": {"local": place}}, has_worker=False
        )
        with turku:
            sources = {name: folder / "sources" / name for name in modes}
            for path in sources.values():
                path.mkdir(parents=True)
                (path / "same").write_text("same\n")
                (path / "link").symlink_to("same")
            common = {"retention": "last 1000 snapshots", "bwlimit": "1m"}
            machine = turku.add_machine(
                "victim",
                {
                    name: {"path": str(path), "snapshot_mode": name, **common}
                    for name, path in sources.items()
                },
            )
            world = World(
                folder, turku, machine, dice, sources, volume, disk, turku.layout.storage, modes
            )
            world._descendants_before |= before
            try:
                yield world
            finally:
                # After a failure, or Ctrl-C: what still runs must not write where all is removed.
                for pid in world.processes()[1]:
                    kill(pid, signal.SIGKILL)
                world.require_nothing_left()


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def find(ancestor: int, matches: Callable[[str], bool]) -> list[int]:
    """Return the processes below one whose command line matches, in order of their numbers."""
    return sorted(pid for pid in descendants_of(ancestor) if matches(describe(pid)))


SIGNALS = (signal.SIGKILL, signal.SIGTERM)

"""The files of the parts themselves damaged: identities, keys, settings, lists, the database."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.damage import WAYS
from tests.faults.killing import make_due
from tests.faults.tally import FULL, Tally, times
from tests.support.trees import describe_tree, differences
from turku_core.agent.orders import Journal
from turku_core.agent.settings import Locations
from turku_core.local.layout import program
from turku_core.local.turku import Finished, LocalTurku, Machine, run_command
from turku_core.protocol.restore_orders import RestoreReport
from turku_core.storage import restore
from turku_core.storage.ping import make_catalogue
from turku_core.storage.settings import read_settings
from turku_core.storage.snapshots import Environment

Files = Mapping[tuple[str, str], str]

AGENT, STORAGE, API = "machine", "storage unit", "API"

MENDED = {
    (AGENT, "what it last sent"): "var/lib/turku-agent/sent.json",
    (AGENT, "what it was last handed out"): "var/lib/turku-agent/handed-out",
    (AGENT, "state that it last heard of"): "var/lib/turku-agent/status.json",
    (AGENT, "public SSH key"): "var/lib/turku-agent/ssh_key.pub",
    (STORAGE, "list of machines"): "var/lib/turku-storage/known_machines.json",
    (STORAGE, "SSH keys let in"): "var/lib/turku-storage/.ssh/authorized_keys",
    (STORAGE, "state of the worker"): "var/lib/turku-storage/worker.json",
}
"""Files that are made anew when they are damaged: who has it, what it is, and where."""

KEPT = {
    (AGENT, "identity"): "var/lib/turku-agent/config.d/identity.json",
    (AGENT, "SSH key"): "var/lib/turku-agent/ssh_key",
    (AGENT, "configuration"): "etc/turku-agent/config.d/10-local.json",
    (AGENT, "source"): "etc/turku-agent/sources.d/docs.json",
    (STORAGE, "identity"): "var/lib/turku-storage/config.d/identity.json",
    (STORAGE, "configuration"): "etc/turku-storage/config.d/10-local.json",
}
"""Files that nothing can make anew: they are to be brought back."""

DATABASE = "var/lib/turku-api/turku.sqlite3"
EXIT_CODES = (0, 1, 2, 75)


@dataclass
class Fleet:
    """A Turku with a machine, whose files are damaged one by one.

    Attributes:
        turku: An API, and a storage unit whose worker runs when it is told to.
        machine: A machine.
        uuid: The machine's.
        source: What it backs up.
        kept: Copies of the files of all parts, as they were before any damage.
        place: A folder for what is restored.
        generation: How often the source was changed.
        said: What programs complained of since the damage.
    """

    turku: LocalTurku
    machine: Machine
    uuid: str
    source: Path
    kept: Path
    place: Path
    generation: int = 0
    said: list[str] = field(default_factory=list)

    def root(self, part: str) -> Path:
        """Return where the files of a part are."""
        return {
            AGENT: self.machine.root,
            STORAGE: self.turku.layout.storage,
            API: self.turku.layout.api,
        }[part]

    def keep(self) -> None:
        """Copy the files of the machine and the storage unit, at which nothing is at work."""
        for part in (AGENT, STORAGE):
            for folder in ("etc", "var"):
                shutil.copytree(self.root(part) / folder, self.kept / part / folder, symlinks=True)

    def bring_back(self, part: str) -> None:
        """Put back what was copied."""
        for folder in ("etc", "var"):
            shutil.rmtree(self.root(part) / folder)
            shutil.copytree(self.kept / part / folder, self.root(part) / folder, symlinks=True)

    def run(self, done: Finished) -> bool:
        """Look at how a program ended; return whether all was well."""
        assert "Traceback" not in done.errors, done
        assert done.exit_code in EXIT_CODES, done
        assert done.exit_code == 0 or done.errors.strip() or done.output.strip(), done
        self.said.append(done.errors)
        return done.exit_code == 0

    def back_up(self) -> bool:
        """Change the source and back it up, as the timers do; return whether it is committed."""
        self.generation += 1
        (self.source / "changing").write_text(f"{self.generation}")
        before = self.snapshots()
        self.run(self.machine.run("turku-update-config", check=False))
        self.run(self.turku.storage_run("turku-storage-update-config", check=False))
        with contextlib.closing(self.database()) as database, database:
            make_due(database)
        self.run(self.machine.run("turku-agent-ping", check=False))
        self.run(self.turku.storage_run("turku-storage-worker", "--once", check=False))
        return bool(self.snapshots() - before) and self.is_restored()

    def database(self) -> sqlite3.Connection:
        """Open the API's database."""
        return sqlite3.connect(self.turku.layout.api / DATABASE, timeout=30)

    def snapshots(self) -> set[str]:
        """Return the ids of the snapshots that lie on the volume."""
        folder = self.turku.layout.volume / "machines"
        return {path.stem for path in folder.glob("*/docs/snapshots/*.json")}

    def is_restored(self) -> bool:
        """Say whether the newest snapshot gives back what is there now."""
        settings = read_settings(self.kept / STORAGE if self.kept.exists() else self.root(STORAGE))
        catalogue = make_catalogue(settings)
        chosen = restore.choose_snapshot(catalogue, self.uuid, "docs", "latest")
        try:
            restored = restore.restore_to_folder(
                chosen, self.place, Environment(settings.paths.state)
            )
            return restored.ok and not differences(
                describe_tree(self.source), describe_tree(self.place)
            )
        finally:
            shutil.rmtree(self.place, ignore_errors=True)

    def restore_by_order(
        self, way: str, dice: random.Random, *, is_reported: bool
    ) -> tuple[str, str]:
        """Let the machine go on with an order, its note of it damaged.

        Args:
            way: How the note is damaged.
            dice: Chance.
            is_reported: The note is a report that waits for the API, and not only of a beginning.

        Returns:
            The order's state, and where the API was told that the files are.
        """
        self.turku.api_run("order-restore", self.uuid, "docs")
        newest = "FROM turku_api_restoreorder ORDER BY id DESC LIMIT 1"
        with contextlib.closing(self.database()) as database, database:
            make_due(database, [])
            ((order,),) = database.execute(f"SELECT uuid {newest}")
        notes = Locations(self.machine.root).orders
        journal = Journal(notes)
        journal.begin(order, self.place)
        if is_reported:
            journal.write_report(RestoreReport(order, "done", target=str(self.place)))
        WAYS[way](notes / f"{order}.json", dice)
        self.run(self.machine.run("turku-agent-ping", check=False))
        with contextlib.closing(self.database()) as database:
            ((state, target),) = database.execute(f"SELECT state, restored_to {newest}")
        return state, target

    def known_to_api(self) -> tuple[list[str], list[str], set[str]]:
        """Return the machines, the storage units and the snapshots that the API knows of."""
        with contextlib.closing(self.database()) as database:
            machines, units, snapshots = (
                [row[0] for row in database.execute(f"SELECT {column} FROM turku_api_{table}")]
                for column, table in (
                    ("uuid", "machine"),
                    ("name", "storageunit"),
                    ("name", "snapshot"),
                )
            )
        return machines, units, set(snapshots)

    def require_nothing_made_up(self) -> None:
        """See that the API knows of one machine, one storage unit, and snapshots that are there."""
        machines, units, snapshots = self.known_to_api()
        assert machines == [self.uuid]
        assert len(units) == 1
        assert snapshots <= self.snapshots()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="turku-parts-"))
    try:
        settings = {"snapshot_mode": "link-dest"}
        turku = LocalTurku(folder / "t", storage_settings=settings, has_worker=False)
        source = folder / "source"
        source.mkdir()
        (source / "same").write_text("same")
        with turku:
            options = {"path": str(source), "retention": "last 1000 snapshots"}
            machine = turku.add_machine("machine", {"docs": options})
            place = folder / "restored"
            fleet = Fleet(turku, machine, machine.uuid, source, folder / "kept", place)
            assert fleet.back_up(), fleet.said
            fleet.keep()
            yield fleet
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def as_before(fleet: Fleet, part: str) -> Iterator[None]:
    """Bring all of a part back before, and afterwards."""
    fleet.said.clear()
    fleet.bring_back(part)
    try:
        yield
    finally:
        fleet.bring_back(part)


def drawn(files: Files, dice: random.Random) -> list[tuple[str, str, str]]:
    """Return which files to damage in which ways: all of them, or one."""
    every = [(*who, way) for who in files for way in WAYS]
    return every if FULL else dice.sample(every, 1)


@pytest.mark.parametrize("part", [AGENT, STORAGE] if FULL else [None])
def test_a_damaged_file_that_can_be_made_anew_is(
    fleet: Fleet, dice: random.Random, tally: Tally, part: str | None
) -> None:
    files = {who: path for who, path in MENDED.items() if part in (None, who[0])}
    for owner, name, way in drawn(files, dice):
        with as_before(fleet, owner):
            WAYS[way](fleet.root(owner) / files[owner, name], dice)
            assert fleet.back_up() or fleet.back_up(), (owner, name, way, fleet.said)
            fleet.require_nothing_made_up()
        tally.note(f"{owner}: {name}: {way}", times=1)


@pytest.mark.parametrize("part", [AGENT, STORAGE] if FULL else [None])
def test_a_damaged_file_that_cannot_be_made_anew_is_told_and_all_is_well_when_it_is_back(
    fleet: Fleet, dice: random.Random, tally: Tally, part: str | None
) -> None:
    files = {who: path for who, path in KEPT.items() if part in (None, who[0])}
    for owner, name, way in drawn(files, dice):
        with as_before(fleet, owner):
            path = fleet.root(owner) / files[owner, name]
            WAYS[way](path, dice)
            is_well = fleet.back_up()
            # Taking a source's file away is how an operator says that it isn't one any more.
            is_wish = (name, way) == ("source", "deleted")
            assert is_well or is_wish or any(fleet.said), (owner, name, way)
            if way != "deleted" and name in ("identity", "SSH key"):
                fleet.require_nothing_made_up()
            shutil.copy2(fleet.kept / owner / files[owner, name], path)
            assert fleet.back_up() or fleet.back_up(), (owner, name, way, fleet.said)
        tally.note(f"{owner}: {name}: {way}", times=1)


@pytest.mark.parametrize("is_reported", [False, True])
def test_a_damaged_note_of_a_restore_order_is_never_another_report(
    fleet: Fleet, dice: random.Random, tally: Tally, is_reported: bool
) -> None:
    for way in WAYS if FULL else dice.sample(list(WAYS), 1):
        for _ in range(times(1, 5)):
            with as_before(fleet, AGENT):
                state, target = fleet.restore_by_order(way, dice, is_reported=is_reported)
                assert state == "done", (way, fleet.said)
                # Damage may spare what the note says; else the order is carried out, once more.
                if not (is_reported and target == str(fleet.place)):
                    assert not differences(describe_tree(fleet.source), describe_tree(Path(target)))
            tally.note(f"machine: note of an order, {way}", times=1)


OF_THE_API = {
    "key that signs sessions": "var/lib/turku-api/secret_key",
    "configuration": "etc/turku-api/config.d/10-local.json",
    "key of the CA": "var/lib/turku-api/certificates/ca.key",
    "certificate of the CA": "var/lib/turku-api/certificates/ca.crt",
    "certificate": "var/lib/turku-api/certificates/server.crt",
    "key of the certificate": "var/lib/turku-api/certificates/server.key",
    "database": DATABASE,
}


@pytest.mark.parametrize("name", list(OF_THE_API) if FULL else ["database"])
def test_a_damaged_file_of_the_api_is_told_and_no_data_are_made_up(
    fleet: Fleet, dice: random.Random, tally: Tally, name: str
) -> None:
    root = fleet.turku.layout.folder.parent / "api"
    for way in WAYS if FULL else dice.sample(list(WAYS), 1):
        for _ in range(times(1, 6 if name == "database" else 1)):
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(fleet.root(API) / "etc", root / "etc")
            shutil.copytree(fleet.root(API) / "var", root / "var", ignore=WITHOUT_DATABASE)
            with contextlib.closing(fleet.database()) as database:
                database.execute("VACUUM INTO ?", [str(root / DATABASE)])
            WAYS[way](root / OF_THE_API[name], dice)
            check_api(root, fleet.uuid, is_lost=name == "database" and way == "deleted")
            tally.note(f"API: {name}: {way}", times=1)


WITHOUT_DATABASE = shutil.ignore_patterns("turku.sqlite3", "turku.sqlite3-*")


def serve(command: Sequence[str]) -> Finished:
    """Begin to serve, which brings the database up to date, and end as soon as it does."""
    process = subprocess.Popen(
        [*command, "serve", "--migrate", "--listen", "127.0.0.1:0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.terminate()
        output, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Finished(0 if said else process.returncode, said + output, errors)


def check_api(root: Path, machine: str, *, is_lost: bool) -> None:
    """See what an API with a damaged file says of a machine: what it knows, or what is wrong."""
    command = [program("turku-api"), "--root", str(root)]
    commands = [["list-machines", "--json"], ["health"]]
    done = [serve(command), *(run_command([*command, *each], check=False) for each in commands)]
    for each in done:
        assert "Traceback" not in each.errors, each
        assert each.exit_code == 0 or (each.errors + each.output).strip(), each
    served, listed, health = done
    if listed.exit_code == 0:
        assert machine in listed.output, "it is forgotten, and nothing is said"
    if is_lost:
        assert served.exit_code != 0 and "bring a copy back" in served.errors, served
        assert health.exit_code == 3 and "bring a copy back" in health.output, health
    # What can't be read is said by one of them at least.
    assert listed.exit_code == 0 or health.exit_code != 0 or "config" in listed.errors, done

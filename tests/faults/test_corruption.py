"""Each kind of stored file damaged in each way: it is found, said, and made good again."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damage import KINDS, WAYS, write_in_place
from tests.faults.disks import made_disk
from tests.faults.station import LATER, Station, change_tree, day, id_of
from tests.faults.tally import FULL, SEED, Tally, times
from tests.integration.snapshots.support import MACHINE, quick_folder, serve
from tests.support.mounts import own_mounts
from tests.support.trees import Entry, describe_tree, differences
from turku_core.errors import TurkuError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import StorageLogin
from turku_core.storage import programs
from turku_core.storage.mirror import Daemon
from turku_core.storage.reports import Report

DAYS = 3
NEIGHBOUR = "6ba7b811-9dad-41d1-80b4-00c04fd430c8"
CHECKED, AFTER = day(DAYS), day(DAYS + 1)
FROZEN = CHECKED - timedelta(minutes=30)
"""When a state was pulled whose commit waits."""

OF_A_COMMIT = {"frozen state", "job of the queue"}
"""What is there only between a session and its commit."""


@dataclass
class Archive:
    """Backups of a machine and of its neighbour, to damage again and again.

    Attributes:
        mode: In which they are kept.
        unit: The folder of the storage unit that is damaged.
        renew: Makes it what it was.
        place: A folder for what is restored.
        daemon: The machine's end.
        source: What is backed up.
        neighbour: What the neighbour's snapshot must give back.
        trees: What each snapshot of the machine must give back, by its id.
        dice: Chance.
    """

    mode: str
    unit: Path
    renew: Callable[[], None]
    place: Path
    daemon: Daemon
    source: Path
    neighbour: dict[bytes, Entry]
    trees: dict[str, dict[bytes, Entry]]
    dice: random.Random

    def fresh(self, kind: str) -> Station:
        """Return the storage unit as it was made, or with a commit that waits."""
        self.renew()
        station = Station(self.unit / "volume", self.unit / "state", dict(self.trees))
        if kind in OF_A_COMMIT:
            station.freeze(self.daemon, self.mode, FROZEN)
            station.trees[id_of(FROZEN)] = describe_tree(self.source)
        return station

    def files(self, kind: str) -> list[Path]:
        """Return the files of a kind in the fresh unit, but empty ones and links."""
        pattern = re.compile(KINDS[kind].format(machine=MACHINE))
        return sorted(
            path
            for path in self.unit.rglob("*")
            if pattern.fullmatch(os.fspath(path.relative_to(self.unit)))
            and path.is_file()
            and not path.is_symlink()
            and path.stat().st_size
        )


@contextlib.contextmanager
def made_archive(mode: str, dice: random.Random) -> Iterator[Archive]:
    """Back up some days of a machine, and one of its neighbour."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(quick_folder())
        unit = place / "unit"
        if mode == "btrfs":
            stack.enter_context(own_mounts())
            disk = stack.enter_context(made_disk("btrfs", 256))
            unit = disk.place / "unit"
        source = place / "source"
        source.mkdir()
        daemon = stack.enter_context(serve(source))
        station = Station(unit / "volume", unit / "state")
        for number in range(DAYS):
            station.trees[id_of(day(number))] = change_tree(source, dice, number)
            station.back_up(daemon, mode, day(number))
        neighbour = describe_tree(source)
        station.back_up(daemon, mode, day(0), machine=NEIGHBOUR)
        assert station.expire(CHECKED - timedelta(hours=1)).problems == ()
        trees = dict(station.trees)
        if mode == "btrfs":
            disk.unmount()
            disk.keep(place / "base")
        else:
            unit.rename(place / "base")

        def renew() -> None:
            if mode == "btrfs":
                disk.unmount()
                disk.bring_back(place / "base")
                disk.mount()
            else:
                programs.remove_tree(unit)
                subprocess.run(["cp", "-a", place / "base", unit], check=True)

        restored = place / "restored"
        yield Archive(mode, unit, renew, restored, daemon, source, neighbour, trees, dice)


Archives = Callable[[str, random.Random], Archive]


@pytest.fixture(scope="module")
def archives() -> Iterator[Archives]:
    """Give the archive of a mode, which is made when it is first wanted."""
    made: dict[str, Archive] = {}
    with contextlib.ExitStack() as stack:

        def get(mode: str, dice: random.Random) -> Archive:
            if mode not in made:
                chance = random.Random(f"{SEED}:{mode}")
                made[mode] = stack.enter_context(made_archive(mode, chance))
            return replace(made[mode], dice=dice)

        yield get


class Listener(Client):
    """An API that takes every report."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def call(self, name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Note a report."""
        self.reports.append(Report.from_json(payload["machine"]))
        return {}


def is_whole(station: Station, snapshot: str, place: Path) -> bool:
    """Say whether a snapshot gives back what was there."""
    try:
        return station.wrong_in(snapshot, place) == []
    except (TurkuError, OSError):
        return False


def look_after(station: Station) -> None:
    """Do what the worker does in the time after: expire, verify, and that again."""
    for hours in (0, 1):
        now = CHECKED + timedelta(hours=hours)
        station.work(now)
        station.expire(now)
        station.verify(now)


def check_damage(archive: Archive, station: Station, whole_before: set[str]) -> list[str]:
    """Look after a damaged unit, back up again, and return what is wrong with it then."""
    place = archive.place
    wrong = []
    look_after(station)
    # What is said to be good is, and what is whole on the disk isn't lost.
    good = {record.id for record in station.records() if record.good}
    wrong += [
        f"{each} is damaged and not found" for each in good if not is_whole(station, each, place)
    ]
    listed = {record.id for record in station.records()}
    wrong += [f"{each} is whole and not listed" for each in whole_before - listed]
    wrong += [
        f"{each} is whole and can't be restored any more"
        for each in whole_before & listed
        if not is_whole(station, each, place)
    ]
    # Nobody else is harmed.
    restored = station.restore_of(NEIGHBOUR, id_of(day(0)), place)
    if not restored.ok or differences(archive.neighbour, describe_tree(place)):
        wrong.append("the neighbour's snapshot can't be restored")
    shutil.rmtree(place, ignore_errors=True)
    wrong += back_up_afresh(archive, station)
    wrong += check_reports(station)
    return wrong


def check_reports(station: Station) -> list[str]:
    """Send all reports; return what the API is told that isn't so, or isn't told."""
    waiting = station.spool.waiting()
    listener = Listener()
    login = StorageLogin("unit", "the secret of the unit")
    station.spool.flush(listener, login, lambda: AFTER)
    told = {
        name
        for report in listener.reports
        for update in report.sources.values()
        for name in (update.result and update.result.snapshot, *(x.name for x in update.snapshots))
        if name
    }
    wrong = [f"the API is told of {each}" for each in told - station.trees.keys()]
    wrong += [
        f"the API is told of machine {report.machine}"
        for report in listener.reports
        if report.machine not in (MACHINE, NEIGHBOUR)
    ]
    if len(listener.reports) + station.spool.refused() < waiting:
        wrong.append("a report was neither sent nor set aside")
    newest = max(record.id for record in station.records())
    return wrong if newest in told else [*wrong, f"the API is not told of {newest}"]


def back_up_afresh(archive: Archive, station: Station) -> list[str]:
    """Back up as the API asks for it until it succeeds; return what is wrong with that."""
    place = archive.place
    expected = describe_tree(archive.source)
    words = "never tried"
    for tries in range(3):
        now = AFTER + tries * timedelta(hours=24)
        try:
            station.back_up(archive.daemon, archive.mode, now)
        except (TurkuError, OSError) as error:
            words = str(error)
        station.work(now + LATER)
        records = [record for record in station.records() if record.id == id_of(now)]
        if records:
            station.trees[id_of(now)] = expected
            verdicts = station.verify(now + LATER)
            if verdicts.get(id_of(now)) is None and is_whole(station, id_of(now), place):
                return []
            words = f"the new snapshot is damaged: {verdicts.get(id_of(now))}"
    return [f"it isn't backed up afresh: {words}"]


KINDS_OF_MODE = {
    "link-dest": {"file of a tree"},
    "borg": {kind for kind in KINDS if "borg" in kind} | {"file of the mirror"},
    "none": {"file of the mirror"},
    "btrfs": {"file of a tree", "file of the mirror"},
}
COMMON = {kind for kind in KINDS if not any(kind in each for each in KINDS_OF_MODE.values())}
BTRFS = pytest.param("btrfs", marks=pytest.mark.needs_root)
MODES = ["link-dest", "borg", "none", *([BTRFS] if FULL else [])]
TRIES = {"link-dest": 2, "none": 2, "btrfs": 1, "borg": 1}
"""How often each kind is damaged in each way in the full form."""

BORG_KINDS = 10
"""How many kinds are drawn there in mode borg, whose programs take long to start."""

CHOICES = {"link-dest": 2, "none": 1, "borg": 1}
"""How many kinds and ways are drawn in the short form."""


def drawn(mode: str, way: str | None, dice: random.Random) -> list[tuple[str, str]]:
    """Return which kinds to damage in which ways."""
    kinds = sorted(COMMON | KINDS_OF_MODE[mode])
    if way is not None:
        chosen = dice.sample(kinds, BORG_KINDS) if mode == "borg" else kinds
        return [(kind, way) for kind in chosen]
    return dice.sample([(kind, way) for kind in kinds for way in WAYS], CHOICES[mode])


@pytest.mark.parametrize("way", list(WAYS) if FULL else [None])
@pytest.mark.parametrize("mode", MODES)
def test_damage_of_any_file_is_found_and_harms_nobody_else(
    archives: Archives, dice: random.Random, tally: Tally, mode: str, way: str | None
) -> None:
    archive = archives(mode, dice)
    wrong = []
    for kind, chosen in drawn(mode, way, dice):
        done = lost = 0
        for _ in range(times(1, TRIES[mode])):
            station = archive.fresh(kind)
            path = dice.choice(archive.files(kind))
            WAYS[chosen](path, dice)
            where = f"{path.relative_to(archive.unit)} {chosen}"
            whole = {each for each in archive.trees if could_be_whole(archive, station, each)}
            problems = check_damage(archive, station, whole)
            wrong += [f"{where}: {each}" for each in problems]
            done += 1
            lost += len(problems)
        tally.note(f"{mode}: {kind}: {chosen}", times=done, lost=lost)
    assert wrong == [], "\n".join(wrong)


def could_be_whole(archive: Archive, station: Station, snapshot: str) -> bool:
    """Say whether all of a snapshot's files lie there as they were, before anybody acts on it."""
    if archive.mode == "borg":
        return False
    return is_whole(station, snapshot, archive.place)


SWAPPED = ["record", "checksums", "file of a tree", "file of the mirror", "segment of borg"]


@pytest.mark.parametrize("mode", MODES if FULL else ["link-dest"])
def test_two_files_that_are_swapped_are_found(
    archives: Archives, dice: random.Random, tally: Tally, mode: str
) -> None:
    archive = archives(mode, dice)
    kinds = [each for each in SWAPPED if each in COMMON | KINDS_OF_MODE[mode]]
    if mode == "none":
        kinds = ["file of the mirror"]  # it has one snapshot
    for kind in kinds if FULL else dice.sample(kinds, 1):
        for _ in range(times(1, TRIES[mode])):
            station = archive.fresh(kind)
            contents = {path.read_bytes(): path for path in archive.files(kind)}
            (one, first), (two, second) = dice.sample(sorted(contents.items()), 2)
            write_in_place(first, two)
            write_in_place(second, one)
            problems = check_damage(archive, station, set())
            assert problems == [], f"{kind}: {first.name} and {second.name}"
            tally.note(f"{mode}: {kind}: two swapped", times=1, lost=len(problems))


@pytest.mark.parametrize("mode", MODES if FULL else ["link-dest"])
def test_what_has_no_checksums_of_its_making_is_never_called_proven(
    archives: Archives, dice: random.Random, tally: Tally, mode: str
) -> None:
    archive = archives(mode, dice)
    # What mode none has is its mirror: without its record it is a mirror and no snapshot.
    for gone in (["checksums"], ["checksums", "record"])[: 1 if mode == "none" else 2]:
        station = archive.fresh("checksums")
        for kind in gone:
            archive.files(kind)[0].unlink()
        # Once a day it looks for archives that have no record.
        for hours in (24, 25):
            station.expire(CHECKED + timedelta(hours=hours))
            station.verify(CHECKED + timedelta(hours=hours))
        found = station.records()[0]
        if gone == ["checksums"]:
            assert "checksums" in (found.damaged or "")
        elif mode == "borg":
            assert found.recovered  # borg has checksums of its own: the ids of its chunks
            assert found.proven_at is not None
        else:
            assert (found.recovered, found.proven_at) == (True, None)
            assert "no checksums" in (found.unproven or "")
        tally.note(f"{mode}: {' and '.join(gone)} gone: proven all the same", times=1)

"""Each kind of stored file damaged in each way: it is found, said, and made good again."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.faults.damage import KINDS, WAYS, write_in_place
from tests.faults.station import LATER, Station, change_tree, day, id_of
from tests.faults.tally import FULL, Tally, times
from tests.integration.snapshots.support import MACHINE, quick_folder, serve
from tests.support.trees import Entry, describe_tree, differences
from turku_core.errors import TurkuError
from turku_core.storage import programs
from turku_core.storage.mirror import Daemon

DAYS = 3
NEIGHBOUR = "6ba7b811-9dad-41d1-80b4-00c04fd430c8"
CHECKED, AFTER = day(DAYS), day(DAYS + 1)


@dataclass
class Archive:
    """Backups of a machine and of its neighbour, to damage again and again."""

    mode: str
    place: Path
    daemon: Daemon
    source: Path
    neighbour: dict[bytes, Entry]
    trees: dict[str, dict[bytes, Entry]]
    dice: random.Random

    def fresh(self) -> Station:
        """Return the storage unit as it was made."""
        programs.remove_tree(self.place / "unit")
        subprocess.run(["cp", "-a", self.place / "base", self.place / "unit"], check=True)
        unit = self.place / "unit"
        return Station(unit / "volume", unit / "state", dict(self.trees))

    def files(self, kind: str) -> list[Path]:
        """Return the files of a kind in the fresh unit, but empty ones and links."""
        unit = self.place / "unit"
        pattern = re.compile(KINDS[kind].format(machine=MACHINE))
        return sorted(
            path
            for path in unit.rglob("*")
            if pattern.fullmatch(os.fspath(path.relative_to(unit)))
            and path.is_file()
            and not path.is_symlink()
            and path.stat().st_size
        )


@pytest.fixture(params=["link-dest", "borg", "none"])
def archive(request: pytest.FixtureRequest, dice: random.Random) -> Iterator[Archive]:
    """Some days of a machine, and one of its neighbour."""
    with quick_folder() as place:
        source = place / "source"
        source.mkdir()
        station = Station(place / "base" / "volume", place / "base" / "state")
        with serve(source) as daemon:
            for number in range(DAYS):
                station.trees[id_of(day(number))] = change_tree(source, dice, number)
                station.back_up(daemon, request.param, day(number))
            neighbour = describe_tree(source)
            station.back_up(daemon, request.param, day(0), machine=NEIGHBOUR)
            assert station.expire(CHECKED - timedelta(hours=1)).problems == ()
            trees = dict(station.trees)
            yield Archive(request.param, place, daemon, source, neighbour, trees, dice)


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
        station.expire(now)
        station.verify(now)


def check_damage(archive: Archive, station: Station, whole_before: set[str]) -> list[str]:
    """Look after a damaged unit, back up again, and return what is wrong with it then."""
    place = archive.place / "restored"
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
    target = place / "neighbour"
    restored = station.restore_of(NEIGHBOUR, id_of(day(0)), target)
    if not restored.ok or differences(archive.neighbour, describe_tree(target)):
        wrong.append("the neighbour's snapshot can't be restored")
    shutil.rmtree(target, ignore_errors=True)
    wrong += back_up_afresh(archive, station)
    return wrong


def back_up_afresh(archive: Archive, station: Station) -> list[str]:
    """Back up as the API asks for it until it succeeds; return what is wrong with that."""
    place = archive.place / "restored"
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
    "link-dest": {"manifest", "file of a tree"},
    "borg": {kind for kind in KINDS if "borg" in kind} | {"file of the mirror"},
    "none": {"manifest", "file of the mirror"},
}
COMMON = {kind for kind in KINDS if not any(kind in each for each in KINDS_OF_MODE.values())}


def test_damage_of_any_file_is_found_and_harms_nobody_else(archive: Archive, tally: Tally) -> None:
    kinds = sorted(COMMON | KINDS_OF_MODE[archive.mode])
    choices = [(kind, way) for kind in kinds for way in WAYS]
    if not FULL:
        choices = archive.dice.sample(choices, 1 if archive.mode == "borg" else 4)
    wrong = []
    for kind, way in choices:
        done = lost = 0
        for _ in range(times(1, 4)):
            station = archive.fresh()
            path = archive.dice.choice(archive.files(kind))
            WAYS[way](path, archive.dice)
            where = f"{path.relative_to(archive.place / 'unit')} {way}"
            whole = {each for each in archive.trees if could_be_whole(archive, station, each)}
            problems = check_damage(archive, station, whole)
            wrong += [f"{where}: {each}" for each in problems]
            done += 1
            lost += len(problems)
        tally.note(f"{archive.mode}: {kind}: {way}", times=done, lost=lost)
    assert wrong == [], "\n".join(wrong)


def could_be_whole(archive: Archive, station: Station, snapshot: str) -> bool:
    """Say whether all of a snapshot's files lie there as they were, before anybody acts on it."""
    if archive.mode == "borg":
        return False
    return is_whole(station, snapshot, archive.place / "restored")


@pytest.mark.parametrize(
    "archive", ["link-dest", "borg", "none"] if FULL else ["link-dest"], indirect=True
)
def test_two_files_that_are_swapped_are_found(archive: Archive, tally: Tally) -> None:
    kinds = ["record", "manifest", "file of a tree", "file of the mirror", "segment of borg"]
    kinds = [each for each in kinds if each in COMMON | KINDS_OF_MODE[archive.mode]]
    if archive.mode == "none":
        kinds = ["file of the mirror"]  # it has one snapshot
    for kind in kinds if FULL else archive.dice.sample(kinds, 1):
        station = archive.fresh()
        contents = {path.read_bytes(): path for path in archive.files(kind)}
        (one, first), (two, second) = archive.dice.sample(sorted(contents.items()), 2)
        write_in_place(first, two)
        write_in_place(second, one)
        problems = check_damage(archive, station, set())
        assert problems == [], f"{kind}: {first.name} and {second.name}"
        tally.note(f"{archive.mode}: {kind}: two swapped", times=1, lost=len(problems))

"""Restore drills: what is stored is restored and compared with checksums of the backup's time.

What a drill must find is put there by hand; what must not be lost is restored after it. That all
comes round in time is tried on the plan alone, over a year of a storage unit with many sources.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tally import Tally, times
from tests.integration.snapshots.support import DAY, MACHINE, START, Unit, make_unit, quick_folder
from tests.integration.snapshots.support import serve as serve_tree
from turku_core.storage import drill, manifest, verification
from turku_core.storage.mirror import Daemon
from turku_core.storage.records import Cycle, Record, SourceState
from turku_core.storage.snapshots import SnapshotError, borg, get_mode
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.verification import Depth, Verdict
from turku_core.storage.volumes import Volume
from turku_core.storage.worker import verification_report

MODES = ("borg", "link-dest", "none")
LATER = START + 10 * DAY
MIB = 1024 * 1024
DAYS = times(130, 365)


def odd_tree(folder: Path, dice: random.Random, files: int = 30) -> None:
    """Fill a folder with files of many kinds and sizes."""
    for number in range(files):
        place = folder / dice.choice([".", "sub", "sub/deeper", "with space", "b\udcffd"])
        place.mkdir(parents=True, exist_ok=True)
        name = dice.choice(["plain", "new\nline", "*", "-rf", "\udce4", "pp:x", "ünï"])
        path = place / f"{name}{number}"
        path.write_bytes(dice.randbytes(dice.choice([0, 1, 100, 5000, 300_000])))
        path.chmod(dice.choice([0o644, 0o600, 0o444, 0o755]))
        if dice.random() < 0.2:
            os.link(path, place / f"hard{number}")
    (folder / "link").symlink_to("nowhere at all")
    (folder / "empty folder").mkdir()
    os.mkfifo(folder / "pipe")
    with (folder / "sparse").open("wb") as sparse:
        sparse.truncate(2 * MIB)
        sparse.write(b"at the beginning")


@dataclass
class Place:
    """A storage unit in memory, and a machine's tree that is served to it."""

    unit: Unit
    source: Path
    daemon: Daemon

    def back_up(self, mode: str, day: int = 0) -> tuple[SourceFolder, Record]:
        """Make a snapshot."""
        record = self.unit.back_up(self.daemon, mode, at=START + day * DAY)
        return self.unit.catalogue.open(MACHINE, "docs"), record

    def verify(self, record: Record, depth: Depth, **values: Any) -> Verdict:
        """Prove a snapshot."""
        folder = self.unit.catalogue.open(MACHINE, "docs")
        return verification.verify(
            self.unit.catalogue, folder, record, self.unit.environment, LATER, depth=depth, **values
        )

    def left_behind(self) -> list[str]:
        """Return what a drill has left on the volume."""
        return [str(path) for path in self.unit.volume.path.rglob(".restore-*")]


@contextmanager
def make_place() -> Iterator[Place]:
    """Give a storage unit and a machine, quick ones."""
    with quick_folder() as quick:
        source = quick / "source"
        source.mkdir()
        with serve_tree(source) as daemon:
            yield Place(make_unit(quick), source, daemon)


# What is sound


@pytest.mark.parametrize("mode", MODES)
def test_sound_snapshots_are_proven(mode: str, tally: Tally, dice: random.Random) -> None:
    tried = wrong = 0
    for _ in range(times(1, 12)):
        with make_place() as place:
            odd_tree(place.source, dice)
            folder, record = place.back_up(mode)
            for depth in Depth:
                verdict = place.verify(record, depth)
                tried += 1
                wrong += not verdict.proven
                assert verdict.proven, verdict
                assert verdict.files_drilled == 20 or depth is Depth.WHOLE
            assert verdict.files_drilled > 30
            [written] = place.unit.catalogue.records(folder)[0]
            assert (written.proven_at, written.unproven, written.damaged) == (LATER, None, None)
            assert folder.state().proven_at == folder.state().restored_at == LATER
            assert place.left_behind() == []
    tally.note("sound snapshots drilled: none was called bad", times=tried, lost=wrong)


@pytest.mark.parametrize("mode", MODES)
def test_checksums_are_taken_with_the_snapshot_and_only_of_what_is_new(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = manifest.digest

    def noted(path: str) -> str:
        read.append(os.path.basename(path))
        return digest(path)

    monkeypatch.setattr(manifest, "digest", noted)
    with make_place() as place:
        for name in ("same", "changes"):
            (place.source / name).write_text(f"{name} 0")
        folder, first = place.back_up(mode)
        assert sorted(read) == ["changes", "same"]
        read.clear()
        (place.source / "changes").write_text("changes once more")
        _, second = place.back_up(mode, day=1)
        assert read == ["changes"]
        kept = [first, second] if mode != "none" else [second]
        for record in kept:
            known = manifest.read(folder.manifest(record.id))
            assert known is not None
            content = b"changes 0" if record is first else b"changes once more"
            assert known["changes"].content == manifest.digest_of(content)
            assert known["same"].content == manifest.digest_of(b"same 0")


# What is damaged


def test_a_drill_finds_what_the_store_itself_takes_to_be_right(
    tally: Tally, dice: random.Random
) -> None:
    """An archive that is sound in every byte, and holds something else than was backed up."""
    missed = 0
    count = times(1, 10)
    for _ in range(count):
        with make_place() as place:
            odd_tree(place.source, dice, files=8)
            (place.source / "important").write_text("what was backed up")
            folder, record = place.back_up("borg")
            mode = get_mode("borg", place.unit.environment)
            assert isinstance(mode, borg.Borg)
            mode.remove(folder, record)
            (folder.mirror / "important").write_text("what the store says")
            command = borg.make_create_command(folder.repository, record)
            assert mode._run(folder, command, cwd=folder.path).code == 0
            assert mode.verify(folder, record) is None
            verdict = place.verify(record, Depth.DRILL, drill_files=1000)
            missed += verdict.damaged is None
            assert "'important'" in str(verdict.damaged)
            [written] = place.unit.catalogue.records(folder)[0]
            assert (written.damaged, written.proven_at) == (verdict.damaged, None)
            [state] = verification_report(written).sources["docs"].snapshots
            assert (state.state, state.error) == ("damaged", verdict.damaged)
    tally.note("an archive that borg finds sound, with other content", times=count, lost=missed)


def damage(dice: random.Random, path: Path, other: Path, what: str) -> None:
    """Harm a stored file in one way, with its size and times as they were where that can be."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    if what == "deleted":
        path.unlink()
        return
    if what == "bit":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif what == "cut":
        del content[dice.randrange(len(content)) :]
    else:
        there = other.read_bytes()
        other.chmod(0o600)
        other.write_bytes(content)
        content = bytearray(there)
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def victims(folder: SourceFolder, record: Record, dice: random.Random) -> tuple[Path, Path]:
    """Choose a stored file to harm, and another one to swap it with."""
    if record.mode == "borg":
        # The largest segment is the archive's. In others is also what borg needs no more.
        segments = [path for path in (folder.repository / "data").rglob("*") if path.is_file()]
        segments.sort(key=lambda path: path.stat().st_size)
        return segments[-1], segments[0]
    tree = folder.mirror if record.mode == "none" else folder.tree(record.id)
    files = {path: path.stat() for path in sorted(tree.rglob("*")) if path.is_file()}
    path = dice.choice([each for each, status in files.items() if status.st_size > 1])
    content = path.read_bytes()
    others = [each for each in files if each.read_bytes() != content]
    return path, dice.choice(others)


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_drill_finds_every_damage(mode: str, tally: Tally, dice: random.Random) -> None:
    tried = missed = 0
    whats = ["bit", "cut", "deleted", "swapped"]
    for _ in range(times(1, 5 if mode == "borg" else 15)):
        for what in dice.sample(whats, times(1 if mode == "borg" else 4, 4)):
            with make_place() as place:
                odd_tree(place.source, dice, files=12)
                folder, record = place.back_up(mode)
                harmed, other = victims(folder, record, dice)
                damage(dice, harmed, other, what)
                verdict = place.verify(record, Depth.WHOLE)
                tried += 1
                missed += verdict.damaged is None
                assert verdict.damaged is not None, (what, harmed, verdict.failed)
                if mode != "borg":
                    assert ascii(harmed.name)[1:-1] in verdict.damaged
                assert place.left_behind() == []
    tally.note(f"damage in mode {mode}, found by a whole drill", times=tried, lost=missed)


def test_a_damaged_snapshot_is_good_again_only_when_all_of_it_is(tally: Tally) -> None:
    with make_place() as place:
        for number in range(40):
            (place.source / str(number)).write_text(f"content {number}")
        folder, record = place.back_up("link-dest")
        file = folder.tree(record.id) / "17"
        file.write_text("content 71")
        assert place.verify(record, Depth.WHOLE).damaged is not None
        forgotten = 0
        for depth in (Depth.DRILL, Depth.READ, Depth.WHOLE):
            [known] = place.unit.catalogue.records(folder)[0]
            forgotten += place.verify(known, depth, drill_files=1).damaged is None
        assert forgotten == 0
        file.write_text("content 17")
        line = (manifest.read(folder.manifest(record.id)) or {})["17"]
        os.utime(file, ns=(line.mtime_ns, line.mtime_ns))
        [known] = place.unit.catalogue.records(folder)[0]
        assert place.verify(known, Depth.DRILL, drill_files=1).proven
        assert folder.state().restored_at == LATER
    tally.note("damage that another sample doesn't show", times=3, lost=forgotten)


# What can't be done


def ill_borg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a borg before ours that fails to extract and to check."""
    program = folder / "borg"
    program.write_text("#!/bin/sh\necho borg is ill >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_keeps_a_drill_from_being_made_says_nothing_of_the_snapshot(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = 0
    with make_place() as place:
        (place.source / "file").write_text("content")
        folder, record = place.back_up("borg")
        assert place.verify(record, Depth.DRILL).proven
        with monkeypatch.context() as patched:
            ill_borg(tmp_path, patched)
            for depth in Depth:
                verdict = place.verify(record, depth)
                [written] = place.unit.catalogue.records(folder)[0]
                assert verdict.failed is not None
                wrong += (written.damaged, written.proven_at) != (None, LATER)
                wrong += "ill" not in str(written.unproven)
        with monkeypatch.context() as patched:
            patched.setattr(drill, "room_for_drills", lambda _: 3)
            for depth in Depth:
                verdict = place.verify(record, depth)
                wrong += verdict.damaged is not None or "free some space" not in str(verdict.failed)
                assert "room for 3 bytes" in str(verdict.failed)
        assert wrong == 0
        assert place.verify(record, Depth.DRILL).proven
        [written] = place.unit.catalogue.records(folder)[0]
        assert written.unproven is None
        assert place.left_behind() == []
    tally.note("drills that can't be made: borg is killed, no room", times=6, lost=wrong)


def test_a_drill_that_ends_with_the_worker_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_place() as place:
        (place.source / "file").write_text("content")
        folder, record = place.back_up("borg")
        ill_borg(tmp_path, monkeypatch)
        with pytest.raises(SnapshotError, match="ill"):
            place.verify(record, Depth.DRILL, interrupted=lambda: True)
        assert place.unit.catalogue.records(folder)[0] == [record]


@pytest.mark.parametrize("mode", MODES)
def test_a_drill_stays_within_its_room(
    mode: str, tally: Tally, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 700_000
    parts: list[list[str]] = []
    real = drill.drill

    def noted(*arguments: Any) -> list[str]:
        parts.append(list(arguments[4]))
        return real(*arguments)

    monkeypatch.setattr(drill, "room_for_drills", lambda _: room)
    monkeypatch.setattr(drill, "drill", noted)
    over = 0
    with make_place() as place:
        odd_tree(place.source, dice)
        (place.source / "sparse").unlink()
        for number in range(4):
            (place.source / f"large{number}").write_bytes(dice.randbytes(500_000))
        folder, record = place.back_up(mode)
        known = manifest.read(folder.manifest(record.id)) or {}
        everything = sorted(path for path, line in known.items() if line.content)
        for depth in (Depth.DRILL, Depth.WHOLE):
            assert place.verify(record, depth).proven
        sizes = [sum(known[path].size for path in part) for part in parts]
        over = sum(1 for size in sizes if size > room)
        assert over == 0
        assert len(parts) > 3
        assert sorted(path for part in parts[1:] for path in part) == everything
        assert place.left_behind() == []
    tally.note("drills in parts that there is room for", times=len(parts), lost=over)


# What comes round


@dataclass
class Simulated:
    """A source on a storage unit, over a year: its snapshots come, and go by its policy."""

    folder: SourceFolder
    every: timedelta
    kept: int
    first: timedelta
    records: list[Record] = field(default_factory=list)
    state: SourceState = field(default_factory=SourceState)

    def pass_to(self, now: datetime) -> None:
        """Make the snapshot that is due, and expire what the policy doesn't want."""
        last = self.records[-1].taken_at if self.records else START + self.first - self.every
        if now - last >= self.every:
            self.records.append(_record(self.folder.source, now))
        # As "earliest of month" does, one of ten is kept for long.
        alive = self.records[-self.kept :]
        alive += [each for each in self.records[: -self.kept] if _is_kept_for_long(each, now)]
        self.records = sorted(alive, key=lambda record: record.taken_at)


def _is_kept_for_long(record: Record, now: datetime) -> bool:
    return record.taken_at.day % 10 == 1 and now - record.taken_at < 200 * DAY


def _record(source: str, taken_at: datetime) -> Record:
    identity = taken_at.strftime("%Y%m%dT%H%M%SZ")
    return Record(MACHINE, source, identity, taken_at, taken_at, "link-dest")


@dataclass
class Year:
    """What a simulated year has come to.

    `late` are proofs that came after more than the interval (and a day); `unproven` is the longest
    that a source has been without one; `needed` how many drills there were.
    """

    late: int = 0
    proofs: int = 0
    wholes: dict[str, list[datetime]] = field(default_factory=dict)
    longest: timedelta = timedelta()


def simulate(
    dice: random.Random, monkeypatch: pytest.MonkeyPatch, *, sources: int, steps: int, days: int
) -> Year:
    """Let a unit of many sources go on, that can prove so many snapshots in an hour."""
    cycle = Cycle(timedelta(days=10), timedelta(days=60))
    volume = Volume("one", Path("/nowhere"))
    known = [
        Simulated(
            SourceFolder(volume, MACHINE, f"s{number}"),
            every=timedelta(hours=dice.choice([12, 24, 24, 168])),
            kept=dice.choice([3, 5, 30]),
            first=timedelta(hours=dice.randrange(24 * 20)),
        )
        for number in range(sources)
    ]
    by_name = {each.folder.source: each for each in known}
    monkeypatch.setattr(SourceFolder, "state", lambda folder: by_name[folder.source].state)
    year = Year(wholes={each.folder.source: [] for each in known})
    for hour in range(0, 24 * days, 2):
        now = START + timedelta(hours=hour)
        for each in known:
            each.pass_to(now)
        found = [(each.folder, record) for each in known for record in each.records]
        for step in verification.plan(found, now, cycle)[: 2 * steps]:
            _take(by_name[step.folder.source], step, now, year)
        for each in known:
            for record in each.records:
                proven = record.proven_at or record.taken_at
                year.late += now - proven > cycle.snapshots + DAY
            if each.records:
                last = each.state.proven_at or START + each.first
                year.longest = max(year.longest, now - last)
    return year


def _take(source: Simulated, step: verification.Step, now: datetime, year: Year) -> None:
    year.proofs += 1
    place = next(
        number for number, record in enumerate(source.records) if record.id == step.record.id
    )
    checked_at = now if step.depth is not Depth.DRILL else source.records[place].checked_at
    source.records[place] = replace(source.records[place], proven_at=now, checked_at=checked_at)
    source.state = replace(source.state, proven_at=now)
    if step.depth is Depth.WHOLE:
        source.state = replace(source.state, restored_at=now)
        year.wholes[source.folder.source].append(now)


def test_everything_comes_round_in_time(
    tally: Tally, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs = late = 0
    for _ in range(times(1, 3)):
        year = simulate(dice, monkeypatch, sources=times(6, 12), steps=3, days=DAYS)
        proofs += year.proofs
        late += year.late
        assert year.late == 0
        assert year.longest <= timedelta(days=8)
        for name, whole in year.wholes.items():
            moments = [*whole, START + DAYS * DAY]
            gaps = [later - former for former, later in itertools.pairwise(moments)]
            assert whole, name
            assert whole[0] < START + 40 * DAY
            assert max(gaps) < timedelta(days=70), (name, gaps)
    tally.note("proofs in a simulated year: any that came too late", times=proofs, lost=late)


def test_with_too_much_to_do_no_source_is_left_out(
    tally: Tally, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that gets round to a third of its drills."""
    proofs = starved = 0
    for _ in range(times(1, 3)):
        year = simulate(dice, monkeypatch, sources=30, steps=1, days=DAYS)
        assert year.late > 0
        starved += year.longest > timedelta(days=60)
        proofs += year.proofs
        assert year.longest <= timedelta(days=60), year.longest
    tally.note("a unit with too much to do: sources left out", times=proofs, lost=starved)


def test_a_clock_that_was_ahead_keeps_nothing_from_being_proven(
    tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SourceFolder(Volume("one", Path("/nowhere")), MACHINE, "docs")
    ahead = LATER + 3650 * DAY
    monkeypatch.setattr(
        SourceFolder, "state", lambda _: SourceState(proven_at=ahead, restored_at=ahead)
    )
    record = replace(_record("docs", START), proven_at=ahead, checked_at=ahead)
    newer = replace(_record("docs", ahead), proven_at=None)
    for number in range(10):
        steps = verification.plan(
            [(folder, record), (folder, newer)], LATER + number * DAY, Cycle()
        )
        assert [(step.record.id, step.depth) for step in steps if step.record is record] == [
            (record.id, Depth.DRILL),
            (record.id, Depth.READ),
        ]
    tally.note("a clock that was ten years ahead at the last proof", times=10)

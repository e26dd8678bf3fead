"""Verification: every snapshot and every source is proven in turn.

A *restore drill* restores some files and compares them: it costs little, and so it comes round
on every snapshot in time, whatever else is to be done. With what is left of the time every byte is
read by the mode's own check, and once in a while all of a source is restored.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from turku_core.errors import TurkuError
from turku_core.storage import drill, manifest
from turku_core.storage.catalogue import Catalogue, NoSuchSnapshot
from turku_core.storage.records import Cycle, Record
from turku_core.storage.snapshots import (
    Environment,
    Mode,
    SnapshotError,
    distrust_mirror,
    get_mode,
)
from turku_core.storage.source_folder import SourceBusy, SourceFolder

logger = logging.getLogger(__name__)

_UNPROVABLE = (
    "There are no checksums of when it was backed up; it is as it was when it was first read."
)
"""Said of what should have them. Snapshots of the old layout never had any."""


class Depth(Enum):
    """How thoroughly a snapshot is proven; each has in it what the ones before it do."""

    DRILL = "drill"
    """A sample of its files is restored and compared."""

    READ = "read"
    """Every byte of it is read and checked."""

    WHOLE = "whole"
    """All of its files are restored and compared."""


@dataclass(frozen=True)
class Step:
    """What to prove next."""

    folder: SourceFolder
    record: Record
    depth: Depth


@dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    Attributes:
        record: As it was written.
        damaged: The reason why the snapshot is bad.
        failed: The reason why it could not be proven, good or bad.
        unprovable: Whether it is as it was when it was first read, and it isn't known what it was
            before.
        files_drilled: How many files were restored and compared.
    """

    record: Record
    damaged: str | None
    failed: str | None
    unprovable: bool = False
    files_drilled: int = 0

    @property
    def proven(self) -> bool:
        """Whether it is proven that the snapshot can be restored."""
        return self.damaged is None and self.failed is None and not self.unprovable


def plan(records: Sequence[tuple[SourceFolder, Record]], now: datetime, cycle: Cycle) -> list[Step]:
    """Return what is due to be proven, the most urgent first. Expired snapshots aren't.

    Drills come first, so that they are in time however long it takes to read everything. Among
    equals the one that has been due for longest comes first, which starves nobody. A source's
    newest snapshot counts as if it had been due for a whole cycle, and for two while no snapshot of
    the source is proven.
    """
    sources: dict[tuple[str, str], list[tuple[SourceFolder, Record]]] = {}
    for folder, record in records:
        sources.setdefault((folder.machine, folder.source), []).append((folder, record))
    drills: list[tuple[datetime, Step]] = []
    readings: list[tuple[datetime, Step]] = []
    for found in sources.values():
        alive = [each for each in found if each[1].expired_at is None]
        if not alive:
            continue
        is_known = any(record.proven_at is not None for _, record in found)
        drills += _drills(alive, now, cycle, head_start=1 if is_known else 2)
        readings += _readings(alive, now, cycle)
    return [
        step
        for steps in (drills, readings)
        for due, step in sorted(steps, key=lambda each: each[0])
        if due <= now
    ]


_Due = tuple[datetime, Step]


def _drills(
    alive: Sequence[tuple[SourceFolder, Record]], now: datetime, cycle: Cycle, *, head_start: int
) -> Iterable[_Due]:
    newest = max(alive, key=lambda each: each[1].taken_at)
    for folder, record in alive:
        # A damaged one needs more than a sample to be good again.
        if record.damaged is None and not _is_unprovable(folder, record):
            due = _due(record.proven_at, cycle.snapshots, record.taken_at, now)
            if record is newest[1] and record.proven_at is None:
                due -= head_start * cycle.snapshots
            yield due, Step(folder, record, Depth.DRILL)


def _readings(
    alive: Sequence[tuple[SourceFolder, Record]], now: datetime, cycle: Cycle
) -> Iterable[_Due]:
    good = [each for each in alive if each[1].damaged is None and not _is_unprovable(*each)]
    whole = None
    if good:
        # One that could not be restored is tried again before a newer one covers it up.
        folder, whole = max(good, key=lambda each: (each[1].unproven is not None, each[1].taken_at))
        first = min(record.taken_at for _, record in good) - cycle.snapshots
        due = _due(folder.state().restored_at, cycle.whole, first, now)
        if due <= now:
            yield due, Step(folder, whole, Depth.WHOLE)
        else:
            whole = None
    for folder, record in alive:
        if record is not whole:
            due = _due(record.checked_at, cycle.snapshots, record.taken_at, now)
            yield due, Step(folder, record, Depth.READ)


def _is_unprovable(folder: SourceFolder, record: Record) -> bool:
    """Say whether there are no checksums of a snapshot's making; borg's archives have their own."""
    path = folder.manifest(record.id)
    return record.proven_at is None and record.mode != "borg" and manifest.was_taken_later(path)


def _due(last: datetime | None, interval: timedelta, first: datetime, now: datetime) -> datetime:
    """Return when something is due; a time in the future is of a clock that was wrong."""
    if last is None or last > now:
        return min(first, now)
    return last + interval


def _never() -> bool:
    return False


def verify(
    catalogue: Catalogue,
    folder: SourceFolder,
    record: Record,
    environment: Environment,
    now: datetime,
    *,
    depth: Depth = Depth.READ,
    drill_files: int = drill.SAMPLE_FILES,
    interrupted: Callable[[], bool] = _never,
) -> Verdict:
    """Prove one snapshot, and write the result into its record.

    A damaged one is restored whole whatever was asked for: less would not show that it is good. One
    without checksums (of an earlier release, or rebuilt) is read, and from then on it has them:
    they show whether it changes, and never prove what isn't borg's, which has checksums of its own.

    The source's lock is held only to write the result: removal waits while a check reads, and a
    backup of the source doesn't, unless the snapshot is its mirror. Raises SourceBusy, and
    NoSuchSnapshot when it was removed meanwhile. What else keeps it from being proven is the
    verdict's `failed`, unless `interrupted` says that it was this program's own end.
    """
    if record.damaged is not None:
        depth = Depth.WHOLE
    damaged = failed = None
    drilled = 0
    try:
        mode = get_mode(record.mode, environment)
        if depth is Depth.DRILL and not folder.manifest(record.id).is_file():
            depth = Depth.READ
        with folder.reading(mode.reads):
            drilled, damaged = _prove(catalogue, folder, record, mode, depth, drill_files)
    except SourceBusy:
        raise
    except (TurkuError, OSError) as error:
        if interrupted():
            raise
        failed = str(error)
    verdict = _write(catalogue, folder, record, now, depth, damaged, failed)
    verdict = dataclasses.replace(verdict, files_drilled=drilled)
    if verdict.damaged is None and failed is None and depth is not Depth.DRILL:
        _check_mirror(folder, record, mode)
    _log(folder, verdict)
    return verdict


def _check_mirror(folder: SourceFolder, record: Record, mode: Mode) -> None:
    """Compare a mirror that is restored from with its good snapshot; distrust it if it differs."""
    try:
        problem = mode.check_mirror(folder, record)
        if problem is not None:
            logger.error("%s: its mirror is damaged: %s", folder.label, problem)
            with folder.lock(wait_seconds=60):
                distrust_mirror(folder, record)
    except (TurkuError, OSError) as error:
        logger.error("%s: its mirror could not be compared: %s", folder.label, error)


def _prove(
    catalogue: Catalogue,
    folder: SourceFolder,
    record: Record,
    mode: Mode,
    depth: Depth,
    drill_files: int,
) -> tuple[int, str | None]:
    """Return how many files were restored and compared, and what is damaged."""
    count = None if depth is Depth.WHOLE else drill_files
    # First: what there is no room for needn't be read for nothing.
    drilling = _Drilling.of(catalogue, folder, record, count)
    if depth is not Depth.DRILL:
        damaged = mode.verify(folder, record)
        if damaged is not None:
            return 0, damaged
    drilling = drilling or _Drilling.of(catalogue, folder, record, count)
    if drilling is None:
        return 0, "Its checksums can't be read."
    try:
        wrong = [
            path
            for part in drilling.parts
            for path in drill.drill(folder, record, mode, drilling.known, part)
        ]
    except (SnapshotError, OSError):
        # Is it because of what is stored?
        damaged = mode.verify(folder, record) if depth is Depth.DRILL else None
        if damaged is None:
            raise
        return 0, damaged
    return drilling.files, drill.words(wrong) if wrong else None


@dataclass(frozen=True)
class _Drilling:
    """What a drill is to restore: so many files, in parts that there is room for."""

    known: manifest.Manifest
    parts: Sequence[Sequence[str]]
    files: int

    @classmethod
    def of(
        cls, catalogue: Catalogue, folder: SourceFolder, record: Record, count: int | None
    ) -> _Drilling | None:
        """Choose `count` files, or all; None without checksums. Raises drill.NoRoom."""
        known = manifest.read(folder.manifest(record.id))
        if known is None:
            return None
        room = drill.room_for_drills(catalogue.volumes.space(folder.volume))
        if count is None:
            parts = list(drill.parts_of(known, room))
            return cls(known, parts, sum(1 for line in known.values() if line.content))
        sample = drill.choose_sample(known, room, count)
        return cls(known, [sample] if sample else [], len(sample))


def _write(
    catalogue: Catalogue,
    folder: SourceFolder,
    record: Record,
    now: datetime,
    depth: Depth,
    damaged: str | None,
    failed: str | None,
) -> Verdict:
    unprovable = False
    with folder.lock(wait_seconds=60):
        current = next((x for x in catalogue.records(folder)[0] if x.id == record.id), None)
        if current is None:
            raise NoSuchSnapshot(f"{folder.label}: snapshot {record.id} is gone.")
        written = dataclasses.replace(current, unproven=failed)
        if failed is None:
            if depth is not Depth.WHOLE:
                damaged = damaged or current.damaged
            is_good = damaged is None
            unprovable = is_good and _is_unprovable(folder, current)
            is_proven = is_good and not unprovable
            written = dataclasses.replace(
                written,
                damaged=damaged,
                unproven=_UNPROVABLE if unprovable and not folder.old_layout else None,
                proven_at=now if is_proven else current.proven_at,
                checked_at=current.checked_at if is_good and depth is Depth.DRILL else now,
            )
            if is_proven:
                state = dataclasses.replace(folder.state(), proven_at=now)
                if depth is Depth.WHOLE:
                    state = dataclasses.replace(state, restored_at=now)
                folder.write_state(state)
        catalogue.write(folder, written)
    return Verdict(written, damaged, failed, unprovable)


def _log(folder: SourceFolder, verdict: Verdict) -> None:
    snapshot = verdict.record.id
    if verdict.failed is not None:
        logger.error(
            "%s: snapshot %s could not be proven: %s", folder.label, snapshot, verdict.failed
        )
    elif verdict.damaged is not None:
        logger.error("%s: snapshot %s is damaged: %s", folder.label, snapshot, verdict.damaged)
    elif verdict.unprovable:
        logger.warning("%s: snapshot %s is not proven: %s", folder.label, snapshot, _UNPROVABLE)
    else:
        count = verdict.files_drilled
        logger.info("%s: snapshot %s is proven (%d files)", folder.label, snapshot, count)

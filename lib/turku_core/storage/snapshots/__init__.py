"""Snapshot modes: what makes a lasting, restorable state out of a mirror.

The order is the promise. A session and the worker go through it like this::

    folder = catalogue.open(machine, source)              # chooses the volume, makes the folder
    name = resolve_mode(wish, default, large_files=..., volume_path=folder.volume.path)
    mode = get_mode(name, environment)
    with folder.lock() as held:                           # SourceBusy -> 75
        target = mode.prepare(folder)                     # CommitPending -> 75
        received = mirror.pull(daemon, target, options, hold=(held,))
        if received.usable:
            pending = mode.freeze(folder, Taken(...))     # durable: survives SIGKILL from here on
    # ... the agent may go ...
    record = commit(catalogue, folder, environment)       # worker: snapshot, syncfs, record

After a crash at any point `converge(catalogue, folder, environment)` removes or finishes what is
half made.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

from turku_core.checked_json import read_json
from turku_core.errors import TryAgainLater, TurkuError
from turku_core.storage import hard_links, holds, manifest, programs
from turku_core.storage.catalogue import Catalogue, Condition, rebuilt_record
from turku_core.storage.mirror import Outcome, Received, Statistics, Target
from turku_core.storage.records import Pending, Record, SourceState, time_of_id
from turku_core.storage.source_folder import Readable, SourceFolder
from turku_core.storage.trouble import incarnation

logger = logging.getLogger(__name__)

MODES = ("borg", "btrfs", "link-dest", "none")

_MIRRORS_OF_THEIR_OWN = ("borg", "btrfs", "none")
_LEFT_BY_A_CRASH = re.compile(r"\..+\.[0-9a-f]{16}\.tmp|\.restore-.*|\.removing-.*|_delete-.*")


class SnapshotError(TurkuError):
    """A snapshot could not be made, opened, checked or removed; says why."""


class FrozenStateLost(SnapshotError):
    """What was frozen was lost in a power cut before it was committed; `pending` tells what."""

    def __init__(self, message: str, pending: Pending) -> None:
        super().__init__(message)
        self.pending = pending


class ModeUnavailable(SnapshotError):
    """The wished mode can't work here (btrfs on another file system, borg not installed)."""


class CommitPending(TryAgainLater):
    """The last state of this source is frozen and not yet committed; its mirror must wait."""


@dataclass(frozen=True)
class Environment:
    """What the modes need to know of the storage unit.

    `state_folder` is `var/lib/turku-storage`: borg's caches and configuration lie in it.
    """

    state_folder: Path


@dataclass(frozen=True)
class Taken:
    """What a session knows of the state it has pulled.

    `taken_at` is when the session's pull began, `time_end` when it was over. Both are aware.
    """

    taken_at: datetime
    time_end: datetime
    received: Received
    path: str | None
    retention: str | None


class Mode(ABC):
    """One way to make snapshots. Methods expect the caller to hold the source's lock."""

    name: ClassVar[str]
    keeps_mirror: ClassVar[bool] = True
    """Whether the mirror stays as it is after a commit, equal to the newest snapshot."""

    reads: ClassVar[Readable] = Readable.SNAPSHOTS
    """What a restore from a snapshot reads."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def prepare(self, folder: SourceFolder, wish: str | None = None) -> Target:
        """Clear up after a crash and say where to pull to. Raises CommitPending, SourceBusy.

        `wish` is what was asked for from outside of how to keep snapshots, if that is known.
        """
        if folder.pending() is not None:
            raise CommitPending(
                f"Source {folder.source!r} of machine {folder.machine}: its last backup is still "
                "being committed; try later."
            )
        # From here on no restore begins from the mirror; then see that none goes on.
        state = folder.state()
        boot_id = incarnation(self.environment.state_folder, folder.volume.name)
        distrust = state.unsynced_boot_id not in (None, boot_id)
        is_switch = state.mirror_mode not in (None, self.name) and state.wish not in (None, wish)
        folder.write_state(
            dataclasses.replace(
                state,
                mirror_id=None,
                mirror_taken_at=None,
                wish=wish,
                has_hard_links=None,
                switched=state.switched or is_switch,
                unsynced_boot_id=state.unsynced_boot_id if distrust else boot_id,
            )
        )
        with folder.unread(Readable.MIRROR):
            if self.keeps_mirror and state.mirror_mode not in _MIRRORS_OF_THEIR_OWN:
                # A tree of link-dest shares inodes with snapshots: never write into it.
                programs.remove_tree(folder.mirror)
            target = self._prepare(folder, distrust)
            has_hard_links = state.has_hard_links is not False
            if self.keeps_mirror and has_hard_links:
                hard_links.keep_one_name(target.folder)
        if _was_damaged_since_the_newest(folder):
            # What is linked to, or shares its extents, would go on into the next snapshot.
            target = dataclasses.replace(target, checksum=True)
        target = dataclasses.replace(target, has_hard_links=has_hard_links)
        folder.write_state(dataclasses.replace(folder.state(), mirror_mode=self.name))
        return target

    @abstractmethod
    def _prepare(self, folder: SourceFolder, distrust: bool) -> Target:
        """Make ready what is pulled to; `distrust` after a power cut with unsynced data."""

    def freeze(self, folder: SourceFolder, taken: Taken) -> Pending:
        """Fix the pulled state durably, in little time: after it the agent may go."""
        statistics = taken.received.statistics
        snapshot = folder.new_id(taken.taken_at)
        record = Record(
            machine=folder.machine,
            source=folder.source,
            id=snapshot,
            taken_at=taken.taken_at,
            time_end=taken.time_end,
            mode=self.name,
            partial=taken.received.outcome is not Outcome.RECEIVED,
            summary=taken.received.message,
            path=taken.path,
            retention=taken.retention,
            files_total=statistics.files_total,
            entries=_entries(statistics),
            switched_mode=folder.state().switched,
            bytes_total=statistics.bytes_total,
            bytes_stored=statistics.bytes_transferred,
        )
        pending = Pending(record, incarnation(self.environment.state_folder, folder.volume.name))
        folder.write_pending(pending)
        self._freeze(folder, pending)
        folder.write_state(
            dataclasses.replace(
                folder.state(),
                path=taken.path,
                retention=taken.retention,
                mode=self.name,
                last_session_at=taken.time_end,
            )
        )
        return pending

    @abstractmethod
    def _freeze(self, folder: SourceFolder, pending: Pending) -> None:
        """Set the pulled state apart from later pulls; nothing to do where the mirror waits."""

    @abstractmethod
    def survived_power_cut(self, folder: SourceFolder, pending: Pending) -> bool:
        """Say whether a state that was frozen before another boot is surely whole."""

    @abstractmethod
    def discard(self, folder: SourceFolder, pending: Pending) -> None:
        """Give up a frozen state that was lost; what may be of use to the next pull stays."""

    @abstractmethod
    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Make the snapshot of a frozen state, again and again with the same result.

        With it come the checksums of its files, against which it is proven later. Returns the
        record, which the caller writes after syncing the volume.
        """

    @abstractmethod
    def list(self, folder: SourceFolder) -> Sequence[str]:
        """Return the ids for which there is something on the volume, records or not."""

    @abstractmethod
    def open_for_restore(
        self,
        folder: SourceFolder,
        record: Record,
        paths: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> AbstractContextManager[Path]:
        """Give a folder with the snapshot's tree (at least `paths`), metadata in fake-super's form.

        It must not be written to, and is gone after the context. Paths are relative, and
        surrogateescape'd; one that isn't there is left out. Raises programs.Cancelled.
        """

    @abstractmethod
    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Remove the snapshot's data; what is gone already is no error."""

    @abstractmethod
    def verify(self, folder: SourceFolder, record: Record) -> str | None:
        """Check the snapshot's data; return what is damaged, or None. Raises SnapshotError."""

    def check_mirror(self, folder: SourceFolder, record: Record) -> str | None:
        """Say how a mirror that is kept beside the snapshot differs from it; None if it doesn't.

        Raises SourceBusy, SnapshotError.
        """
        return None

    @abstractmethod
    def tidy(self, folder: SourceFolder) -> None:
        """Do what is due after removals; it may be begun again."""


def _entries(statistics: Statistics) -> int | None:
    if statistics.files_total is None:
        return None
    return statistics.files_total - (statistics.folders_total or 0)


def _was_damaged_since_the_newest(folder: SourceFolder) -> bool:
    """Say whether a verification has found bad data that the newest snapshot may share."""
    newest, damaged = "", ""
    for name in os.listdir(folder.snapshots):
        if not name.endswith(".json") or time_of_id(name.removesuffix(".json")) is None:
            continue
        newest = max(newest, name)
        with suppress(OSError, ValueError):
            values = read_json(folder.snapshots / name)
            checked_at = values.get("checked_at")
            if values.get("damaged") is not None and isinstance(checked_at, str):
                found_at = datetime.fromisoformat(checked_at).astimezone(timezone.utc)
                damaged = max(damaged, f"{found_at:%Y%m%dT%H%M%SZ}.json")
    return damaged >= newest if damaged else False


def distrust_mirror(folder: SourceFolder, record: Record) -> None:
    """Let nothing be restored from a mirror that isn't what its snapshot is.

    The next pull compares it by checksum, so that nothing of it goes on. The caller holds the
    source's lock.
    """
    state = folder.state()
    if state.mirror_id == record.id:
        folder.write_state(
            dataclasses.replace(
                state, mirror_id=None, mirror_taken_at=None, unsynced_boot_id="damaged"
            )
        )


def get_mode(name: str, environment: Environment) -> Mode:
    """Return the mode of this name (`attic` is borg). Raises SnapshotError."""
    # Imported here: each mode stands on the interface above.
    from turku_core.storage.snapshots import borg, btrfs, link_dest, none

    modes: dict[str, type[Mode]] = {
        "attic": borg.Borg,
        "borg": borg.Borg,
        "btrfs": btrfs.Btrfs,
        "link-dest": link_dest.LinkDest,
        "none": none.Nothing,
    }
    if name not in modes:
        raise SnapshotError(f"There is no snapshot mode {name!r}; there is {', '.join(MODES)}.")
    return modes[name](environment)


def resolve_mode(wish: str | None, default: str, *, large_files: bool, volume_path: Path) -> str:
    """Return the name of the mode to use for a source.

    The source's wish comes before the unit's default. `large_files` (large_rotating_files or
    large_modifying_files) never go on hard-link trees: borg instead. btrfs on a volume of another
    file system raises ModeUnavailable.
    """
    from turku_core.storage.snapshots import btrfs

    name = wish or default
    if name == "attic" or (name == "link-dest" and large_files):
        name = "borg"
    if name not in MODES:
        raise SnapshotError(f"There is no snapshot mode {name!r}; there is {', '.join(MODES)}.")
    if name == "btrfs" and not btrfs.is_btrfs(volume_path):
        raise ModeUnavailable(
            f"Snapshot mode btrfs was asked for, but {volume_path} isn't a btrfs file system; "
            "choose borg or link-dest, or put the source on a btrfs volume."
        )
    return name


def commit(
    catalogue: Catalogue, folder: SourceFolder, environment: Environment, *, wait_seconds: float = 0
) -> Record | None:
    """Commit what is pending for a source: snapshot, syncfs, record, and only then return it.

    Takes the source's lock. None when nothing is pending. Does it all again after a crash.
    Raises SourceBusy, SnapshotError (the pending state is kept), FrozenStateLost, VolumeError.
    """
    catalogue.volumes.check(folder.volume)
    with folder.lock(wait_seconds=wait_seconds):
        pending = folder.pending()
        if pending is None:
            return None
        mode = get_mode(pending.record.mode, environment)
        record = _committed(catalogue, folder, pending)
        if record is None:
            now = incarnation(environment.state_folder, folder.volume.name)
            if pending.boot_id != now and not mode.survived_power_cut(folder, pending):
                _give_up(folder, mode, pending)
            try:
                record = mode.commit(folder, pending)
                programs.sync_file_system(folder.volume.path)
            except OSError as error:
                raise SnapshotError(
                    f"{folder.label}: snapshot {pending.record.id} could not be made: {error}."
                ) from error
            record = dataclasses.replace(
                record, checksummed=True, previous_at=_previous(catalogue, folder, record)
            )
            # A hold comes first, so that nothing expires by the new snapshot before it.
            record = holds.note(folder, record)
            catalogue.write(folder, record)
        _finish(folder, mode, record)
        return record


def _committed(catalogue: Catalogue, folder: SourceFolder, pending: Pending) -> Record | None:
    """Return the record of a pending commit that was written before a crash."""
    for found in catalogue.scan(folder):
        written = found.condition in (Condition.COMMITTED, Condition.WITHDRAWN)
        if written and found.record.id == pending.record.id:
            return found.record
    return None


def _previous(catalogue: Catalogue, folder: SourceFolder, record: Record) -> datetime | None:
    """Return when the snapshot before a new one was taken."""
    times = [each.taken_at for each in catalogue.records(folder)[0]]
    return max((time for time in times if time < record.taken_at), default=None)


def _give_up(folder: SourceFolder, mode: Mode, pending: Pending) -> None:
    mode.discard(folder, pending)
    folder.clear_pending()
    raise FrozenStateLost(
        f"{folder.label}: the backup of {pending.record.taken_at:%Y-%m-%d %H:%M} was not on the "
        "disk yet when this host was started again, or the volume failed; it will be taken again.",
        pending,
    )


def _finish(folder: SourceFolder, mode: Mode, record: Record) -> None:
    """Do what comes after the record is written; a crash before the end begins this again."""
    state = folder.state()
    kept = mode.keeps_mirror
    folder.write_state(
        dataclasses.replace(
            state,
            mirror_id=record.id if kept else None,
            mirror_taken_at=record.taken_at if kept else None,
            unsynced_boot_id=None,
            switched=False,
        )
    )
    folder.pull_log.unlink(missing_ok=True)
    folder.clear_pending()
    logger.info("%s: snapshot %s is committed (%s)", folder.label, record.id, record.mode)


def remove(
    catalogue: Catalogue,
    folder: SourceFolder,
    record: Record,
    environment: Environment,
    tell: Callable[[Record], object] = lambda record: None,
) -> None:
    """Remove a snapshot for good. The caller holds the source's lock.

    First the record says that removal has begun, so that a crash leaves nothing that is listed.
    `tell` is called when the data are gone and before the record is: whatever comes in between,
    the removal is begun again, and told of again. Raises SourceBusy while it is being restored
    from, and SnapshotError.
    """
    mode = get_mode(record.mode, environment)
    with folder.unread(mode.reads):
        catalogue.write(folder, dataclasses.replace(record, removing=True))
        try:
            mode.remove(folder, record)
        except OSError as error:
            raise SnapshotError(
                f"{folder.label}: snapshot {record.id} could not be removed: {error}."
            ) from error
        tell(record)
        catalogue.forget(folder, record.id)
    logger.info("%s: snapshot %s is removed", folder.label, record.id)


def converge(
    catalogue: Catalogue,
    folder: SourceFolder,
    environment: Environment,
    *,
    repository: bool = True,
    tell: Callable[[Record], object] = lambda record: None,
) -> list[str]:
    """Finish or remove half-made things in one source; return a sentence for each.

    Leaves a pending commit for `commit` and a half-pulled mirror for the next pull; finishes
    removals, deletes left-overs, and writes records that were lost again from what lies there.
    `repository` False spares the slow look into borg's; `tell` hears of finished removals as in
    `remove`, and of bare mirrors that are withdrawn. Takes the source's lock. Raises SourceBusy.
    """
    done: list[str] = []
    with folder.lock(), folder.unread(Readable.SNAPSHOTS):
        done += _remove_left_overs(folder)
    with folder.lock():
        done += _settle(catalogue, folder, environment, tell)
        if repository and not folder.old_layout and folder.repository.is_dir():
            done += _compare_with_repository(catalogue, folder, environment)
    for sentence in done:
        logger.warning("%s", sentence)
    return done


def _remove_left_overs(folder: SourceFolder) -> list[str]:
    done = []
    places = {folder.snapshots} if folder.old_layout else {folder.path, folder.snapshots}
    for place in places:
        if not place.is_dir():
            continue
        for name in sorted(os.listdir(place)):
            if _LEFT_BY_A_CRASH.fullmatch(name):
                path = place / name
                if path.is_dir() and not path.is_symlink():
                    programs.remove_tree(path)
                else:
                    path.unlink()
                done.append(f"{folder.label}: removed {name}, which a crash had left.")
    return done


def _settle(
    catalogue: Catalogue,
    folder: SourceFolder,
    environment: Environment,
    tell: Callable[[Record], object],
) -> list[str]:
    """Finish removals, withdraw bare mirrors that changed, and write lost records anew."""
    done = []
    for found in catalogue.scan(folder):
        if found.condition is Condition.REMOVING:
            remove(catalogue, folder, found.record, environment, tell)
            done.append(f"{folder.label}: finished the removal of snapshot {found.record.id}.")
        elif found.condition is Condition.WITHDRAWN and _is_still_the_mirror(folder, found.record):
            folder.write_state(
                dataclasses.replace(
                    folder.state(),
                    path=found.record.path,
                    retention=found.record.retention,
                    mode=found.record.mode,
                    mirror_id=found.record.id,
                    mirror_taken_at=found.record.taken_at,
                    mirror_mode=found.record.mode,
                )
            )
            done.append(f"{folder.label}: {found.record.id} is still what its mirror holds.")
        elif found.condition is Condition.WITHDRAWN:
            tell(found.record)
            catalogue.forget(folder, found.record.id)
            done.append(f"{folder.label}: {found.record.id} is withdrawn, its mirror has changed.")
        elif found.condition is Condition.LOST:
            done.append(_rewrite(catalogue, folder, found.record))
    return done


def _is_still_the_mirror(folder: SourceFolder, record: Record) -> bool:
    """Say whether a bare mirror is what it was, where the state that would tell was lost."""
    if folder.state() != SourceState() or folder.pending() is not None:
        return False
    known = manifest.read(folder.manifest(record.id))
    try:
        return known is not None and manifest.compare(folder.mirror, known) is None
    except OSError:
        return False


def _rewrite(catalogue: Catalogue, folder: SourceFolder, record: Record) -> str:
    file = folder.snapshots / f"{record.id}.json"
    if file.exists():
        file.rename(file.with_suffix(".json.broken"))
    catalogue.write(folder, record)
    return f"{folder.label}: wrote the record of snapshot {record.id} anew."


def _compare_with_repository(
    catalogue: Catalogue,
    folder: SourceFolder,
    environment: Environment,
) -> list[str]:
    done = []
    known = {record.id: record for record in catalogue.records(folder)[0]}
    pending = folder.pending()
    in_work = {pending.record.id} if pending is not None else set()
    present = set(get_mode("borg", environment).list(folder))
    for snapshot in sorted(present - known.keys() - in_work):
        record = dataclasses.replace(
            rebuilt_record(folder, snapshot), mode="borg", archive=f"{folder.source}-{snapshot}"
        )
        done.append(_rewrite(catalogue, folder, record))
    for snapshot, record in known.items():
        if record.mode == "borg" and snapshot not in present and record.damaged is None:
            gone = dataclasses.replace(record, damaged="Its archive is gone from the repository.")
            catalogue.write(folder, gone)
            done.append(f"{folder.label}: the archive of snapshot {snapshot} is gone.")
    return done

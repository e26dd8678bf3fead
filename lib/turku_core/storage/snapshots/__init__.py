"""Snapshot modes: what makes a lasting, restorable state out of a mirror.

The order is the promise. A session and the worker go through it like this::

    folder = catalogue.open(machine, source)              # chooses the volume, makes the folder
    mode = resolve(wish, default, large_files=..., folder=folder)
    with folder.lock():                                   # SourceBusy -> 75
        target = mode.prepare(folder, now)                # CommitPending -> 75
        received = mirror.pull(daemon, target, options)
        if received.usable:
            pending = mode.freeze(folder, Frozen(...))    # durable: survives SIGKILL from here on
    # ... the agent may go ...
    record = commit(catalogue, folder, environment)       # worker: snapshot, syncfs, record

After a crash at any point `converge(catalogue, folder)` removes or finishes what is half made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from turku_core.errors import TryAgainLater, TurkuError
from turku_core.storage.catalogue import Catalogue, Pending, Record, SourceFolder
from turku_core.storage.mirror import Received, Target

MODES = ("borg", "btrfs", "link-dest", "none")


class SnapshotError(TurkuError):
    """A snapshot could not be made, opened, checked or removed; says why."""


class ModeUnavailable(SnapshotError):
    """The wished mode can't work here (btrfs on another file system, borg not installed)."""


class CommitPending(TryAgainLater):
    """The last state of this source is frozen and not yet committed; its mirror must wait."""


@dataclass(frozen=True)
class Taken:
    """What a session knows of the state it has pulled.

    `taken_at` is when the session's pull began, `time_end` now. Both are aware.
    """

    taken_at: datetime
    time_end: datetime
    received: Received
    path: str | None
    retention: str | None


class Mode(Protocol):
    """One way to make snapshots. Methods expect the caller to hold the source's lock."""

    name: str

    def prepare(self, folder: SourceFolder, now: datetime) -> Target:
        """Clear up after a crash and say where to pull to. Raises CommitPending."""
        ...

    def freeze(self, folder: SourceFolder, taken: Taken) -> Pending:
        """Fix the pulled state durably, in little time: after it the agent may go."""
        ...

    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Make the snapshot of a frozen state, again and again with the same result.

        Returns the record, which the caller writes after syncing the volume.
        """
        ...

    def list(self, folder: SourceFolder) -> Sequence[str]:
        """Return the ids for which there is something on the volume, records or not."""
        ...

    def open_for_restore(
        self, folder: SourceFolder, record: Record, paths: Sequence[bytes] = ()
    ) -> AbstractContextManager[Path]:
        """Give a folder with the snapshot's tree (at least `paths`), real metadata in fake-super's
        xattrs; it must not be written to, and is gone after the context.
        """
        ...

    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Remove the snapshot's data; what is gone already is no error."""
        ...

    def verify(self, folder: SourceFolder, record: Record) -> str | None:
        """Check the snapshot's data; return what is damaged, or None."""
        ...


@dataclass(frozen=True)
class Environment:
    """What the modes need to know of the storage unit.

    `state_folder` is `var/lib/turku-storage`: borg's caches and configuration lie in it.
    """

    state_folder: Path


def get_mode(name: str, environment: Environment) -> Mode:
    """Return the mode of this name (`attic` is borg). Raises SnapshotError."""
    raise NotImplementedError


def resolve_mode(wish: str | None, default: str, *, large_files: bool, volume_path: Path) -> str:
    """Return the name of the mode to use for a source.

    The source's wish comes before the unit's default. `large_files` (large_rotating_files or
    large_modifying_files) never go on hard-link trees: borg instead. btrfs on a volume of another
    file system raises ModeUnavailable.
    """
    raise NotImplementedError


def commit(
    catalogue: Catalogue, folder: SourceFolder, environment: Environment, *, wait_seconds: float = 0
) -> Record | None:
    """Commit what is pending for a source: snapshot, syncfs, record, and only then return it.

    Takes the source's lock. None when nothing is pending. Does it all again after a crash.
    Raises SourceBusy, SnapshotError (the pending state is kept), VolumeError.
    """
    raise NotImplementedError


def converge(catalogue: Catalogue, folder: SourceFolder, environment: Environment) -> list[str]:
    """Finish or remove half-made things in one source; return a sentence for each.

    Leaves a pending commit for `commit`, half-pulled mirrors for the next pull; finishes removals,
    deletes left-overs, and writes records that were lost again from what lies there.
    Takes the source's lock. Raises SourceBusy.
    """
    raise NotImplementedError

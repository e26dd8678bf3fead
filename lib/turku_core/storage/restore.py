"""Restore: a snapshot, or single paths of it, back to a machine or to a local folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from turku_core.errors import TurkuError
from turku_core.storage.catalogue import Catalogue, Record, SourceFolder
from turku_core.storage.mirror import Daemon
from turku_core.storage.snapshots import Environment


class RestoreError(TurkuError):
    """A restore could not be done; says what, where and what to do."""


@dataclass(frozen=True)
class Chosen:
    """The snapshot that a restore takes; `record` is None for the bare mirror."""

    folder: SourceFolder
    record: Record | None
    id: str


@dataclass(frozen=True)
class Restored:
    """How a restore ended. `changes` are rsync's itemised lines of a dry run."""

    ok: bool
    message: str
    files: int
    bytes: int
    changes: tuple[str, ...] = ()


def choose_snapshot(catalogue: Catalogue, machine: str, source: str, wanted: str) -> Chosen:
    """Find a snapshot by id, `latest`, `mirror`, or an ISO 8601 time (the newest at or before it;
    UTC unless it says otherwise). Expired ones are found too. Raises NoSuchSnapshot, which lists
    what there is.
    """
    raise NotImplementedError


def open_snapshot(
    chosen: Chosen, environment: Environment, paths: Sequence[bytes] = ()
) -> AbstractContextManager[Path]:
    """Give the tree to restore from: the mirror itself where it still equals the snapshot."""
    raise NotImplementedError


def make_push_command(
    tree: Path,
    daemon: Daemon,
    paths: Sequence[bytes],
    *,
    dry_run: bool,
    checksum: bool,
    bwlimit: str | None = None,
) -> list[str]:
    """Return the rsync command of a restore to a machine; `paths` come from its standard input."""
    raise NotImplementedError


def push(
    chosen: Chosen,
    daemon: Daemon,
    environment: Environment,
    *,
    paths: Sequence[str] = (),
    dry_run: bool = False,
    checksum: bool = False,
    on_progress: Callable[[int, float | None], None] | None = None,
    on_change: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Restored:
    """Restore to a machine through the writable module of its daemon.

    `paths` are relative to the source's folder (or absolute below its path), surrogateescape'd
    where they aren't UTF-8; none means everything. Files that differ are replaced, newer ones too.
    Nothing is deleted. Raises NoSuchSnapshot for a path that isn't in the snapshot.
    """
    raise NotImplementedError


def restore_to_folder(
    chosen: Chosen,
    target: Path,
    environment: Environment,
    *,
    paths: Sequence[str] = (),
    dry_run: bool = False,
    checksum: bool = False,
    into_filled_folder: bool = False,
    on_progress: Callable[[int, float | None], None] | None = None,
    on_change: Callable[[str], None] | None = None,
) -> Restored:
    """Restore to a local folder, which is made. As root with real owners, modes, ACLs and devices;
    as another user as much as the kernel allows, and `message` says what isn't. Raises RestoreError
    for a folder that isn't empty unless `into_filled_folder`.
    """
    raise NotImplementedError

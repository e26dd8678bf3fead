"""Verification: every snapshot is proven in turn, by its mode's own check and a restore drill."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from turku_core.storage import programs
from turku_core.storage.catalogue import Catalogue, NoSuchSnapshot
from turku_core.storage.records import Record
from turku_core.storage.restore import restore_tree
from turku_core.storage.snapshots import Environment, Mode, SnapshotError, get_mode
from turku_core.storage.snapshots.trees import digest_of_file
from turku_core.storage.source_folder import SourceFolder

logger = logging.getLogger(__name__)

DEFAULT_INTERVAL = timedelta(days=30)
_NAMED_MAX = 5


@dataclass(frozen=True)
class Verdict:
    """The result of a verification: `damaged` is the reason, None when the snapshot is proven."""

    record: Record
    damaged: str | None
    files_drilled: int


def next_to_verify(
    records: Sequence[tuple[SourceFolder, Record]],
    now: datetime,
    *,
    interval: timedelta = DEFAULT_INTERVAL,
) -> tuple[SourceFolder, Record] | None:
    """Return the snapshot that was checked longest ago, or None when all were within `interval`.

    Never checked ones come first, the newest first; expired ones aren't checked.
    """
    alive = [each for each in records if each[1].expired_at is None]
    never = [each for each in alive if each[1].checked_at is None]
    if never:
        return max(never, key=lambda each: each[1].taken_at)
    due = [
        (record.checked_at, folder, record)
        for folder, record in alive
        if record.checked_at is not None and now - record.checked_at >= interval
    ]
    if not due:
        return None
    _, folder, record = min(due, key=lambda each: each[0])
    return folder, record


def verify(
    catalogue: Catalogue,
    folder: SourceFolder,
    record: Record,
    environment: Environment,
    now: datetime,
    *,
    drill_files: int = 20,
) -> Verdict:
    """Check one snapshot, restore a sample of its files and compare them, and write the record.

    The source's lock is held only to write the result: removal waits while a check reads, and a
    backup of the source doesn't, unless the snapshot is its mirror. Raises SourceBusy,
    NoSuchSnapshot when it was removed meanwhile, and SnapshotError when the check itself could not
    be made (which proves nothing either way).
    """
    mode = get_mode(record.mode, environment)
    with folder.reading(mode.reads):
        damaged = mode.verify(folder, record)
        drilled = 0
        if damaged is None:
            drilled, damaged = _drill(folder, record, mode, drill_files)
    with folder.lock(wait_seconds=60):
        current = [each for each in catalogue.records(folder)[0] if each.id == record.id]
        if not current:
            raise NoSuchSnapshot(f"{folder.label}: snapshot {record.id} is gone.")
        checked = dataclasses.replace(
            current[0],
            checked_at=now,
            proven_at=now if damaged is None else current[0].proven_at,
            damaged=damaged,
        )
        catalogue.write(folder, checked)
    if damaged is None:
        logger.info("%s: snapshot %s is proven (%d files)", folder.label, record.id, drilled)
    else:
        logger.error("%s: snapshot %s is damaged: %s", folder.label, record.id, damaged)
    return Verdict(checked, damaged, drilled)


def _drill(folder: SourceFolder, record: Record, mode: Mode, count: int) -> tuple[int, str | None]:
    """Restore a sample of files and compare them; return how many, and what is wrong."""
    expected = mode.sample(folder, record, count)
    if not expected:
        return 0, None
    place = Path(tempfile.mkdtemp(prefix=".restore-", dir=folder.scratch))
    try:
        paths = sorted(expected)
        with mode.open_for_restore(folder, record, paths) as tree:
            missing = [path for path in paths if not os.path.lexists(tree / path)]
            if missing:
                return 0, f"A restore drill didn't find {missing[0]!a}."
            restored = restore_tree(tree, place / "restored", paths)
        if not restored.ok:
            raise SnapshotError(f"{folder.label}: the restore drill failed: {restored.message}")
        # Some files let not even their owner read them, which is us unless we are root.
        programs.open_to_owner(place / "restored")
        return len(expected), _compare(place / "restored", expected)
    finally:
        programs.remove_tree(place)


def _compare(place: Path, expected: Mapping[str, str]) -> str | None:
    wrong = [path for path, digest in expected.items() if not _is_restored(place / path, digest)]
    if not wrong:
        return None
    names = ", ".join(ascii(path) for path in sorted(wrong)[:_NAMED_MAX])
    return f"A restore drill brought back {len(wrong)} files that differ: {names}."


def _is_restored(path: Path, digest: str) -> bool:
    """Say whether a file is what it should be.

    In the snapshot a symbolic link is a file that holds its target, and a device an empty one; a
    device isn't made by everyone who may restore.
    """
    nothing = hashlib.sha256(b"").hexdigest()
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return digest == nothing
    if stat.S_ISLNK(mode):
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest() == digest
    if stat.S_ISREG(mode):
        return digest_of_file(os.fspath(path)) == digest
    return digest == nothing

"""Verification: every snapshot is proven in turn, by its mode's own check and a restore drill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from turku_core.storage.catalogue import Catalogue, Record, SourceFolder
from turku_core.storage.snapshots import Environment

DEFAULT_INTERVAL = timedelta(days=30)


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
    raise NotImplementedError


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

    Takes the source's lock. Raises SourceBusy, and SnapshotError when the check itself could not
    be made (which proves nothing either way).
    """
    raise NotImplementedError

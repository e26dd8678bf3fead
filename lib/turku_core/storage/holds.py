"""Holds: after a suspicious change nothing of a source expires until an operator has looked.

What is remembered of a source, its history of changes and its hold, is one file in its folder,
`changes.json`, written before the record of the suspicious snapshot: no expiry comes in between. A
hold is made here, where the snapshots are, and only `release` ends it, which runs for root or the
storage unit's user on this host. No call of the API's and nothing that a machine sends ends one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from turku_core import fields
from turku_core.checked_json import dumps, read_json
from turku_core.configuration import write_durably
from turku_core.storage import changes
from turku_core.storage.changes import Changed, Generation
from turku_core.storage.records import Record
from turku_core.storage.source_folder import SourceFolder

logger = logging.getLogger(__name__)

_LOGGING = ("borg", "none")
"""The modes that tell what changed from rsync's log; the others compare manifests."""

UNREADABLE = "What is known of its changes can't be read, so a hold may be lost: look yourself."


@dataclass(frozen=True)
class Hold:
    """Why nothing of a source expires.

    Attributes:
        since: When the suspicious snapshot was taken.
        snapshot: Its id: what was before it is what to look at, and to restore.
        reason: A sentence.
        share: What share of the files was changed or removed, from 0 to 1.
    """

    since: datetime
    snapshot: str
    reason: str
    share: float

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"{self.reason} Held since snapshot {self.snapshot}." if self.snapshot else self.reason
        )


@dataclass(frozen=True)
class History:
    """The content of `changes.json`; generations are the oldest first."""

    generations: tuple[Generation, ...] = ()
    hold: Hold | None = None


def read(folder: SourceFolder) -> History:
    """Return what is remembered of a source; a file that can't be read holds it."""
    try:
        return _from_json(read_json(folder.changes))
    except FileNotFoundError:
        return History()
    except (OSError, ValueError) as error:
        logger.error("%s: %s can't be read: %s", folder.label, folder.changes, error)
        return History(hold=Hold(_written_at(folder), "", UNREADABLE, 1.0))


def find(folders: Iterable[SourceFolder]) -> Hold | None:
    """Return the hold of a source, in whichever of its folders it is."""
    return next((hold for folder in folders if (hold := read(folder).hold) is not None), None)


def note(folder: SourceFolder, record: Record) -> Record:
    """Note what a new snapshot changed, and hold the source when that is suspicious.

    The caller holds the source's lock, and writes the record next. Doing it again for the same
    snapshot changes nothing.

    Returns:
        The record, with the reason when it is suspicious.
    """
    history = read(folder)
    # In the order in which they were made: a clock that was set back must not forget anything.
    former = [each for each in history.generations if each.snapshot != record.id]
    changed = _changed(record, former[-1].entries if former else None)
    new = Generation(record.id, record.taken_at, changed, record.entries)
    reason = None
    if changed is not None:
        reason = changes.suspicion(former, new, is_switch=_is_switch(record))
    hold = history.hold
    if reason is not None and changed is not None:
        logger.error("%s: snapshot %s is suspicious: %s", folder.label, record.id, reason)
        hold = hold or Hold(record.taken_at, record.id, reason, changed.share)
    write(folder, History(tuple(changes.recent([*former, new])), hold))
    if changed is None:
        return record
    return dataclasses.replace(
        record, files_changed=changed.files, files_before=changed.of, suspicious=reason
    )


def release(folder: SourceFolder) -> Hold | None:
    """End a source's hold durably, and return it. Raises SourceBusy.

    What has happened is from then on part of what is usual.
    """
    with folder.lock(wait_seconds=60):
        history = read(folder)
        if history.hold is not None:
            write(folder, dataclasses.replace(history, hold=None))
            logger.warning("%s: its hold is released: %s", folder.label, history.hold.reason)
    return history.hold


def _is_switch(record: Record) -> bool:
    """Say whether the mode was changed so that what else changed can't be told.

    Between two trees their manifests tell.
    """
    return record.switched_mode and (record.mode in _LOGGING or not record.files_before)


def _changed(record: Record, before: int | None) -> Changed | None:
    """Return what a new snapshot changed, or None where there is nothing to compare it with.

    Args:
        record: Of the snapshot.
        before: How many files the snapshot before had, where that is known.
    """
    if _is_switch(record):
        return Changed(before, before) if before else None
    if record.files_changed is None or record.files_before is None:
        return None
    # rsync says of a file that a link takes the place of only that the link is new.
    replaced = max((before or 0) - record.files_before, 0) if record.mode in _LOGGING else 0
    changed = Changed(record.files_changed + replaced, record.files_before + replaced)
    return changed if changed.of else None


def _written_at(folder: SourceFolder) -> datetime:
    try:
        return datetime.fromtimestamp(folder.changes.stat().st_mtime, timezone.utc)
    except OSError:
        return datetime.fromtimestamp(0, timezone.utc)


def write(folder: SourceFolder, history: History) -> None:
    """Remember it durably. The caller holds the source's lock."""
    write_durably(folder.changes, dumps(_to_json(history)))


def _to_json(history: History) -> dict[str, Any]:
    hold = history.hold
    return {
        "generations": [
            [
                each.snapshot,
                each.taken_at.astimezone(timezone.utc).isoformat(),
                None if each.changed is None else each.changed.files,
                None if each.changed is None else each.changed.of,
                each.entries,
            ]
            for each in history.generations
        ],
        "hold": None
        if hold is None
        else {
            "since": hold.since.astimezone(timezone.utc).isoformat(),
            "snapshot": hold.snapshot,
            "reason": hold.reason,
            "share": hold.share,
        },
    }


def _from_json(values: Mapping[str, Any]) -> History:
    """Check what was read. Raises FieldError."""
    hold = values.get("hold")
    return History(
        fields.items(fields.required(values, "generations"), "generations", _generation, 10_000),
        None if hold is None else _hold(fields.mapping(hold, "hold")),
    )


def _generation(value: object, place: str) -> Generation:
    items = fields.items(value, place, lambda item, _: item, 5)
    if len(items) != 5:
        raise fields.FieldError(place, "must be a list of five")
    snapshot, taken_at, *counts = items
    files, of, entries = (None if each is None else fields.integer(each, place) for each in counts)
    return Generation(
        fields.snapshot_id(snapshot, place),
        fields.moment(taken_at, place),
        None if files is None or of is None else Changed(files, of),
        entries,
    )


def _hold(values: Mapping[str, Any]) -> Hold:
    return Hold(
        fields.moment(fields.required(values, "since", "hold"), "hold.since"),
        fields.optional(values, "snapshot", fields.text, "", "hold"),
        fields.long_text(fields.required(values, "reason", "hold"), "hold.reason"),
        fields.number(fields.required(values, "share", "hold"), "hold.share", 0, 1),
    )

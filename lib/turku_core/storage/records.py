"""What is written down of snapshots and sources: records, pending commits, states; as JSON."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from turku_core import fields

SNAPSHOT_ID = re.compile(r"(\d{8}T\d{6}Z)(?:-(\d+))?")


@dataclass(frozen=True)
class Record:
    """What is known of one committed snapshot; the content of `snapshots/<id>.json`.

    `taken_at` is when its session began, `time_end` when the mirror was frozen. `bytes_total` and
    `files_total` describe the tree, `bytes_stored` what the snapshot added to the volume.
    `partial` says that some files could not be read, with `summary` saying which. `damaged` is
    the reason why a verification failed, and None otherwise. `proven_at` is when a restore drill
    last succeeded, `checked_at` when every byte was last read, and `unproven` the reason why the
    last try to prove it came to nothing, which says nothing of the snapshot. `previous_at` is when
    the snapshot before it was taken, which may be gone since: so an absence can be told from a
    history thinned by the policy. `entries` counts what isn't a folder. `files_changed` of the
    `files_before` of the snapshot before were changed or removed; `switched_mode` says that the
    machine or the API asked for another mode, and `suspicious` why expiry is held (see `holds`).
    `checksummed` says that the checksums of its files were taken when it was made.
    `recovered` means that the record was lost and rebuilt. `protected` ones (an administrator's, of
    the old layout) never expire. `removing` means that removal has begun: such a record is never
    listed.
    """

    machine: str
    source: str
    id: str
    taken_at: datetime
    time_end: datetime
    mode: str
    partial: bool = False
    summary: str = ""
    path: str | None = None
    retention: str | None = None
    files_total: int | None = None
    entries: int | None = None
    files_changed: int | None = None
    files_before: int | None = None
    switched_mode: bool = False
    suspicious: str | None = None
    bytes_total: int | None = None
    bytes_stored: int | None = None
    archive: str | None = None
    previous_at: datetime | None = None
    expired_at: datetime | None = None
    proven_at: datetime | None = None
    checked_at: datetime | None = None
    unproven: str | None = None
    damaged: str | None = None
    checksummed: bool = False
    recovered: bool = False
    protected: bool = False
    removing: bool = False

    @property
    def good(self) -> bool:
        """Whole and, as far as is known, undamaged."""
        return not self.partial and self.damaged is None and not self.removing

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; times are ISO 8601 in UTC."""
        return to_json(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Check and return a record. Raises ValueError, which names the field."""
        return cls(**from_json(cls, values))


@dataclass(frozen=True)
class Pending:
    """A frozen state of a source that isn't committed yet; the content of `pending.json`.

    It is written durably when the mirror is frozen, and removed after the record is written: where
    it exists the commit is begun again after a crash. `boot_id` (an incarnation, see
    `trouble`) tells whether the mirror's data may have been lost since.
    """

    record: Record
    boot_id: str


@dataclass(frozen=True)
class SourceState:
    """What the storage unit last heard of a source; kept in `source.json` in its folder.

    With it expiry and verification work without the API. `mirror_id` is the id of the snapshot
    that `mirror/` still equals, or None once a pull has begun to change it. `mirror_mode` is the
    mode that pulled into it last. `unsynced_boot_id` is the volume's incarnation (see `trouble`)
    in which a pull wrote to the mirror that wasn't synced yet. `compared_at` is when the records
    were last compared with what the repository lists. `wish` is what was last asked for from
    outside of how to keep snapshots, and `switched` says that it has since changed the mode that
    pulls into the mirror. `proven_at` is when a drill of a snapshot last succeeded, and
    `restored_at` when one last restored all of the source; the snapshot may be gone since.
    `has_hard_links` says whether files have several names in the newest snapshot, or None where
    that isn't known.
    """

    path: str | None = None
    retention: str | None = None
    mode: str | None = None
    last_session_at: datetime | None = None
    mirror_id: str | None = None
    mirror_taken_at: datetime | None = None
    mirror_mode: str | None = None
    unsynced_boot_id: str | None = None
    compared_at: datetime | None = None
    wish: str | None = None
    switched: bool = False
    proven_at: datetime | None = None
    restored_at: datetime | None = None
    has_hard_links: bool | None = None


@dataclass(frozen=True)
class Cycle:
    """The time in which everything comes round.

    Attributes:
        snapshots: In which each snapshot, and so each source, is drilled, and then read.
        whole: In which each source is restored whole.
    """

    snapshots: timedelta = timedelta(days=30)
    whole: timedelta = timedelta(days=180)


def time_of_id(snapshot: str) -> datetime | None:
    """Return the time that is in a snapshot's id, of either layout, or None."""
    found = SNAPSHOT_ID.fullmatch(snapshot)
    if found is not None:
        with suppress(ValueError):
            return datetime.strptime(f"{found[1]}+0000", "%Y%m%dT%H%M%SZ%z")
        return None
    if re.fullmatch(r"\d{9,11}(?:\.\d+)?", snapshot):
        return datetime.fromtimestamp(float(snapshot), timezone.utc)
    for form in ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S"):
        with suppress(ValueError):
            return datetime.strptime(snapshot, form).replace(tzinfo=timezone.utc)
    return None


def to_json(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields as JSON values; times are ISO 8601 in UTC."""
    result = {}
    for each in dataclasses.fields(value):
        item = getattr(value, each.name)
        result[each.name] = (
            item.astimezone(timezone.utc).isoformat() if isinstance(item, datetime) else item
        )
    return result


def _time(value: object, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(fields.text(value, name))
    except ValueError as error:
        raise fields.FieldError(name, f"must be a time, not {fields.shown(value)}") from error
    if moment.tzinfo is None:
        raise fields.FieldError(name, f"must be a time with its zone, not {fields.shown(value)}")
    return moment


def _any_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise fields.FieldError(name, f"must be text, not {fields.shown(value)}")
    return value


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "str": _any_text,
    "bool": fields.boolean,
    "int": fields.integer,
    "float": fields.number,
    "datetime": _time,
}


def from_json(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a dataclass from JSON, by its fields' types. Raises FieldError."""
    result: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        value = values.get(each.name)
        type_name, _, rest = str(each.type).partition(" | ")
        if value is None and rest != "None":
            if each.default is dataclasses.MISSING:
                raise fields.FieldError(each.name, "is missing")
            continue
        result[each.name] = None if value is None else _CHECKS[type_name](value, each.name)
    return result

"""The snapshots that this machine may restore, from every storage unit that may hold some."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from turku_core import fields
from turku_core.agent.checkin import sources_of
from turku_core.agent.identity import Identity
from turku_core.agent.processes import Stop, printable
from turku_core.agent.session import Event, SessionPlan, run_session
from turku_core.agent.settings import Locations
from turku_core.errors import TurkuError
from turku_core.fields import FieldError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import Source, StorageAddress

logger = logging.getLogger(__name__)

_SNAPSHOTS_MAX = 200_000
"""From one storage unit: a thousand sources with two hundred snapshots each."""

_INVALID_SHOWN_MAX = 5

_LIST_SECONDS = 600.0

_DAMAGE_CHARACTERS_MAX = 1000

_STATES = ("committed", "expired")


class NoSuchSnapshot(TurkuError):
    """There is no snapshot that fits what was asked for."""


@dataclass(frozen=True)
class FormerMachine:
    """A machine that is gone, whose snapshots this one was allowed to restore."""

    uuid: str
    unit_name: str
    sources: Mapping[str, Source]


@dataclass(frozen=True)
class Restorable:
    """What the API lets this machine restore: its own sources, and those of former machines."""

    own: Mapping[str, Source]
    former: Mapping[str, FormerMachine]

    def storages_of(self, machine: FormerMachine | None) -> tuple[StorageAddress, ...]:
        """Return each storage unit that may hold snapshots of this machine, or of a former one."""
        return _distinct(machine.sources if machine else self.own)

    def all_storages(self) -> tuple[StorageAddress, ...]:
        """Return each storage unit that may hold snapshots of this machine or any former one."""
        return _distinct(self.own, *(former.sources for former in self.former.values()))

    def machine(self, name: str) -> FormerMachine:
        """Return the former machine with this UUID or name.

        Raises:
            TurkuError: There is none, or the name isn't one machine's alone.
        """
        found = [each for each in self.former.values() if name in (each.uuid, each.unit_name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise TurkuError(
                f"Several machines are named {printable(name)}; say which by its UUID: "
                f"{', '.join(each.uuid for each in found)}."
            )
        raise TurkuError(
            f"This machine may not restore machine {printable(name)}: an administrator has to "
            "allow it first (turku-api on an API unit, or the administration site)."
        )


def _distinct(*groups: Mapping[str, Source]) -> tuple[StorageAddress, ...]:
    found = [source.storage for sources in groups for source in sources.values()]
    return tuple(dict.fromkeys(storage for storage in found if storage is not None))


def restorable(client: Client, identity: Identity) -> Restorable:
    """Ask the API what this machine may restore.

    Raises:
        TurkuError: The call failed, or the answer isn't valid.
    """
    answer = client.call("agent_ping_restore", {"machine": identity.login()})
    own = sources_of(answer, "sources")
    for problem in own.problems:
        logger.warning("%s", problem)
    try:
        listed = fields.mapping(answer["machine"].get("restore_from") or {}, "restore_from")
        former = {}
        for uuid, value in listed.items():
            machine = fields.mapping(value, "restore_from")
            sources = sources_of({"machine": machine}, "sources").sources
            checked = fields.uuid(uuid, "restore_from")
            name = fields.label(machine.get("unit_name") or uuid, "restore_from.unit_name")
            former[checked] = FormerMachine(checked, name, sources)
    except FieldError as error:
        raise TurkuError(f"The API's answer is not valid: {error}.") from error
    return Restorable(own.sources, former)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on a storage unit. Sizes are bytes, times are aware.

    Attributes:
        damaged: What a verification found wrong with it; None when nothing is known to be.
    """

    storage: StorageAddress
    machine: str
    source: str
    id: str
    taken_at: datetime
    state: str
    partial: bool
    mode: str | None
    bytes: int | None
    files: int | None
    expires_for_good_at: datetime | None
    proven_at: datetime | None
    damaged: str | None

    @classmethod
    def from_json(cls, value: object, storage: StorageAddress) -> Snapshot:
        """Check one snapshot of a storage unit's list."""
        place = f"storage unit {storage.name}, snapshot"
        snapshot = fields.mapping(value, place)

        def needed(key: str) -> tuple[Any, str]:
            return fields.required(snapshot, key, place), fields.join(place, key)

        state = fields.required(snapshot, "state", place)
        if state not in _STATES:
            raise FieldError(fields.join(place, "state"), f"must be one of {', '.join(_STATES)}")
        return cls(
            storage=storage,
            machine=fields.uuid(*needed("machine")),
            source=fields.name(*needed("source")),
            id=fields.snapshot_id(*needed("id")),
            taken_at=_moment(*needed("taken_at")),
            state=state,
            partial=fields.optional(snapshot, "partial", fields.boolean, False, place),
            mode=fields.optional(snapshot, "mode", fields.text, None, place),
            bytes=fields.optional(snapshot, "bytes", fields.integer, None, place),
            files=fields.optional(snapshot, "files", fields.integer, None, place),
            expires_for_good_at=fields.optional(
                snapshot, "expires_for_good_at", _moment, None, place
            ),
            proven_at=fields.optional(snapshot, "proven_at", _moment, None, place),
            damaged=fields.optional(snapshot, "damaged", _damage, None, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot as ``--list --json`` prints it."""
        return {
            "storage_unit": self.storage.name,
            "machine": self.machine,
            "source": self.source,
            "id": self.id,
            "taken_at": self.taken_at.isoformat(),
            "state": self.state,
            "partial": self.partial,
            "mode": self.mode,
            "bytes": self.bytes,
            "files": self.files,
            "expires_for_good_at": _text(self.expires_for_good_at),
            "proven_at": _text(self.proven_at),
            "damaged": self.damaged,
        }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(value: object, field: str) -> datetime:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(fields.number(value, field), timezone.utc)
        except (OverflowError, OSError, ValueError):
            raise FieldError(field, "must be a time") from None
    return fields.moment(value, field)


def _damage(value: object, field: str) -> str:
    # Cut: so many snapshots with as much to say would fill the machine's memory.
    return fields.long_text(value, field)[:_DAMAGE_CHARACTERS_MAX]


def list_snapshots(
    storages: Sequence[StorageAddress], *, locations: Locations, identity: Identity, stop: Stop
) -> list[Snapshot]:
    """Ask each storage unit for its snapshots, the oldest first.

    A unit that doesn't answer is warned of, and the others' snapshots are listed.

    Raises:
        TurkuError: No unit answered.
    """
    snapshots: list[Snapshot] = []
    failures: list[TurkuError] = []
    for storage in storages:
        try:
            snapshots += _list_one(storage, locations, identity, stop)
        except TurkuError as error:
            failures.append(error)
    if failures and len(failures) == len(storages):
        raise failures[0]
    for failure in failures:
        logger.warning("%s Its snapshots are missing from the list.", failure)
    return sorted(snapshots, key=lambda each: (each.machine, each.source, each.taken_at, each.id))


def _list_one(
    storage: StorageAddress, locations: Locations, identity: Identity, stop: Stop
) -> list[Snapshot]:
    snapshots: list[Snapshot] = []
    answered = False
    listed = invalid = 0

    def on_event(event: Event) -> None:
        nonlocal answered, listed, invalid
        if event["event"] != "snapshots" or not isinstance(event.get("snapshots"), list):
            return
        answered = True
        for value in event["snapshots"][: _SNAPSHOTS_MAX - listed]:
            listed += 1
            try:
                snapshots.append(Snapshot.from_json(value, storage))
            except FieldError as error:
                invalid += 1
                if invalid <= _INVALID_SHOWN_MAX:
                    logger.warning("%s", error)

    run_session(
        SessionPlan(storage, "list", patience=_LIST_SECONDS),
        key=identity.ssh_key,
        run_folder=locations.run,
        stop=stop,
        on_event=on_event,
    )
    if invalid > _INVALID_SHOWN_MAX:
        logger.warning(
            "storage unit %s: %d snapshots of its list are not valid", storage.name, invalid
        )
    if not answered:
        raise TurkuError(
            f"Storage unit {storage.name} sends no list of snapshots: it may be an older one. Use "
            "turku-agent-ping --restore, and let its administrator push the files."
        )
    return snapshots


def choose(
    snapshots: Sequence[Snapshot], machine: str, source: str, wanted: str, zone_of: datetime
) -> Snapshot:
    """Return the snapshot that is meant.

    Args:
        snapshots: What there is, the oldest first.
        machine: The machine's UUID.
        source: The source's name.
        wanted: An id, ``latest``, or an ISO 8601 time: then the newest that isn't younger.
        zone_of: A moment in the zone that a time without an offset is meant in.

    Raises:
        NoSuchSnapshot: There is none like that; the message says what there is.
    """
    candidates = [each for each in snapshots if (each.machine, each.source) == (machine, source)]
    if not candidates:
        raise NoSuchSnapshot(
            f"There is no snapshot of source {source} of machine {machine}: "
            "turku-agent-ping --list shows all there are."
        )
    named = [each for each in candidates if each.id == wanted]
    if named:
        return named[-1]
    if wanted == "latest":
        return max(candidates, key=lambda each: each.taken_at)
    moment = fields.parse_moment(wanted)
    if moment is not None:
        limit = moment if moment.tzinfo else moment.replace(tzinfo=zone_of.tzinfo)
        older = [each for each in candidates if each.taken_at <= limit]
        if older:
            return max(older, key=lambda each: each.taken_at)
    oldest, newest = candidates[0], candidates[-1]
    raise NoSuchSnapshot(
        f"There is no snapshot {printable(wanted)} of source {source}. There are "
        f"{len(candidates)}, from {oldest.id} to {newest.id}: turku-agent-ping --list "
        f"--source {source} shows them."
    )

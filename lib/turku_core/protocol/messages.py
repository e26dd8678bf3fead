"""The messages of the v1 protocol, as values that have been checked.

``from_json`` takes what the other side sent and returns a value, or raises
`turku_core.fields.FieldError`, which names the field. Unknown fields are ignored. ``to_json``
returns what goes on the wire. A message is checked by whoever receives it, even when the sender is
ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from turku_core import fields
from turku_core.credentials import PublicKey
from turku_core.errors import LanguageError
from turku_core.fields import FieldError, join, optional, required
from turku_core.retention import Policy
from turku_core.schedule import Schedule

DEFAULT_RETENTION = "last 5 days, earliest of month"

REQUEST_BYTES_MAX = 8 * 1024 * 1024
"""No request of ours comes near: a machine with 1,000 sources of 100 rules sends 4 MiB."""


def frequency(value: object, field: str) -> str:
    """Return the text of a valid schedule."""
    schedule_text = fields.text(value, field)
    try:
        Schedule.parse(schedule_text)
    except LanguageError as error:
        raise FieldError(field, error.detail) from error
    return schedule_text


def retention(value: object, field: str) -> str:
    """Return the text of a valid retention policy."""
    policy_text = fields.text(value, field)
    try:
        Policy.parse(policy_text)
    except LanguageError as error:
        raise FieldError(field, error.detail) from error
    return policy_text


def _filters(value: object, field: str) -> tuple[str, ...]:
    return fields.items(value, field, fields.filter_rule_or_set)


def _spliced_filters(value: object, field: str) -> tuple[str, ...]:
    return fields.items(value, field, fields.filter_rule)


def _excludes(value: object, field: str) -> tuple[str, ...]:
    return fields.items(value, field, fields.exclude_rule)


COME_BACK_SECONDS = (1, 300)
"""The shortest and the longest pause after which the API may ask a machine to check in again."""


def come_back_seconds(value: object, field: str) -> float:
    """Return the ``come_back_seconds`` of a check-in's answer."""
    return fields.number(value, field, *COME_BACK_SECONDS)


def last_handed_out_at_from_json(machine: Mapping[str, Any]) -> tuple[bool, datetime | None]:
    """Check the optional ``last_handed_out_at`` of a check-in.

    It is the ``handed_out_at`` of the last answer with sources that the machine has got, or null
    before the first: what was handed out later is in an answer that was lost.

    Returns:
        Whether the machine says so at all, and the time.
    """
    key = "last_handed_out_at"
    return key in machine, fields.optional(machine, key, fields.moment, None, "machine")


@dataclass(frozen=True)
class SourceSettings:
    """What a machine says of one of its sources; the defaults are the protocol's.

    Attributes:
        frequency, retention: None: as the API's operator has it for sources that name none.
    """

    path: str
    frequency: str | None = None
    retention: str | None = None
    comment: str = ""
    filter: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bwlimit: str = ""
    snapshot_mode: str | None = None
    preserve_hard_links: bool = True
    shared_service: bool = False
    large_rotating_files: bool = False
    large_modifying_files: bool = False

    @classmethod
    def from_json(cls, value: object, place: str) -> SourceSettings:
        """Check one source of an ``update_config``."""
        source = fields.mapping(value, place)
        return cls(
            path=fields.absolute_path(required(source, "path", place), join(place, "path")),
            frequency=optional(source, "frequency", frequency, None, place),
            retention=optional(source, "retention", retention, None, place),
            comment=optional(source, "comment", fields.text, "", place),
            filter=optional(source, "filter", _filters, (), place),
            exclude=optional(source, "exclude", _excludes, (), place),
            bwlimit=optional(source, "bwlimit", fields.bandwidth, "", place),
            snapshot_mode=_snapshot_mode(source, place),
            **_flags(source, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the source as it goes into an ``update_config``."""
        return _without_none(dataclasses.asdict(self))


def _snapshot_mode(source: Mapping[str, Any], place: str) -> str | None:
    # Fielded programs send an empty text for "no wish".
    if source.get("snapshot_mode") in (None, ""):
        return None
    return fields.snapshot_mode(source["snapshot_mode"], join(place, "snapshot_mode"))


def _flags(source: Mapping[str, Any], place: str) -> dict[str, bool]:
    return {
        "preserve_hard_links": optional(source, "preserve_hard_links", fields.boolean, True, place),
        "shared_service": optional(source, "shared_service", fields.boolean, False, place),
        "large_rotating_files": optional(
            source, "large_rotating_files", fields.boolean, False, place
        ),
        "large_modifying_files": optional(
            source, "large_modifying_files", fields.boolean, False, place
        ),
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }


@dataclass(frozen=True)
class StorageAddress:
    """Where and how an agent reaches a storage unit over SSH."""

    name: str
    ssh_ping_host: str
    ssh_ping_host_keys: tuple[PublicKey, ...]
    ssh_ping_port: int
    ssh_ping_user: str

    @classmethod
    def from_json(cls, value: object, place: str) -> StorageAddress:
        """Check the ``storage`` of a source in the API's answer."""
        storage = fields.mapping(value, place)

        def field(key: str) -> tuple[Any, str]:
            return required(storage, key, place), join(place, key)

        return cls(
            name=fields.name(*field("name")),
            ssh_ping_host=fields.host(*field("ssh_ping_host")),
            ssh_ping_host_keys=fields.public_keys(*field("ssh_ping_host_keys")),
            ssh_ping_port=fields.port(*field("ssh_ping_port")),
            ssh_ping_user=fields.user(*field("ssh_ping_user")),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the address as it stands in an answer."""
        return {
            "name": self.name,
            "ssh_ping_host": self.ssh_ping_host,
            "ssh_ping_host_keys": [key.line for key in self.ssh_ping_host_keys],
            "ssh_ping_port": self.ssh_ping_port,
            "ssh_ping_user": self.ssh_ping_user,
        }


@dataclass(frozen=True)
class Source:
    """A source as the API answers it, with its filter sets spliced in.

    Attributes:
        storage: The storage unit it is placed on; None in an answer to a storage unit of ours that
            left it out.
    """

    path: str
    retention: str
    bwlimit: str
    filter: tuple[str, ...]
    exclude: tuple[str, ...]
    snapshot_mode: str | None
    preserve_hard_links: bool
    shared_service: bool
    large_rotating_files: bool
    large_modifying_files: bool
    storage: StorageAddress | None

    @classmethod
    def from_json(cls, value: object, place: str) -> Source:
        """Check one SOURCE of an answer."""
        source = fields.mapping(value, place)
        storage = source.get("storage")
        return cls(
            path=fields.absolute_path(required(source, "path", place), join(place, "path")),
            retention=optional(source, "retention", retention, DEFAULT_RETENTION, place),
            bwlimit=optional(source, "bwlimit", fields.bandwidth, "", place),
            filter=optional(source, "filter", _spliced_filters, (), place),
            exclude=optional(source, "exclude", _excludes, (), place),
            snapshot_mode=_snapshot_mode(source, place),
            storage=None
            if storage is None
            else StorageAddress.from_json(storage, join(place, "storage")),
            **_flags(source, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the source as it stands in an answer."""
        values = _without_none(
            {
                each.name: getattr(self, each.name)
                for each in dataclasses.fields(self)
                if each.name != "storage"
            }
        )
        if self.storage is not None:
            values["storage"] = self.storage.to_json()
        return values


def sources_from_json(value: object, place: str) -> dict[str, Source]:
    """Check a ``{NAME: SOURCE}`` of an answer."""
    return {
        fields.name(name, f"{place}, source name"): Source.from_json(source, join(place, name))
        for name, source in _bounded(value, place).items()
    }


def source_settings_from_json(value: object, place: str) -> dict[str, SourceSettings]:
    """Check the ``{NAME: source}`` of an ``update_config``."""
    return {
        fields.name(name, f"{place}, source name"): SourceSettings.from_json(
            source, join(place, name)
        )
        for name, source in _bounded(value, place).items()
    }


def _bounded(value: object, place: str) -> dict[str, Any]:
    sources = fields.mapping(value, place)
    if len(sources) > fields.SOURCES_MAX:
        raise FieldError(place, f"must have at most {fields.SOURCES_MAX} sources")
    return sources


@dataclass(frozen=True)
class Auth:
    """A registration key: its name (None from the oldest agents) and its secret."""

    name: str | None
    secret: str

    @classmethod
    def from_json(cls, value: object, place: str = "auth") -> Auth:
        """Check the ``auth`` of a first registration."""
        if isinstance(value, str):
            return cls(None, fields.secret(value, place))
        auth = fields.mapping(value, place)
        return cls(
            optional(auth, "name", fields.name, None, place),
            fields.secret(required(auth, "secret", place), join(place, "secret")),
        )

    def to_json(self) -> dict[str, str] | str:
        """Return it as it goes on the wire."""
        return self.secret if self.name is None else {"name": self.name, "secret": self.secret}


@dataclass(frozen=True)
class MachineLogin:
    """What a machine shows at each call after its registration."""

    uuid: str
    secret: str

    @classmethod
    def from_json(cls, request: Mapping[str, Any]) -> MachineLogin:
        """Check the ``machine`` of a request."""
        machine = fields.mapping(required(request, "machine"), "machine")
        return cls(
            fields.uuid(required(machine, "uuid", "machine"), "machine.uuid"),
            fields.secret(required(machine, "secret", "machine"), "machine.secret"),
        )


@dataclass(frozen=True)
class StorageLogin:
    """What a storage unit shows at each call after its registration."""

    name: str
    secret: str

    @classmethod
    def from_json(cls, request: Mapping[str, Any]) -> StorageLogin:
        """Check the ``storage`` of a request."""
        storage = fields.mapping(required(request, "storage"), "storage")
        return cls(
            fields.name(required(storage, "name", "storage"), "storage.name"),
            fields.secret(required(storage, "secret", "storage"), "storage.secret"),
        )


@dataclass(frozen=True)
class MachineConfig:
    """The body of an ``update_config``, without the credentials.

    Attributes:
        sources: None when the machine said nothing of its sources, which leaves them as they are.
    """

    unit_name: str
    ssh_public_key: PublicKey
    environment_name: str | None = None
    service_name: str | None = None
    comment: str = ""
    published: bool = True
    sources: Mapping[str, SourceSettings] | None = None

    @classmethod
    def from_json(cls, value: object, place: str = "machine") -> MachineConfig:
        """Check the ``machine`` of an ``update_config``."""
        machine = fields.mapping(value, place)
        sources = machine.get("sources")
        return cls(
            unit_name=fields.label(required(machine, "unit_name", place), join(place, "unit_name")),
            ssh_public_key=fields.public_key(
                required(machine, "ssh_public_key", place), join(place, "ssh_public_key")
            ),
            environment_name=_label(machine, "environment_name", place),
            service_name=_label(machine, "service_name", place),
            comment=optional(machine, "comment", fields.text, "", place),
            published=optional(machine, "published", fields.boolean, True, place),
            sources=None
            if sources is None
            else source_settings_from_json(sources, join(place, "sources")),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes into an ``update_config``, to which the credentials are added."""
        values: dict[str, Any] = _without_none(
            {
                "unit_name": self.unit_name,
                "ssh_public_key": self.ssh_public_key.line,
                "environment_name": self.environment_name,
                "service_name": self.service_name,
                "comment": self.comment,
                "published": self.published,
            }
        )
        if self.sources is not None:
            values["sources"] = {name: each.to_json() for name, each in self.sources.items()}
        return values


def _label(values: Mapping[str, Any], key: str, place: str) -> str | None:
    # Fielded programs send an empty text for a name they don't have.
    return None if values.get(key) in (None, "") else fields.label(values[key], join(place, key))


@dataclass(frozen=True)
class RunningSession:
    """A machine and the sources of it that a storage unit is working on."""

    machine: str
    sources: tuple[str, ...]

    @classmethod
    def from_json(cls, value: object, place: str) -> RunningSession:
        """Check one item of ``storage.running``."""
        running = fields.mapping(value, place)
        return cls(
            fields.uuid(required(running, "machine", place), join(place, "machine")),
            optional(running, "sources", _names, (), place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire."""
        return {"machine": self.machine, "sources": list(self.sources)}


def _names(value: object, field: str) -> tuple[str, ...]:
    return fields.items(value, field, fields.name, fields.SOURCES_MAX)


def _running(value: object, field: str) -> tuple[RunningSession, ...]:
    return fields.items(value, field, RunningSession.from_json, 10_000)


@dataclass(frozen=True)
class StorageConfig:
    """The body of a ``storage_update_config``, without the credentials. Sizes are in MiB.

    Attributes:
        slots: Sessions that the unit serves at once; None from units that don't say.
        high_water_mark: Percent of the space used from which on the unit takes no new source; None
            from units that don't say.
        known_revision: The ``revision`` of the last answer that the unit has put into effect.
        capabilities: What the unit does beyond v1: ``leases`` (it renews them by `running`),
            ``inventory`` (it reports its snapshots).
        verify_interval_days: In which time the unit proves each snapshot; None from units that
            don't say.
    """

    ssh_ping_host: str
    ssh_ping_port: int
    ssh_ping_user: str
    ssh_ping_host_keys: tuple[PublicKey, ...]
    space_total: float
    space_available: float
    published: bool = True
    slots: int | None = None
    high_water_mark: int | None = None
    known_revision: str | None = None
    capabilities: tuple[str, ...] = ()
    running: tuple[RunningSession, ...] = ()
    verify_interval_days: float | None = None

    @classmethod
    def from_json(cls, value: object, place: str = "storage") -> StorageConfig:
        """Check the ``storage`` of a ``storage_update_config``."""
        storage = fields.mapping(value, place)

        def field(key: str) -> tuple[Any, str]:
            return required(storage, key, place), join(place, key)

        return cls(
            ssh_ping_host=fields.host(*field("ssh_ping_host")),
            ssh_ping_port=fields.port(*field("ssh_ping_port")),
            ssh_ping_user=fields.user(*field("ssh_ping_user")),
            ssh_ping_host_keys=fields.public_keys(*field("ssh_ping_host_keys")),
            space_total=fields.number(*field("space_total")),
            space_available=fields.number(*field("space_available")),
            published=optional(storage, "published", fields.boolean, True, place),
            slots=optional(storage, "slots", _slots, None, place),
            high_water_mark=optional(storage, "high_water_mark", _percent, None, place),
            known_revision=optional(storage, "known_revision", fields.text, None, place),
            capabilities=optional(storage, "capabilities", _names, (), place),
            running=optional(storage, "running", _running, (), place),
            verify_interval_days=optional(storage, "verify_interval_days", _days, None, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes into the request, to which the credentials are added."""
        return _without_none(
            {
                "ssh_ping_host": self.ssh_ping_host,
                "ssh_ping_port": self.ssh_ping_port,
                "ssh_ping_user": self.ssh_ping_user,
                "ssh_ping_host_keys": [key.line for key in self.ssh_ping_host_keys],
                "space_total": self.space_total,
                "space_available": self.space_available,
                "published": self.published,
                "slots": self.slots,
                "high_water_mark": self.high_water_mark,
                "known_revision": self.known_revision,
                "capabilities": self.capabilities,
                "running": [each.to_json() for each in self.running],
                "verify_interval_days": self.verify_interval_days,
            }
        )


def _percent(value: object, field: str) -> int:
    return fields.integer(value, field, 1, 100)


def _days(value: object, field: str) -> float:
    return fields.number(value, field, 0, 36500)


def _slots(value: object, field: str) -> int:
    return fields.integer(value, field, 1, 10_000)


@dataclass(frozen=True)
class FormerMachine:
    """A machine whose snapshots another one may restore for a while.

    Attributes:
        until: When the grant ends, ISO 8601.
    """

    unit_name: str
    environment_name: str | None
    service_name: str | None
    until: str

    @classmethod
    def from_json(cls, value: object, place: str) -> FormerMachine:
        """Check one value of a ``restore_from``."""
        former = fields.mapping(value, place)
        return cls(
            fields.label(required(former, "unit_name", place), join(place, "unit_name")),
            _label(former, "environment_name", place),
            _label(former, "service_name", place),
            fields.text(required(former, "until", place), join(place, "until"), 64),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire."""
        return _without_none(dataclasses.asdict(self))


def restore_from_json(value: object, field: str) -> dict[str, FormerMachine]:
    """Check a ``restore_from``: machines' UUIDs and what is said of each."""
    return {
        fields.uuid(uuid, f"{field}, machine"): FormerMachine.from_json(former, join(field, uuid))
        for uuid, former in fields.mapping(value, field).items()
    }


@dataclass(frozen=True)
class AssignedMachine:
    """A machine that may open sessions to a storage unit."""

    unit_name: str
    environment_name: str | None
    service_name: str | None
    comment: str
    ssh_public_key: PublicKey
    restore_from: Mapping[str, FormerMachine] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object, place: str) -> AssignedMachine:
        """Check one machine of the answer to ``storage_update_config``."""
        machine = fields.mapping(value, place)
        return cls(
            unit_name=fields.label(required(machine, "unit_name", place), join(place, "unit_name")),
            environment_name=_label(machine, "environment_name", place),
            service_name=_label(machine, "service_name", place),
            comment=optional(machine, "comment", fields.text, "", place),
            ssh_public_key=fields.public_key(
                required(machine, "ssh_public_key", place), join(place, "ssh_public_key")
            ),
            restore_from=optional(machine, "restore_from", restore_from_json, {}, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the answer; names that aren't known are null, as in v1."""
        values: dict[str, Any] = {
            "unit_name": self.unit_name,
            "environment_name": self.environment_name,
            "service_name": self.service_name,
            "comment": self.comment,
            "ssh_public_key": self.ssh_public_key.line,
        }
        if self.restore_from:
            values["restore_from"] = {
                uuid: former.to_json() for uuid, former in self.restore_from.items()
            }
        return values


@dataclass(frozen=True)
class SnapshotState:
    """What became of a snapshot. Times are epoch seconds.

    Attributes:
        state: ``committed``, ``expired`` (still restorable), ``removed`` or ``damaged``.
        proven_at: When a restore drill of it last succeeded.
        error: What is wrong with it when it is damaged; else why its last drill could not be made.
    """

    name: str
    state: str
    proven_at: float | None = None
    error: str | None = None

    @classmethod
    def from_json(cls, value: object, place: str) -> SnapshotState:
        """Check one item of a source's ``snapshots``."""
        snapshot = fields.mapping(value, place)
        state = required(snapshot, "state", place)
        if state not in ("committed", "expired", "removed", "damaged"):
            raise FieldError(join(place, "state"), "must be committed, expired, removed or damaged")
        return cls(
            fields.snapshot_id(required(snapshot, "name", place), join(place, "name")),
            state,
            optional(snapshot, "proven_at", fields.number, None, place),
            optional(snapshot, "error", fields.long_text, None, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire."""
        return _without_none(dataclasses.asdict(self))


@dataclass(frozen=True)
class BackupResult:
    """How a run of a source ended. Times are epoch seconds, sizes are bytes."""

    success: bool
    time_begin: float
    time_end: float
    snapshot: str | None = None
    summary: str = ""
    partial: bool = False
    bytes_stored: int | None = None
    bytes_total: int | None = None
    files_total: int | None = None

    @classmethod
    def from_json(cls, value: object, place: str) -> BackupResult:
        """Check a result inside a ``storage_ping_source_update``."""
        result = fields.mapping(value, place)
        snapshot = result.get("snapshot")
        return cls(
            success=optional(result, "success", fields.boolean, False, place),
            time_begin=fields.number(
                required(result, "time_begin", place), join(place, "time_begin")
            ),
            time_end=fields.number(required(result, "time_end", place), join(place, "time_end")),
            snapshot=None
            if snapshot in (None, "")
            else fields.snapshot_id(snapshot, join(place, "snapshot")),
            summary=optional(result, "summary", fields.long_text, "", place),
            partial=optional(result, "partial", fields.boolean, False, place),
            bytes_stored=optional(result, "bytes_stored", fields.integer, None, place),
            bytes_total=optional(result, "bytes_total", fields.integer, None, place),
            files_total=optional(result, "files_total", fields.integer, None, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire."""
        return _without_none(dataclasses.asdict(self))


@dataclass(frozen=True)
class HoldState:
    """Whether a storage unit holds the expiry of a source. Times are epoch seconds.

    Attributes:
        held: False when it doesn't, or doesn't any more; the rest is empty then.
        since: When the snapshot was taken that changed so much.
        snapshot: Its id.
        reason: Why, in a sentence.
        share: Which share of the files was changed or removed, from 0 to 1.
    """

    held: bool
    since: float | None = None
    snapshot: str | None = None
    reason: str = ""
    share: float | None = None

    @classmethod
    def from_json(cls, value: object, place: str) -> HoldState:
        """Check the ``hold`` of a source."""
        hold = fields.mapping(value, place)
        return cls(
            held=fields.boolean(required(hold, "held", place), join(place, "held")),
            since=optional(hold, "since", fields.number, None, place),
            snapshot=optional(hold, "snapshot", fields.snapshot_id, None, place),
            reason=optional(hold, "reason", fields.text, "", place),
            share=optional(hold, "share", _share, None, place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire."""
        return _without_none(dataclasses.asdict(self))


def _share(value: object, field: str) -> float:
    return fields.number(value, field, 0, 1)


@dataclass(frozen=True)
class SourceUpdate:
    """What a storage unit reports of one source: a run's result, its snapshots' states, its hold.

    Attributes:
        hold: None from units that don't say.
    """

    result: BackupResult | None = None
    snapshots: tuple[SnapshotState, ...] = ()
    hold: HoldState | None = None

    @classmethod
    def from_json(cls, value: object, place: str) -> SourceUpdate:
        """Check one source of a ``storage_ping_source_update``."""
        update = fields.mapping(value, place)
        snapshots = optional(update, "snapshots", _snapshot_states, (), place)
        hold = optional(update, "hold", HoldState.from_json, None, place)
        if (snapshots or hold) and "time_begin" not in update:
            return cls(None, snapshots, hold)
        return cls(BackupResult.from_json(update, place), snapshots, hold)

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire."""
        values: dict[str, Any] = {} if self.result is None else self.result.to_json()
        if self.snapshots:
            values["snapshots"] = [snapshot.to_json() for snapshot in self.snapshots]
        if self.hold is not None:
            values["hold"] = self.hold.to_json()
        return values


def _snapshot_states(value: object, field: str) -> tuple[SnapshotState, ...]:
    return fields.items(value, field, SnapshotState.from_json, 100_000)


def source_updates_from_json(value: object, place: str) -> dict[str, SourceUpdate]:
    """Check the ``sources`` of a ``storage_ping_source_update``."""
    return {
        fields.name(name, f"{place}, source name"): SourceUpdate.from_json(
            update, join(place, name)
        )
        for name, update in _bounded(value, place).items()
    }

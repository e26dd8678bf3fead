"""What the API's units tell each other over the peer relation `cluster`.

The leader keeps the application's record: which database is used, and which unit has it when it is
SQLite. Each unit says under which addresses it serves. A unit that is not in the record, or has not
said an address, is not guessed about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ops

from turku_charm.api_relation import publish
from turku_charm.statuses import NotReady

ENDPOINT = "cluster"
SQLITE = "sqlite"
POSTGRESQL = "postgresql"


@dataclass(frozen=True)
class Record:
    """What the leader has put on record for all units.

    Attributes:
        database: ``sqlite`` or ``postgresql``; None until the first leader has chosen.
        sqlite_unit: The unit whose `data` storage holds the SQLite database.
        database_relation: The id of the `database` relation through which the data is reached.
        migrated: The schema that PostgreSQL has been brought to.
        identity: The id of the secret with the units' own CA and Django's secret key.
        keys: The ids of the secrets with registration keys, by the keys' names.
    """

    database: str | None = None
    sqlite_unit: str | None = None
    database_relation: int | None = None
    migrated: str | None = None
    identity: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)

    def to_databag(self) -> dict[str, str]:
        """Return what the leader writes for the application."""
        return _databag(
            database=self.database,
            sqlite_unit=self.sqlite_unit,
            database_relation=self.database_relation,
            migrated=self.migrated,
            identity=self.identity,
            keys=dict(self.keys) or None,
        )

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> Record:
        """Take in what a leader wrote."""
        values = _values(databag)
        return cls(
            database=values.get("database"),
            sqlite_unit=values.get("sqlite_unit"),
            database_relation=values.get("database_relation"),
            migrated=values.get("migrated"),
            identity=values.get("identity"),
            keys=values.get("keys", {}),
        )


@dataclass(frozen=True)
class UnitFacts:
    """What a unit says about itself.

    Attributes:
        addresses: Under which address each side reaches it, by endpoint; none: it doesn't serve.
        has_sqlite: Whether its `data` storage holds an SQLite database.
        authorities: The CAs, in PEM form, of the certificate that it serves with, when that is not
            from the units' own CA.
        copied: The id of the `database` relation into whose database it has copied its SQLite.
    """

    addresses: Mapping[str, str] = field(default_factory=dict)
    has_sqlite: bool = False
    authorities: str | None = None
    copied: int | None = None

    def to_databag(self) -> dict[str, str]:
        """Return what the unit writes."""
        return _databag(
            addresses=dict(self.addresses) or None,
            has_sqlite=self.has_sqlite or None,
            authorities=self.authorities,
            copied=self.copied,
        )

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> UnitFacts:
        """Take in what a unit wrote."""
        values = _values(databag)
        return cls(
            addresses=values.get("addresses", {}),
            has_sqlite=values.get("has_sqlite", False),
            authorities=values.get("authorities"),
            copied=values.get("copied"),
        )


class Peers:
    """The peer relation, with what was written in this hook already in effect."""

    def __init__(self, charm: ops.CharmBase) -> None:
        self._charm = charm

    @property
    def _relation(self) -> ops.Relation:
        relation = self._charm.model.get_relation(ENDPOINT)
        if relation is None:
            raise NotReady("Waiting for the peer relation.")
        return relation

    @property
    def record(self) -> Record:
        """What is on record. Raises NotReady while there is no peer relation."""
        return Record.from_databag(self._relation.data[self._charm.app])

    def put_on_record(self, record: Record) -> None:
        """Make the record this one; for the leader alone."""
        publish(self._relation, self._charm.app, record.to_databag())

    @property
    def own(self) -> UnitFacts:
        """What this unit has said."""
        return UnitFacts.from_databag(self._relation.data[self._charm.unit])

    def say(self, **changes: Any) -> None:
        """Change fields of what this unit says."""
        publish(self._relation, self._charm.unit, replace(self.own, **changes).to_databag())

    def units(self) -> dict[str, UnitFacts]:
        """Return what every unit says that is known here, this one included, by name."""
        relation = self._relation
        return {
            unit.name: UnitFacts.from_databag(relation.data[unit])
            for unit in sorted({self._charm.unit, *relation.units}, key=lambda unit: unit.name)
        }


def _databag(**values: Any) -> dict[str, str]:
    return {
        name: json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value is not None
    }


def _values(databag: Mapping[str, str]) -> dict[str, Any]:
    """Return what our own application wrote; Juju's own keys are no JSON, and not ours."""
    values = {}
    for name, text in databag.items():
        try:
            values[name] = json.loads(text)
        except ValueError:
            continue
    return values

"""Which database the API uses, and what this unit is to do about it. Pure: facts in, words out.

The one rule above all: data that was there is never replaced by an empty database. So the record
says where the data is, and when it isn't there any more, the units wait or say what to do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

from peers import POSTGRESQL, SQLITE, Record
from turku_charm.statuses import Blocked, NotReady


class Task(Enum):
    """What this unit does."""

    SERVE_SQLITE = "serve from SQLite"
    SERVE_POSTGRESQL = "serve from PostgreSQL"
    MOVE = "copy SQLite to PostgreSQL, and serve from there"


@dataclass(frozen=True)
class Facts:
    """What a unit knows about databases.

    Attributes:
        unit: Its name.
        is_leader: Whether it leads.
        schema: The schema that its charm brings.
        knows_relations: Whether it has been told of all its relations; a unit that has just come
            hears of them one by one.
        record: What the leader has put on record.
        units: The names of all units that are known, its own included.
        with_sqlite: Those whose storage holds an SQLite database.
        relation: The id of the `database` relation, if there is one.
        is_given: Whether a database was given over that relation.
        copied: The `database` relation into whose database the recorded unit copied its SQLite.
    """

    unit: str
    is_leader: bool
    schema: str
    record: Record
    units: Collection[str]
    with_sqlite: Collection[str] = ()
    relation: int | None = None
    is_given: bool = False
    copied: int | None = None
    knows_relations: bool = True


def choose(facts: Facts) -> Record:
    """Return the record as the leader should have it now.

    A fresh application's PostgreSQL comes on record only when it has been migrated, which `choose`
    can't know.
    """
    record = facts.record
    if record.database is None:
        if not facts.knows_relations:
            return record
        if facts.relation is not None and not facts.with_sqlite:
            return record
        return replace(record, database=SQLITE, sqlite_unit=_choose_unit(facts))
    if record.database == SQLITE:
        if record.sqlite_unit not in facts.units and facts.with_sqlite:
            # Its storage came back with another unit.
            return replace(record, sqlite_unit=_choose_unit(facts))
        if facts.relation is not None and facts.copied == facts.relation:
            return replace(
                record,
                database=POSTGRESQL,
                sqlite_unit=None,
                database_relation=facts.relation,
                migrated=facts.schema,
            )
    return record


def _choose_unit(facts: Facts) -> str:
    """Return the unit that is to serve SQLite: one that has the data, this one if it can."""
    candidates = facts.with_sqlite or (facts.unit,)
    return facts.unit if facts.unit in candidates else min(candidates)


def decide(facts: Facts, app: str) -> Task:
    """Return what this unit is to do.

    Args:
        facts: What it knows.
        app: The application's name, for the words.

    Raises:
        NotReady: Another unit, or the database, has to do something first.
        Blocked: An operator has to act.
    """
    record = facts.record
    if record.database == POSTGRESQL:
        return _decide_on_postgresql(facts, app)
    if record.database == SQLITE:
        return _decide_on_sqlite(facts, app)
    if not facts.knows_relations:
        raise NotReady("Waiting to hear of this unit's relations.")
    if facts.relation is None:
        raise NotReady("Waiting for the leader to say which unit keeps the database.")
    return _decide_on_postgresql(facts, app)


def _decide_on_postgresql(facts: Facts, app: str) -> Task:
    if facts.relation is None:
        raise Blocked(
            f"The data is in PostgreSQL, and the relation to it is gone: juju integrate "
            f"{app}:database with the PostgreSQL that has the data."
        )
    if not facts.is_given:
        raise NotReady("Waiting for PostgreSQL to give a database.")
    if not facts.is_leader:
        if facts.record.database_relation not in (None, facts.relation):
            raise NotReady("Waiting for the leader to look at the database that is given now.")
        if facts.record.migrated != facts.schema:
            raise NotReady("Waiting for the leader to migrate the database.")
    return Task.SERVE_POSTGRESQL


def _decide_on_sqlite(facts: Facts, app: str) -> Task:
    holder = facts.record.sqlite_unit
    if holder == facts.unit:
        if facts.is_given:
            return Task.SERVE_POSTGRESQL if facts.copied == facts.relation else Task.MOVE
        return Task.SERVE_SQLITE
    if holder not in facts.units:
        raise Blocked(
            f"The database was on {holder}, which is gone: juju add-unit {app} "
            "--attach-storage with the storage that it had."
        )
    if facts.relation is not None:
        raise NotReady(f"Waiting for {holder} to copy its data to PostgreSQL.")
    raise Blocked(
        f"This unit doesn't serve: {holder} keeps the data in SQLite, which one unit alone can. "
        f"For several units juju integrate {app}:database with postgresql; else juju remove-unit "
        f"{facts.unit}."
    )

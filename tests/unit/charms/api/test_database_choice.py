"""Where the data is, and what a unit does about it: every case of the pure decision."""

from __future__ import annotations

from typing import Any

import pytest

from database_choice import Facts, Task, choose, decide
from peers import POSTGRESQL, SQLITE, Record, UnitFacts
from turku_charm.statuses import Blocked, NotReady

SCHEMA = "0003_new"


def facts(record: Record | None = None, **changes: Any) -> Facts:
    """Return what ``turku-api/0``, a leader beside another unit, knows; with some of it changed."""
    known: dict[str, Any] = {
        "unit": "turku-api/0",
        "is_leader": True,
        "schema": SCHEMA,
        "record": record or Record(),
        "units": {"turku-api/0", "turku-api/1"},
    }
    return Facts(**{**known, **changes})


def on_sqlite(unit: str) -> Record:
    """Return a record of a unit that has the data in SQLite."""
    return Record(database=SQLITE, sqlite_unit=unit)


def on_postgresql(relation: int = 7, schema: str = SCHEMA) -> Record:
    """Return a record of data in PostgreSQL."""
    return Record(database=POSTGRESQL, database_relation=relation, migrated=schema)


def test_the_first_leader_keeps_the_data_in_sqlite_itself() -> None:
    assert choose(facts()) == on_sqlite("turku-api/0")


def test_a_unit_whose_storage_has_a_database_keeps_it_rather_than_the_leader() -> None:
    assert choose(facts(with_sqlite={"turku-api/1"})) == on_sqlite("turku-api/1")


def test_the_leader_keeps_the_data_when_several_units_have_a_database() -> None:
    assert choose(facts(with_sqlite={"turku-api/1", "turku-api/0"})) == on_sqlite("turku-api/0")


def test_nothing_is_put_on_record_while_postgresql_is_related_and_not_migrated_yet() -> None:
    assert choose(facts(relation=7)) == Record()
    assert choose(facts(relation=7, is_given=True)) == Record()


def test_no_database_is_chosen_before_all_relations_are_known() -> None:
    known = facts(knows_relations=False)
    assert choose(known) == Record()
    with pytest.raises(NotReady, match="Waiting to hear of this unit's relations"):
        decide(known, "turku-api")


def test_data_that_a_storage_brought_comes_before_an_empty_postgresql() -> None:
    assert choose(facts(relation=7, with_sqlite={"turku-api/0"})) == on_sqlite("turku-api/0")


def test_the_record_stays_when_the_unit_with_the_data_is_not_seen() -> None:
    record = on_sqlite("turku-api/9")
    assert choose(facts(record)) == record


def test_a_storage_that_came_back_with_another_unit_is_found() -> None:
    assert choose(facts(on_sqlite("turku-api/9"), with_sqlite={"turku-api/1"})) == on_sqlite(
        "turku-api/1"
    )


def test_data_that_was_copied_is_from_then_on_in_postgresql() -> None:
    record = choose(facts(on_sqlite("turku-api/1"), relation=7, is_given=True, copied=7))
    assert record == on_postgresql(7)


def test_a_copy_to_another_postgresql_doesn_t_count() -> None:
    record = on_sqlite("turku-api/1")
    assert choose(facts(record, relation=8, is_given=True, copied=7)) == record


def test_the_unit_on_record_serves_sqlite_whether_it_leads_or_not() -> None:
    for is_leader in (True, False):
        known = facts(on_sqlite("turku-api/0"), is_leader=is_leader)
        assert decide(known, "turku-api") is Task.SERVE_SQLITE


def test_another_unit_is_blocked_and_says_why_and_what_to_do() -> None:
    with pytest.raises(Blocked) as blocked:
        decide(facts(on_sqlite("turku-api/1")), "turku-api")
    assert str(blocked.value) == (
        "This unit doesn't serve: turku-api/1 keeps the data in SQLite, which one unit alone can. "
        "For several units juju integrate turku-api:database with postgresql; else juju "
        "remove-unit turku-api/0."
    )


def test_a_unit_says_when_the_one_with_the_data_is_gone() -> None:
    with pytest.raises(Blocked, match=r"was on turku-api/9, which is gone: .*--attach-storage"):
        decide(facts(on_sqlite("turku-api/9")), "turku-api")


def test_sqlite_is_served_until_postgresql_gives_a_database() -> None:
    known = facts(on_sqlite("turku-api/0"), relation=7)
    assert decide(known, "turku-api") is Task.SERVE_SQLITE


def test_the_unit_with_the_data_copies_it_and_then_serves_from_postgresql() -> None:
    known = facts(on_sqlite("turku-api/0"), relation=7, is_given=True)
    assert decide(known, "turku-api") is Task.MOVE
    known = facts(on_sqlite("turku-api/0"), relation=7, is_given=True, copied=7, is_leader=False)
    assert decide(known, "turku-api") is Task.SERVE_POSTGRESQL


def test_the_others_wait_for_the_copy() -> None:
    with pytest.raises(NotReady, match="Waiting for turku-api/1 to copy"):
        decide(facts(on_sqlite("turku-api/1"), relation=7, is_given=True), "turku-api")


@pytest.mark.parametrize("record", [Record(), on_postgresql()])
def test_nobody_serves_before_postgresql_has_given_a_database(record: Record) -> None:
    with pytest.raises(NotReady, match="Waiting for PostgreSQL"):
        decide(facts(record, relation=7), "turku-api")


def test_the_leader_migrates_and_the_others_wait_for_it() -> None:
    for record in (Record(), on_postgresql(schema="0002_old")):
        known = facts(record, relation=7, is_given=True)
        assert decide(known, "turku-api") is Task.SERVE_POSTGRESQL
        with pytest.raises(NotReady, match="Waiting for the leader to migrate"):
            decide(facts(record, relation=7, is_given=True, is_leader=False), "turku-api")


def test_every_unit_serves_from_a_postgresql_that_is_migrated() -> None:
    known = facts(on_postgresql(7), relation=7, is_given=True, is_leader=False)
    assert decide(known, "turku-api") is Task.SERVE_POSTGRESQL


def test_the_leader_looks_at_another_postgresql_before_the_others_use_it() -> None:
    known = facts(on_postgresql(7), relation=8, is_given=True, is_leader=False)
    with pytest.raises(NotReady, match="Waiting for the leader to look"):
        decide(known, "turku-api")


def test_without_its_postgresql_no_unit_falls_back_to_an_empty_sqlite() -> None:
    for is_leader in (True, False):
        known = facts(on_postgresql(), is_leader=is_leader, with_sqlite={"turku-api/0"})
        assert choose(known) == on_postgresql()
        with pytest.raises(Blocked, match=r"The data is in PostgreSQL, .*turku-api:database"):
            decide(known, "turku-api")


def test_a_unit_without_a_record_waits_for_the_leader() -> None:
    with pytest.raises(NotReady, match="Waiting for the leader"):
        decide(facts(is_leader=False), "turku-api")


def test_what_peers_write_comes_back_as_it_was() -> None:
    record = Record(SQLITE, "turku-api/0", 3, "0002", "secret:a", {"agents-1": "secret:b"})
    assert Record.from_databag(record.to_databag()) == record
    said = UnitFacts({"agents": "192.0.2.1"}, True, "PEM", 4)
    assert UnitFacts.from_databag(said.to_databag()) == said


def test_peers_pass_over_what_juju_and_newer_charms_write() -> None:
    databag = {"ingress-address": "192.0.2.1", "egress-subnets": "192.0.2.1/32", "new": "[1]"}
    assert UnitFacts.from_databag(databag) == UnitFacts()
    assert Record.from_databag(databag) == Record()

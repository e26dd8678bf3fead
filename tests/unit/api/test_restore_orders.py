"""Restores that are ordered: who fetches them when, once, and what comes to be on the record."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test.utils import CaptureQueriesContext

from tests.support.api_world import AgentCaller, Answer, UnitCaller, World
from turku_core.api import operations, restore_orders
from turku_core.api.models import OrderState, RestoreGrant, RestoreOrder
from turku_core.errors import ConfigurationError, TurkuError


@pytest.fixture
def unit(world: World) -> UnitCaller:
    return world.unit()


@pytest.fixture
def agent(world: World, unit: UnitCaller) -> AgentCaller:
    """A machine with a backup."""
    made = world.agent()
    world.backed_up(made, unit)
    return made


def order(
    world: World, machine: AgentCaller, from_machine: AgentCaller | None = None, **wish: Any
) -> RestoreOrder:
    source = (from_machine or machine).row
    return restore_orders.order_restore(
        machine.row, source, {"source": "docs", **wish}, world.now, "root"
    )


def fetch(world: World, agent: AgentCaller, *running: RestoreOrder) -> list[dict[str, Any]]:
    """Check in; the orders of the answer."""
    login = dict(agent.login["machine"])
    if running:
        login["running_orders"] = [each.uuid for each in running]
    answer = world.call("agent_ping_checkin", {"machine": login}).json
    orders: list[dict[str, Any]] = answer["machine"].get("restore_orders", [])
    return orders


def report(
    world: World, agent: AgentCaller, made: RestoreOrder, outcome: str, **more: Any
) -> Answer:
    values = {"id": made.uuid, "outcome": outcome, **more}
    return world.call("agent_restore_report", {**agent.login, "order": values})


def test_an_order_is_fetched_once_and_its_outcome_is_on_the_record(
    world: World, agent: AgentCaller
) -> None:
    made = order(world, agent, paths=["a", "b/c"], snapshot="20260311T115900Z")
    assert fetch(world, agent) == [
        {
            "id": made.uuid,
            "source": "docs",
            "snapshot": "20260311T115900Z",
            "paths": ["a", "b/c"],
            "in_place": False,
            "dry_run": False,
        }
    ]
    assert fetch(world, agent) == []
    answer = report(world, agent, made, "done", snapshot="s", target="/r", files=3, bytes=99)
    assert answer.json == {}
    made.refresh_from_db()
    assert (made.state, made.files, made.bytes, made.restored_to) == ("done", 3, 99, "/r")
    world.pass_time(days=1)
    assert fetch(world, agent) == []


def test_the_same_report_again_changes_nothing(world: World, agent: AgentCaller) -> None:
    made = order(world, agent)
    fetch(world, agent)
    report(world, agent, made, "done", files=3)
    ended_at = world.now
    world.pass_time(hours=1)
    assert report(world, agent, made, "failed", message="late").status == 200
    made.refresh_from_db()
    assert (made.state, made.ended_at, made.message) == ("done", ended_at, "")


def test_an_order_at_work_is_not_handed_out_again_and_a_vanished_machines_is(
    world: World, agent: AgentCaller
) -> None:
    made = order(world, agent)
    assert fetch(world, agent)
    for _ in range(10):
        world.pass_time(minutes=5)
        assert fetch(world, agent, made) == []
    world.pass_time(minutes=14)
    assert fetch(world, agent) == []
    world.pass_time(minutes=1)
    assert [each["id"] for each in fetch(world, agent)] == [made.uuid]


def test_an_order_that_vanishes_again_and_again_has_failed(
    world: World, agent: AgentCaller
) -> None:
    made = order(world, agent)
    for _ in range(restore_orders.ATTEMPTS_MAX):
        assert fetch(world, agent)
        world.pass_time(minutes=16)
    assert fetch(world, agent) == []
    made.refresh_from_db()
    assert made.state == OrderState.FAILED
    assert "never reported" in made.message


def test_an_order_that_had_to_wait_comes_again_with_the_reason_on_the_record(
    world: World, agent: AgentCaller
) -> None:
    made = order(world, agent)
    for _ in range(5):
        assert fetch(world, agent)
        report(world, agent, made, "later", message="The storage unit is busy.")
        made.refresh_from_db()
        assert (made.state, made.message) == ("ordered", "The storage unit is busy.")
        assert fetch(world, agent) == []
        world.pass_time(minutes=1)


def test_an_order_onto_another_machine_waits_until_the_storage_unit_knows_of_it(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    agent.row.retire(world.now)
    heir = world.agent("new/0", sources={})
    world.pass_time(minutes=1)
    made = order(world, heir, agent)
    answer = world.call("agent_ping_checkin", heir.login).json["machine"]
    assert answer == {"scheduled_sources": {}, "come_back_seconds": 10.0}
    world.pass_time(seconds=5)
    assert heir.uuid in unit.update().json["machines"]
    world.pass_time(seconds=5)
    assert [each["machine"] for each in fetch(world, heir)] == [agent.uuid]
    grant = RestoreGrant.objects.get()
    assert (grant.machine, grant.from_machine) == (heir.row, agent.row)
    assert grant.until == made.ordered_at + timedelta(days=7)


def test_a_second_order_onto_another_machine_makes_no_second_grant(
    world: World, agent: AgentCaller
) -> None:
    heir = world.agent("new/0", sources={})
    order(world, heir, agent)
    order(world, heir, agent, dry_run=True)
    assert RestoreGrant.objects.count() == 1


def test_an_order_that_nobody_fetches_lapses(world: World, agent: AgentCaller) -> None:
    made = order(world, agent)
    world.pass_time(days=8)
    assert fetch(world, agent) == []
    made.refresh_from_db()
    assert made.state == OrderState.LAPSED
    order(world, agent)
    assert restore_orders.lapse(world.now) == 0
    assert restore_orders.lapse(world.pass_time(days=8)) == 1


def test_a_cancelled_order_is_not_fetched_and_one_at_work_is_not_cancelled(
    world: World, agent: AgentCaller
) -> None:
    made = order(world, agent)
    restore_orders.cancel(made, world.now)
    assert fetch(world, agent) == []
    made = order(world, agent)
    fetch(world, agent)
    with pytest.raises(TurkuError, match="is running already"):
        restore_orders.cancel(made, world.now)


def test_a_paused_machine_restores_all_the_same(world: World, agent: AgentCaller) -> None:
    operations.pause(agent.row)
    order(world, agent)
    assert len(fetch(world, agent)) == 1


def test_a_machine_sees_and_reports_its_own_orders_only(world: World, agent: AgentCaller) -> None:
    stranger = world.agent("stranger/0")
    made = order(world, agent)
    assert fetch(world, stranger) == []
    assert fetch(world, stranger, made) == []
    assert report(world, stranger, made, "done").status == 404
    wrong = {"machine": {"uuid": agent.uuid, "secret": "not-the-right-one"}}
    values = {"id": made.uuid, "outcome": "done"}
    assert world.call("agent_restore_report", {**wrong, "order": values}).status == 403
    made.refresh_from_db()
    assert made.state == OrderState.ORDERED


def test_an_idle_check_in_stays_one_read_and_one_write(world: World, agent: AgentCaller) -> None:
    from django.db import connection

    made = order(world, agent)
    fetch(world, agent)
    report(world, agent, made, "done")
    with CaptureQueriesContext(connection) as queries:
        assert fetch(world, agent) == []
    assert [query["sql"].split()[0] for query in queries] == ["SELECT", "UPDATE"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"source": "../x"}, "source: must be a name"),
        ({"snapshot": "-oops"}, "snapshot: must be"),
        ({"paths": ["../etc"]}, "paths"),
        ({"paths": ["\udcff"]}, "paths: must be UTF-8"),
        ({"target": "relative"}, "target: must be an absolute path"),
        ({"target": "/srv/../etc"}, "target: must be an absolute path"),
        ({"target": "/srv", "in_place": True}, "a target or be in place, not both"),
    ],
)
def test_a_wish_that_no_machine_would_understand_is_refused_at_once(
    world: World, agent: AgentCaller, wish: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        order(world, agent, **wish)
    assert not RestoreOrder.objects.exists()


def test_an_order_that_could_not_be_carried_out_is_refused_at_once(
    world: World, agent: AgentCaller
) -> None:
    with pytest.raises(TurkuError, match="has no source nope"):
        order(world, agent, source="nope")
    heir = world.agent("new/0", sources={})
    with pytest.raises(TurkuError, match="new/0 has no source docs"):
        order(world, heir, agent, in_place=True)
    agent.row.retire(world.now)
    with pytest.raises(TurkuError, match="not active"):
        order(world, agent)
    assert not RestoreGrant.objects.exists()


def test_a_time_without_an_offset_is_meant_in_the_configured_zone(
    world: World, agent: AgentCaller, settings: Any
) -> None:
    settings.TIME_ZONE = "Europe/Helsinki"
    assert order(world, agent, snapshot="2026-03-11T10:30").snapshot == "2026-03-11T10:30:00+02:00"
    assert order(world, agent, snapshot="2026-03-11T10:30Z").snapshot == "2026-03-11T10:30Z"


def test_an_order_outlives_its_machines(world: World, agent: AgentCaller) -> None:
    made = order(world, agent)
    agent.row.delete()
    made.refresh_from_db()
    assert (made.machine, made.unit_name, made.machine_uuid) == (None, "web/0", agent.uuid)


def test_an_order_for_what_is_gone_from_the_record_fails(world: World, agent: AgentCaller) -> None:
    made = order(world, agent)
    agent.source().delete()
    assert fetch(world, agent) == []
    made.refresh_from_db()
    assert made.state == OrderState.FAILED
    assert "isn't on the record" in made.message
    assert agent.row.next_order_at is None

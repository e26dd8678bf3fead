"""What a machine may ask of its own sources: how they fare, and a backup at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api_world import AgentCaller, Answer, UnitCaller, World
from turku_core.api import operations


@pytest.fixture
def unit(world: World) -> UnitCaller:
    return world.unit()


@pytest.fixture
def agent(world: World, unit: UnitCaller) -> AgentCaller:
    return world.agent(sources={"docs": {"path": "/srv/docs"}, "mail": {"path": "/srv/mail"}})


def status(world: World, agent: AgentCaller, name: str = "docs") -> dict[str, Any]:
    answer = world.call("agent_status", agent.login).json
    found: dict[str, Any] = answer["machine"]["sources"][name]
    return found


def backup_now(world: World, agent: AgentCaller, *names: str) -> Answer:
    return world.call("agent_backup_now", {**agent.login, "sources": list(names)})


def test_a_source_is_new_then_running_then_ok(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unit.update()
    first = status(world, agent)
    assert (first["state"], first["last_good"], first["overdue_since"]) == ("new", None, None)
    agent.check_in()
    assert status(world, agent)["state"] == "running"
    unit.report_run(agent)
    after = status(world, agent)
    assert (after["state"], after["problem"], after["failures"]) == ("ok", "", 0)
    assert after["last_good"] == "2026-03-11T11:59:00+00:00"
    assert after["next_due"] > "2026-03-11T12"


def test_a_source_that_fails_or_is_late_says_since_when_and_why(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unit.report_run(agent, success=False, summary="The volume is full.")
    failing = status(world, agent)
    assert (failing["state"], failing["failures"]) == ("failing", 1)
    assert "The volume is full" in failing["problem"]
    world.pass_time(hours=30)
    late = status(world, agent, "mail")
    assert late["state"] == "overdue"
    assert late["overdue_since"] == "2026-03-11T12:00:00+00:00"
    assert late["problem"]


def test_when_a_source_was_proven_last_is_said(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unit.report_run(agent, snapshot="one")
    assert status(world, agent)["last_proven"] is None
    proven = {"name": "one", "state": "committed", "proven_at": world.now.timestamp()}
    unit.report(agent, {"docs": {"snapshots": [proven]}})
    assert status(world, agent)["last_proven"] == "2026-03-11T12:00:00+00:00"
    assert status(world, agent, "mail")["last_proven"] is None


def test_a_source_stays_proven_when_the_snapshot_that_was_is_gone(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unit.report_run(agent, snapshot="one")
    proven = {"name": "one", "state": "committed", "proven_at": world.now.timestamp()}
    unit.report(agent, {"docs": {"snapshots": [proven]}})
    world.pass_time(days=3)
    earlier = {"name": "two", "state": "committed", "proven_at": world.now.timestamp() - 9e5}
    gone = {"name": "one", "state": "removed"}
    unit.report(agent, {"docs": {"snapshots": [gone, earlier]}})
    assert status(world, agent)["last_proven"] == "2026-03-11T12:00:00+00:00"
    ahead = {"name": "two", "state": "committed", "proven_at": world.now.timestamp() + 9e8}
    unit.report(agent, {"docs": {"snapshots": [ahead]}})
    assert status(world, agent)["last_proven"] == world.now.isoformat()


def test_a_drill_that_failed_and_damage_are_told(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unit.report_run(agent, snapshot="one")
    found = status(world, agent)
    assert (found["unproven"], found["unproven_reason"]) == (None, "")
    failed = {"name": "one", "state": "committed", "error": "There is no room."}
    unit.report(agent, {"docs": {"snapshots": [failed]}})
    found = status(world, agent)
    assert found["unproven"] == "drill-failed"
    assert (
        (found["unproven_reason"])
        == "Snapshot one: Its restore drill could not be made: There is no room."
    )
    damaged = {"name": "two", "state": "damaged", "error": "a/b differs"}
    unit.report(agent, {"docs": {"snapshots": [damaged]}})
    found = status(world, agent)
    assert (found["unproven"], found["unproven_since"]) == ("damaged", world.now.isoformat())
    assert found["state"] == "ok"
    healed = [{"name": each, "state": "committed"} for each in ("one", "two")]
    unit.report(agent, {"docs": {"snapshots": healed}})
    assert status(world, agent)["unproven"] is None


def test_what_is_not_to_be_backed_up_says_so_and_is_not_late(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    operations.pause(agent.source())
    world.pass_time(days=3)
    assert (status(world, agent)["state"], status(world, agent)["overdue_since"]) == (
        "paused",
        None,
    )
    operations.pause(agent.row)
    assert status(world, agent, "mail")["state"] == "paused"
    agent.update(sources={"mail": {"path": "/srv/mail"}})
    answer = world.call("agent_status", agent.login).json
    assert list(answer["machine"]["sources"]) == ["mail"]


def test_the_queries_of_a_status_do_not_grow_with_the_sources(
    world: World, unit: UnitCaller, django_assert_max_num_queries: Any
) -> None:
    many = world.agent("many/0", sources={f"s{n}": {"path": f"/srv/{n}"} for n in range(40)})
    with django_assert_max_num_queries(5):
        world.call("agent_status", many.login)


def test_a_machine_asks_for_a_backup_of_its_own_and_gets_it_at_its_next_check_in(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    world.backed_up(agent, unit)
    assert agent.check_in() == {}
    assert backup_now(world, agent, "docs").json == {"machine": {"sources": ["docs"]}}
    assert list(agent.check_in()) == ["docs"]
    unit.report_run(agent, "docs")
    assert backup_now(world, agent).json == {"machine": {"sources": ["docs", "mail"]}}


def test_a_run_that_was_going_on_is_not_the_backup_that_was_asked_for(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unit.update()
    agent.check_in()
    world.pass_time(minutes=1)
    backup_now(world, agent, "docs")
    assert status(world, agent)["requested"]
    world.pass_time(minutes=1)
    unit.report_run(agent)
    assert status(world, agent)["requested"]
    assert list(agent.check_in()) == ["docs"]
    world.pass_time(minutes=1)
    unit.report_run(agent)
    assert not status(world, agent)["requested"]
    assert agent.check_in() == {}


def test_a_backup_that_cannot_be_is_refused_with_the_reason(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    unknown = backup_now(world, agent, "nope")
    assert unknown.status == 404
    assert "its sources: docs, mail" in unknown.text
    operations.pause(agent.source())
    paused = backup_now(world, agent, "docs")
    assert paused.status == 400
    assert "is paused" in paused.text
    agent.row.retire(world.now)
    assert backup_now(world, agent).status == 403


@pytest.mark.parametrize("name", ["agent_status", "agent_backup_now"])
def test_nobody_asks_without_the_machines_secret(
    world: World, unit: UnitCaller, agent: AgentCaller, name: str
) -> None:
    wrong = {"machine": {"uuid": agent.uuid, "secret": "not-the-right-one"}}
    assert world.call(name, wrong).status == 403

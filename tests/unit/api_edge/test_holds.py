"""Holds that storage units report: where they are shown, and who can take them back."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from django.core.management import call_command
from django.test import Client

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api import operations
from turku_core.api.agent_status import statuses_of
from turku_core.api.health import State, fleet_health
from turku_core.api.metrics import metrics_text
from turku_core.api.models import Hold

WHY = "900 of the 1000 files of the snapshot before (90%) were changed or are gone."
HELD = {
    "held": True,
    "since": 1_767_582_000.5,
    "snapshot": "20260105T030000Z",
    "reason": WHY,
    "share": 0.9,
}


@pytest.fixture
def agent(agent: AgentCaller, unit: UnitCaller) -> AgentCaller:
    """A machine with one good backup, whose source is held."""
    assert unit.report(agent, {"docs": {"hold": HELD}}).status == 200
    return agent


def problems(now: datetime) -> list[tuple[State, str]]:
    checks = {check.name: check for check in fleet_health(now).checks}
    return [(each.state, each.sentence) for each in checks["suspicious"].problems]


def test_a_hold_is_critical_and_says_why(world: World, agent: AgentCaller) -> None:
    [(state, sentence)] = problems(world.now)
    assert state is State.CRITICAL
    assert sentence.startswith(WHY) and "turku-storage release" in sentence
    assert 'turku_api_source_held_changed_ratio{machine="web/0"' in metrics_text(world.now)
    [line] = [
        line for line in metrics_text(world.now).splitlines()
        if line.startswith("turku_api_source_held_changed_ratio{")
    ]  # fmt: skip
    assert line.endswith(" 0.9")


def test_lists_and_the_machines_own_status_say_why(
    world: World, agent: AgentCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("list_holds", "--json")
    [row] = json.loads(capsys.readouterr().out)
    assert (row["machine"], row["source"], row["storage"]) == ("web/0", "docs", "store-1")
    assert (row["snapshot"], row["changed_share"], row["why"]) == (HELD["snapshot"], 0.9, WHY)
    call_command("list_sources", "--json")
    [source] = json.loads(capsys.readouterr().out)
    assert (source["state"], source["held"]) == ("active, held", WHY)
    call_command("show_machine", "web/0")
    assert "active, held" in capsys.readouterr().out
    assert statuses_of(agent.row, world.now)["docs"].held == WHY


def test_the_same_report_again_changes_nothing_and_a_lifted_hold_goes(
    world: World, unit: UnitCaller, agent: AgentCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        unit.report(agent, {"docs": {"hold": HELD}})
        assert Hold.objects.count() == 1
    unit.report_run(agent)
    assert Hold.objects.count() == 1, "a unit that doesn't say changes nothing"
    for _ in range(2):
        assert unit.report(agent, {"docs": {"hold": {"held": False}}}).status == 200
        assert Hold.objects.count() == 0
    assert problems(world.now) == []
    assert "turku_api_source_held_changed_ratio{" not in metrics_text(world.now)
    call_command("list_holds")
    assert capsys.readouterr().out == "Nothing is held.\n"


def test_a_machine_can_not_silence_the_alarm_by_withdrawing(
    world: World, agent: AgentCaller
) -> None:
    agent.update(sources={})
    assert not agent.source().published
    assert len(problems(world.now)) == 1
    agent.update(published=False)
    assert len(problems(world.now)) == 1
    assert "turku_api_source_held_changed_ratio{" in metrics_text(world.now)


def test_an_operator_can(world: World, agent: AgentCaller) -> None:
    operations.pause(agent.row)
    assert problems(world.now) == []
    operations.resume(agent.row, world.now)
    agent.row.retire(world.now)
    assert problems(world.now) == []


def test_another_storage_unit_can_neither_hold_nor_release(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    other = world.unit("store-2")
    other.update()
    agent.row.assignments.create(storage=other.row)
    assert other.report(agent, {"docs": {"hold": {**HELD, "reason": "mine"}}}).status == 404
    assert other.report(agent, {"docs": {"hold": {"held": False}}}).status == 200
    assert [hold.reason for hold in Hold.objects.all()] == [WHY]


@pytest.mark.parametrize(
    "hold",
    [
        [],
        {"held": "yes"},
        {},
        {**HELD, "since": "now"},
        {**HELD, "since": 1e300},
        {**HELD, "snapshot": "../x"},
        {**HELD, "reason": "two\nlines"},
        {**HELD, "reason": "x" * 2000},
        {**HELD, "share": 2},
    ],
)
def test_a_hold_that_is_not_valid_is_refused(
    unit: UnitCaller, agent: AgentCaller, hold: object
) -> None:
    assert unit.report(agent, {"docs": {"hold": hold}}).status == 400
    assert Hold.objects.get().reason == WHY


def test_it_is_shown_on_the_administration_site(agent: AgentCaller, admin_client: Client) -> None:
    assert "suspicious</a>" in admin_client.get("/admin/").content.decode()
    page = admin_client.get("/admin/turku_api/hold/").content.decode()
    assert WHY in page and "90%" in page
    assert admin_client.get("/admin/turku_api/hold/add/").status_code == 403

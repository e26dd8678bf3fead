"""What is overdue and why."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api import operations
from turku_core.api.models import Source
from turku_core.api.overdue import Behind, Kind, find_behind, first_line


@pytest.fixture
def unit(world: World) -> UnitCaller:
    """A storage unit."""
    return world.unit()


def backed_up_agent(world: World, unit: UnitCaller, **source: Any) -> AgentCaller:
    """Make a machine whose source has one good backup."""
    agent = world.agent(sources={"docs": {"path": "/srv/docs", **source}})
    world.pass_time(minutes=5)
    world.backed_up(agent, unit)
    assert agent.source().last_success_at is not None
    return agent


def see(agent: AgentCaller, at: datetime) -> None:
    """Let the machine and its storage unit have been seen at a time."""
    machine = agent.row
    machine.last_checkin_at = at
    machine.save()
    storage = agent.source().storage
    assert storage is not None
    storage.last_checkin_at = at
    storage.save()


def only(behind: list[Behind]) -> Behind:
    assert len(behind) == 1
    return behind[0]


def test_a_source_in_time_is_not_behind(world: World, unit: UnitCaller) -> None:
    backed_up_agent(world, unit)
    assert find_behind(world.now) == []
    assert find_behind(world.pass_time(hours=12)) == []


def test_a_machine_that_went_away_is_behind_and_said_to_be_unseen(
    world: World, unit: UnitCaller
) -> None:
    agent = backed_up_agent(world, unit)
    seen = world.now
    behind = only(find_behind(world.pass_time(days=5)))
    assert behind.kind in (Kind.MISSED, Kind.OVERDUE)
    assert behind.reason == f"The machine was last seen {seen.astimezone():%Y-%m-%d %H:%M:%S}."
    assert behind.last_success == agent.source().last_success_at
    assert timedelta(0) < behind.since - seen < timedelta(days=2)


def test_a_source_never_backed_up_is_overdue_since_it_came(world: World, unit: UnitCaller) -> None:
    agent = world.agent()
    behind = only(find_behind(world.pass_time(hours=3)))
    assert (behind.kind, behind.last_success) == (Kind.OVERDUE, None)
    assert behind.since == agent.source().since
    assert behind.reason == "The machine has never checked in: run turku-agent-ping there."


def test_a_little_late_is_no_news(world: World, unit: UnitCaller) -> None:
    world.agent()
    assert find_behind(world.pass_time(minutes=50)) == []


def test_prior_art_36_a_failed_backup_reaches_the_operator_with_its_reason(
    world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    unit.update()
    agent.check_in()
    unit.open_session(agent)
    unit.report_run(agent, success=False, snapshot="", summary="rsync: no space left\nexit 11")
    behind = only(find_behind(world.now))
    assert behind.kind is Kind.FAILING
    assert behind.reason == "It failed 1 time: rsync: no space left."


def test_a_success_ends_the_failing(world: World, unit: UnitCaller) -> None:
    agent = world.agent()
    unit.update()
    agent.check_in()
    unit.report_run(agent, success=False, snapshot="", summary="no")
    assert find_behind(world.now) != []
    world.pass_time(minutes=6)
    agent.check_in()
    unit.report_run(agent)
    assert find_behind(world.now) == []


def test_a_missed_window_is_told_until_the_next_success(world: World, unit: UnitCaller) -> None:
    agent = backed_up_agent(world, unit, frequency="daily, 1200-1300")
    world.pass_time(hours=26)
    see(agent, world.now)
    behind = only(find_behind(world.now))
    assert behind.kind is Kind.MISSED
    assert behind.since.isoformat().startswith("2026-03-12T12:")
    assert "checks in, but no good backup" in behind.reason
    world.pass_time(hours=22, minutes=50)
    see(agent, world.now)
    world.backed_up(agent, unit)
    assert find_behind(world.now) == []


def test_a_storage_unit_that_went_away_is_named_as_the_reason(
    world: World, unit: UnitCaller
) -> None:
    agent = backed_up_agent(world, unit)
    world.pass_time(days=3)
    row = agent.row
    row.last_checkin_at = world.now
    row.save()
    assert "storage unit store-1 was last seen" in only(find_behind(world.now)).reason


def test_a_running_backup_is_not_overdue(world: World, unit: UnitCaller) -> None:
    agent = backed_up_agent(world, unit)
    world.pass_time(days=1, hours=2)
    source = agent.source()
    source.lease_until = world.now + timedelta(minutes=5)
    source.save()
    assert find_behind(world.now) == []


def test_what_is_retired_or_paused_is_silent(world: World, unit: UnitCaller) -> None:
    agent = backed_up_agent(world, unit)
    later = world.pass_time(days=5)
    assert len(find_behind(later)) == 1

    operations.pause(agent.source())
    assert find_behind(later) == []
    operations.resume(agent.source(), later)
    operations.pause(agent.row)
    assert find_behind(later) == []
    operations.resume(agent.row, later)
    operations.pause(unit.row)
    assert find_behind(world.pass_time(days=3)) == []
    operations.resume(unit.row, later)
    assert len(find_behind(world.now)) == 1
    agent.row.retire(world.now)
    assert find_behind(world.now) == []


def test_a_window_that_went_by_during_a_pause_was_not_missed(
    world: World, unit: UnitCaller
) -> None:
    agent = backed_up_agent(world, unit, frequency="daily, 1200-1300")
    operations.pause(agent.row)
    operations.resume(agent.row, world.pass_time(days=4))
    assert find_behind(world.now) == []


def test_a_schedule_that_is_not_valid_is_told_and_hides_no_other_source(
    world: World, unit: UnitCaller
) -> None:
    broken, good = world.agent("broken"), world.agent("good")
    Source.objects.filter(machine=broken.row).update(
        frequency="sometimes", problem="The schedule 'sometimes' is not valid."
    )
    behind = find_behind(world.pass_time(hours=3))
    assert {str(each.source): each.reason for each in behind} == {
        "broken: docs": "The schedule 'sometimes' is not valid.",
        "good: docs": "The machine has never checked in: run turku-agent-ping there.",
    }
    assert good.source().problem == ""


def test_a_shared_source_that_another_machine_backed_up_is_not_behind(
    world: World, unit: UnitCaller
) -> None:
    shared: dict[str, Any] = {
        "sources": {"db": {"path": "/srv/db", "shared_service": True}},
        "environment_name": "prod",
        "service_name": "db",
    }
    one, two = world.agent("db/0", **shared), world.agent("db/1", **shared)
    unit.update()
    for agent in (one, two):
        if "db" in agent.check_in():
            unit.report_run(agent, "db")
    successes = [agent.source("db").last_success_at for agent in (one, two)]
    assert successes.count(None) == 1
    assert find_behind(world.pass_time(hours=4)) == []
    assert len(find_behind(world.pass_time(days=4))) == 2


def test_the_longest_behind_comes_first_in_few_queries(world: World, unit: UnitCaller) -> None:
    for number in range(20):
        world.agent(f"web/{number}")
        world.pass_time(minutes=1)
    world.pass_time(hours=3)
    with CaptureQueriesContext(connection) as queries:
        behind = find_behind(world.now)
    assert [each.source.machine.unit_name for each in behind] == [f"web/{n}" for n in range(20)]
    assert len(queries) <= 2


def test_a_long_text_of_another_program_is_cut_to_its_first_line() -> None:
    assert first_line("\n  rsync: failed \nmore") == "rsync: failed"
    assert first_line("x" * 500, 10) == "x" * 9 + "…"
    assert first_line("") == ""


def test_a_window_is_local_to_the_configured_time_zone_here_too(
    world: World, unit: UnitCaller
) -> None:
    with override_settings(TIME_ZONE="Asia/Tokyo"):
        agent = world.agent(
            sources={"docs": {"path": "/srv/docs", "frequency": "daily, 0200-0300"}}
        )
        world.pass_time(hours=5, minutes=59)  # 02:59 of the next day in Tokyo.
        world.backed_up(agent, unit)
        assert agent.source().last_success_at is not None
        world.pass_time(hours=10)  # 03:59 in UTC: there the window would be over, and missed.
        assert find_behind(world.now) == []

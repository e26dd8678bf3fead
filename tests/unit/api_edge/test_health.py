"""The fleet's health in the form of a Nagios plugin."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import DatabaseError

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api import health, operations
from turku_core.api.health import State, as_json, fleet_health, render
from turku_core.api.models import Snapshot, SnapshotState
from turku_core.errors import TurkuError

FIRST_LINE = re.compile(r"TURKU (OK|WARNING|CRITICAL|UNKNOWN): [^|]+ \| (.+)")
PERFORMANCE = re.compile(r"(?:'[^'=]+'|[^'=\s]+)=[-0-9.]+%?(?:;[-0-9.]*){0,4}")
"""One item of performance data, as the Monitoring Plugins Development Guidelines have it."""


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        call_command("health", *arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return int(code), capsys.readouterr().out


def test_a_healthy_fleet_is_ok_with_code_0(
    world: World, agent: AgentCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run_command(capsys)
    assert code == 0
    match = FIRST_LINE.fullmatch(said.strip())
    assert match is not None
    assert said.startswith("TURKU OK: 1 sources of 1 machines | machines=1;;;0 sources=1;;;0 ")
    for item in match[2].split():
        assert PERFORMANCE.fullmatch(item), item
    assert "'used_store-1'=0.0%;80;95;0;100" in match[2]


def test_an_empty_fleet_is_ok(db: None, now: datetime) -> None:
    assert fleet_health(now).state is State.OK


def test_what_is_behind_warns_and_after_a_day_is_critical(
    world: World, unit: UnitCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    world.agent()
    world.pass_time(hours=3)
    unit.update()
    code, said = run_command(capsys)
    assert code == 1
    lines = said.splitlines()
    assert lines[0].startswith("TURKU WARNING: overdue sources: 1 | ")
    assert lines[1].startswith("WARNING overdue: web/0: docs: The machine has never checked in")
    world.pass_time(hours=22)
    unit.update()
    assert run_command(capsys)[0] == 2


def test_prior_art_36_a_failing_source_is_in_the_first_line(
    world: World, unit: UnitCaller, agent: AgentCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    unit.report_run(
        agent,
        success=False,
        snapshot="",
        summary="disk | full",
        time_begin=world.pass_time(minutes=5).timestamp(),
        time_end=world.now.timestamp(),
    )
    code, said = run_command(capsys)
    assert code == 1
    assert said.startswith("TURKU WARNING: failing sources: 1 | ")
    # A bar would begin performance data.
    assert "It failed 1 time: disk / full." in said
    assert "failing=1;0;;0" in said


@pytest.mark.parametrize(
    ("quiet", "state"),
    [
        (timedelta(minutes=20), State.OK),
        (timedelta(minutes=40), State.WARNING),
        (timedelta(hours=3), State.CRITICAL),
    ],
)
def test_a_storage_unit_that_is_not_seen(
    world: World, unit: UnitCaller, quiet: timedelta, state: State
) -> None:
    assert fleet_health(world.now + quiet).state is state


def test_a_machine_that_is_not_seen_for_a_day_warns(world: World, unit: UnitCaller) -> None:
    world.agent(sources={}).check_in()
    world.pass_time(hours=23)
    unit.update()
    assert fleet_health(world.now).state is State.OK
    world.pass_time(hours=2)
    unit.update()
    found = fleet_health(world.now)
    assert found.state is State.WARNING
    assert "If it is gone for good: turku-api retire." in render(found)


@pytest.mark.parametrize(
    ("available", "state"),
    [(21.0, State.OK), (20.0, State.WARNING), (5.0, State.CRITICAL), (0.0, State.CRITICAL)],
)
def test_a_volume_that_is_nearly_full(
    world: World, unit: UnitCaller, available: float, state: State
) -> None:
    unit.update(space_total=100.0, space_available=available)
    assert fleet_health(world.now).state is state


def snapshot(world: World, agent: AgentCaller, unit: UnitCaller, **values: object) -> None:
    Snapshot.objects.create(
        **{
            "machine": agent.row,
            "source": agent.source(),
            "storage": unit.row,
            "machine_uuid": agent.uuid,
            "unit_name": "web/0",
            "source_name": "docs",
            "storage_name": unit.name,
            "name": "20260101T000000Z",
            "state": SnapshotState.COMMITTED,
            "taken_at": world.now - timedelta(days=61),
            "reported_at": world.now,
            **values,
        }
    )


def test_a_snapshot_that_nobody_proved_for_long_warns(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    snapshot(world, agent, unit)
    found = fleet_health(world.now)
    assert found.state is State.WARNING
    assert "web/0: docs 20260101T000000Z: Last proven never" in render(found)


@pytest.mark.parametrize(
    "values",
    [
        {"proven": 30},
        {"taken": 59},
        {"state": SnapshotState.EXPIRED},
        {"state": SnapshotState.REMOVED},
    ],
)
def test_a_snapshot_that_was_proven_is_young_or_expired_is_silent(
    world: World, unit: UnitCaller, agent: AgentCaller, values: dict[str, object]
) -> None:
    proven, taken = values.pop("proven", None), values.pop("taken", None)
    if isinstance(proven, int):
        values["proven_at"] = world.now - timedelta(days=proven)
    if isinstance(taken, int):
        values["taken_at"] = world.now - timedelta(days=taken)
    snapshot(world, agent, unit, **values)
    assert fleet_health(world.now).state is State.OK


def test_a_damaged_snapshot_is_critical(world: World, unit: UnitCaller, agent: AgentCaller) -> None:
    snapshot(world, agent, unit, state=SnapshotState.DAMAGED, error="checksum of a/b differs")
    found = fleet_health(world.now)
    assert found.state is State.CRITICAL
    assert "Damaged: checksum of a/b differs" in render(found)


@pytest.mark.parametrize(("hours", "state"), [(1, State.WARNING), (25, State.CRITICAL)])
def test_a_drill_that_can_not_be_made_is_as_loud_as_a_backup_that_fails(
    world: World, unit: UnitCaller, agent: AgentCaller, hours: int, state: State
) -> None:
    snapshot(world, agent, unit, taken_at=world.now - timedelta(hours=hours), error="borg is ill.")
    found = fleet_health(world.now)
    assert found.state is state
    assert "Its restore drill could not be made: borg is ill." in render(found)


@pytest.mark.parametrize(("days", "state"), [(40, State.OK), (30, State.WARNING)])
def test_a_storage_unit_says_in_which_time_it_proves_its_snapshots(
    world: World, unit: UnitCaller, agent: AgentCaller, days: int, state: State
) -> None:
    unit.update(verify_interval_days=days)
    snapshot(world, agent, unit)
    assert fleet_health(world.now).state is state


def test_what_is_retired_or_paused_is_silent_but_counted(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    other = world.agent("old/0")
    snapshot(world, agent, unit, state=SnapshotState.DAMAGED)
    later = world.pass_time(days=9)
    assert fleet_health(later).state is State.CRITICAL
    operations.pause(agent.row)
    other.row.retire(later)
    operations.pause(unit.row)
    found = fleet_health(later)
    assert render(found).startswith("TURKU OK: 0 sources of 0 machines, 2 paused | ")
    assert "paused=2;;;0" in found.performance


def test_a_large_trouble_is_cut_to_ten_lines_and_a_count(world: World, unit: UnitCaller) -> None:
    for number in range(13):
        world.agent(f"web/{number}")
    world.pass_time(hours=3)
    unit.update()
    lines = render(fleet_health(world.now)).splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "... overdue sources, 3 more"


def test_json_has_the_state_the_counts_and_every_problem(
    world: World, unit: UnitCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    world.agent()
    world.pass_time(hours=3)
    unit.update()
    code, said = run_command(capsys, "--json")
    answer = json.loads(said)
    assert answer == json.loads(json.dumps(as_json(fleet_health(world.now))))
    assert (code, answer["state"], answer["counts"]["sources"]) == (1, "WARNING", 1)
    assert answer["checks"]["overdue"]["problems"][0]["about"] == "web/0: docs"


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_database_that_does_not_answer_is_unknown_with_code_3(
    db: None,
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(now: datetime) -> None:
        raise DatabaseError("connection | refused")

    monkeypatch.setattr("turku_core.api.management.commands.health.fleet_health", fail)
    code, said = run_command(capsys, *arguments)
    assert code == 3
    assert "UNKNOWN" in said
    if not arguments:
        assert said == "TURKU UNKNOWN: connection / refused\n"


def test_a_database_that_is_not_migrated_is_unknown(
    db: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise TurkuError("The database lacks 2 migrations.")

    monkeypatch.setattr("turku_core.api.management.commands.health.require_migrated_database", fail)
    assert run_command(capsys) == (3, "TURKU UNKNOWN: The database lacks 2 migrations.\n")


def test_a_name_cannot_break_the_performance_data(world: World, unit: UnitCaller) -> None:
    row = unit.row
    row.name = "x'=1 y|z"
    assert health._space_performance(row) == "'used_x__1_y_z'=0.0%;80;95;0;100"

"""What is measured of the fleet."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api import operations
from turku_core.api.metrics import metrics_text
from turku_core.api.models import (
    Machine,
    RegistrationKey,
    Snapshot,
    SnapshotState,
    Source,
    StorageUnit,
)

SAMPLE = re.compile(r"(turku_\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def measured(now: datetime) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples by metric and by the values of their labels but for a machine's UUID."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for line in metrics_text(now).splitlines():
        if line.startswith("#"):
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample is not None, line
        labels = dict(LABEL.findall(sample[2] or ""))
        labels.pop("machine_uuid", None)
        key = tuple(value for value in labels.values() if value)
        assert key not in found.setdefault(sample[1], {})
        found[sample[1]][key] = float(sample[3])
    return found


@pytest.fixture
def unit(world: World) -> UnitCaller:
    """A storage unit that was seen just now."""
    unit = world.unit()
    unit.update(space_available=25 * 1024.0)
    return unit


@pytest.fixture
def agent(world: World, unit: UnitCaller) -> AgentCaller:
    """A machine of a service with one good backup."""
    agent = world.agent(environment_name="prod", service_name="web")
    unit.update()
    assert list(agent.check_in()) == ["docs"]
    unit.open_session(agent)
    assert unit.report_run(agent, bytes_total=3000, bytes_stored=1000).status == 200
    return agent


DOCS = ("web/0", "prod", "web", "docs")


def test_a_source_with_a_good_backup(world: World, agent: AgentCaller) -> None:
    found = measured(world.now)
    success = world.now.timestamp() - 60
    assert found["turku_api_source_last_success_timestamp_seconds"] == {DOCS: success}
    assert found["turku_api_source_failures"] == {DOCS: 0}
    assert found["turku_api_source_last_backup_bytes"] == {DOCS: 3000}
    assert found["turku_api_source_last_backup_stored_bytes"] == {DOCS: 1000}
    assert found["turku_api_source_last_backup_duration_seconds"] == {DOCS: 60}
    assert found["turku_api_sources"] == {(): 1}
    assert found["turku_api_sources_behind"] == {("overdue",): 0, ("failing",): 0, ("missed",): 0}
    assert "turku_api_source_behind_since_timestamp_seconds" not in found
    assert found["turku_api_backups"][("succeeded",)] == 1
    assert found["turku_api_backups_stored_bytes"] == {(): 1000}
    assert found["turku_api_machine_last_checkin_timestamp_seconds"] == {
        ("web/0", "prod", "web"): world.now.timestamp()
    }


def test_only_the_runs_of_a_day_are_counted(world: World, agent: AgentCaller) -> None:
    world.pass_time(hours=25)
    found = measured(world.now)
    assert set(found["turku_api_backups"].values()) == {0}
    assert found["turku_api_backups_stored_bytes"] == {(): 0}


def test_a_source_that_fails_says_since_when(
    world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    failed = world.pass_time(days=1)
    agent.check_in()
    unit.open_session(agent)
    unit.report_run(agent, success=False, snapshot=None, summary='a "quoted" reason\n')
    found = measured(world.now)
    assert found["turku_api_source_failures"] == {DOCS: 1}
    assert found["turku_api_sources_behind"][("failing",)] == 1
    ((key, since),) = found["turku_api_source_behind_since_timestamp_seconds"].items()
    assert key == (*DOCS, "failing")
    assert since <= failed.timestamp()


def test_what_was_never_backed_up_has_no_time_of_a_success(world: World, unit: UnitCaller) -> None:
    world.agent()
    found = measured(world.now)
    assert "turku_api_source_last_success_timestamp_seconds" not in found
    assert found["turku_api_source_failures"] == {("web/0", "docs"): 0}


@pytest.mark.parametrize("change", ["paused", "retired", "unpublished"])
def test_what_is_not_wanted_is_silent(world: World, agent: AgentCaller, change: str) -> None:
    machine = agent.row
    if change == "paused":
        operations.pause(machine)
    elif change == "retired":
        machine.retire(world.now)
    else:
        agent.update(published=False)
    world.pass_time(days=5)
    found = measured(world.now)
    assert not [name for name in found if name.startswith("turku_api_source_")]
    assert "turku_api_machine_last_checkin_timestamp_seconds" not in found
    assert found["turku_api_machines"][(change,)] == 1
    assert found["turku_api_machines"][("active",)] == 0


def test_snapshots_say_when_they_were_proven_and_how_long_not(
    world: World, agent: AgentCaller
) -> None:
    first = Snapshot.objects.get()
    first.taken_at = world.now - timedelta(days=70)
    first.proven_at = world.now - timedelta(days=40)
    first.save()
    for name, days, proven, state in (
        ("b", 65, None, SnapshotState.COMMITTED),
        ("c", 90, None, SnapshotState.DAMAGED),
        ("d", 95, None, SnapshotState.EXPIRED),
        ("e", 99, 1, SnapshotState.REMOVED),
    ):
        taken = world.now - timedelta(days=days)
        first.pk = None
        first.name, first.taken_at, first.state = name, taken, state
        first.proven_at = None if proven is None else world.now - timedelta(days=proven)
        first.save(force_insert=True)
    Source.objects.update(last_proven_at=world.now - timedelta(days=1))
    found = measured(world.now)
    now = world.now.timestamp()
    assert found["turku_api_source_last_proven_timestamp_seconds"] == {DOCS: now - 86400}
    assert found["turku_api_source_drills_overdue"] == {DOCS: 1}
    assert "turku_api_source_drills_failed" not in found
    Snapshot.objects.filter(name="b").update(error="There is no room.")
    assert measured(world.now)["turku_api_source_drills_failed"] == {DOCS: 1}
    assert found["turku_api_source_unproven_since_timestamp_seconds"] == {DOCS: now - 65 * 86400}
    assert found["turku_api_source_damaged_snapshots"] == {DOCS: 1}
    for silenced in ({"paused": True}, {"paused": False, "active": False}):
        StorageUnit.objects.update(**silenced)
        assert "turku_api_source_unproven_since_timestamp_seconds" not in measured(world.now)


def test_a_storage_unit_says_how_full_and_how_busy_it_is(world: World, unit: UnitCaller) -> None:
    found = measured(world.now)
    gib = 1024**3
    store = ("store-1",)
    assert found["turku_api_storage_size_bytes"] == {store: 100 * gib}
    assert found["turku_api_storage_free_bytes"] == {store: 25 * gib}
    assert found["turku_api_storage_used_ratio"] == {store: 0.75}
    assert found["turku_api_storage_high_water_ratio"] == {store: 0.8}
    assert found["turku_api_storage_slots"] == {store: 10}
    assert found["turku_api_storage_last_checkin_timestamp_seconds"] == {
        store: world.now.timestamp()
    }
    StorageUnit.objects.update(paused=True)
    assert "turku_api_storage_used_ratio" not in measured(world.now)


def test_a_session_is_counted_while_its_lease_lasts(world: World, unit: UnitCaller) -> None:
    agent = world.agent()
    world.pass_time(minutes=1)
    unit.update()
    scheduled = agent.check_in()
    assert measured(world.now)["turku_api_storage_sessions"] == {("store-1",): len(scheduled)}
    assert scheduled
    world.pass_time(days=1)
    assert measured(world.now)["turku_api_storage_sessions"] == {("store-1",): 0}


def test_any_name_of_a_machine_is_one_label(world: World, unit: UnitCaller) -> None:
    world.agent('a "b" \\n {c="d"}')
    text = metrics_text(world.now)
    assert 'machine="a \\"b\\" \\\\n {c=\\"d\\"}"' in text


def test_nothing_secret_is_in_it(world: World, agent: AgentCaller, unit: UnitCaller) -> None:
    text = metrics_text(world.now)
    for secret in (agent.secret, unit.secret, world.machine_key, world.storage_key):
        assert secret not in text
    for stored in (
        *Machine.objects.values_list("secret_hash", flat=True),
        *RegistrationKey.objects.values_list("secret_hash", flat=True),
        agent.row.ssh_public_key,
    ):
        assert stored
        assert stored not in text


def test_a_larger_fleet_takes_no_more_queries(world: World, unit: UnitCaller) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            metrics_text(world.now)
        return len(queries)

    world.agent("web/0")
    few = count()
    for number in range(1, 6):
        world.agent(f"web/{number}", sources={"a": {"path": "/a"}, "b": {"path": "/b"}})
    assert count() == few


def test_the_command_prints_them(
    world: World, agent: AgentCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("metrics")
    assert capsys.readouterr().out == metrics_text(world.now)

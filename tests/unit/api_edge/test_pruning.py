"""Records are kept for a set time and deleted in bulk."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.support.api_world import World
from turku_core.api import pruning
from turku_core.api.models import (
    Backup,
    Outcome,
    RestoreGrant,
    RestoreOrder,
    Snapshot,
    SnapshotState,
    Source,
)
from turku_core.api.pruning import Pruned, prune
from turku_core.api.restore_orders import cancel, order_restore


def record(source: Source, at: datetime, outcome: str = Outcome.SUCCEEDED) -> Backup:
    return Backup.objects.create(
        machine=source.machine,
        source=source,
        machine_uuid=source.machine.uuid,
        unit_name=source.machine.unit_name,
        source_name=source.name,
        outcome=outcome,
        snapshot=f"{at:%Y%m%dT%H%M%SZ}",
        time_begin=at,
        time_end=at,
        recorded_at=at,
    )


def test_old_records_go_and_young_ones_stay(world: World, now: datetime) -> None:
    source = world.agent().source()
    for days in range(10):
        record(source, now - timedelta(days=days))
    assert prune(now - timedelta(days=4, hours=12)) == Pruned(5, 0, 0, 0)
    oldest = Backup.objects.order_by("time_begin").first()
    assert oldest is not None
    assert oldest.time_begin == now - timedelta(days=4)


def test_the_last_good_record_of_a_source_stays_however_old(world: World, now: datetime) -> None:
    away, gone = world.agent("away").source(), world.agent("gone").source()
    for source in (away, gone):
        for days in (900, 800, 700):
            record(source, now - timedelta(days=days))
        record(source, now - timedelta(days=650), Outcome.FAILED)
        record(source, now - timedelta(days=640), Outcome.MISSED)
    gone.machine.retire(now)
    assert prune(now - timedelta(days=400)).backups == 8
    assert [each.time_begin for each in Backup.objects.all()] == 2 * [now - timedelta(days=700)]


def test_a_partial_backup_counts_as_good(world: World, now: datetime) -> None:
    source = world.agent().source()
    kept = record(source, now - timedelta(days=700), Outcome.PARTIAL)
    record(source, now - timedelta(days=800))
    prune(now)
    assert list(Backup.objects.all()) == [kept]


def test_records_of_what_was_deleted_go_in_their_time(world: World, now: datetime) -> None:
    agent = world.agent()
    record(agent.source(), now - timedelta(days=700))
    record(agent.source(), now)
    Source.objects.all().delete()
    assert Backup.objects.count() == 2
    assert prune(now - timedelta(days=400)).backups == 1


def test_deleting_goes_in_chunks_that_say_how_far_it_is(
    world: World, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHUNK", 10)
    source = world.agent().source()
    for minutes in range(35):
        record(source, now - timedelta(days=500, minutes=minutes))
    said: list[int] = []
    assert prune(now, progress=said.append).backups == 34
    assert said == [9, 19, 29, 34]


def test_a_dry_run_counts_and_deletes_nothing(world: World, now: datetime) -> None:
    source = world.agent().source()
    record(source, now - timedelta(days=2))
    record(source, now - timedelta(days=1))
    assert prune(now, dry_run=True).backups == 1
    assert Backup.objects.count() == 2


def test_removed_snapshots_and_ended_grants_go_and_others_stay(world: World, now: datetime) -> None:
    agent, other = world.agent("new"), world.agent("old")
    old = now - timedelta(days=500)
    for state in SnapshotState.values:
        Snapshot.objects.create(
            machine=agent.row,
            source=agent.source(),
            machine_uuid=agent.uuid,
            unit_name="new",
            source_name="docs",
            name=state,
            state=state,
            reported_at=old,
        )
    for until in (old, now + timedelta(days=1)):
        RestoreGrant.objects.create(machine=agent.row, from_machine=other.row, until=until)
    assert prune(now - timedelta(days=400)) == Pruned(0, 1, 1, 0)
    assert not Snapshot.objects.filter(state=SnapshotState.REMOVED).exists()
    assert Snapshot.objects.count() == 3


def test_orders_that_ended_long_ago_go_and_open_ones_stay(world: World, now: datetime) -> None:
    world.unit()
    agent = world.agent()
    ended, opened = (
        order_restore(agent.row, agent.row, {"source": "docs"}, now - timedelta(days=500), "root")
        for _ in range(2)
    )
    cancel(ended, now - timedelta(days=499))
    assert prune(now - timedelta(days=400)).orders == 1
    assert list(RestoreOrder.objects.all()) == [opened]

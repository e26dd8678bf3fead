"""Storage units register, learn whom they serve, open sessions and report."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.support.api_world import World, make_public_key
from turku_core import credentials
from turku_core.api.models import Backup, Outcome, Snapshot, StorageUnit


def test_a_unit_registers_with_a_storage_key_and_then_shows_its_secret(world: World) -> None:
    unit = world.unit(register=False)
    assert unit.update().status == 400
    assert unit.update(auth={"name": "machines", "secret": world.machine_key}).status == 403
    assert unit.update(auth={"name": "storages", "secret": world.storage_key}).status == 200
    assert unit.update(space_available=5.25).status == 200
    assert unit.row.space_available == 5.25
    unit.secret = credentials.make_secret()
    assert unit.update(auth={"name": "storages", "secret": world.storage_key}).status == 403


def test_a_unit_of_the_oldest_kind_registers_with_the_secret_alone(world: World) -> None:
    assert world.unit(register=False).update(auth=world.storage_key).status == 200


def test_a_unit_is_answered_its_active_machines(world: World) -> None:
    unit = world.unit()
    agent = world.agent(environment_name="production", comment="the web")
    plain = world.agent("plain", environment_name="", service_name=None)
    world.unit("store-2")
    machines = unit.update().json["machines"]
    assert machines == {
        agent.uuid: {
            "environment_name": "production",
            "service_name": None,
            "unit_name": "web/0",
            "comment": "the web",
            "ssh_public_key": agent.config["ssh_public_key"].rsplit(" ", 1)[0],
        },
        plain.uuid: {
            "environment_name": None,
            "service_name": None,
            "unit_name": "plain",
            "comment": "",
            "ssh_public_key": plain.config["ssh_public_key"].rsplit(" ", 1)[0],
        },
    }


def test_a_unit_that_has_the_list_is_told_that_it_is_unchanged(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    revision = unit.update().json["revision"]
    assert unit.update(known_revision=revision).json == {
        "machines": {},
        "unchanged": True,
        "revision": revision,
    }
    agent.update(comment="changed")
    answer = unit.update().json
    assert list(answer["machines"]) == [agent.uuid]
    assert answer["revision"] != revision
    assert "unchanged" not in answer


def test_a_unit_that_is_disabled_or_unknown_is_refused_alike(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    StorageUnit.objects.update(active=False)
    refused = [unit.update(), unit.open_session(agent), unit.report_run(agent)]
    StorageUnit.objects.all().delete()
    refused += [unit.open_session(agent), unit.report_run(agent)]
    assert {(answer.status, answer.text) for answer in refused} == {(403, "Bad credentials")}
    assert agent.check_in() == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ssh_ping_host_keys", []),
        ("ssh_ping_host_keys", "ssh-ed25519 AAAA"),
        ("ssh_ping_port", 0),
        ("ssh_ping_port", True),
        ("space_total", "big"),
        ("space_available", -1),
        ("space_total", 10**400),
        ("slots", 0),
        ("slots", 2.5),
        ("running", {"a": 1}),
        ("capabilities", ["a b"]),
        ("known_revision", 5),
    ],
)
def test_a_unit_s_field_that_is_not_valid_is_named(world: World, field: str, value: Any) -> None:
    unit = world.unit()
    answer = unit.update(**{field: value})
    assert answer.status == 400
    assert answer.text.startswith(f"storage.{field}")


def test_a_session_of_a_machine_that_is_not_the_unit_s_is_not_found(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    other = world.unit("store-2")
    assert unit.open_session(agent).status == 200
    assert other.open_session(agent).status == 404
    assert other.report_run(agent).status == 404
    agent.uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
    assert unit.open_session(agent).status == 404
    assert unit.report_run(agent).status == 404


def test_a_session_with_a_unit_that_renews_leases_is_leased_for_ten_minutes(world: World) -> None:
    unit, agent = world.unit(capabilities=["leases"]), world.agent()
    unit.update()
    agent.check_in()
    world.pass_time(minutes=5)
    unit.open_session(agent)
    running = [{"machine": agent.uuid, "sources": ["docs"]}]
    for _ in range(30):
        assert agent.source().lease_until == world.now + timedelta(minutes=10)
        world.pass_time(minutes=5)
        assert agent.check_in() == {}
        unit.update(running=running)
    world.pass_time(minutes=11)
    agent.check_in()
    assert Backup.objects.get().outcome == Outcome.FAILED


def test_a_session_with_a_unit_that_does_not_renew_leases_is_leased_for_twelve_hours(
    world: World,
) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    unit.open_session(agent)
    assert agent.source().lease_until == world.now + timedelta(hours=12)
    world.pass_time(hours=11)
    assert agent.check_in() == {}


def test_a_unit_cannot_renew_what_it_has_not_got(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    running = [{"machine": agent.uuid, "sources": ["docs", "unheard-of"]}]
    unit.update(running=running)
    assert agent.source().lease_until is None
    agent.check_in()
    world.unit("store-2").update(running=running)
    assert agent.source().lease_until == world.now + timedelta(minutes=10)
    unit.report_run(agent)
    unit.update(running=running)
    assert agent.source().lease_until is None


def test_a_session_of_a_machine_that_comes_late_gets_what_is_due(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    sources = unit.open_session(agent, "checkin").json["machine"]["scheduled_sources"]
    assert list(sources) == ["docs"]
    assert agent.check_in() == {}


def test_a_session_for_a_restore_is_told_all_that_the_machine_has_here(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    agent.update(sources={"new": {"path": "/new"}})
    for action in ("restore", "list"):
        machine = unit.open_session(agent, action).json["machine"]
        assert sorted(machine["scheduled_sources"]) == ["docs", "new"]
    assert agent.source("new").lease_until is None
    assert unit.open_session(agent, "destroy").status == 400


def test_a_good_run_makes_a_record_and_a_snapshot(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    unit.report_run(
        agent, snapshot="20260311T115900Z", bytes_stored=5, bytes_total=2**40, files_total=7
    )
    backup = Backup.objects.get()
    assert backup.outcome == Outcome.SUCCEEDED
    assert backup.time_end - backup.time_begin == timedelta(seconds=60)
    assert (backup.bytes_stored, backup.bytes_total, backup.files_total) == (5, 2**40, 7)
    snapshot = Snapshot.objects.get()
    assert (snapshot.name, snapshot.state) == ("20260311T115900Z", "committed")
    assert snapshot.taken_at == backup.time_begin
    source = agent.source()
    assert source.last_success_at == backup.time_begin
    assert source.lease_until is None


def test_a_partial_run_is_the_run_of_its_period_and_says_that_it_is_partial(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    unit.report_run(agent, partial=True, summary="3 files could not be read")
    assert Backup.objects.get().outcome == Outcome.PARTIAL
    assert Snapshot.objects.get().partial
    assert agent.check_in() == {}
    assert agent.source().failures == 0


def test_a_run_from_a_clock_that_is_ahead_does_not_stop_later_runs(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    future = datetime(2031, 1, 1, tzinfo=timezone.utc).timestamp()
    assert unit.report_run(agent, time_begin=future, time_end=future).status == 200
    world.pass_time(days=2)
    assert list(agent.check_in()) == ["docs"]


def test_an_inventory_says_what_became_of_each_snapshot(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    first = Snapshot.objects.get().name
    proven = world.now.timestamp()
    states = [
        {"name": first, "state": "expired", "proven_at": proven, "error": None},
        {"name": "20200101-old", "state": "damaged", "error": "checksum of a/b differs"},
    ]
    assert unit.report(agent, {"docs": {"snapshots": states}}).json == {}
    assert unit.report(agent, {"docs": {"snapshots": states}}).json == {}
    old, known = Snapshot.objects.order_by("name")
    assert (known.state, known.proven_at) == ("expired", world.now)
    assert known.taken_at is not None
    assert (old.state, old.error, old.unit_name) == ("damaged", "checksum of a/b differs", "web/0")
    assert Backup.objects.count() == 1


AT_SIX = {"docs": {"path": "/srv/docs", "frequency": "cron 0 6 * * *"}}
"""Due at the same time whatever the machine's UUID is."""


def test_a_source_whose_newest_snapshot_is_damaged_is_backed_up_again(world: World) -> None:
    unit, agent = world.unit(), world.agent(sources=AT_SIX)
    world.backed_up(agent, unit)
    good = agent.source().last_success_at
    world.pass_time(days=1)
    world.backed_up(agent, unit)
    assert agent.check_in() == {}
    newest = Snapshot.objects.latest("taken_at").name
    damaged = [{"name": newest, "state": "damaged", "error": "the content of 'a' has changed"}]
    unit.report(agent, {"docs": {"snapshots": damaged}})
    assert agent.source().last_success_at == good
    assert "the content of 'a' has changed" in agent.source().problem
    world.pass_time(minutes=10)
    assert list(agent.check_in()) == ["docs"]
    world.pass_time(minutes=10)
    unit.report_run(agent, snapshot="afresh")
    unit.report(agent, {"docs": {"snapshots": damaged}})
    assert agent.source().problem == ""
    assert agent.check_in() == {}


def test_damage_to_an_old_snapshot_makes_nothing_due(world: World) -> None:
    unit, agent = world.unit(), world.agent(sources=AT_SIX)
    world.backed_up(agent, unit)
    old = Snapshot.objects.get().name
    world.pass_time(days=1)
    world.backed_up(agent, unit)
    unit.report(agent, {"docs": {"snapshots": [{"name": old, "state": "damaged"}]}})
    world.pass_time(minutes=10)
    assert agent.check_in() == {}
    assert agent.source().failures == 0


def test_a_large_inventory_is_taken_in_one_report(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    states = [{"name": f"snapshot-{number}", "state": "committed"} for number in range(2000)]
    assert unit.report(agent, {"docs": {"snapshots": states}}).json == {}
    assert Snapshot.objects.filter(state="committed").count() == 2000


def test_a_report_with_one_bad_source_keeps_the_others(world: World) -> None:
    unit = world.unit()
    agent = world.agent(sources={"a": {"path": "/a"}, "b": {"path": "/b"}})
    unit.update()
    agent.check_in()
    end = world.now.timestamp()
    good = {"success": True, "snapshot": "x", "summary": "", "time_begin": end, "time_end": end}
    answer = unit.report(agent, {"a": good, "b": {**good, "time_begin": "noon"}, "c": good})
    assert answer.status == 400
    assert "machine.sources.b.time_begin" in answer.text
    assert Backup.objects.get().source_name == "a"
    answer = unit.report(agent, {"b": good, "c": good})
    assert answer.status == 404
    assert "no source c" in answer.text
    assert Backup.objects.count() == 2


@pytest.mark.parametrize("epoch", [-1, 1e300, 253402300800, "1", None, True, [1]])
def test_a_time_that_is_none_is_refused(world: World, epoch: Any) -> None:
    unit, agent = world.unit(), world.agent()
    assert unit.report_run(agent, time_end=epoch).status == 400
    states = [{"name": "x", "state": "committed", "proven_at": epoch}]
    if epoch is not None:
        assert unit.report(agent, {"docs": {"snapshots": states}}).status == 400


def test_another_unit_cannot_report_runs_of_a_source(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update(space_available=0)
    other = world.unit("store-2")
    agent.update(sources={"docs": {"path": "/srv/docs"}, "more": {"path": "/more"}})
    assert agent.source("more").storage == other.row
    assert unit.report_run(agent, "more").status == 404
    assert other.report_run(agent, "docs").status == 404
    assert unit.report_run(agent, "docs").status == 200
    assert other.report_run(agent, "more").status == 200


def test_a_unit_may_still_report_when_its_machine_has_been_retired(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    agent.row.retire(world.now)
    assert unit.report_run(agent).status == 200
    assert Backup.objects.get().is_good


def test_an_agent_s_new_host_keys_are_announced_at_once(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    key = make_public_key("new host key")
    unit.update(ssh_ping_host_keys=[key])
    assert agent.check_in()["docs"]["storage"]["ssh_ping_host_keys"] == [key.rsplit(" ", 3)[0]]

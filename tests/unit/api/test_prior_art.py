"""What went wrong before, in systems like this one: the lines that are about the API."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.support.api_world import World
from turku_core.api.models import (
    Backup,
    Machine,
    Outcome,
    RegistrationKey,
    RestoreGrant,
    Snapshot,
    Source,
    StorageUnit,
)


@pytest.mark.parametrize("name", ["../../../root/.ssh", "..", "a/b", "-rf", "", "x" * 65, "a\nb"])
def test_prior_art_01_a_source_s_name_that_is_a_path_is_refused(world: World, name: str) -> None:
    agent = world.agent()
    answer = agent.update(sources={name: {"path": "/srv"}})
    assert answer.status == 400
    assert "source name: must be a name" in answer.text
    assert list(Source.objects.values_list("name", flat=True)) == ["docs"]


@pytest.mark.parametrize("uuid", ["../../etc", "6ba7b810", "", None, 7])
def test_prior_art_01_a_machine_is_named_by_a_uuid_and_nothing_else(
    world: World, uuid: Any
) -> None:
    agent = world.agent(register=False)
    agent.uuid = uuid
    assert agent.update(auth=world.auth()).status == 400
    assert not Machine.objects.exists()


def test_prior_art_01_a_unit_named_like_another_machine_does_not_take_its_place(
    world: World,
) -> None:
    unit, victim = world.unit(), world.agent()
    thief = world.agent(victim.uuid)
    machines = unit.update().json["machines"]
    assert machines[victim.uuid]["unit_name"] == "web/0"
    assert machines[thief.uuid]["unit_name"] == victim.uuid


@pytest.mark.parametrize(
    "tail", ["\nssh-ed25519 AAAA evil", "\r\nssh-rsa AAAA", "\x00", "\x0bx", "\u2028ssh-rsa AAAA"]
)
def test_prior_art_02_a_public_key_is_a_single_line(world: World, tail: str) -> None:
    unit, agent = world.unit(), world.agent()
    before = agent.row.ssh_public_key
    agent.update(ssh_public_key=agent.config["ssh_public_key"] + tail)
    line = unit.update().json["machines"][agent.uuid]["ssh_public_key"]
    assert line == before
    assert len(line.splitlines()) == 1


def test_prior_art_02_options_before_the_key_are_refused(world: World) -> None:
    agent = world.agent()
    line = 'command="/bin/sh" ' + agent.config["ssh_public_key"]
    assert agent.update(ssh_public_key=line).status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"ssh_ping_host": "-oProxyCommand=touch /tmp/x"},
        {"ssh_ping_host": "host name"},
        {"ssh_ping_user": "-l"},
        {"ssh_ping_port": "22 -o x"},
        {"ssh_ping_host_keys": ["* ssh-ed25519 AAAA"]},
    ],
)
def test_prior_art_03_a_storage_unit_s_address_cannot_be_an_option(
    world: World, changes: dict[str, Any]
) -> None:
    unit = world.unit()
    before = StorageUnit.objects.values().get()
    assert unit.update(**changes).status == 400
    assert StorageUnit.objects.values().get() == before


def test_prior_art_05_two_active_machines_never_have_one_ssh_key(world: World) -> None:
    original = world.agent()
    clone = world.agent("clone/0", register=False)
    clone.config["ssh_public_key"] = original.config["ssh_public_key"] + " clone"
    answer = clone.update(auth=world.auth())
    assert answer.status == 400
    assert answer.text.startswith("machine.ssh_public_key: another active machine uses this key")
    assert Machine.objects.count() == 1
    clone = world.agent("clone/1")
    assert clone.update(ssh_public_key=original.config["ssh_public_key"]).status == 400


def test_prior_art_08_secrets_are_in_no_answer_no_log_and_no_table(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    wrong = "Tr0ub4dor&3-wrong-secret"
    agent.secret, right = wrong, agent.secret
    answers = [agent.update().text, unit.update().text]
    logged = "\n".join(
        record.getMessage() for record in caplog.records if record.name != "django.db.backends"
    )
    for secret in (right, wrong, unit.secret, world.machine_key, world.storage_key):
        assert not any(secret in answer for answer in answers)
        assert secret not in logged
        for model in (Machine, StorageUnit, RegistrationKey):
            assert secret not in str(list(model.objects.values()))


def test_prior_art_09_refusing_a_caller_costs_one_read_and_no_slow_hash(world: World) -> None:
    agent = world.agent()
    agent.secret = "not-the-secret"
    with CaptureQueriesContext(connection) as queries:
        began = time.process_time()
        assert world.call("agent_ping_checkin", agent.login).status == 403
        assert time.process_time() - began < 0.05
    assert len(queries) == 1


def test_prior_art_10_disabling_a_key_stops_newcomers_and_if_asked_its_machines(
    world: World,
) -> None:
    key = RegistrationKey.objects.get(name="machines")
    agent = world.agent()
    assert key.disable(with_machines=False, now=world.now) == 0
    assert world.agent("late/0", register=False).update(auth=world.auth()).status == 403
    assert agent.check_in() == {}, "without being asked for, machines go on"
    assert key.disable(with_machines=True, now=world.now) == 1
    assert world.call("agent_ping_checkin", agent.login).status == 403
    assert agent.update(auth=world.auth()).status == 403
    key.enable()
    assert world.agent("new/0", register=False).update(auth=world.auth()).status == 200
    assert world.call("agent_ping_checkin", agent.login).status == 403


def test_prior_art_10_disabling_a_storage_key_stops_its_units_if_asked(world: World) -> None:
    unit = world.unit()
    RegistrationKey.objects.get(name="storages").disable(with_machines=True, now=world.now)
    assert unit.update().status == 403


def _count_runs(world: World, frequency: str, days: int, minutes: int) -> list[Any]:
    """Check in every so many minutes for some days, with a perfect storage unit."""
    unit = world.unit()
    agent = world.agent(sources={"docs": {"path": "/srv", "frequency": frequency}})
    unit.update()
    runs = []
    end = world.now + timedelta(days=days)
    while world.now < end:
        if agent.check_in():
            runs.append(world.now)
            unit.report_run(agent, time_begin=world.now.timestamp())
        world.pass_time(minutes=minutes)
    return runs


def test_prior_art_12_a_weekday_s_job_runs_once_a_week(world: World) -> None:
    runs = _count_runs(world, "thursday", 28, minutes=60)
    assert len(runs) == 4
    # A moment in the last hour of the day is met by the check-in at midnight.
    assert {run.strftime("%A") for run in runs if f"{run:%A %H:%M}" != "Friday 00:00"} <= {
        "Thursday"
    }


@pytest.mark.parametrize("frequency", ["daily, 2330", "daily, 2200-0200"])
def test_prior_art_13_a_job_near_midnight_runs_every_day(world: World, frequency: str) -> None:
    assert len(_count_runs(world, frequency, 8, minutes=15)) == 8


def test_prior_art_15_a_failed_backup_is_not_retried_at_every_check_in(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    tries = 0
    for _ in range(12 * 6):
        if agent.check_in():
            tries += 1
            unit.report_run(agent, success=False, summary="no")
        world.pass_time(minutes=5)
    assert tries == 9  # after 5, 10, 20, 40 and then 60 minutes each, in six hours


def test_prior_art_16_the_schedule_that_was_configured_is_the_one_that_runs(world: World) -> None:
    runs = _count_runs(world, "cron 30 3 * * tue", 15, minutes=30)
    assert [run.strftime("%a %H:%M") for run in runs[1:]] == ["Tue 03:30"] * 2


def test_prior_art_21_the_result_of_a_failed_backup_is_saved(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    world.pass_time(days=2)
    agent.check_in()
    unit.report_run(agent, success=False, summary="rsync error: timeout", snapshot=None)
    source = agent.source()
    assert source.failures == 1
    assert source.last_failure_at == world.now
    assert source.problem == "The last run failed: rsync error: timeout"
    newest = Backup.objects.latest()
    assert (newest.outcome, newest.summary) == (Outcome.FAILED, "rsync error: timeout")


def test_prior_art_27_a_report_that_is_sent_again_changes_nothing(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    when = {"time_begin": world.now.timestamp() - 60.123456789, "time_end": 1}
    first = {"snapshot": "20260311T120000Z", **when}
    for changes in (first, {**when, "success": False, "snapshot": None}):
        assert unit.report_run(agent, **changes).status == 200
        before = [list(model.objects.values()) for model in (Backup, Snapshot, Source, Machine)]
        world.pass_time(seconds=5)
        assert unit.report_run(agent, **changes).status == 200
        assert before == [
            list(model.objects.values()) for model in (Backup, Snapshot, Source, Machine)
        ]
    assert Backup.objects.count() == 2


def test_prior_art_27_an_old_report_does_not_end_the_lease_of_a_new_run(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    began = world.now.timestamp() + 5
    world.pass_time(minutes=20)
    agent.check_in()
    world.pass_time(minutes=20)
    assert agent.check_in()
    unit.report_run(agent, success=False, time_begin=began, time_end=began + 60)
    assert agent.source().lease_until is not None
    assert Backup.objects.count() == 3


def test_prior_art_30_deleting_a_storage_unit_takes_no_machine_and_no_history(
    world: World,
) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    unit.row.delete()
    assert agent.source().storage is None
    assert Backup.objects.get().storage_name == "store-1"
    assert Snapshot.objects.get().storage_name == "store-1"
    other = world.unit("store-2")
    world.pass_time(days=2)
    other.update()
    agent.update()
    other.update()
    assert agent.check_in()["docs"]["storage"]["name"] == "store-2"


def test_prior_art_30_deleting_a_machine_leaves_its_history_readable(world: World) -> None:
    unit, agent, other = world.unit(), world.agent(service_name="web"), world.agent("new/0")
    world.backed_up(agent, unit)
    RestoreGrant.objects.create(
        machine=other.row, from_machine=agent.row, until=world.now + timedelta(days=1)
    )
    agent.row.delete()
    backup = Backup.objects.get(unit_name="web/0")
    assert (backup.machine, backup.source) == (None, None)
    assert (backup.machine_uuid, backup.service_name) == (agent.uuid, "web")
    assert backup.source_name == "docs"
    assert Snapshot.objects.get().machine_uuid == agent.uuid
    assert RestoreGrant.objects.get().from_machine_uuid == agent.uuid


def test_prior_art_30_deleting_a_registration_key_leaves_its_machines(world: World) -> None:
    agent = world.agent()
    RegistrationKey.objects.all().delete()
    assert agent.check_in() == {}


def test_prior_art_31_no_source_is_placed_on_a_unit_at_its_high_water_mark(world: World) -> None:
    full = world.unit("full", space_available=20 * 1024)
    agent = world.agent()
    assert agent.source().storage is None
    assert "No storage unit has room" in agent.source().problem
    assert agent.check_in() == {}
    assert agent.update().status == 200
    full.update(space_available=20 * 1024 + 1)
    agent.check_in()
    assert agent.source().storage == full.row
    assert agent.source().problem.startswith("Storage unit full has not fetched")


def test_prior_art_31_a_unit_at_its_mark_goes_on_serving_what_it_has(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    world.pass_time(days=2)
    unit.update(space_available=0)
    assert list(agent.check_in()) == ["docs"]


def test_prior_art_35_one_bad_client_value_blocks_nobody_else(world: World) -> None:
    unit = world.unit()
    bad, good = world.agent("bad/0"), world.agent("good/0")
    for changes in (
        {"ssh_public_key": "no key\nat all"},
        {"comment": "\x1b[31m"},
        {"sources": {"docs": {"path": "/srv", "frequency": "whenever"}}},
    ):
        assert (
            world.agent("worse/0", register=False, **changes).update(auth=world.auth()).status
            == 400
        )
        assert bad.update(**changes).status == 400
    Source.objects.filter(machine=bad.row).update(frequency="whenever", path="", filter={"a": 1})
    assert set(unit.update().json["machines"]) == {bad.uuid, good.uuid}
    assert list(good.check_in()) == ["docs"]
    assert bad.check_in() == {}


def test_prior_art_36_a_failed_run_reaches_what_operators_look_at(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    unit.report_run(agent, success=False, summary="volume\nis full")
    assert agent.source().problem == "The last run failed: is full"
    world.pass_time(days=1)
    assert agent.check_in()
    unit.report_run(agent)
    assert agent.source().problem == ""
    assert set(Backup.objects.values_list("outcome", flat=True)) >= {
        Outcome.FAILED,
        Outcome.SUCCEEDED,
    }

"""Checking in: what is due is handed out, once, and an idle check-in costs next to nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test.utils import CaptureQueriesContext, override_settings

from django.db import connection  # isort: skip

from tests.support.api_world import AgentCaller, World, make_public_key
from turku_core.api import due, operations
from turku_core.api.models import Backup, FilterSet, Outcome


def test_a_machine_registers_checks_in_is_backed_up_and_is_idle_until_the_next_day(
    world: World,
) -> None:
    unit = world.unit()
    agent = world.agent()
    assert agent.check_in() == {}, "the storage unit doesn't know the machine's key yet"
    assert list(unit.update().json["machines"]) == [agent.uuid]
    scheduled = agent.check_in()
    assert scheduled["docs"]["path"] == "/srv/docs"
    assert scheduled["docs"]["storage"]["name"] == "store-1"
    assert agent.check_in() == {}, "it is leased"
    session = unit.open_session(agent).json["machine"]
    assert session["unit_name"] == "web/0"
    assert session["scheduled_sources"]["docs"]["id"] == agent.source().pk
    assert unit.report_run(agent).json == {}
    assert agent.check_in() == {}
    world.pass_time(days=2)
    assert list(agent.check_in()) == ["docs"]


def test_a_source_is_answered_with_every_field_of_the_protocol(world: World) -> None:
    unit = world.unit()
    agent = world.agent(
        sources={
            "db": {
                "path": "/srv/db",
                "retention": "last 3 days",
                "bwlimit": "2m",
                "filter": ["- *.tmp"],
                "exclude": ["/cache"],
                "snapshot_mode": "attic",
                "preserve_hard_links": False,
                "large_modifying_files": True,
            }
        }
    )
    unit.update()
    assert agent.check_in()["db"] == {
        "path": "/srv/db",
        "retention": "last 3 days",
        "bwlimit": "2m",
        "filter": ["- *.tmp"],
        "exclude": ["/cache"],
        "shared_service": False,
        "large_rotating_files": False,
        "large_modifying_files": True,
        "snapshot_mode": "borg",
        "preserve_hard_links": False,
        "storage": {
            "name": "store-1",
            "ssh_ping_host": "store-1.example.com",
            "ssh_ping_host_keys": unit.row.ssh_ping_host_keys,
            "ssh_ping_port": 22,
            "ssh_ping_user": "turku-storage",
        },
    }


def test_an_idle_check_in_is_one_read_and_one_write(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert agent.check_in() == {}
    assert [query["sql"].split()[0] for query in queries] == ["SELECT", "UPDATE"]
    assert agent.row.last_checkin_at == world.now


def test_an_idle_check_in_reads_by_an_index(world: World) -> None:
    agent = world.agent()
    with CaptureQueriesContext(connection) as queries:
        agent.check_in()
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # A table of one row is read whole unless that is forbidden.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("EXPLAIN " + queries[0]["sql"])
        else:
            cursor.execute("EXPLAIN QUERY PLAN " + queries[0]["sql"])
        plan = str(cursor.fetchall())
    assert "USING INDEX" in plan or "Index Scan" in plan


def test_what_was_handed_out_in_an_answer_that_was_lost_is_handed_out_again(world: World) -> None:
    unit = world.unit()
    agent = world.agent()
    unit.update()
    assert list(agent.check_in_since(None)[0]) == ["docs"]
    for _ in range(3):
        world.pass_time(seconds=30)
        scheduled, last = agent.check_in_since(None)
        assert list(scheduled) == ["docs"]
    assert last is not None
    world.pass_time(seconds=30)
    assert agent.check_in_since(last) == ({}, last), "this answer has come"
    assert list(unit.open_session(agent).json["machine"]["scheduled_sources"]) == ["docs"]
    assert agent.check_in_since(None)[0] == {}, "a session is at work on it"
    unit.report_run(agent)
    assert agent.check_in_since(None)[0] == {}
    assert [each.outcome for each in Backup.objects.all()] == [Outcome.SUCCEEDED]


def test_a_lost_answer_is_not_given_back_to_another_machine_or_by_one_that_says_nothing(
    world: World,
) -> None:
    unit = world.unit()
    agent, other = world.agent(), world.agent(unit_name="web/1", sources={})
    unit.update()
    assert list(agent.check_in()) == ["docs"]
    world.pass_time(seconds=30)
    assert other.check_in_since(None)[0] == {}
    assert agent.check_in() == {}
    for invalid in ("yesterday", 17, "2026-01-05T03:00:00"):
        machine = {**agent.login["machine"], "last_handed_out_at": invalid}
        assert world.call("agent_ping_checkin", {"machine": machine}).status == 400


def test_an_idle_check_in_that_says_what_it_heard_of_is_one_read_and_one_write_too(
    world: World,
) -> None:
    unit = world.unit()
    agent = world.agent()
    unit.update()
    _, last = agent.check_in_since(None)
    world.backed_up(agent, unit)
    with CaptureQueriesContext(connection) as queries:
        assert agent.check_in_since(last)[0] == {}
    said = [query["sql"] for query in queries if not query["sql"].startswith(("SAVE", "RELEASE"))]
    assert [sql.split()[0] for sql in said] == ["SELECT", "UPDATE"]


def test_a_lease_ends_and_the_source_is_handed_out_again_after_the_pause(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    assert agent.check_in()
    world.pass_time(minutes=9)
    assert agent.check_in() == {}
    world.pass_time(minutes=2)
    assert agent.check_in() == {}, "a lost run is a failed run, and has a pause"
    world.pass_time(minutes=5)
    assert list(agent.check_in()) == ["docs"]


def test_a_run_of_which_nobody_reports_the_end_is_on_the_record_as_failed(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    world.pass_time(minutes=11)
    agent.check_in()
    backup = Backup.objects.get()
    assert backup.outcome == Outcome.FAILED
    assert "no result was reported" in backup.summary
    assert agent.source().problem == backup.summary


def test_housekeeping_notes_what_a_machine_that_is_gone_has_missed(world: World) -> None:
    unit = world.unit()
    agent = world.agent(sources={"docs": {"path": "/srv", "frequency": "daily, 1000-1400"}})
    world.backed_up(agent, unit)
    world.pass_time(days=1, hours=3)
    assert due.record_missed_windows(world.now) == 1
    missed = Backup.objects.get(outcome=Outcome.MISSED)
    assert missed.time_end - missed.time_begin == timedelta(hours=4)
    assert missed.summary == "The machine did not check in during the window."
    due.record_missed_windows(world.now)
    assert Backup.objects.filter(outcome=Outcome.MISSED).count() == 1


def test_a_window_that_is_over_is_missed_and_not_run_late(world: World) -> None:
    unit = world.unit()
    agent = world.agent(sources={"docs": {"path": "/srv", "frequency": "daily, 1000-1400"}})
    world.backed_up(agent, unit)
    world.pass_time(days=1, hours=3)
    assert agent.check_in() == {}
    assert Backup.objects.get(outcome=Outcome.MISSED).source_name == "docs"
    world.pass_time(hours=22, minutes=45)
    assert list(agent.check_in()) == ["docs"]


def test_a_schedule_without_a_window_catches_up(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    world.pass_time(days=40)
    assert list(agent.check_in()) == ["docs"]


def test_a_failed_run_is_tried_again_with_growing_pauses(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    for minutes in (5, 10, 20, 40, 60, 60):
        assert list(agent.check_in()) == ["docs"]
        unit.report_run(agent, success=False, summary="rsync: connection unexpectedly closed")
        world.pass_time(minutes=minutes, seconds=-1)
        assert agent.check_in() == {}
        world.pass_time(seconds=1)
    assert agent.source().failures == 6


def test_a_failed_run_is_not_tried_again_after_its_window(world: World) -> None:
    unit = world.unit()
    agent = world.agent(sources={"docs": {"path": "/srv", "frequency": "daily, 1000-1203"}})
    unit.update()
    assert agent.check_in()
    unit.report_run(agent, success=False, summary="no")
    world.pass_time(minutes=30)
    assert agent.check_in() == {}
    world.pass_time(hours=22, minutes=30 + 62)
    assert list(agent.check_in()) == ["docs"]


def come_back_seconds(agent: AgentCaller) -> float | None:
    """Check in; when the API asks to come back."""
    machine = agent.world.call("agent_ping_checkin", agent.login).json["machine"]
    pause: float | None = machine.get("come_back_seconds")
    return pause


def test_a_storage_unit_gets_no_more_sessions_than_it_has_slots(world: World) -> None:
    unit = world.unit(slots=2)
    agents = [world.agent(f"web/{number}") for number in range(3)]
    unit.update()
    assert [bool(agent.check_in()) for agent in agents] == [True, True, False]
    assert "all its 2 slots" in agents[2].source().problem
    unit.report_run(agents[0])
    assert list(agents[2].check_in()) == ["docs"]
    assert agents[2].source().problem == ""


def test_an_operator_caps_the_slots_of_every_unit(world: World) -> None:
    unit = world.unit(slots=8)
    agents = [world.agent(f"web/{number}") for number in range(2)]
    unit.update()
    with override_settings(TURKU_SESSION_SLOTS=1):
        assert [bool(agent.check_in()) for agent in agents] == [True, False]
    assert "all its 1 slots" in agents[1].source().problem
    with override_settings(TURKU_SESSION_SLOTS=100):
        assert agents[1].check_in()


def test_who_waits_for_its_storage_unit_is_asked_to_come_back_soon(world: World) -> None:
    unit, agent = world.unit(slots=1), world.agent()
    assert come_back_seconds(agent) == 5
    unit.update()
    assert come_back_seconds(agent) is None
    other = world.agent("web/1")
    unit.update()
    assert come_back_seconds(other) == 60
    unit.report_run(agent)
    assert list(other.check_in()) == ["docs"]


def test_a_new_turku_s_machines_come_back_until_its_first_storage_unit_is_there(
    world: World,
) -> None:
    agent = world.agent()
    assert come_back_seconds(agent) == 30
    unit = world.unit()
    assert come_back_seconds(agent) == 5
    unit.update()
    assert list(agent.check_in()) == ["docs"]


@pytest.mark.parametrize("obstacle", ["unit paused", "no room", "nothing due"])
def test_who_waits_for_a_person_comes_back_at_its_own_time(world: World, obstacle: str) -> None:
    if obstacle == "no room":
        world.unit(space_available=1)
        assert come_back_seconds(world.agent()) is None
        return
    unit, agent = world.unit(), world.agent()
    if obstacle == "unit paused":
        operations.pause(unit.row)
    else:
        world.backed_up(agent, unit)
    assert come_back_seconds(agent) is None
    assert agent.check_in() == {}


def test_a_machine_with_a_session_takes_one_slot_for_all_its_sources(world: World) -> None:
    unit = world.unit(slots=1)
    agent = world.agent(sources={name: {"path": f"/{name}"} for name in ("a", "b")})
    unit.update()
    assert sorted(agent.check_in()) == ["a", "b"]


def test_a_unit_that_tells_no_slots_has_ten(world: World) -> None:
    world.unit()
    assert world.unit("store-2").row.slots == 10


def test_nothing_is_handed_out_before_the_unit_knows_a_rotated_key(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    world.pass_time(days=2)
    agent.update(ssh_public_key=make_public_key("new"))
    assert agent.check_in() == {}
    assert "has not fetched the machine's SSH key" in agent.source().problem
    unit.update()
    assert list(agent.check_in()) == ["docs"]


@pytest.mark.parametrize("what", ["machine", "source", "unit"])
def test_pause_stops_backups_and_resume_starts_them_again(world: World, what: str) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    if what == "machine":
        operations.pause(agent.row)
    elif what == "source":
        operations.pause(agent.source())
    else:
        operations.pause(unit.row)
    assert agent.check_in() == {}
    assert list(agent.restore()["sources"]) == ["docs"]
    world.pass_time(days=3)
    if what == "machine":
        operations.resume(agent.row, world.now)
    elif what == "source":
        operations.resume(agent.source(), world.now)
    else:
        operations.resume(unit.row, world.now)
    assert list(agent.check_in()) == ["docs"]
    if what != "unit":
        assert not Backup.objects.exists(), "what a pause let pass was not missed"


def test_a_session_that_runs_is_let_end_when_its_machine_is_paused(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    operations.pause(agent.row)
    assert list(unit.open_session(agent).json["machine"]["scheduled_sources"]) == ["docs"]
    assert unit.report_run(agent).status == 200
    assert agent.row.next_due_at is None


def test_backup_now_is_handed_out_once_outside_its_schedule(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    operations.request_backups(agent.row, ["docs"], world.now)
    assert list(agent.check_in()) == ["docs"]
    world.pass_time(minutes=1)
    unit.report_run(agent)
    world.pass_time(minutes=1)
    assert agent.check_in() == {}


def test_backup_now_does_not_wait_for_the_pause_after_a_failure(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    unit.report_run(agent, success=False)
    operations.request_backups(agent.row, ["docs"], world.now)
    assert list(agent.check_in()) == ["docs"]
    unit.report_run(agent, success=False, time_begin=world.now.timestamp())
    assert agent.check_in() == {}
    world.pass_time(minutes=5)
    assert list(agent.check_in()) == ["docs"], "it was asked for, and hasn't been made"


def test_a_retired_machine_is_refused_and_its_history_stays(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    agent.row.retire(world.now)
    assert world.call("agent_ping_checkin", agent.login).status == 403
    assert unit.update().json["machines"] == {}
    assert Backup.objects.get().machine_uuid == agent.uuid
    operations.reinstate(agent.row, world.now)
    assert agent.check_in() == {}
    unit.update()
    assert list(unit.update().json["machines"]) == [agent.uuid]


def test_a_machine_that_is_not_published_makes_no_backups(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    agent.update(published=False)
    unit.update()
    assert agent.check_in() == {}
    assert unit.update().json["machines"] == {}
    agent.update(published=True)
    unit.update()
    assert list(agent.check_in()) == ["docs"]


def test_a_schedule_that_somebody_broke_in_the_database_blocks_its_source_alone(
    world: World,
) -> None:
    unit = world.unit()
    agent = world.agent(sources={"a": {"path": "/a"}, "b": {"path": "/b"}})
    unit.update()
    source = agent.source("a")
    source.frequency = "dayly"
    source.save()
    assert list(agent.check_in()) == ["b"]
    assert "dayly" in agent.source("a").problem


def test_a_source_whose_filter_set_is_gone_is_not_backed_up_without_its_filter(
    world: World,
) -> None:
    unit = world.unit()
    FilterSet.objects.create(name="secrets", rules=["- /etc/shadow"])
    agent = world.agent(sources={"etc": {"path": "/etc", "filter": ["merge secrets"]}})
    FilterSet.objects.all().delete()
    unit.update()
    assert agent.check_in() == {}
    assert "there is no filter set named secrets" in agent.source("etc").problem
    FilterSet.objects.create(name="secrets", rules=["- /etc/shadow"])
    assert agent.check_in()["etc"]["filter"] == ["- /etc/shadow"]

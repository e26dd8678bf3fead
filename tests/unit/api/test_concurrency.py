"""Calls that come at once: from threads, each with a connection of its own, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from tests.support.api_world import Answer, World
from turku_core.api.models import Backup, Machine, Source

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(calls: Sequence[tuple[str, Any]]) -> list[Answer]:
    """Make all calls in the same moment and return their answers, in order."""
    barrier = threading.Barrier(len(calls))
    answers: dict[int, Answer] = {}

    def work(number: int, name: str, payload: Any) -> None:
        try:
            barrier.wait(30)
            answers[number] = World.call_with(Client(), name, payload)
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=work, args=(number, *call)) for number, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [answers[number] for number in range(len(calls))]


def _handed_out(answers: Sequence[Answer]) -> int:
    return sum(len(answer.json["machine"]["scheduled_sources"]) for answer in answers)


def test_two_check_ins_at_once_do_not_start_a_source_twice(world: World) -> None:
    unit = world.unit()
    agent = world.agent(sources={name: {"path": f"/{name}"} for name in ("a", "b", "c")})
    unit.update()
    assert _handed_out(at_once([("agent_ping_checkin", agent.login)] * 8)) == 3


def test_machines_that_come_at_once_take_no_more_slots_than_there_are(world: World) -> None:
    unit = world.unit(slots=3)
    agents = [world.agent(f"web/{number}") for number in range(8)]
    unit.update()
    answers = at_once([("agent_ping_checkin", agent.login) for agent in agents])
    assert _handed_out(answers) == 3
    assert Source.objects.filter(lease_until__isnull=False).count() == 3


def test_of_a_shared_service_s_machines_that_come_at_once_one_is_chosen(world: World) -> None:
    unit = world.unit()
    shared = {"data": {"path": "/srv", "shared_service": True}}
    agents = [world.agent(f"db/{number}", service_name="db", sources=shared) for number in range(8)]
    unit.update()
    answers = at_once([("agent_ping_checkin", agent.login) for agent in agents])
    assert _handed_out(answers) == 1


def test_a_machine_that_registers_twice_at_once_is_one_machine(world: World) -> None:
    unit = world.unit()
    agent = world.agent(register=False)
    machine = {**agent.login["machine"], **agent.config}
    answers = at_once([("update_config", {"auth": world.auth(), "machine": machine})] * 6)
    assert {answer.status for answer in answers} == {200}
    assert Machine.objects.count() == 1
    assert list(unit.update().json["machines"]) == [agent.uuid]


def test_of_two_clones_that_register_at_once_one_gets_the_key(world: World) -> None:
    clones = [world.agent(f"clone/{number}", register=False) for number in range(6)]
    calls = []
    for clone in clones:
        clone.config["ssh_public_key"] = clones[0].config["ssh_public_key"]
        machine = {**clone.login["machine"], **clone.config}
        calls.append(("update_config", {"auth": world.auth(), "machine": machine}))
    answers = at_once(calls)
    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400, 400]


def test_a_report_that_is_sent_twice_at_once_is_recorded_once(world: World) -> None:
    unit, agent = world.unit(), world.agent()
    unit.update()
    agent.check_in()
    end = world.now.timestamp()
    result = {"success": False, "summary": "no", "time_begin": end, "time_end": end}
    request = {**unit.login, "machine": {"uuid": agent.uuid, "sources": {"docs": result}}}
    answers = at_once([("storage_ping_source_update", request)] * 6)
    assert {answer.status for answer in answers} == {200}
    assert Backup.objects.count() == 1
    assert agent.source().failures == 1


def test_everything_at_once_ends_in_nothing_but_answers(world: World) -> None:
    unit = world.unit(capabilities=["leases"])
    shared = {"data": {"path": "/srv", "shared_service": True}, "own": {"path": "/own"}}
    agents = [world.agent(f"db/{number}", service_name="db", sources=shared) for number in range(4)]
    running = [{"machine": agent.uuid, "sources": ["data", "own"]} for agent in agents]
    storage = {**unit.login["storage"], **unit.config, "running": running}
    calls: list[tuple[str, Any]] = [("storage_update_config", {"storage": storage})] * 3
    for agent in agents:
        machine = {"uuid": agent.uuid}
        config = {**agent.login["machine"], **agent.config}
        end = world.now.timestamp()
        result = {"success": True, "snapshot": "s", "time_begin": end, "time_end": end}
        report = {**machine, "sources": {"data": result, "own": result}}
        calls += [
            ("agent_ping_checkin", agent.login),
            ("storage_ping_checkin", {**unit.login, "machine": machine}),
            ("update_config", {"machine": config}),
            ("storage_ping_source_update", {**unit.login, "machine": report}),
        ]
    for _ in range(3):
        assert {answer.status for answer in at_once(calls)} == {200}

"""Calls that come at once: from threads, each with a connection of its own, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest
from django.db import connections
from django.test import Client

from tests.support.api_world import AgentCaller, Answer, World
from turku_core import credentials
from turku_core.api import restore_orders
from turku_core.api.announcements import Announced, announce, withdraw
from turku_core.api.models import Announcement, Backup, Machine, Source
from turku_core.api.relation_keys import RelationKey, sync_keys
from turku_core.credentials import PublicKey
from turku_core.errors import TurkuError

T = TypeVar("T")

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(calls: Sequence[tuple[str, Any]]) -> list[Answer]:
    """Make all calls in the same moment and return their answers, in order."""
    return all_at_once([partial(World.call_with, Client(), *call) for call in calls])


def all_at_once(works: Sequence[Callable[[], T]]) -> list[T]:
    """Do everything in the same moment and return what came of it, in order."""
    barrier = threading.Barrier(len(works))
    answers: dict[int, T] = {}

    def do(number: int, work: Callable[[], T]) -> None:
        try:
            barrier.wait(30)
            answers[number] = work()
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=do, args=(number, work)) for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [answers[number] for number in range(len(works))]


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


def test_an_order_that_is_fetched_and_cancelled_at_once_is_one_or_the_other(world: World) -> None:
    world.unit()
    agent = world.agent()
    order = restore_orders.order_restore(agent.row, agent.row, {"source": "docs"}, world.now, "")

    def fetch() -> bool:
        answer = World.call_with(Client(), "agent_ping_checkin", agent.login).json
        return "restore_orders" in answer["machine"]

    def cancel() -> bool:
        try:
            restore_orders.cancel(order, world.now)
        except TurkuError:
            return False
        return True

    assert sum(all_at_once([fetch, cancel] * 4)) == 1


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


SECRET = credentials.make_secret()


@pytest.fixture
def announced(world: World) -> AgentCaller:
    """A machine that two units of a relation have announced, and that has not registered."""
    sync_keys([RelationKey("agents-1", "machine", SECRET)], world.now)
    agent = world.agent(register=False)
    public_key = PublicKey.parse(agent.config["ssh_public_key"])
    units = [Announced("agents-1", f"agent/{n}", agent.uuid, public_key) for n in range(2)]
    announce(units, world.now)
    return agent


def test_of_a_machine_s_two_last_units_that_leave_at_once_one_retires_it(
    world: World, announced: AgentCaller
) -> None:
    auth = {"name": "agents-1", "secret": SECRET}
    assert announced.update(auth=auth).status == 200
    changes = all_at_once(
        [partial(withdraw, "agents-1", f"agent/{n}", world.now) for n in range(2)]
    )
    assert sorted(len(each.retired) for each in changes) == [0, 1]
    assert not announced.row.active


@pytest.mark.parametrize("attempt", range(5))
def test_a_machine_that_registers_while_it_is_withdrawn_does_not_stay(
    world: World, announced: AgentCaller, attempt: int
) -> None:
    machine = {**announced.login["machine"], **announced.config}
    request = {"auth": {"name": "agents-1", "secret": SECRET}, "machine": machine}
    works: list[Callable[[], Any]] = [
        partial(World.call_with, Client(), "update_config", request),
        partial(withdraw, "agents-1", None, world.now),
    ]
    answer, changes = all_at_once(works)
    assert not Announcement.objects.exists()
    assert not Machine.objects.filter(active=True).exists()
    assert (answer.status, len(changes.retired)) in {(200, 1), (503, 0)}

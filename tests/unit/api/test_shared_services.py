"""Several machines hold the same data, and one of them backs it up in a period."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api import operations
from turku_core.api.models import Backup

SHARED = {"data": {"path": "/srv/data", "shared_service": True}}


@pytest.fixture
def unit(world: World) -> UnitCaller:
    return world.unit()


@pytest.fixture
def peers(world: World, unit: UnitCaller) -> list[AgentCaller]:
    agents = [_peer(world, number) for number in range(3)]
    unit.update()
    return agents


def _peer(world: World, number: int, **config: Any) -> AgentCaller:
    return world.agent(
        f"db/{number}",
        **{"environment_name": "prod", "service_name": "db", "sources": SHARED, **config},
    )


def _asked(agents: list[AgentCaller]) -> list[bool]:
    return [bool(agent.check_in()) for agent in agents]


def test_one_machine_of_a_shared_service_backs_it_up_in_a_period(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    assert _asked(peers) == [True, False, False]
    assert "db/0 is backing up" in peers[1].source("data").problem
    unit.report_run(peers[0], "data")
    assert _asked(peers) == [False, False, False]
    assert peers[1].source("data").problem == ""
    world.pass_time(hours=1)
    assert _asked(peers) == [False, False, False]
    assert Backup.objects.count() == 1


def test_the_machine_that_made_the_last_one_goes_on(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    assert _asked(peers[1:]) == [True, False]
    unit.report_run(peers[1], "data")
    for _ in range(3 * 24 * 4):
        world.pass_time(minutes=14)
        for agent in peers:
            if agent.check_in():
                assert agent is peers[1]
                unit.report_run(agent, "data")
    assert Backup.objects.count() == 3


def test_another_takes_over_when_the_first_fails(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    assert _asked(peers) == [True, False, False]
    unit.report_run(peers[0], "data", success=False)
    assert _asked(peers) == [False, True, False]
    unit.report_run(peers[1], "data")
    world.pass_time(hours=2)
    assert _asked(peers) == [False, False, False]


def test_another_takes_over_when_the_one_that_makes_them_is_away(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    assert peers[0].check_in()
    unit.report_run(peers[0], "data")
    world.pass_time(days=2)
    peers[0].check_in()
    world.pass_time(minutes=16)
    unit.report_run(peers[0], "data", success=False, time_begin=world.now.timestamp())
    world.pass_time(days=1)
    assert _asked(peers[1:]) == [True, False]


def test_the_others_wait_while_the_one_that_makes_them_is_there(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    assert peers[0].check_in()
    unit.report_run(peers[0], "data")
    world.pass_time(days=2, minutes=-10)
    operations.pause(peers[0].row)
    peers[0].check_in()
    operations.resume(peers[0].row, world.now)
    world.pass_time(minutes=10)
    assert _asked(peers[1:]) == [False, False]
    assert "db/0 backs up the shared service" in peers[1].source("data").problem
    world.pass_time(minutes=6)
    assert _asked(peers[1:]) == [True, False]


def test_another_takes_over_when_the_first_is_paused(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    assert peers[0].check_in()
    unit.report_run(peers[0], "data")
    world.pass_time(days=2)
    operations.pause(peers[0].row)
    assert _asked(peers) == [False, True, False]


def test_only_machines_of_one_environment_and_service_share(
    world: World, unit: UnitCaller, peers: list[AgentCaller]
) -> None:
    others = [
        _peer(world, 4, environment_name="test"),
        _peer(world, 5, service_name="cache"),
        _peer(world, 6, sources={"data": {"path": "/srv/data"}}),
        _peer(world, 7, service_name=""),
        _peer(world, 8, service_name=""),
    ]
    unit.update()
    assert _asked(peers + others) == [True, False, False, True, True, True, True, True]

"""A machine that is gone gets its data back: another one may restore it for a while."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api.grants import grant_restore
from turku_core.api.models import RestoreGrant
from turku_core.errors import TurkuError


@pytest.fixture
def unit(world: World) -> UnitCaller:
    return world.unit()


@pytest.fixture
def old(world: World, unit: UnitCaller) -> AgentCaller:
    agent = world.agent("old/0", environment_name="prod")
    world.backed_up(agent, unit)
    agent.row.retire(world.now)
    return agent


@pytest.fixture
def new(world: World, old: AgentCaller) -> AgentCaller:
    return world.agent("new/0", sources={})


def _grant(world: World, new: AgentCaller, old: AgentCaller) -> RestoreGrant:
    return grant_restore(
        new.row, old.row, until=world.now + timedelta(days=1), now=world.now, created_by="root"
    )


def test_without_a_grant_nothing_of_another_machine_is_known(
    unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    assert unit.update().json["machines"] == {}
    assert unit.open_session(new, "list").status == 404
    assert new.restore() == {"sources": {}}


def test_a_grant_lets_a_new_machine_restore_an_old_one_s_snapshots_everywhere(
    world: World, unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    _grant(world, new, old)
    former = {
        old.uuid: {
            "unit_name": "old/0",
            "environment_name": "prod",
            "service_name": None,
            "until": "2026-03-12T12:00:00+00:00",
        }
    }
    machines = unit.update().json["machines"]
    assert list(machines) == [new.uuid]
    assert machines[new.uuid]["restore_from"] == former
    for action in ("list", "restore", "checkin"):
        session = unit.open_session(new, action).json["machine"]
        assert session["restore_from"] == former
        assert session["scheduled_sources"] == {}
    answer = new.restore()
    assert answer["sources"] == {}
    assert answer["restore_from"][old.uuid]["unit_name"] == "old/0"
    docs = answer["restore_from"][old.uuid]["sources"]["docs"]
    assert (docs["path"], docs["storage"]["name"]) == ("/srv/docs", "store-1")


def test_a_grant_is_known_only_to_units_that_hold_the_old_machine(
    world: World, unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    other = world.unit("store-2")
    _grant(world, new, old)
    assert other.update().json["machines"] == {}
    assert other.open_session(new, "restore").status == 404


def test_a_grant_ends_by_itself(
    world: World, unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    _grant(world, new, old)
    revision = unit.update().json["revision"]
    world.pass_time(days=1)
    answer = unit.update(known_revision=revision).json
    assert answer["machines"] == {}
    assert answer["revision"] != revision
    assert unit.open_session(new, "restore").status == 404
    assert new.restore() == {"sources": {}}


def test_a_grant_can_be_ended_at_once(
    world: World, unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    _grant(world, new, old).end(world.now)
    assert unit.update().json["machines"] == {}


def test_a_grant_of_a_machine_that_is_retired_ends_with_it(
    world: World, unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    _grant(world, new, old)
    new.row.retire(world.now)
    assert unit.update().json["machines"] == {}


def test_a_machine_with_sources_of_its_own_keeps_them_beside_a_grant(
    world: World, unit: UnitCaller, old: AgentCaller, new: AgentCaller
) -> None:
    new.update(sources={"docs": {"path": "/new"}})
    _grant(world, new, old)
    unit.update()
    assert new.check_in()["docs"]["path"] == "/new"
    session = unit.open_session(new).json["machine"]
    assert list(session["scheduled_sources"]) == ["docs"]
    assert list(session["restore_from"]) == [old.uuid]


@pytest.mark.parametrize("what", ["itself", "inactive", "over"])
def test_a_grant_that_would_mean_nothing_is_refused(
    world: World, old: AgentCaller, new: AgentCaller, what: str
) -> None:
    until = world.now if what == "over" else world.now + timedelta(days=1)
    machine = old.row if what == "inactive" else new.row
    former = new.row if what != "over" else old.row
    with pytest.raises(TurkuError):
        grant_restore(machine, former, until=until, now=world.now)
    assert not RestoreGrant.objects.exists()

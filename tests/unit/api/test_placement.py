"""Which storage unit a source is placed on."""

from __future__ import annotations

import random
from collections import Counter

from django.test import override_settings

from tests.support.api_world import GIB, World
from turku_core.api.models import Assignment, StorageUnit
from turku_core.api.placement import draw


def _unit(name: str, total: float, available: float, **more: object) -> StorageUnit:
    return StorageUnit(name=name, space_total=total, space_available=available, **more)


def test_units_are_drawn_in_proportion_to_their_free_space() -> None:
    units = [_unit("half", 1000, 500), _unit("empty", 1000, 1000)]
    chance = random.Random(1)
    drawn = Counter(str(draw(units, chance)) for _ in range(6000))
    assert 1.85 < drawn["empty"] / drawn["half"] < 2.15


def test_units_that_are_full_paused_or_not_active_are_never_drawn() -> None:
    closed = [
        _unit("full", 1000, 200),
        _unit("silent", 0, 0),
        _unit("paused", 1000, 1000, paused=True),
        _unit("unpublished", 1000, 1000, published=False),
        _unit("disabled", 1000, 1000, active=False),
        _unit("careful", 1000, 900, high_water_mark=10),
    ]
    chance = random.Random(1)
    assert draw(closed, chance) is None
    assert draw([], chance) is None
    last = _unit("last", 10, 2.5)
    assert {str(draw([*closed, last], chance)) for _ in range(50)} == {"last"}


def test_a_machine_s_next_sources_join_its_first(world: World) -> None:
    for number in range(8):
        world.unit(f"store-{number}")
    agent = world.agent(sources={f"s{number}": {"path": "/s"} for number in range(5)})
    agent.update(sources={f"s{number}": {"path": "/s"} for number in range(10)})
    assert len({source.storage_id for source in agent.row.sources.all()}) == 1


def test_a_new_source_goes_elsewhere_when_the_machine_s_unit_is_full_and_the_old_ones_stay(
    world: World,
) -> None:
    first = world.unit("store-1")
    agent = world.agent()
    first.update(space_available=10 * GIB)
    second = world.unit("store-2")
    agent.update(sources={"docs": {"path": "/srv/docs"}, "more": {"path": "/more"}})
    assert agent.source("docs").storage == first.row
    assert agent.source("more").storage == second.row
    for unit in (first, second):
        assert list(unit.update().json["machines"]) == [agent.uuid]
    scheduled = agent.check_in()
    assert {name: source["storage"]["name"] for name, source in scheduled.items()} == {
        "docs": "store-1",
        "more": "store-2",
    }
    sessions = [unit.open_session(agent).json["machine"] for unit in (first, second)]
    assert [list(session["scheduled_sources"]) for session in sessions] == [["docs"], ["more"]]


def test_a_source_that_found_no_room_is_placed_at_a_later_check_in(world: World) -> None:
    agent = world.agent()
    assert agent.check_in() == {}
    assert "No storage unit has room" in agent.source().problem
    unit = world.unit()
    assert agent.check_in() == {}
    assert agent.source().storage == unit.row
    unit.update()
    assert list(agent.check_in()) == ["docs"]


def test_a_machine_is_let_in_on_each_unit_once(world: World) -> None:
    world.unit()
    agent = world.agent(sources={"a": {"path": "/a"}, "b": {"path": "/b"}})
    assert Assignment.objects.get().machine == agent.row


def test_the_sources_of_a_unit_that_is_out_of_service_for_good_go_elsewhere(world: World) -> None:
    first, agent = world.unit("store-1"), world.agent()
    world.backed_up(agent, first)
    StorageUnit.objects.update(active=False)
    world.pass_time(days=2)
    assert agent.check_in() == {}
    assert "No storage unit has room" in agent.source().problem
    second = world.unit("store-2")
    assert agent.check_in() == {}
    second.update()
    assert agent.check_in()["docs"]["storage"]["name"] == "store-2"


def test_a_unit_that_has_fallen_silent_gets_no_new_source(world: World) -> None:
    world.unit("store-1")
    world.pass_time(hours=2)
    agent = world.agent()
    assert "silent" in agent.source().problem
    second = world.unit("store-2")
    assert agent.check_in() == {}
    assert agent.source().storage == second.row


def test_a_units_mark_is_an_operators_else_its_own_else_the_configured_one(world: World) -> None:
    unit = world.unit("store-1")
    with override_settings(TURKU_DEFAULT_HIGH_WATER_MARK=90):
        assert unit.row.mark == 90
        unit.update(high_water_mark=60)
        assert unit.row.mark == 60
    StorageUnit.objects.update(high_water_mark=70)
    unit.update(high_water_mark=50)
    assert unit.row.mark == 70


def test_a_unit_at_the_mark_that_it_tells_gets_no_new_source(world: World) -> None:
    world.unit("store-1", space_available=45 * GIB, high_water_mark=50)
    agent = world.agent()
    assert "high-water mark" in agent.source().problem
    roomy = world.unit("store-2", space_available=10 * GIB, high_water_mark=95)
    agent.check_in()
    assert agent.source().storage == roomy.row

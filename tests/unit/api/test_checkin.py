"""Checking in: what is due is handed out, once, and an idle check-in costs next to nothing."""

from __future__ import annotations

from tests.support.api_world import World


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

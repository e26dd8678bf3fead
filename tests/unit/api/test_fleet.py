"""A small fleet over some days, with failures, downtime and few slots."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api.models import Backup, Outcome, Source

STEP = timedelta(minutes=15)
DAYS = 4


def _begin(agent: AgentCaller, unit: UnitCaller, running: dict[Source, datetime]) -> None:
    for name in agent.check_in():
        unit.open_session(agent)
        source = agent.source(name)
        assert source not in running, "one session at a time works on a source"
        running[source] = agent.world.now


def _renew(unit: UnitCaller, running: dict[Source, datetime]) -> None:
    """Let the unit say what it works on: nothing else keeps a peer from taking it for lost."""
    sessions = [{"machine": source.machine.uuid, "sources": [source.name]} for source in running]
    assert unit.update(running=sessions).status == 200


def _end(
    agent: AgentCaller, unit: UnitCaller, running: dict[Source, datetime], chance: random.Random
) -> None:
    for source in [source for source in running if source.machine.uuid == agent.uuid]:
        began = running.pop(source)
        outcome = chance.random()
        if outcome < 0.8:
            unit.report_run(agent, source.name, time_begin=began.timestamp())
        elif outcome < 0.9:
            unit.report_run(
                agent, source.name, success=False, snapshot=None, time_begin=began.timestamp()
            )


def test_every_source_is_backed_up_once_a_day_whatever_fails(world: World) -> None:
    chance = random.Random(7)
    unit = world.unit(slots=2, capabilities=["leases"])
    shared = {"data": {"path": "/srv", "shared_service": True}}
    agents = [world.agent(f"web/{number}") for number in range(4)]
    agents += [world.agent(f"db/{number}", service_name="db", sources=shared) for number in (0, 1)]
    unit.update()
    running: dict[Source, datetime] = {}
    midnight = world.now.replace(hour=0) + timedelta(days=1)
    while world.now < midnight + timedelta(days=DAYS):
        _renew(unit, running)
        for agent in chance.sample(agents, len(agents)):
            _end(agent, unit, running, chance)
            if chance.random() < 0.7:
                _begin(agent, unit, running)
            assert len({source.machine_id for source in running}) <= 2
        world.pass_time(seconds=STEP.total_seconds())
    good = Backup.objects.filter(outcome=Outcome.SUCCEEDED, time_begin__gte=midnight)
    names = [
        backup.unit_name if backup.source_name == "docs" else "db" for backup in good.iterator()
    ]
    counts = Counter(names)
    assert set(counts) == {"web/0", "web/1", "web/2", "web/3", "db"}
    # A run may fall on either side of midnight, at both ends.
    assert all(DAYS - 1 <= count <= DAYS + 1 for count in counts.values()), counts
    assert Backup.objects.filter(outcome=Outcome.FAILED).exists()

"""The tests of the API's edge: its commands, administration site, health and serving.

They run on SQLite or PostgreSQL, as those of tests/unit/api do.
"""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from tests.support import api_django  # noqa: F401  (chooses Django's settings)
from tests.support.api_world import AgentCaller, UnitCaller, World


@pytest.fixture
def now() -> datetime:
    """A Wednesday at noon, UTC."""
    return datetime(2026, 3, 11, 12, 0, tzinfo=timezone.utc)


@pytest.fixture
def world(db: None, now: datetime, monkeypatch: pytest.MonkeyPatch) -> World:
    """An API with registration keys, a clock that a test can set, and callers of all kinds."""
    return World(now, monkeypatch)


@pytest.fixture
def unit(world: World) -> UnitCaller:
    """A storage unit that was seen just now."""
    unit = world.unit()
    unit.update()
    return unit


@pytest.fixture
def agent(world: World, unit: UnitCaller) -> AgentCaller:
    """A machine with one good backup."""
    agent = world.agent()
    world.backed_up(agent, unit)
    return agent

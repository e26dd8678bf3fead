"""The API's tests: on SQLite, or on the PostgreSQL database of ``TURKU_TEST_DATABASE_URL``.

To run them on PostgreSQL: ``python -m tests.support.postgresql -- pytest tests/unit/api``.
"""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from tests.support import api_django  # noqa: F401  (chooses Django's settings)
from tests.support.api_world import World


@pytest.fixture
def now() -> datetime:
    """A Wednesday at noon, UTC."""
    return datetime(2026, 3, 11, 12, 0, tzinfo=timezone.utc)


@pytest.fixture
def world(db: None, now: datetime, monkeypatch: pytest.MonkeyPatch) -> World:
    """An API with registration keys, a clock that a test can set, and callers of all kinds."""
    return World(now, monkeypatch)

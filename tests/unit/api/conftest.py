"""The API's tests: on SQLite, or on the PostgreSQL database of ``TURKU_TEST_DATABASE_URL``.

To run them on PostgreSQL: ``python -m tests.support.postgresql -- pytest tests/unit/api``.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import django
import pytest

from tests.support.postgresql import DATABASE_URL_VARIABLE

ROOT = Path(tempfile.mkdtemp(prefix="turku-api-test-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)


def _write_options() -> None:
    folder = ROOT / "etc/turku-api/config.d"
    folder.mkdir(parents=True)
    url = os.environ.get(DATABASE_URL_VARIABLE)
    if url:
        (folder / "database.json").write_text(json.dumps({"database_url": url}))


_write_options()
os.environ["TURKU_API_ROOT"] = str(ROOT)
os.environ["DJANGO_SETTINGS_MODULE"] = "turku_core.api.settings"
django.setup()

from django.db import connection  # noqa: E402  (after the settings have been chosen)

# A file, not memory: tests with threads need what a server has, WAL included.
if connection.vendor == "sqlite":
    connection.settings_dict["TEST"]["NAME"] = str(ROOT / "test.sqlite3")

from tests.support.api_world import World  # noqa: E402


@pytest.fixture
def now() -> datetime:
    """A Wednesday at noon, UTC."""
    return datetime(2026, 3, 11, 12, 0, tzinfo=timezone.utc)


@pytest.fixture
def world(db: None, now: datetime, monkeypatch: pytest.MonkeyPatch) -> World:
    """An API with registration keys, a clock that a test can set, and callers of all kinds."""
    return World(now, monkeypatch)


DAY = timedelta(days=1)

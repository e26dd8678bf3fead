"""Django's settings for the API's tests, chosen once however many conftest files import this.

Tests run on SQLite, or on the PostgreSQL database of ``TURKU_TEST_DATABASE_URL``.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

import django

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

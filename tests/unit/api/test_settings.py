"""The API's options, its secret key and how it keeps its database."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import override_settings

from tests.support.api_world import World
from turku_core.api.options import Options, database_settings, read_options
from turku_core.api.secret_key import read_or_make_secret_key
from turku_core.errors import ConfigurationError


def _write(folder: Path, options: Any) -> Path:
    (folder / "api.json").write_text(json.dumps(options))
    return folder


def test_without_a_file_every_option_has_its_default(tmp_path: Path) -> None:
    assert read_options(tmp_path / "nowhere") == Options()


def test_every_option_is_read_and_others_are_left_alone(tmp_path: Path) -> None:
    options = {
        "database_url": "postgresql://turku@db/turku",
        "time_zone": "Europe/Helsinki",
        "default_frequency": "weekly, 0100-0500",
        "default_retention": "last 3 snapshots",
        "default_high_water_mark": 90,
        "record_retention_days": 30,
        "session_slots": 4,
        "migrate_on_start": False,
        "log_level": "info",
        "allowed_hosts": ["turku.example.com"],
        "debug": True,
        "listen": "0.0.0.0:8443",
    }
    read = read_options(_write(tmp_path, options))
    assert read == Options(
        "postgresql://turku@db/turku",
        "Europe/Helsinki",
        "weekly, 0100-0500",
        "last 3 snapshots",
        90,
        30,
        4,
        False,
        "info",
        ("turku.example.com",),
        True,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", "mysql://db/turku"),
        ("database_url", "postgresql://db"),
        ("database_url", "postgresql://db:port/turku"),
        ("database_url", 5),
        ("time_zone", "Mars/Olympus"),
        ("time_zone", ""),
        ("default_frequency", "dayly"),
        ("default_retention", "for ever"),
        ("default_high_water_mark", 0),
        ("default_high_water_mark", 101),
        ("record_retention_days", 0),
        ("record_retention_days", "30"),
        ("record_retention_days", True),
        ("session_slots", -1),
        ("session_slots", True),
        ("migrate_on_start", "no"),
        ("log_level", "loud"),
        ("log_level", ["info"]),
        ("allowed_hosts", "turku"),
        ("debug", "no"),
    ],
)
def test_an_option_that_is_not_valid_is_named_with_its_file_and_line(
    tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=rf"api\.json, line 1: {name}: "):
        read_options(_write(tmp_path, {name: value}))


def test_a_postgresql_url_becomes_django_s_settings() -> None:
    settings = database_settings("postgresql://turku:p%40ss@db.example.com:6432/back%20up")
    chosen = {key: settings[key] for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT")}
    assert chosen == {
        "NAME": "back up",
        "USER": "turku",
        "PASSWORD": "p@ss",
        "HOST": "db.example.com",
        "PORT": "6432",
    }
    socket = database_settings("postgresql://turku@/turku?host=/run/postgresql&sslmode=disable")
    assert (socket["HOST"], socket["OPTIONS"]) == ("/run/postgresql", {"sslmode": "disable"})


def test_processes_that_start_at_once_agree_on_one_secret_key(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from turku_core.api.secret_key import read_or_make_secret_key; "
        "print(read_or_make_secret_key(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    keys = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert keys == {(tmp_path / "secret_key").read_text().strip()}
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600


def test_the_tables_are_what_the_migrations_make(db: None) -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_sqlite_keeps_a_write_ahead_log_and_waits_for_its_turn(db: None) -> None:
    if connection.vendor != "sqlite":
        assert connection.vendor == "postgresql"
        return
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert cursor.execute("PRAGMA synchronous").fetchone() == (1,)
        assert cursor.execute("PRAGMA busy_timeout").fetchone()[0] >= 5000
        assert cursor.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert connection.settings_dict["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


def test_schedules_are_local_to_the_configured_zone(world: World) -> None:
    unit = world.unit()
    window = {"docs": {"path": "/srv", "frequency": "daily, 1300-1500"}}
    with override_settings(TIME_ZONE="Asia/Tokyo"):
        agent = world.agent(sources=window)
        unit.update()
        assert agent.check_in() == {}, "it is nine in the evening there"
        world.pass_time(hours=16, minutes=10)
        assert list(agent.check_in()) == ["docs"]


def test_who_is_refused_and_why_is_one_line_of_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    agent = world.agent()
    agent.secret = "guessed-wrong"
    caplog.set_level(logging.INFO)
    world.call("agent_ping_checkin", agent.login)
    agent.update(unit_name="a\nb", auth=world.auth())
    world.call("storage_ping_checkin", {"storage": {"name": "\n\x1b[2J"}})
    first, second, third = (record.getMessage() for record in caplog.records[-3:])
    assert first == (
        f"/v1/agent_ping_checkin of machine '{agent.uuid}' at 127.0.0.1: 403: Bad credentials"
    )
    assert "403" in second
    assert third.startswith(r"/v1/storage_ping_checkin of storage '\n\x1b[2J' at ")
    assert not any("guessed" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("damaged", [b"", b"short", b"\xff" * 43])
def test_a_damaged_secret_key_is_made_anew(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "secret_key").write_bytes(damaged)
    key = read_or_make_secret_key(tmp_path)
    assert len(key) >= 32
    assert read_or_make_secret_key(tmp_path) == key

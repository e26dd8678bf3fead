"""What is measured of a machine."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from turku_core.agent.metrics import metrics_text
from turku_core.agent.settings import Locations
from turku_core.agent.status import Status
from turku_core.protocol.status import SourceStatus

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    """A machine with two sources, one of which isn't valid, and a secret."""
    made = Locations(tmp_path)
    for folder in (made.sources, made.identity, made.run):
        folder.mkdir(parents=True)
    (made.sources / "10-main.json").write_text(
        json.dumps({"etc": {"path": "/etc"}, "home": {"path": "relative"}})
    )
    (made.identity / "identity.json").write_text('{"machine_secret": "a-secret-of-the-machine"}')
    return made


def lines(locations: Locations) -> list[str]:
    """Return the samples."""
    return [line for line in metrics_text(locations).splitlines() if not line.startswith("#")]


def test_a_machine_that_was_never_told_anything_has_the_little_that_it_knows(
    locations: Locations,
) -> None:
    info, *others = lines(locations)
    assert info.startswith('turku_agent_info{version="')
    assert others == [
        "turku_agent_sources 1",
        "turku_agent_sources_invalid 1",
        "turku_agent_sessions 0",
    ]


def test_the_last_check_in_is_measured(locations: Locations) -> None:
    locations.checked_in.touch()
    os.utime(locations.checked_in, (NOW.timestamp(), NOW.timestamp()))
    found = f"turku_agent_last_checkin_timestamp_seconds {NOW.timestamp():.0f}"
    assert found in lines(locations)


def test_sessions_at_work_are_counted(locations: Locations) -> None:
    sessions = locations.run / "sessions"
    for name in ("0a1b", "2c3d"):
        (sessions / name).mkdir(parents=True)
    (sessions / ".lock").touch()
    assert "turku_agent_sessions 2" in lines(locations)


def test_how_the_sources_fare_is_what_the_api_said_last(locations: Locations) -> None:
    status = Status(
        NOW,
        {
            "etc": SourceStatus("ok", NOW - HOUR, NOW + HOUR, None, "", 0, NOW - 2 * HOUR,
                                unproven="damaged", unproven_since=NOW - HOUR),
            "home": SourceStatus("failing", None, NOW, NOW - 3 * HOUR, 'It "failed".', 4,
                                 held="All changed."),
        },
    )  # fmt: skip
    locations.status.write_text(json.dumps(status.to_json()))
    now = int(NOW.timestamp())
    labels = '{source="home",kind="failing"}'
    damaged = '{source="etc",kind="damaged"}'
    assert lines(locations)[4:] == [
        f"turku_agent_status_timestamp_seconds {now}",
        f'turku_agent_source_last_success_timestamp_seconds{{source="etc"}} {now - 3600}',
        f'turku_agent_source_next_due_timestamp_seconds{{source="etc"}} {now + 3600}',
        f'turku_agent_source_next_due_timestamp_seconds{{source="home"}} {now}',
        f"turku_agent_source_behind_since_timestamp_seconds{labels} {now - 3 * 3600}",
        'turku_agent_source_failures{source="etc"} 0',
        'turku_agent_source_failures{source="home"} 4',
        f'turku_agent_source_last_proven_timestamp_seconds{{source="etc"}} {now - 2 * 3600}',
        'turku_agent_source_held{source="etc"} 0',
        'turku_agent_source_held{source="home"} 1',
        f"turku_agent_source_unproven_since_timestamp_seconds{damaged} {now - 3600}",
    ]


def test_a_status_that_is_broken_is_as_good_as_none(locations: Locations) -> None:
    locations.status.write_text("{")
    assert len(lines(locations)) == 4


def test_nothing_secret_is_in_it(locations: Locations) -> None:
    assert "a-secret-of-the-machine" not in metrics_text(locations)

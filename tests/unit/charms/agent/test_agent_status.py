"""What `juju status` says: the last good backup, what is overdue, and what somebody has to do."""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import ops
import pytest
from ops import testing

from agent_status import unit_status
from tests.support.agent_unit import AgentUnit
from turku_charm.programs import Programs
from turku_charm.statuses import Blocked, NotReady
from turku_core.agent.settings import Locations
from turku_core.agent.status import Status
from turku_core.errors import TurkuError
from turku_core.protocol.client import CONNECT_SECONDS
from turku_core.protocol.status import SourceStatus

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=timezone.utc)
CAME = NOW - timedelta(days=30)


def said(**sources: SourceStatus) -> Status:
    """Return what the API said a moment ago."""
    return Status(NOW - timedelta(minutes=5), sources)


def fine(hours: int = 1) -> SourceStatus:
    """Return the state of a source that was backed up some hours ago."""
    return SourceStatus("ok", last_good=NOW - timedelta(hours=hours))


def test_the_last_good_backup_is_said() -> None:
    status = unit_status([], [], ["etc", "web"], said(etc=fine(3), web=fine(2)), CAME, NOW)
    assert status == ops.ActiveStatus("Last good backup 2026-11-22 08:30 UTC.")


def test_prior_art_36_what_is_overdue_and_why_reaches_the_status() -> None:
    late = SourceStatus(
        "overdue",
        last_good=NOW - timedelta(days=2),
        overdue_since=NOW - timedelta(days=1),
        problem="Storage unit s-0 is full.",
    )
    status = unit_status([], [], ["etc", "web"], said(etc=fine(), web=late), CAME, NOW)
    assert status == ops.BlockedStatus(
        "Source web is overdue since 2026-11-21 10:30 UTC (last 2026-11-20 10:30 UTC): Storage "
        "unit s-0 is full."
    )


def test_a_source_that_was_never_backed_up_and_fails_is_said() -> None:
    status = unit_status([], [], ["web"], said(web=SourceStatus("failing")), CAME, NOW)
    assert status == ops.BlockedStatus("Source web is failing (never backed up).")


def test_sources_that_are_not_configured_any_more_do_not_count() -> None:
    status = unit_status([], [], ["etc"], said(etc=fine(), old=SourceStatus("overdue")), CAME, NOW)
    assert isinstance(status, ops.ActiveStatus)


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ([Blocked("Mend it."), NotReady("Waiting.")], ops.BlockedStatus("Mend it.")),
        ([NotReady("Waiting for a."), NotReady("For b.")],
         ops.WaitingStatus("Waiting for a. For b.")),
        ([TurkuError("No room."), Blocked("Mend it.")],
         ops.BlockedStatus("2 problems: No room. Mend it.")),
    ],
)  # fmt: skip
def test_what_somebody_has_to_mend_comes_before_what_is_waited_for(
    problems: list[TurkuError], expected: ops.StatusBase
) -> None:
    assert unit_status(problems, [], ["etc"], said(etc=fine()), CAME, NOW) == expected


def test_an_api_that_has_fallen_silent_is_waited_for() -> None:
    old = Status(NOW - timedelta(hours=5), {"etc": fine(6)})
    assert unit_status([], [], ["etc"], old, CAME, NOW) == ops.WaitingStatus(
        "The API has not answered since 2026-11-22 05:30 UTC: run check. Last good backup "
        "2026-11-22 04:30 UTC."
    )


def test_an_api_that_never_answered_is_waited_for_when_it_has_had_its_time() -> None:
    came = NOW - timedelta(hours=1)
    assert unit_status([], [], ["etc"], None, came, NOW) == ops.ActiveStatus("No backup yet.")
    came = NOW - timedelta(hours=3)
    assert unit_status([], [], ["etc"], None, came, NOW) == ops.WaitingStatus(
        "The API has not answered since 2026-11-22 07:30 UTC: run check. No backup yet."
    )


def test_what_keeps_a_source_that_is_not_late_is_said() -> None:
    waits = SourceStatus("new", problem="No storage unit has room for it.")
    status = unit_status([], [], ["etc"], said(etc=waits), CAME, NOW)
    assert status == ops.ActiveStatus("No backup yet. Source etc: No storage unit has room for it.")


def test_sources_that_the_api_does_not_want_and_remarks_are_said() -> None:
    known = said(etc=SourceStatus("paused"), web=SourceStatus("paused"), db=fine())
    status = unit_status([], ["A remark."], ["etc", "web", "db"], known, CAME, NOW)
    assert status == ops.ActiveStatus(
        "Last good backup 2026-11-22 09:30 UTC. Paused: etc, web. A remark."
    )


def test_what_the_agent_keeps_is_what_the_status_says(agent: AgentUnit) -> None:
    agent.join(sources="etc: {path: /etc}")
    kept: dict[str, Any] = {
        "asked_at": datetime.now(timezone.utc).isoformat(),
        "sources": {"etc": {"state": "ok", "last_good": "2026-11-22T10:25:38+00:00"}},
    }
    agent.path("var/lib/turku-agent/status.json").write_text(json.dumps(kept))
    agent.run("update_status")
    assert agent.status == testing.ActiveStatus("Last good backup 2026-11-22 10:25 UTC.")


def test_the_api_is_asked_when_its_answer_is_old_or_something_has_happened_since(
    agent: AgentUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.join(sources="etc: {path: /etc}")
    asked: list[str] = []

    def run(programs: Programs, name: str, *arguments: str, **more: object) -> str:
        asked.extend(arguments)
        return ""

    monkeypatch.setattr(Programs, "run", run)
    agent.run("update_status")
    assert asked == ["--status"]
    kept = agent.path("var/lib/turku-agent/status.json")
    kept.write_text(json.dumps(Status(datetime.now(timezone.utc), {}).to_json()))
    agent.run("update_status")
    assert asked == ["--status"]
    locations = Locations(agent.root)
    locations.status_is_old.parent.mkdir(parents=True, exist_ok=True)
    locations.status_is_old.touch()
    agent.run("update_status")
    assert asked == ["--status"] * 2
    locations.status_is_old.unlink()
    old = datetime.now(timezone.utc) - timedelta(minutes=20)
    kept.write_text(json.dumps(Status(old, {}).to_json()))
    agent.run("update_status")
    assert asked == ["--status"] * 3


def test_an_api_that_does_not_answer_does_not_hold_up_the_hook(
    agent: AgentUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_workload.STATUS_SECONDS_MAX", 2.0)
    agent.join(sources="etc: {path: /etc}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
        agent.run("config_changed", relations=[agent.host, agent.api_says(urls=(url,))])
        began = time.monotonic()
        agent.run("update_status")
    # The agent itself would be more patient.
    assert time.monotonic() - began < CONNECT_SECONDS
    assert agent.status == testing.ActiveStatus("No backup yet.")

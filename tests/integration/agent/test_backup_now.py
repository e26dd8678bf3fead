"""A backup at once, and how the sources fare: the commands, between stand-ins for both servers."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.stand_ins import AgentMachine, StandInUnit
from turku_core.agent import backup_now
from turku_core.agent.identity import load_identity
from turku_core.agent.locks import held
from turku_core.agent.settings import Locations
from turku_core.agent.status import read_status
from turku_core.errors import TryAgainLater
from turku_core.protocol.client import Client


def fares(state: str = "ok", **more: Any) -> dict[str, Any]:
    return {
        "state": state,
        "last_good": None,
        "failures": 0,
        "problem": "",
        "requested": True,
        **more,
    }


class Planner:
    """What the API does with sources that are asked for: each is handed out once, then leased."""

    def __init__(self, machine: AgentMachine) -> None:
        self.machine = machine
        self.due: set[str] = set()
        self.status = {name: fares() for name in machine.scheduled}
        answers = machine.api.answers
        answers["agent_backup_now"] = self.ask
        answers["agent_ping_checkin"] = self.check_in
        answers["agent_status"] = lambda _: {"machine": {"sources": self.status}}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.due = set(request["sources"] or self.machine.scheduled)
        return {"machine": {"sources": sorted(self.due)}}

    def check_in(self, _: dict[str, Any]) -> dict[str, Any]:
        due, self.due = self.due, set()
        chosen = {name: self.machine.scheduled[name] for name in sorted(due)}
        return {"machine": {"scheduled_sources": chosen}}


@pytest.fixture
def asked(machine: AgentMachine, tree: Path) -> AgentMachine:
    """A machine with two sources."""
    machine.add_source("docs", tree)
    machine.add_source("mail", tree)
    return machine


@pytest.fixture
def planner(asked: AgentMachine) -> Planner:
    return Planner(asked)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_now, "WAIT_SECONDS", 1.5)
    monkeypatch.setattr(backup_now, "PAUSES_SECONDS", (0.2,))


def run(machine: AgentMachine, *names: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Back up at once in this process."""
    locations = Locations(machine.root)
    client = Client([machine.api.url])
    code, outcomes = backup_now.back_up_now(locations, load_identity(locations), client, names)
    return code, {name: (each.word, each.message) for name, each in outcomes.items()}


def test_all_sources_are_backed_up_and_each_ones_outcome_is_said(
    asked: AgentMachine, planner: Planner, unit: StandInUnit
) -> None:
    done = asked.run("turku-agent-ping", "--backup-now", "--json")
    assert done.code == 0
    assert json.loads(done.output) == {
        "sources": {
            "docs": {"outcome": "success", "message": ""},
            "mail": {"outcome": "success", "message": ""},
        }
    }
    assert (unit.folder / "mirrors/mail/a").read_text() == "alpha"
    lines = asked.run("turku-agent-ping", "--backup-now").output.splitlines()
    assert [line.split() for line in lines] == [
        ["SOURCE", "OUTCOME", "MESSAGE"],
        ["docs", "success", "-"],
        ["mail", "success", "-"],
    ]


def test_only_the_sources_that_are_named_count(
    asked: AgentMachine, planner: Planner, unit: StandInUnit
) -> None:
    unit.behave(outcomes={"mail": "failed"})
    one = asked.run("turku-agent-ping", "--backup-now", "--source", "docs", "--json")
    assert (one.code, list(json.loads(one.output)["sources"])) == (0, ["docs"])
    both = ("--source", "docs", "--source", "mail")
    done = asked.run("turku-agent-ping", "--backup-now", *both, "--json")
    assert done.code == 1
    outcomes = json.loads(done.output)["sources"]
    assert [outcomes[name]["outcome"] for name in ("docs", "mail")] == ["success", "failed"]


def test_a_busy_storage_unit_is_waited_for_without_another_hand_out(
    asked: AgentMachine, planner: Planner, unit: StandInUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_now, "PAUSES_SECONDS", (0.2,))
    unit.behave(exit_code=75, idle=True)
    timer = threading.Timer(1.0, unit.behave)
    timer.start()
    try:
        assert run(asked, "docs") == (0, {"docs": ("success", "")})
    finally:
        timer.cancel()
        timer.join()
    assert len(unit.requests()) >= 2


def test_a_storage_unit_that_stays_busy_is_not_waited_for_for_ever(
    asked: AgentMachine, planner: Planner, unit: StandInUnit, impatient: None
) -> None:
    unit.behave(exit_code=75, idle=True)
    planner.status["docs"] = fares("new", problem="Storage unit unit-0 has all its 10 slots taken.")
    code, outcomes = run(asked, "docs")
    assert code == 75
    assert outcomes == {"docs": ("later", "Storage unit unit-0 has all its 10 slots taken.")}


def test_a_source_that_is_not_handed_out_was_perhaps_backed_up_by_another_process(
    asked: AgentMachine, planner: Planner, unit: StandInUnit, impatient: None
) -> None:
    asked.api.answers["agent_ping_checkin"] = {"machine": {"scheduled_sources": {}}}
    planner.status["docs"] = fares(requested=False)
    assert run(asked, "docs") == (0, {"docs": ("success", "")})
    planner.status["docs"] = fares("failing", failures=1, problem="The volume is full.")
    assert run(asked, "docs") == (1, {"docs": ("failed", "The volume is full.")})


def _lock(machine: AgentMachine) -> Path:
    machine.run_folder.mkdir(parents=True, exist_ok=True)
    return machine.run_folder / "ping.lock"


def test_an_api_that_goes_away_meanwhile_costs_no_outcome(
    asked: AgentMachine, planner: Planner, unit: StandInUnit, impatient: None
) -> None:
    unit.behave(outcomes={"mail": "later"})

    def only_once(request: dict[str, Any]) -> Any:
        asked.api.answers["agent_ping_checkin"] = (503, "not now")
        asked.api.answers["agent_status"] = (503, "not now")
        return planner.check_in(request)

    asked.api.answers["agent_ping_checkin"] = only_once
    code, outcomes = run(asked)
    assert code == 75
    assert outcomes["docs"] == ("success", "")
    assert outcomes["mail"][0] == "later"


def test_another_check_in_at_work_is_waited_for_but_not_for_ever(
    asked: AgentMachine, planner: Planner, impatient: None
) -> None:
    with (
        held(_lock(asked)),
        pytest.raises(TryAgainLater, match="still at work"),
    ):
        run(asked, "docs")
    assert run(asked, "docs") == (0, {"docs": ("success", "")})


def test_what_the_api_asks_for_and_is_not_configured_here_has_failed(
    asked: AgentMachine, planner: Planner, impatient: None
) -> None:
    (asked.root / "etc/turku-agent/sources.d/mail.json").unlink()
    code, outcomes = run(asked)
    assert code == 1
    assert outcomes["docs"] == ("success", "")
    assert outcomes["mail"][0] == "failed"
    assert "turku-update-config" in outcomes["mail"][1]


def test_what_the_api_says_is_wrong_is_said(asked: AgentMachine, planner: Planner) -> None:
    asked.api.answers["agent_backup_now"] = (404, "web/0 has no source nope; its sources: docs.")
    done = asked.run("turku-agent-ping", "--backup-now", "--source", "nope")
    assert done.code == 1
    assert "its sources: docs" in done.errors
    wrong = asked.run("turku-agent-ping", "--backup-now", "--source", "../x")
    assert wrong.code == 2
    assert "--source[0]: must be a name" in wrong.errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backup-now", "--check"], "doesn't go with"),
        (["--status", "--list"], "doesn't go with"),
        (["--list", "--source", "a", "--source", "b"], "Only --backup-now takes several sources"),
        (["--status", "--source", "a"], "--source needs"),
        (["--backup-now", "--dry-run"], "--dry-run needs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    asked: AgentMachine, options: list[str], words: str
) -> None:
    done = asked.run("turku-agent-ping", *options)
    assert done.code == 2
    assert words in done.errors


def test_how_the_sources_fare_is_shown_and_kept(asked: AgentMachine, planner: Planner) -> None:
    planner.status["docs"] = fares(
        "failing",
        failures=2,
        problem="It failed 2 times: the volume is full.",
        overdue_since="2026-11-22T10:00:00+00:00",
    )
    said = json.loads(asked.run("turku-agent-ping", "--status", "--json").output)
    assert said["sources"]["docs"]["state"] == "failing"
    assert said == json.loads((asked.state / "status.json").read_text())
    kept = read_status(Locations(asked.root))
    assert kept is not None
    assert kept.sources["docs"].is_behind
    assert kept.sources["docs"].overdue_since == datetime(2026, 11, 22, 10, tzinfo=timezone.utc)
    table = asked.run("turku-agent-ping", "--status").output.splitlines()
    assert table[1].split()[:2] == ["docs", "failing"]
    assert table[1].endswith("the volume is full.")


def test_while_the_api_is_away_what_it_said_last_is_shown(
    asked: AgentMachine, planner: Planner
) -> None:
    asked.run("turku-agent-ping", "--status")
    asked.api.down()
    done = asked.run("turku-agent-ping", "--status", "--json")
    assert done.code == 75
    assert json.loads(done.output)["sources"]["docs"]["state"] == "ok"
    assert "can't be reached" in done.errors
    (asked.state / "status.json").unlink()
    nothing = asked.run("turku-agent-ping", "--status", "--json")
    assert (nothing.code, nothing.output) == (75, "")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"machine": {}},
        {"machine": {"sources": []}},
        {"machine": {"sources": {"../x": {"state": "ok"}}}},
        {"machine": {"sources": {"docs": {"state": "\x1b[2J"}}}},
        {"machine": {"sources": {"docs": {"state": "ok", "last_good": "0001-01-01T00:00Z"}}}},
        {"machine": {"sources": {"docs": {"state": "ok", "failures": -1}}}},
    ],
)
def test_a_status_that_is_not_valid_is_refused_and_what_was_known_stays(
    asked: AgentMachine, planner: Planner, answer: Any
) -> None:
    asked.run("turku-agent-ping", "--status")
    before = (asked.state / "status.json").read_text()
    asked.api.answers["agent_status"] = answer
    done = asked.run("turku-agent-ping", "--status")
    assert done.code == 1
    assert "The API's answer is not valid" in done.errors
    assert (asked.state / "status.json").read_text() == before


def test_the_status_is_asked_for_again_at_the_first_check_in_after_a_session(
    asked: AgentMachine, planner: Planner
) -> None:
    asked.api.requests.clear()
    calls = asked.api.calls
    asked.run("turku-update-config")
    assert len(calls("agent_status")) == 1
    asked.run("turku-agent-ping")
    assert len(calls("agent_status")) == 1
    planner.due = {"docs"}
    asked.run("turku-agent-ping")
    asked.run("turku-agent-ping")
    assert len(calls("agent_status")) == 2
    asked.run("turku-agent-ping")
    assert len(calls("agent_status")) == 2


def test_an_api_that_does_not_know_the_call_is_no_trouble(asked: AgentMachine) -> None:
    done = asked.run("turku-update-config")
    assert (done.code, done.errors) == (0, "")
    said = asked.run("turku-agent-ping", "--status")
    assert said.code == 1
    assert said.errors

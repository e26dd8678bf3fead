"""Restores that the API orders: what the machine does, what it refuses, and what it reports.

The API is a stand-in, and in some of these tests a hostile one.
"""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.stand_ins import AgentMachine, StandInUnit, wait_until
from turku_core.protocol.restore_orders import RestoreReport

NEWEST = "20261102T000000Z"


def order(**wish: Any) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "source": "docs", "snapshot": "latest", **wish}


def hand_out(machine: AgentMachine, *orders: Any, **more: Any) -> None:
    """Let the API answer each check-in with these orders."""
    machine.api.answers["agent_ping_checkin"] = {
        "machine": {"scheduled_sources": {}, "restore_orders": list(orders), **more}
    }


def allow(machine: AgentMachine, where: str) -> None:
    folder = machine.root / "etc/turku-agent/config.d"
    (folder / "20-orders.json").write_text(json.dumps({"restore_orders": where}))


def reports(machine: AgentMachine) -> list[dict[str, Any]]:
    return [request["order"] for request in machine.api.calls("agent_restore_report")]


def restores(unit: StandInUnit) -> list[dict[str, Any]]:
    """Return the restores that sessions were held for."""
    return [request["restore"] for request in unit.requests() if "restore" in request]


@pytest.fixture
def ordered(restorer: AgentMachine) -> AgentMachine:
    """A machine with two snapshots, whose API takes reports."""
    restorer.api.answers["agent_restore_report"] = {}
    return restorer


def add_hooks(machine: AgentMachine, tree: Path) -> Path:
    """Give the source hooks around restores; the file that they write to."""
    said = machine.root / "hooks"
    hooks = {}
    for when in ("before", "after"):
        hook = machine.root / f"{when}.sh"
        hook.write_text(f"#!/bin/sh\necho {when} $TURKU_PATH $TURKU_OUTCOME >> {said}\n")
        hook.chmod(0o755)
        hooks[f"run_{when}_restore"] = str(hook)
    machine.add_source("docs", tree, **hooks)
    return said


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_order_is_carried_out_into_the_restore_folder_and_reported(
    ordered: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    said = add_hooks(ordered, tree)
    wanted = order()
    hand_out(ordered, wanted)
    assert ordered.run("turku-agent-ping").code == 0
    target = ordered.state / "restore/docs" / NEWEST
    assert (target / "sub/b").read_text() == "second"
    assert reports(ordered) == [
        {
            "id": wanted["id"],
            "outcome": "done",
            "message": "",
            "snapshot": NEWEST,
            "target": str(target),
            "files": 3,
            "bytes": 99,
            "changes": [],
        }
    ]
    assert not said.exists()
    assert (tree / "a").read_text() == "alpha"
    assert list((ordered.state / "restore_orders").iterdir()) == []
    assert ordered.leftovers() == []


def test_the_same_snapshot_again_comes_into_a_folder_beside_the_first(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    for where in ("restore-folder", "anywhere"):
        allow(ordered, where)
        wanted = order()
        hand_out(ordered, wanted)
        ordered.run("turku-agent-ping")
        target = Path(reports(ordered)[-1]["target"])
        (target / "a").write_text("kept")
    first, second = (Path(report["target"]) for report in reports(ordered))
    assert first == ordered.state / "restore/docs" / NEWEST
    assert second == first.with_name(f"{NEWEST}-{wanted['id'][:8]}")
    assert [(folder / "a").read_text() for folder in (first, second)] == ["kept", "kept"]


def test_a_folder_inside_the_restore_folder_may_be_named(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    target = ordered.state / "restore/for/me"
    hand_out(ordered, order(target=str(target), paths=["sub"], snapshot="2026-11-01T12:00:00Z"))
    ordered.run("turku-agent-ping")
    assert everything_below(target) == {"sub", "sub/b"}
    assert (target / "sub/b").read_text() == "first"


def test_where_it_is_allowed_an_order_is_carried_out_in_place_with_the_machines_own_hooks(
    ordered: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    said = add_hooks(ordered, tree)
    allow(ordered, "anywhere")
    hand_out(ordered, order(in_place=True, run_after_restore="/bin/false"))
    assert ordered.run("turku-agent-ping").code == 0
    assert (tree / "a").read_text() == "second"
    assert said.read_text().splitlines() == [f"before {tree}", f"after {tree} success"]
    hand_out(ordered, order(target=str(tmp_path / "elsewhere")))
    ordered.run("turku-agent-ping")
    assert (tmp_path / "elsewhere/a").read_text() == "second"


@pytest.mark.parametrize(
    "wish",
    [
        {"in_place": True},
        {"in_place": True, "dry_run": True},
        {"target": "{outside}"},
        {"target": "{outside}", "dry_run": True},
        {"target": "{restore}"},
        {"target": "{restore}/."},
        {"target": "{restore}-other"},
        {"target": "{restore}/link"},
        {"target": "{restore}/link/deeper"},
        {"target": "{restore}/filled"},
        {"target": "{restore}/filled", "dry_run": True},
        {"target": "{restore}/shared/new"},
    ],
)
def test_a_hostile_api_writes_nowhere_but_into_a_new_folder_of_the_restore_folder(
    ordered: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path, wish: dict[str, Any]
) -> None:
    outside = tmp_path / "outside"
    restore = ordered.state / "restore"
    for folder in (outside, restore / "filled", restore / "shared"):
        folder.mkdir(parents=True)
    (restore / "filled/mine").write_text("mine")
    (restore / "shared").chmod(0o777)
    (restore / "link").symlink_to(outside)
    said = add_hooks(ordered, tree)
    before = everything_below(restore) | everything_below(tree)
    places = {"outside": str(outside), "restore": str(restore)}
    hand_out(ordered, order(**{key: _filled(value, places) for key, value in wish.items()}))
    ordered.run("turku-agent-ping")
    [report] = reports(ordered)
    assert report["outcome"] == "refused"
    assert report["message"]
    assert restores(unit) == []
    assert everything_below(restore) | everything_below(tree) == before
    assert list(outside.iterdir()) == []
    assert (tree / "a").read_text() == "alpha"
    assert not said.exists()


def _filled(value: Any, places: dict[str, str]) -> Any:
    return value.format(**places) if isinstance(value, str) else value


def test_what_an_order_brought_does_not_lead_a_later_restore_astray(
    ordered: AgentMachine, unit: StandInUnit, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    hostile = unit.folder / "snapshots/20261101T000000Z"
    (hostile / NEWEST).symlink_to(outside)
    hand_out(
        ordered,
        order(target=str(ordered.state / "restore/docs"), snapshot="20261101T000000Z"),
    )
    ordered.run("turku-agent-ping")
    assert (ordered.state / "restore/docs" / NEWEST).is_symlink()
    hand_out(ordered, order())
    ordered.run("turku-agent-ping")
    assert [report["outcome"] for report in reports(ordered)] == ["done", "refused"]
    done = ordered.run("turku-agent-ping", "--restore", "--source", "docs")
    assert done.code == 2
    assert "may lead elsewhere" in done.errors
    assert list(outside.iterdir()) == []


def test_a_machine_that_allows_none_refuses_every_order(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    allow(ordered, "none")
    hand_out(ordered, order(), order(dry_run=True))
    ordered.run("turku-agent-ping")
    assert [report["outcome"] for report in reports(ordered)] == ["refused", "refused"]
    assert "restore_orders: none" in reports(ordered)[0]["message"]
    assert unit.requests() == []
    assert not (ordered.state / "restore").exists()


@pytest.mark.parametrize(
    "bad",
    [
        5,
        {},
        {"id": "../../x", "source": "docs"},
        {"id": str(uuid.UUID(int=5)), "source": "../x"},
        {"id": str(uuid.UUID(int=5)), "source": "docs", "snapshot": "-x"},
        {"id": str(uuid.UUID(int=5)), "source": "docs", "paths": ["../x"]},
        {"id": str(uuid.UUID(int=5)), "source": "docs", "target": "/srv/../etc"},
        {"id": str(uuid.UUID(int=5)), "source": "docs", "target": "/srv\n"},
        {"id": str(uuid.UUID(int=5)), "source": "docs", "target": "/srv", "in_place": True},
        {"id": str(uuid.UUID(int=5)), "source": "docs", "machine": "web/0"},
    ],
)
def test_an_order_that_is_not_valid_is_named_and_the_others_are_carried_out(
    ordered: AgentMachine, bad: Any
) -> None:
    good = order()
    hand_out(ordered, bad, good)
    done = ordered.run("turku-agent-ping")
    assert done.code == 1
    assert "The API's answer is not valid: machine.restore_orders[0]" in done.errors
    assert [report["id"] for report in reports(ordered)] == [good["id"]]


def test_orders_of_another_kind_than_a_list_are_named(ordered: AgentMachine) -> None:
    ordered.api.answers["agent_ping_checkin"] = {
        "machine": {"scheduled_sources": {}, "restore_orders": {"a": 1}}
    }
    done = ordered.run("turku-agent-ping")
    assert done.code == 1
    assert "machine.restore_orders: must be a list" in done.errors


def test_an_order_for_another_machine_without_a_grant_fails_with_words(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    hand_out(ordered, order(machine="6ba7b810-9dad-41d1-80b4-00c04fd430c8"))
    ordered.run("turku-agent-ping")
    [report] = reports(ordered)
    assert report["outcome"] == "failed"
    assert "may not restore machine" in report["message"]


def test_an_order_for_what_is_not_there_fails_with_what_there_is(ordered: AgentMachine) -> None:
    hand_out(ordered, order(snapshot="20200101T000000Z"), order(source="nope"))
    ordered.run("turku-agent-ping")
    first, second = reports(ordered)
    assert (first["outcome"], second["outcome"]) == ("failed", "failed")
    assert NEWEST in first["message"]
    assert "nope" in second["message"]


def test_a_dry_run_reports_what_would_change_and_writes_nothing(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    hand_out(ordered, order(dry_run=True))
    ordered.run("turku-agent-ping")
    [report] = reports(ordered)
    assert report["outcome"] == "done"
    assert any("sub/b" in change for change in report["changes"])
    assert not (ordered.state / "restore").exists()


@pytest.mark.parametrize("why", ["busy", "away"])
def test_a_storage_unit_without_time_makes_the_order_wait(
    ordered: AgentMachine, unit: StandInUnit, why: str
) -> None:
    if why == "busy":
        unit.behave(exit_code=75)
    else:
        unit.stop()
    hand_out(ordered, order())
    ordered.run("turku-agent-ping")
    [report] = reports(ordered)
    assert report["outcome"] == "later"
    assert "unit-0" in report["message"]


def test_an_order_is_carried_out_once_and_reported_until_the_api_has_it(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    wanted = order()
    hand_out(ordered, wanted)
    ordered.api.answers["agent_restore_report"] = (503, "not now")
    done = ordered.run("turku-agent-ping")
    assert "the report is sent later" in done.errors
    # The API forgot whom it gave the order, and still doesn't take reports.
    ordered.run("turku-agent-ping")
    assert len(restores(unit)) == 1
    ordered.api.answers["agent_restore_report"] = {}
    hand_out(ordered)
    before = len(reports(ordered))
    ordered.run("turku-agent-ping")
    assert [report["outcome"] for report in reports(ordered)[before:]] == ["done"]
    ordered.run("turku-agent-ping")
    assert len(reports(ordered)) == before + 1
    assert len(restores(unit)) == 1


def test_a_report_that_the_api_will_never_take_is_forgotten(ordered: AgentMachine) -> None:
    hand_out(ordered, order())
    ordered.api.answers["agent_restore_report"] = (404, "no such order")
    ordered.run("turku-agent-ping")
    hand_out(ordered)
    ordered.run("turku-agent-ping")
    assert len(reports(ordered)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_order_whose_agent_was_ended_goes_on_where_it_broke_off(
    ordered: AgentMachine, unit: StandInUnit, number: int
) -> None:
    wanted = order()
    hand_out(ordered, wanted)
    behaviour = json.loads((unit.folder / "behaviour.json").read_text())
    unit.behave(**{**behaviour, "hang": "restore"})
    agent = ordered.start("turku-agent-ping")
    wait_until(lambda: restores(unit), "the restore has begun")
    (ordered.state / "restore/docs" / NEWEST / "half").write_text("half")
    agent.send_signal(number)
    agent.communicate(timeout=60)
    assert reports(ordered) == []
    unit.behave(**{**behaviour, "hang": False})
    ordered.run("turku-agent-ping")
    assert [report["outcome"] for report in reports(ordered)] == ["done"]
    assert (ordered.state / "restore/docs" / NEWEST / "a").read_text() == "second"
    wait_until(lambda: ordered.children() == [], "nothing is left running")


def test_the_api_is_told_at_each_check_in_which_orders_are_at_work(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    wanted = order()
    hand_out(ordered, wanted, come_back_seconds=1)
    behaviour = json.loads((unit.folder / "behaviour.json").read_text())
    unit.behave(**{**behaviour, "hang": "restore"})
    agent = ordered.start("turku-agent-ping")
    try:
        wait_until(lambda: len(ordered.api.calls("agent_ping_checkin")) >= 3, "it checks in again")
        wait_until(lambda: restores(unit), "the restore has a session")
    finally:
        agent.terminate()
        agent.communicate(timeout=60)
    said = [
        each["machine"].get("running_orders") for each in ordered.api.calls("agent_ping_checkin")
    ]
    assert said[:3] == [None, [wanted["id"]], [wanted["id"]]]
    assert len(restores(unit)) == 1


def test_a_backup_and_an_order_run_beside_each_other(
    ordered: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    hand_out(ordered, order(), scheduled_sources=ordered.scheduled)
    done = ordered.run("turku-agent-ping", "--json")
    assert json.loads(done.output)["sources"]["docs"]["outcome"] == "success"
    assert [report["outcome"] for report in reports(ordered)] == ["done"]
    assert (unit.folder / "mirrors/docs/a").read_text() == "alpha"


def test_an_order_that_a_backup_at_once_meets_is_carried_out_too(
    ordered: AgentMachine, unit: StandInUnit
) -> None:
    ordered.api.answers["agent_backup_now"] = {"machine": {"sources": ["docs"]}}
    hand_out(ordered, order(), scheduled_sources=ordered.scheduled)
    done = ordered.run("turku-agent-ping", "--backup-now", "--json")
    assert (done.code, list(json.loads(done.output)["sources"])) == (0, ["docs"])
    assert [report["outcome"] for report in reports(ordered)] == ["done"]


def test_how_much_is_logged_is_an_option_that_verbose_overrules(ordered: AgentMachine) -> None:
    folder = ordered.root / "etc/turku-agent/config.d"
    hand_out(ordered)
    assert ordered.run("turku-agent-ping").errors == ""
    (folder / "20-log.json").write_text('{"log_level": "info"}')
    assert "INFO turku_core.agent.checkin: nothing is due" in ordered.run("turku-agent-ping").errors
    (folder / "20-log.json").write_text('{"log_level": "error"}')
    assert "nothing is due" in ordered.run("turku-agent-ping", "--verbose").errors


@pytest.mark.parametrize("count", [-1, 2**70, True, "3", None, 1.5])
def test_a_storage_unit_that_counts_nonsense_keeps_no_report_back(
    ordered: AgentMachine, unit: StandInUnit, count: Any
) -> None:
    behaviour = json.loads((unit.folder / "behaviour.json").read_text())
    unit.behave(**{**behaviour, "counts": {"files": count, "bytes": count}})
    hand_out(ordered, order())
    ordered.run("turku-agent-ping")
    [report] = reports(ordered)
    assert report["outcome"] == "done"
    assert "files" not in report
    assert RestoreReport.from_json(report, "order")

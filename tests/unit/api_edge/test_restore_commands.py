"""The commands for restores that are ordered: what they do, print, refuse and end with."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any

import pytest
from django.core.management import call_command

from tests.support.api_world import AgentCaller, World
from turku_core.api.models import RestoreOrder
from turku_core.commandline import human_time
from turku_core.errors import ConfigurationError, TurkuError

MODULE = "turku_core.api.management.commands.order_restore"


@pytest.fixture
def agent(world: World) -> AgentCaller:
    unit = world.unit()
    made = world.agent()
    world.backed_up(made, unit)
    return made


def run(*words: str) -> tuple[int, str]:
    """Run a command; its exit code and what it printed on standard output."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            call_command(words[0].replace("-", "_"), *words[1:])
    except SystemExit as end:
        return int(str(end.code)), said.getvalue()
    return 0, said.getvalue()


def report(world: World, agent: AgentCaller, outcome: str, **more: Any) -> None:
    made = RestoreOrder.objects.first()
    assert made is not None
    world.call("agent_ping_checkin", agent.login)
    values = {"id": made.uuid, "outcome": outcome, **more}
    assert world.call("agent_restore_report", {**agent.login, "order": values}).status == 200


def test_an_order_says_when_it_is_fetched(world: World, agent: AgentCaller) -> None:
    words = "order-restore", "web/0", "docs"
    code, said = run(*words)
    made = RestoreOrder.objects.get()
    assert code == 0
    assert said == (
        f"Restore order {made.pk}: docs of web/0 to web/0. The machine fetches it at its next "
        "check-in, within 5 minutes.\n"
    )


def test_an_order_takes_every_wish(world: World, agent: AgentCaller) -> None:
    world.agent("new/0", sources={})
    _, said = run(
        *("order-restore", "web/0", "docs", "--to-machine", "new/0", "--snapshot", "s1"),
        *("--path", "a", "--path", "b", "--target", "/srv/back", "--dry-run", "--json"),
    )
    row = json.loads(said)
    assert row["machine"] == "new/0"
    assert row["of"] == "web/0"
    assert row["paths"] == ["a", "b"]
    assert (row["snapshot"], row["to"], row["dry_run"]) == ("s1", "/srv/back", True)
    assert (row["state"], row["in_place"]) == ("ordered", False)


@pytest.mark.parametrize(
    ("outcome", "more", "code", "words"),
    [
        (
            "done",
            {"snapshot": "s1", "target": "/r", "files": 2, "bytes": 2048},
            0,
            "docs of web/0, snapshot s1, is restored on web/0 in /r: 2 files, 2.0 KiB.",
        ),
        ("failed", {"message": "No such snapshot."}, 1, "to web/0: failed. No such snapshot."),
        ("refused", {"message": "Not in place."}, 1, "to web/0: refused. Not in place."),
        ("later", {"message": "It is busy."}, 75, "within 5 minutes. It is busy."),
    ],
)
def test_waiting_for_an_order_ends_with_its_outcome(
    world: World,
    agent: AgentCaller,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    more: dict[str, Any],
    code: int,
    words: str,
) -> None:
    waited = 0.0

    def sleep(seconds: float) -> None:
        nonlocal waited
        waited += seconds
        if waited == 3:
            report(world, agent, outcome, **more)

    monkeypatch.setattr(f"{MODULE}.sleep", sleep)
    monkeypatch.setattr(f"{MODULE}.monotonic", lambda: waited)
    ended, said = run("order-restore", "web/0", "docs", "--wait", "10")
    assert (ended, waited) == (code, 10 if outcome == "later" else 3)
    assert words in said


def test_a_dry_run_shows_what_would_change(
    world: World, agent: AgentCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [">f+++ a", ">f.st b"]
    monkeypatch.setattr(
        f"{MODULE}.sleep",
        lambda seconds: report(world, agent, "done", snapshot="s", target="/r", changes=changes),
    )
    code, said = run("order-restore", "web/0", "docs", "--dry-run", "--wait", "10")
    assert code == 0
    assert said.splitlines()[:2] == changes
    assert "would be restored on web/0 in /r" in said


def test_orders_are_listed_the_newest_first_and_cut_to_the_limit(
    world: World, agent: AgentCaller
) -> None:
    assert run("list-restores")[1] == "No restore was ordered.\n"
    for path in ("a", "b", "c"):
        run("order-restore", "web/0", "docs", "--path", path)
    listed = json.loads(run("list-restores", "--json", "--limit", "2")[1])
    assert [row["paths"] for row in listed] == [["c"], ["b"]]
    lines = run("list-restores")[1].splitlines()
    assert lines[0].split()[:3] == ["ID", "MACHINE", "SOURCE"]
    assert str(human_time(world.now)) in lines[1]
    assert "the restore folder" in lines[1]


def test_an_order_is_cancelled_by_its_number(world: World, agent: AgentCaller) -> None:
    run("order-restore", "web/0", "docs")
    made = RestoreOrder.objects.get()
    assert "is cancelled" in run("cancel-restore", str(made.pk))[1]
    made.refresh_from_db()
    assert made.state == "cancelled"
    with pytest.raises(TurkuError, match="is cancelled already"):
        run("cancel-restore", str(made.pk))
    with pytest.raises(TurkuError, match="no restore order 4711"):
        run("cancel-restore", "4711")


def test_a_senseless_order_is_refused_with_the_field(world: World, agent: AgentCaller) -> None:
    with pytest.raises(ConfigurationError, match=r"order\.paths"):
        run("order-restore", "web/0", "docs", "--path", "../x")
    with pytest.raises(TurkuError, match="There is no machine nobody"):
        run("order-restore", "nobody", "docs")
    assert not RestoreOrder.objects.exists()

"""Listing and restoring over a real tunnel; the stand-in unit pushes prepared trees."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.stand_ins import (
    AgentMachine,
    StandInUnit,
    running,
    snapshot,
    wait_until,
)

OLD_UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


def restore(machine: AgentMachine, *arguments: str) -> tuple[int, Any, str]:
    done = machine.run("turku-agent-ping", "--restore", "--json", *arguments)
    return done.code, json.loads(done.output) if done.output else None, done.errors


def test_prior_art_32_snapshots_are_listed_for_people_and_for_programs(
    restorer: AgentMachine,
) -> None:
    table = restorer.run("turku-agent-ping", "--list").output.splitlines()
    assert table[0].split() == [
        *("MACHINE", "SOURCE", "SNAPSHOT", "TAKEN", "AT"),
        *("STATE", "SIZE", "STORAGE", "UNIT", "PROVEN"),
    ]
    assert table[1].split()[:3] == ["machine/0", "docs", "20261101T000000Z"]
    assert "2.0 KiB" in table[1]
    assert "expired" in table[2]
    listed = json.loads(restorer.run("turku-agent-ping", "--list", "--json").output)["snapshots"]
    assert [each["id"] for each in listed] == ["20261101T000000Z", "20261102T000000Z"]
    assert listed[0]["storage_unit"] == "unit-0"


def test_a_list_is_gathered_from_every_unit_and_lacks_only_those_that_are_away(
    restorer: AgentMachine, tree: Path, tmp_path: Path
) -> None:
    with running(StandInUnit(tmp_path / "unit-1", "unit-1")) as second:
        second.authorize((restorer.state / "ssh_key.pub").read_text().strip())
        second.behave(
            snapshots=[snapshot(restorer.uuid, "20261103T000000Z", "2026-11-03T00:00:00Z")]
        )
        restorer.add_source("more", tree)
        offered = restorer.offered["sources"]
        offered["more"] = {**offered["more"], "storage": second.address()}
        listed = json.loads(restorer.run("turku-agent-ping", "--list", "--json").output)
        assert [each["storage_unit"] for each in listed["snapshots"]] == [
            "unit-0",
            "unit-0",
            "unit-1",
        ]
    done = restorer.run("turku-agent-ping", "--list", "--source", "docs")
    assert done.code == 0
    assert "unit-1" in done.errors
    assert len(done.output.splitlines()) == 3


def test_prior_art_32_a_restore_makes_a_folder_of_its_own_for_each_snapshot(
    restorer: AgentMachine,
) -> None:
    code, said, errors = restore(restorer, "--source", "docs")
    assert code == 0, errors
    target = restorer.state / "restore/docs/20261102T000000Z"
    assert said["target"] == str(target)
    assert (target / "sub/b").read_text() == "second"
    assert os.readlink(target / "link") == "/etc/hostname"
    assert restorer.leftovers() == []
    assert restorer.children() == []


@pytest.mark.parametrize(
    ("wanted", "content"),
    [
        ("20261101T000000Z", "first"),
        ("latest", "second"),
        ("2026-11-01T12:00:00Z", "first"),
        ("2026-11-05", "second"),
    ],
)
def test_a_snapshot_is_named_by_its_id_or_a_time(
    restorer: AgentMachine, tmp_path: Path, wanted: str, content: str
) -> None:
    target = tmp_path / "not/there/yet"
    code, _, errors = restore(
        restorer, "--source", "docs", "--snapshot", wanted, "--target", str(target)
    )
    assert code == 0, errors
    assert (target / "a").read_text() == content


def test_a_snapshot_that_isnt_there_is_said(restorer: AgentMachine, tmp_path: Path) -> None:
    target = ("--target", str(tmp_path / "t"))
    for wanted in ("20200101T000000Z", "2020-01-01", "nonsense"):
        code, _, errors = restore(restorer, "--source", "docs", "--snapshot", wanted, *target)
        assert code == 1
        assert "20261101T000000Z" in errors
    code, _, errors = restore(restorer, "--source", "unknown", *target)
    assert code == 1
    assert "--list" in errors
    assert not (tmp_path / "t").exists()


def test_single_paths_are_restored_and_may_be_named_as_they_lie_on_the_machine(
    restorer: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    code, _, errors = restore(
        restorer, "--source", "docs", "--path", f"{tree}/sub", "--target", str(target)
    )
    assert code == 0, errors
    assert [path.name for path in target.iterdir()] == ["sub"]
    assert unit.requests()[-1]["restore"]["paths"] == ["sub"]
    for path in ("/etc/passwd", "../up", "sub/../../up"):
        assert restore(restorer, "--source", "docs", "--path", path)[0] == 2


def test_prior_art_33_in_place_a_newer_and_corrupted_file_is_put_right(
    restorer: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    kept = unit.folder / "snapshots/20261102T000000Z/a"
    (tree / "a").write_text("corrup")
    os.utime(tree / "a", ns=(kept.stat().st_atime_ns, kept.stat().st_mtime_ns))
    (tree / "sub/b").write_text("changed later")
    os.utime(tree / "sub/b", (4_000_000_000, 4_000_000_000))
    (tree / "new").write_text("new")
    code, said, errors = restore(restorer, "--source", "docs", "--in-place")
    assert code == 0, errors
    assert said["target"] == str(tree)
    assert (tree / "a").read_text() == "second"
    assert (tree / "sub/b").read_text() == "second"
    assert (tree / "new").read_text() == "new"


def test_a_dry_run_shows_what_would_change_and_changes_nothing(
    restorer: AgentMachine, tree: Path
) -> None:
    code, said, errors = restore(restorer, "--source", "docs", "--in-place", "--dry-run")
    assert code == 0, errors
    assert any(change.endswith(" a") for change in said["changes"])
    assert (tree / "a").read_text() == "alpha"
    code, said, errors = restore(restorer, "--source", "docs", "--dry-run")
    assert code == 0, errors
    assert any(change.endswith(" sub/b") for change in said["changes"])
    assert not (restorer.state / "restore").exists()


def test_prior_art_32_a_lost_machines_snapshots_are_listed_and_restored(
    restorer: AgentMachine, unit: StandInUnit, tmp_path: Path
) -> None:
    snapshots = [
        snapshot(restorer.uuid, "20261101T000000Z", "2026-11-01T00:00:00+00:00"),
        snapshot(OLD_UUID, "20261102T000000Z", "2026-11-02T00:00:00+00:00"),
    ]
    unit.behave(snapshots=snapshots)
    answer = restorer.offered
    code, _, errors = restore(restorer, "--source", "docs", "--machine", "lost/0")
    assert code == 1
    assert "administrator" in errors
    answer["restore_from"] = {OLD_UUID: {"unit_name": "lost/0", "sources": answer["sources"]}}
    listed = json.loads(
        restorer.run("turku-agent-ping", "--list", "--machine", "lost/0", "--json").output
    )
    assert [each["machine"] for each in listed["snapshots"]] == [OLD_UUID]
    code, said, errors = restore(restorer, "--source", "docs", "--machine", "lost/0")
    assert code == 0, errors
    assert said["target"] == str(restorer.state / f"restore/{OLD_UUID}/docs/20261102T000000Z")
    assert unit.requests()[-1]["restore"]["machine"] == OLD_UUID
    assert (Path(said["target"]) / "a").read_text() == "second"


def test_a_target_that_is_a_file_is_refused(restorer: AgentMachine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = restore(restorer, "--source", "docs", "--target", str(tmp_path / "file"))
    assert code == 2
    assert "isn't a folder" in errors


def test_options_that_dont_go_together_are_refused(restorer: AgentMachine) -> None:
    for arguments in (
        ("--source", "docs"),
        ("--restore", "--in-place"),
        ("--restore", "--path", "a"),
        ("--restore", "--dry-run"),
        ("--restore", "--source", "docs", "--in-place", "--target", "/x"),
        ("--check", "--list"),
        ("--target", "/x"),
        ("--machine", "x"),
    ):
        assert restorer.run("turku-agent-ping", *arguments).code == 2, arguments


def make_hook(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_hooks_run_around_a_restore(restorer: AgentMachine, tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = make_hook(tmp_path, "before", f'echo "before $TURKU_SOURCE $TURKU_PATH" >> {log}')
    after = make_hook(tmp_path, "after", f'echo "after $TURKU_OUTCOME" >> {log}')
    restorer.add_source("docs", tree, run_before_restore=before, run_after_restore=after)
    target = tmp_path / "target"
    assert restore(restorer, "--source", "docs", "--target", str(target), "--dry-run")[0] == 0
    assert not log.exists()
    assert restore(restorer, "--source", "docs", "--target", str(target))[0] == 0
    assert log.read_text() == f"before docs {target}\nafter success\n"


def test_a_failing_hook_cancels_the_restore(
    restorer: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    after = make_hook(tmp_path, "after", f'echo "$TURKU_OUTCOME" >> {log}')
    restorer.add_source("docs", tree, run_before_restore="/bin/false", run_after_restore=after)
    code, _, errors = restore(restorer, "--source", "docs", "--target", str(tmp_path / "t"))
    assert code == 1
    assert "/bin/false ended with exit code 1" in errors
    assert [each["action"] for each in unit.requests()] == ["list"]
    assert log.read_text() == "failed\n"


def test_by_hand_the_folder_is_open_and_the_units_line_is_shown_until_ctrl_c(
    restorer: AgentMachine, unit: StandInUnit
) -> None:
    agent = restorer.start("turku-agent-ping", "--restore")
    assert agent.stdout is not None
    line = ""
    while "rsync -a SNAPSHOT/" not in line:
        line = agent.stdout.readline()
        assert line
    assert (restorer.state / "restore").is_dir()
    agent.send_signal(signal.SIGINT)
    _, errors = agent.communicate(timeout=20)
    assert agent.returncode == 0, errors
    assert restorer.leftovers() == []
    assert restorer.children() == []
    wait_until((unit.folder / "restore-ended").exists, "the unit saw the end")


def test_a_restore_by_hand_with_a_unit_of_v1_works_too(
    restorer: AgentMachine, unit: StandInUnit
) -> None:
    unit.behave(events=False)
    agent = restorer.start("turku-agent-ping", "--restore")
    assert agent.stdout is not None
    while "rsync -a SNAPSHOT/" not in agent.stdout.readline():
        pass
    (request,) = unit.requests()
    assert set(request["sources"]) == {"turku-restore"}
    agent.terminate()
    agent.communicate(timeout=20)
    assert agent.returncode == 128 + signal.SIGTERM
    assert restorer.children() == []


def test_a_unit_that_knows_no_lists_is_told_apart(
    restorer: AgentMachine, unit: StandInUnit
) -> None:
    unit.behave(events=False)
    done = restorer.run("turku-agent-ping", "--list")
    assert done.code == 1
    assert "older" in done.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_of_a_restore_leaves_nothing_open(
    restorer: AgentMachine, unit: StandInUnit, tmp_path: Path, number: signal.Signals
) -> None:
    unit.behave(hang=True)
    agent = restorer.start("turku-agent-ping", "--list")
    wait_until(unit.requests, "the session has begun")
    children = restorer.children()
    assert children
    agent.send_signal(number)
    agent.communicate(timeout=20)
    assert agent.returncode == 128 + number
    assert restorer.children() == []
    assert restorer.leftovers() == []


def test_a_failed_restore_says_why(
    restorer: AgentMachine, unit: StandInUnit, tmp_path: Path
) -> None:
    missing = snapshot(restorer.uuid, "20261109T000000Z", "2026-11-09T00:00:00+00:00")
    unit.behave(snapshots=[missing])
    code, _, errors = restore(restorer, "--source", "docs", "--target", str(tmp_path / "t"))
    assert code == 1
    assert "No such file" in errors

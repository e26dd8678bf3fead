"""Listing and restoring over a session, with real snapshots of a machine's tree."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.integration.storage.conftest import Machine, Spoken, Unit, add_machine, wait_for


def restore(machine: Machine, target: Path, /, **wish: Any) -> Spoken:
    """Restore ``docs`` into a folder of the machine, unattended."""
    target.mkdir(exist_ok=True)
    with machine.daemon(turku_restore=target):
        sources = machine.logins("turku-restore")
        return machine.ask({"action": "restore", "sources": sources, "restore": wish})


def grant(machine: Machine, other: Machine, ends: timedelta = timedelta(hours=1)) -> None:
    """Let the API allow one machine another's snapshots."""
    until = datetime.now(timezone.utc) + ends
    machine.unit.api.answers["storage_ping_checkin"] = {
        "machine": {
            "uuid": machine.uuid,
            "unit_name": "unit",
            "scheduled_sources": {},
            "restore_from": {other.uuid: {"unit_name": "old", "until": until.isoformat()}},
        }
    }


@pytest.fixture
def backed_up(unit: Unit, machine: Machine) -> Machine:
    """A machine with one snapshot."""
    assert machine.check_in().code == 0
    unit.drain()
    assert len(unit.snapshots(machine)) == 1
    return machine


def test_prior_art_32_a_machine_sees_what_there_is_of_its_own(
    unit: Unit, backed_up: Machine
) -> None:
    other = add_machine(unit)
    backed_up.schedule()
    spoken = backed_up.connect_without_tunnel({"action": "list"})
    assert spoken.code == 0
    [snapshot] = spoken.last["snapshots"]
    assert (snapshot["machine"], snapshot["source"], snapshot["state"]) == (
        backed_up.uuid, "docs", "committed",
    )  # fmt: skip
    assert snapshot["id"] == unit.snapshots(backed_up)[0]
    assert (snapshot["files"], snapshot["mode"]) == (4, "link-dest")
    other.schedule()
    assert other.connect_without_tunnel({"action": "list"}).last["snapshots"] == []


def test_a_whole_source_comes_back_newer_files_included(backed_up: Machine) -> None:
    target = backed_up.folder / "target"
    shutil.copytree(backed_up.data, target)
    (target / "one").write_text("newer!")
    spoken = restore(backed_up, target, source="docs")
    assert (spoken.code, spoken.last["ok"]) == (0, True), spoken
    assert (target / "one").read_text() == "first"
    assert (target / "sub/two").read_text() == "second"


def test_single_paths_come_back_alone(backed_up: Machine) -> None:
    target = backed_up.folder / "target"
    spoken = restore(backed_up, target, source="docs", paths=["sub/two"])
    assert spoken.code == 0, spoken
    assert [str(path.relative_to(target)) for path in target.rglob("*")] == ["sub", "sub/two"]


def test_a_dry_run_says_what_would_change_and_changes_nothing(backed_up: Machine) -> None:
    target = backed_up.folder / "target"
    spoken = restore(backed_up, target, source="docs", dry_run=True)
    assert spoken.code == 0, spoken
    assert any("sub/two" in each["message"] for each in spoken.events if each["event"] == "change")
    assert list(target.iterdir()) == []


def test_a_snapshot_that_is_not_there_is_refused_with_those_that_are(
    unit: Unit, backed_up: Machine
) -> None:
    spoken = restore(backed_up, backed_up.folder / "t", source="docs", snapshot="20010101T000000Z")
    assert (spoken.code, spoken.last["ok"]) == (1, False)
    assert unit.snapshots(backed_up)[0] in spoken.last["message"]


def test_prior_art_32_a_new_machine_restores_a_lost_ones_data_while_the_grant_lasts(
    unit: Unit, backed_up: Machine
) -> None:
    new = add_machine(unit)
    grant(new, backed_up)
    listed = new.connect_without_tunnel({"action": "list"}).last["snapshots"]
    assert [each["machine"] for each in listed] == [backed_up.uuid]
    target = new.folder / "target"
    assert restore(new, target, source="docs", machine=backed_up.uuid).code == 0
    assert (target / "one").read_text() == "first"


def test_without_a_grant_nothing_of_another_machine_is_seen_or_restored(
    unit: Unit, backed_up: Machine
) -> None:
    stranger = add_machine(unit)
    spoken = restore(stranger, stranger.folder / "t", source="docs", machine=backed_up.uuid)
    assert (spoken.code, list((stranger.folder / "t").iterdir())) == (1, [])
    assert "may not restore" in spoken.last["message"]
    grant(stranger, backed_up, ends=timedelta(seconds=-1))
    assert stranger.connect_without_tunnel({"action": "list"}).last["snapshots"] == []
    spoken = restore(stranger, stranger.folder / "t", source="docs", machine=backed_up.uuid)
    assert spoken.code == 1


def test_a_lost_api_does_not_keep_a_machine_from_its_own_data_but_ends_grants(
    unit: Unit, backed_up: Machine
) -> None:
    new = add_machine(unit)
    unit.api.down()
    spoken = backed_up.connect_without_tunnel({"action": "list"})
    assert len(spoken.last["snapshots"]) == 1
    target = backed_up.folder / "target"
    assert restore(backed_up, target, source="docs").code == 0
    assert (target / "one").read_text() == "first"
    assert "the API can't be reached; its own snapshots only" in unit.log
    assert restore(new, new.folder / "t", source="docs", machine=backed_up.uuid).code == 1


def test_an_api_that_makes_no_sense_is_as_good_as_lost(unit: Unit, backed_up: Machine) -> None:
    unit.api.answers["storage_ping_checkin"] = {"machine": "what?"}
    assert restore(backed_up, backed_up.folder / "target", source="docs").code == 0
    unit.configure(api_ca_certificate="/nonexistent/ca.crt")
    assert restore(backed_up, backed_up.folder / "again", source="docs").code == 0


def test_a_machine_that_the_api_refuses_restores_nothing(unit: Unit, backed_up: Machine) -> None:
    unit.api.answers["storage_ping_checkin"] = (403, "Bad credentials")
    spoken = restore(backed_up, backed_up.folder / "t", source="docs")
    assert (spoken.code, list((backed_up.folder / "t").iterdir())) == (1, [])


def test_a_waiting_agent_gets_a_line_for_the_administrator_that_works(
    unit: Unit, backed_up: Machine
) -> None:
    target = backed_up.folder / "target"
    target.mkdir()
    with backed_up.daemon(turku_restore=target):
        connection = backed_up.connect()
        connection.send({"action": "restore", "sources": backed_up.logins("turku-restore")})
        lines = connection.read_messages(until="The session ends")
        [ready] = [line.strip() for line in lines if "turku-storage" in line and "docs" in line]
        setting, *words = shlex.split(ready)
        name, _, value = setting.partition("=")
        program = Path(unit.program(words[0]))
        done = subprocess.run(
            [str(program), *words[1:]], env={**os.environ, name: value}, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (target / "sub/two").read_text() == "second"
        spoken = connection.finish()
    assert spoken.code == 0


def test_a_waiting_agent_gets_a_ready_made_rsync_line_that_works(
    unit: Unit, backed_up: Machine
) -> None:
    target = backed_up.folder / "target"
    target.mkdir()
    with backed_up.daemon(turku_restore=target):
        connection = backed_up.connect()
        connection.send({"action": "restore", "sources": backed_up.logins("turku-restore")})
        lines = connection.read_messages(until="The session ends")
        [ready] = [line.strip() for line in lines if re.search(r"PASSWORD=\S+ rsync ", line)]
        subprocess.run(ready, shell=True, check=True, timeout=60, stdout=subprocess.DEVNULL)
        connection.finish()
    assert (target / "sub/two").read_text() == "second"


def test_a_waiting_session_ends_with_the_agent(unit: Unit, backed_up: Machine) -> None:
    with backed_up.daemon(turku_restore=backed_up.folder):
        connection = backed_up.connect()
        connection.send({"action": "restore", "sources": backed_up.logins("turku-restore")})
        connection.read_messages(until="The session ends")
        connection.kill()
        wait_for(lambda: "session ends" in unit.log)

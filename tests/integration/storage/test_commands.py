"""The operator's commands, on snapshots of a real tree."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.storage.conftest import Machine, Unit


@pytest.fixture
def snapshot(unit: Unit, machine: Machine) -> str:
    """The id of the one snapshot of the machine."""
    assert machine.check_in().code == 0
    unit.drain()
    [made] = unit.snapshots(machine)
    return made


def readable(machine: Machine) -> str:
    """Return the name by which people know the machine."""
    return f"test-web-unit-{machine.uuid[:4]}"


def test_list_is_a_calm_table(unit: Unit, machine: Machine, snapshot: str) -> None:
    heading, row = unit.run("turku-storage", "list").splitlines()
    assert heading.split() == [
        "MACHINE", "SOURCE", "SNAPSHOT", "TAKEN", "STATE", "MODE", "SIZE", "FILES", "PROVEN",
    ]  # fmt: skip
    assert row.split()[:3] == [readable(machine), "docs", snapshot]
    assert "good" in row


@pytest.mark.parametrize("form", ["uuid", "readable", "unit"])
def test_a_machine_goes_by_its_uuid_and_its_names(
    unit: Unit, machine: Machine, snapshot: str, form: str
) -> None:
    names = {
        "uuid": machine.uuid,
        "readable": readable(machine),
        "unit": f"unit-{machine.uuid[:4]}",
    }
    listed = unit.run_json("list", names[form], "docs")
    assert [each["id"] for each in listed["snapshots"]] == [snapshot]


def test_a_machine_or_source_that_is_not_there_is_said(
    unit: Unit, machine: Machine, snapshot: str
) -> None:
    said = unit.run("turku-storage", "list", "nobody", code=1)
    assert "No machine is called 'nobody' here" in said
    assert "has no snapshots of the source mail" in unit.run(
        "turku-storage", "list", machine.uuid, "mail", code=1
    )


def test_usage_shows_volumes_and_work(unit: Unit, machine: Machine, snapshot: str) -> None:
    said = unit.run("turku-storage", "usage")
    assert said.splitlines()[0].split()[:2] == ["VOLUME", "PATH"]
    assert "Sessions at work:    0 of 10" in said
    usage = unit.run_json("usage")
    assert usage["volumes"][0]["mounted"] is True
    assert usage["problems"] == []


def test_a_volume_that_is_not_mounted_is_a_problem_that_everybody_is_told(
    unit: Unit, machine: Machine, snapshot: str
) -> None:
    away = unit.volume.with_name("away")
    unit.volume.rename(away)
    unit.volume.mkdir()
    said = unit.run("turku-storage", "usage", code=1)
    assert "not mounted" in said
    spoken = machine.check_in()
    assert (spoken.code, spoken.outcome("docs")) == (1, "failed")
    assert list(unit.volume.iterdir()) == []
    unit.volume.rmdir()
    away.rename(unit.volume)
    unit.drain()
    assert unit.api.reports("docs")[-1]["success"] is False
    assert machine.check_in().code == 0


def test_restore_to_a_folder(unit: Unit, machine: Machine, snapshot: str) -> None:
    target = unit.root / "restored"
    said = unit.run("turku-storage", "restore", readable(machine), "docs", "--target", str(target))
    assert f"of snapshot {snapshot}" in said
    assert (target / "sub/two").read_text() == "second"
    said = unit.run(
        "turku-storage", "restore", machine.uuid, "docs", "--target", str(target), code=1
    )
    assert "isn't empty" in said


def test_restore_of_a_path_and_dry_run(unit: Unit, machine: Machine, snapshot: str) -> None:
    target = unit.root / "restored"
    words = ["restore", machine.uuid, "docs", "--path", "sub/two", "--target", str(target)]
    assert "Would restore" in unit.run("turku-storage", *words, "--dry-run")
    assert not target.exists()
    result = unit.run_json(*words)
    assert (result["ok"], result["snapshot"], result["files"]) == (True, snapshot, 1)
    assert not (target / "one").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["docs"], "Say where to restore to"),
        (["docs", "--target", "/x", "--to-port", "5"], "Say where to restore to"),
        (["../x", "--target", "/x"], "source: must be a name"),
        (["docs", "--target", "/x", "--snapshot", "../x"], "--snapshot: must be"),
        (["docs", "--to-port", "5"], "RSYNC_PASSWORD"),
    ],
)
def test_restore_says_what_is_wrong_with_its_arguments(
    unit: Unit, machine: Machine, words: list[str], sentence: str
) -> None:
    said = unit.run("turku-storage", "restore", machine.uuid, *words, code=2)
    assert sentence in said
    assert "Traceback" not in said


def test_verify_proves_and_finds_damage(unit: Unit, machine: Machine, snapshot: str) -> None:
    said = unit.run("turku-storage", "verify", machine.uuid)
    assert said.split()[-1] == "proven"
    tree = unit.volume / "machines" / machine.uuid / "docs/snapshots" / snapshot
    (tree / "one").write_text("wrong")
    result = unit.run_json("verify", code=1)
    assert result["verified"][0]["proven"] is False
    unit.drain()
    assert unit.api.inventory("docs")[-1]["state"] == "damaged"
    assert "damaged" in unit.run("turku-storage", "list", code=None)


def test_expire_by_policy_with_grace_and_without(unit: Unit, machine: Machine) -> None:
    unit.configure(expiry_floor=1)
    machine.schedule(docs=machine.source(retention="last 1 snapshots"))
    for text in ("a", "b"):
        (machine.data / "one").write_text(text)
        machine.check_in()
        unit.drain()
    first, second = unit.snapshots(machine)
    unit.run("turku-storage-expire", "--dry-run")
    assert unit.snapshots(machine) == [first, second]
    said = unit.run("turku-storage-expire")
    assert "expired" in said or "Nothing to expire" in said
    assert unit.snapshots(machine) == [first, second]
    result = unit.run_json("expire", machine.uuid, "--now")
    assert [each["snapshot"] for each in result["changes"]] == [first]
    assert unit.snapshots(machine) == [second]


@pytest.mark.needs_root
def test_another_user_is_told_whose_it_is(unit: Unit, machine: Machine) -> None:
    from turku_core.errors import ConfigurationError
    from turku_core.storage.privileges import Owner, acting_as, become_owner
    from turku_core.storage.settings import Paths

    for path in (unit.root.parent, unit.root, unit.root / "var", unit.root / "var/lib"):
        path.chmod(0o755)
    umask = os.umask(0o022)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigurationError, match="belongs to the user root"):
            become_owner(Paths(unit.root))
        with pytest.raises(ConfigurationError), acting_as(Owner(0, 0, "root", "/root")):
            pass
    finally:
        os.seteuid(0)
        os.umask(umask)


def test_a_broken_configuration_file_is_named_with_its_line(unit: Unit, machine: Machine) -> None:
    path = unit.root / "etc/turku-storage/config.d/20-broken.yaml"
    path.write_text("slots: 5\nvolumes: [\n")
    for program, *words in (
        ["turku-storage", "usage"],
        ["turku-storage-worker", "--once"],
        ["turku-storage-update-config"],
        ["turku-storage-expire"],
    ):
        said = unit.run(program, *words, code=2)
        assert "20-broken.yaml, line" in said
        assert "Traceback" not in said
    spoken = machine.check_in()
    assert spoken.code == 1
    assert "configuration is wrong" in spoken.output
    assert "20-broken.yaml, line" in unit.log


@pytest.mark.parametrize(
    "program",
    [
        "turku-storage",
        "turku-storage-update-config",
        "turku-storage-ping",
        "turku-storage-worker",
        "turku-storage-expire",
    ],
)
def test_every_command_has_help_and_refuses_what_it_does_not_know(unit: Unit, program: str) -> None:
    path = unit.program(program)
    helped = subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage:")
    wrong = subprocess.run([path, "--wrong"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


def test_registration_errors_are_sentences_with_exit_codes(unit: Unit) -> None:
    unit.api.answers["storage_update_config"] = (403, "Bad credentials")
    assert "refused the credentials" in unit.run("turku-storage-update-config", code=1)
    unit.api.down()
    assert "can't be reached" in unit.run("turku-storage-update-config", code=75)
    assert not Path(unit.state / ".ssh/authorized_keys").exists()


def test_an_operator_says_that_a_clock_that_jumped_is_right(unit: Unit, machine: Machine) -> None:
    unit.configure(expiry_floor=1)
    machine.schedule(docs=machine.source(retention="last 1 snapshots"))
    for _ in range(2):
        machine.check_in()
        unit.run("turku-storage-worker", "--once")
        time.sleep(1.1)
    clock = unit.state / "clock.json"
    state = json.loads(clock.read_text())
    for reading in ("trusted", "last"):
        state[reading]["at"] = "2020-01-01T00:00:00+00:00"
    for each in (unit.volume / "machines" / machine.uuid / "docs/snapshots").glob("[0-9]*.json"):
        record = json.loads(each.read_text())
        record["expired_at"] = None
        each.write_text(json.dumps(record))
    clock.write_text(json.dumps(state))
    held = unit.run_json("expire", "--dry-run")
    assert held["changes"] == []
    assert "the clock jumped ahead" in held["held"][0]
    told = unit.run_json("expire", "--trust-clock", "--dry-run")["changes"]
    assert [change["state"] for change in told] == ["expired"]
    assert "the clock jumped ahead" in unit.run_json("expire", "--dry-run")["held"][0]
    [change] = unit.run_json("expire", "--trust-clock")["changes"]
    assert (change["machine_name"], change["state"]) == (readable(machine), "expired")
    assert unit.run_json("expire")["held"] == []


def test_an_answer_for_a_program_names_everything(
    unit: Unit, machine: Machine, snapshot: str
) -> None:
    [listed] = unit.run_json("list")["snapshots"]
    [verified] = unit.run_json("verify")["verified"]
    for each in (listed, verified):
        assert (each["machine"], each["machine_name"]) == (machine.uuid, readable(machine))
    target = unit.root / "restored"
    restored = unit.run_json("restore", machine.uuid, "docs", "--target", str(target))
    assert restored["machine"] == machine.uuid
    assert (restored["source"], restored["snapshot"]) == ("docs", snapshot)
    assert (restored["target"], restored["dry_run"], restored["ok"]) == (str(target), False, True)

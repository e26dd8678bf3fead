"""What goes wrong: a sentence that says what, where and what to do, an exit code, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import describe_tree, differences
from turku_core.credentials import make_ssh_key_pair
from turku_core.local.turku import Finished, LocalTurku, Machine


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


def assert_says(done: Finished, exit_code: int, *words: str) -> None:
    assert done.exit_code == exit_code, done
    assert "Traceback" not in done.errors
    for word in words:
        assert word in done.errors, done.errors
    assert len(done.errors.strip().splitlines()) <= 3, done.errors


def change_agent(machine: Machine, **settings: object) -> None:
    path = machine.root / "etc/turku-agent/config.d/90-change.json"
    path.write_text(json.dumps(settings))


def backups(turku: LocalTurku, machine: Machine, *options: str) -> list[dict[str, Any]]:
    said = turku.api_run("list-backups", "--machine", machine.uuid, "--json", *options).output
    listed: list[dict[str, Any]] = json.loads(said)
    return listed


def last_failure(turku: LocalTurku, machine: Machine) -> str:
    turku.wait_until_committed(60)
    failed = backups(turku, machine, "--failed")
    assert failed
    return str(failed[0]["summary"])


def test_a_wrong_registration_key(turku: LocalTurku, unit_name: str, source: Path) -> None:
    machine = turku.add_machine(unit_name, {})
    other = Machine("other", machine.root.parent / f"{unit_name}-other")
    shutil.copytree(machine.root / "etc", other.root / "etc")
    change_agent(other, api_auth_secret="not-the-right-one", unit_name=f"{unit_name}-other")
    done = other.run("turku-update-config", check=False)
    assert_says(done, 1, "refused", "registration key")
    assert "not-the-right-one" not in done.errors


def test_a_machine_that_the_api_does_not_know(turku: LocalTurku, unit_name: str) -> None:
    machine = turku.add_machine(unit_name, {})
    identity = machine.root / "var/lib/turku-agent/config.d/identity.json"
    values = json.loads(identity.read_text())
    values["machine_uuid"] = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
    del values["checksum"]
    identity.write_text(json.dumps(values))
    assert_says(machine.run("turku-agent-ping", check=False), 1, "isn't registered")


def test_an_api_that_is_down(turku: LocalTurku, unit_name: str) -> None:
    machine = turku.add_machine(unit_name, {})
    change_agent(machine, api_url=["https://127.0.0.1:1/v1", "https://localhost:1/v1"])
    for program in ("turku-agent-ping", "turku-update-config"):
        done = machine.run(program, check=False)
        assert_says(done, 75, "can't be reached", "127.0.0.1:1", "localhost:1")


def test_the_next_url_is_tried_when_one_is_down(turku: LocalTurku, unit_name: str) -> None:
    machine = turku.add_machine(unit_name, {})
    change_agent(machine, api_url=["https://127.0.0.1:1/v1", turku.running.api_url])
    assert machine.run("turku-agent-ping").exit_code == 0


def test_a_storage_unit_that_shows_another_host_key_gets_nothing(
    turku: LocalTurku, unit_name: str, source: Path
) -> None:
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    folder = turku.layout.storage / "etc/turku-storage/config.d"
    settings = json.loads((folder / "10-local.json").read_text())
    stranger = make_ssh_key_pair("stranger")[1]
    try:
        (folder / "99-key.json").write_text(json.dumps({"ssh_ping_host_keys": [stranger]}))
        turku.update_storage()
        done = machine.run("turku-agent-ping", check=False)
        assert_says(done, 1, "host key")
        checked = machine.run("turku-agent-ping", "--check", check=False)
        assert checked.exit_code == 1
        assert "host key" in checked.output + checked.errors
    finally:
        (folder / "99-key.json").unlink()
        turku.update_storage()
    assert settings["ssh_ping_host_keys"]


def test_a_path_that_is_missing_is_a_failure_on_the_record(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    machine = turku.add_machine(unit_name, {"docs": {"path": str(missing)}})
    done = machine.run("turku-agent-ping", check=False)
    assert done.exit_code == 1
    assert str(missing) in done.errors
    assert str(missing) in last_failure(turku, machine)
    assert machine.snapshots() == []


def test_one_source_that_fails_does_not_stop_another(
    turku: LocalTurku, unit_name: str, source: Path, tmp_path: Path
) -> None:
    machine = turku.add_machine(
        unit_name,
        {"a-missing": {"path": str(tmp_path / "missing")}, "b-good": {"path": str(source)}},
    )
    assert machine.run("turku-agent-ping", check=False).exit_code == 1
    turku.wait_until_committed(60)
    assert [each["source"] for each in machine.snapshots()] == ["b-good"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("90.json", '{\n"x": }', ["90.json, line 2", "not valid JSON"]),
        ("90.yaml", "docs:\n  path: relative\n", ["90.yaml, line 2", "absolute path"]),
        ("90.yaml", "docs:\n  path: /a\n  frequency: dayly\n", ["90.yaml, line 3", "dayly"]),
        ("90.yaml", "docs:\n  path: /a\n  retention: last\n", ["90.yaml, line 3", "retention"]),
        ("90.yaml", "../x:\n  path: /a\n", ["90.yaml, line 1", "name"]),
    ],
)
def test_a_bad_source_file_is_named_with_its_line(
    turku: LocalTurku, unit_name: str, name: str, content: str, words: list[str]
) -> None:
    machine = turku.add_machine(unit_name, {})
    (machine.root / "etc/turku-agent/sources.d" / name).write_text(content)
    assert_says(machine.run("turku-update-config", check=False), 2, *words)


def test_a_snapshot_that_is_not_there_is_answered_with_those_that_are(
    turku: LocalTurku, unit_name: str, source: Path, tmp_path: Path
) -> None:
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    restore = ("turku-agent-ping", "--restore", "--target", str(tmp_path / "t"), "--source")
    assert_says(machine.run(*restore, "docs", check=False), 1, "snapshot")
    machine.run("turku-agent-ping")
    turku.wait_until_committed(60)
    (there,) = machine.snapshots()
    done = machine.run(*restore, "docs", "--snapshot", "20200101T000000Z", check=False)
    assert_says(done, 1, "20200101T000000Z", there["id"])
    assert_says(machine.run(*restore, "nothing", check=False), 1, "nothing", "--list")


def test_a_volume_that_is_not_mounted_is_never_filled(
    turku: LocalTurku, unit_name: str, source: Path
) -> None:
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    volume, away = turku.layout.volume, turku.layout.folder / "away"
    volume.rename(away)
    volume.mkdir()
    try:
        done = machine.run("turku-agent-ping", check=False)
        assert done.exit_code == 1
        assert "volume" in done.errors
        assert "mounted" in done.errors
        assert list(volume.iterdir()) == []
    finally:
        volume.rmdir()
        away.rename(volume)
    assert "mounted" in last_failure(turku, machine)


@pytest.mark.needs_root
def test_what_came_of_a_source_that_can_only_be_read_in_part_is_kept_and_said_to_be_partial(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    # Root reads everything; but the loopback interface has no speed, and its file says so with an
    # error to whoever reads it.
    rules = ["+ /speed", "+ /mtu", "- *"]
    machine = turku.add_machine(
        unit_name, {"lo": {"path": "/sys/devices/virtual/net/lo", "filter": rules}}
    )
    machine.run("turku-agent-ping")
    turku.wait_until_committed(60)
    (snapshot,) = machine.snapshots()
    assert snapshot["partial"]
    (backup,) = backups(turku, machine)
    assert backup["outcome"] == "partial"
    assert "speed" in backup["summary"]
    target = tmp_path / "target"
    machine.run("turku-agent-ping", "--restore", "--source", "lo", "--target", str(target))
    assert {path.name for path in target.iterdir()} >= {"mtu"}


@pytest.fixture
def small_turku() -> Iterator[LocalTurku]:
    """A Turku whose volume is a file system of 64 MiB of its own."""
    folder = Path(tempfile.mkdtemp(prefix="turku-full-"))
    image, volume = folder / "image", folder / "t" / "volume"
    volume.mkdir(parents=True)
    image.touch()
    os.truncate(image, 64 * 1024 * 1024)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(volume)], check=True)
        try:
            with LocalTurku(folder / "t") as running:
                yield running
        finally:
            subprocess.run(["umount", str(volume)], check=True)
    finally:
        shutil.rmtree(folder)


@pytest.mark.needs_root
def test_a_full_volume_fails_clearly_and_goes_on_when_there_is_room(
    small_turku: LocalTurku, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(os.urandom(1024 * 1024))
    machine = small_turku.add_machine("filler", {"docs": {"path": str(source)}})
    machine.run("turku-agent-ping")
    small_turku.wait_until_committed(60)
    (good,) = machine.snapshots()

    (source / "large").write_bytes(os.urandom(80 * 1024 * 1024))
    small_turku.backup_now(machine)
    done = machine.run("turku-agent-ping", check=False)
    assert done.exit_code == 1
    assert "full" in done.errors
    assert "full" in last_failure(small_turku, machine)
    assert [each["id"] for each in machine.snapshots()] == [good["id"]]

    (source / "large").unlink()
    before = describe_tree(source)
    small_turku.backup_now(machine)
    machine.run("turku-agent-ping")
    small_turku.wait_until_committed(60)
    assert len(machine.snapshots()) == 2
    target = tmp_path / "target"
    machine.run("turku-agent-ping", "--restore", "--source", "docs", "--target", str(target))
    assert differences(before, describe_tree(target)) == []

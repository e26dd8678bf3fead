"""A source's life on the real parts: back up, change, list, restore, for another machine too."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.trees import describe_tree, differences, make_odd_tree
from turku_core.local.turku import LocalTurku, Machine

IS_ROOT = os.geteuid() == 0


def back_up(turku: LocalTurku, machine: Machine) -> None:
    turku.backup_now(machine)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)


@pytest.mark.parametrize("mode", ["borg", "link-dest", "none"])
def test_every_kind_of_file_comes_back_as_it_was_in_every_mode(
    turku: LocalTurku, unit_name: str, tmp_path: Path, mode: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_odd_tree(source, as_root=IS_ROOT)
    machine = turku.add_machine(unit_name, {"odd": {"path": str(source), "snapshot_mode": mode}})
    before = describe_tree(source)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)
    machine.run("turku-agent-ping", "--restore", "--source", "odd", "--target", str(target))
    assert differences(before, describe_tree(target)) == []


def test_an_older_snapshot_comes_back_after_the_source_has_changed(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "kept").write_text("kept")
    (source / "changed").write_text("first")
    (source / "removed").write_text("gone soon")
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    first = describe_tree(source)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)
    (source / "changed").write_text("second")
    (source / "removed").unlink()
    (source / "added").write_text("new")
    second = describe_tree(source)
    back_up(turku, machine)

    older, newer = (each["id"] for each in machine.snapshots())
    for snapshot, expected in ((older, first), (newer, second), ("latest", second)):
        target = tmp_path / f"target-{snapshot}"
        machine.run(
            *("turku-agent-ping", "--restore", "--source", "docs"),
            *("--snapshot", snapshot, "--target", str(target)),
        )
        assert differences(expected, describe_tree(target)) == []

    one = tmp_path / "one"
    machine.run(
        *("turku-agent-ping", "--restore", "--source", "docs", "--snapshot", older),
        *("--path", "removed", "--target", str(one)),
    )
    assert {path.name for path in one.iterdir()} == {"removed"}


def test_a_machine_checks_in_for_nothing_until_the_next_period(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    for _ in range(3):
        machine.run("turku-agent-ping")
        turku.wait_until_committed(120)
    assert len(machine.snapshots()) == 1


def test_prior_art_33_in_place_a_damaged_file_is_mended_though_it_looks_newer(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "newer").write_text("good")
    (source / "same").write_text("good")
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    before = describe_tree(source)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)
    (source / "newer").write_text("bad!")
    os.utime(source / "newer", (4_000_000_000, 4_000_000_000))
    stat = (source / "same").stat()
    (source / "same").write_text("bad!")
    os.utime(source / "same", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (source / "added since").write_text("stays")

    in_place = ("turku-agent-ping", "--restore", "--source", "docs", "--in-place")
    said = machine.run(*in_place, "--dry-run")
    assert (source / "same").read_text() == "bad!"
    assert "newer" in said.output and "same" in said.output

    machine.run(*in_place)
    assert (source / "added since").read_text() == "stays"
    (source / "added since").unlink()
    os.utime(source, ns=(before[b"."].mtime_ns, before[b"."].mtime_ns))
    after = describe_tree(source)
    assert differences(before, after) == []


def test_without_a_target_a_restore_goes_to_the_restore_folder_and_never_in_place(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("then")
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)
    (source / "file").write_text("now")
    machine.run("turku-agent-ping", "--restore", "--source", "docs")
    assert (source / "file").read_text() == "now"
    restored = list((machine.root / "var").rglob("file"))
    assert [path.read_text() for path in restored] == ["then"]


def test_prior_art_32_a_lost_machines_data_comes_back_on_another_while_the_grant_lasts(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    make_odd_tree(source, as_root=IS_ROOT)
    lost = turku.add_machine(f"{unit_name}-old", {"data": {"path": str(source)}})
    before = describe_tree(source)
    lost.run("turku-agent-ping")
    turku.wait_until_committed(120)
    turku.api_run("retire", lost.uuid)

    heir = turku.add_machine(f"{unit_name}-new", {})
    target = tmp_path / "target"
    restore = (
        *("turku-agent-ping", "--restore", "--machine", lost.uuid),
        *("--source", "data", "--target", str(target)),
    )
    assert heir.run(*restore, check=False).exit_code == 1
    assert not target.exists() or not any(target.iterdir())

    turku.api_run("allow-restore", heir.uuid, lost.uuid, "--for", "1d")
    turku.update_storage()
    listed = json.loads(
        heir.run("turku-agent-ping", "--list", "--machine", lost.uuid, "--json").output
    )
    assert [each["machine"] for each in listed["snapshots"]] == [lost.uuid]
    heir.run(*restore)
    assert differences(before, describe_tree(target)) == []

    grants = json.loads(turku.api_run("list-restore-grants", "--json").output)
    turku.api_run("revoke-restore", str(grants[0]["id"]))
    refused = heir.run(*restore, check=False)
    assert refused.exit_code == 1
    assert refused.errors.strip()


def test_a_paused_machine_is_left_alone_until_it_is_resumed(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    turku.api_run("pause", "machine", machine.uuid)
    machine.run("turku-agent-ping")
    assert machine.snapshots() == []
    turku.api_run("resume", "machine", machine.uuid)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)
    assert len(machine.snapshots()) == 1


def test_an_operator_lists_restores_and_verifies_on_the_storage_unit(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    make_odd_tree(source, as_root=IS_ROOT)
    machine = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    before = describe_tree(source)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(120)

    listed = json.loads(turku.storage_run("turku-storage", "list", machine.uuid, "--json").output)
    assert [each["source"] for each in listed["snapshots"]] == ["docs"]
    assert unit_name in turku.storage_run("turku-storage", "list").output
    assert turku.storage_run("turku-storage", "usage").output
    turku.storage_run("turku-storage", "verify", machine.uuid)

    target = tmp_path / "local"
    turku.storage_run("turku-storage", "restore", machine.uuid, "docs", "--target", str(target))
    found = describe_tree(target)
    if IS_ROOT:
        assert differences(before, found) == []
    assert set(before) == set(found)

"""Every mode keeps every kind of file with all its metadata, as an unprivileged user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.snapshots.support import (
    DAY,
    MACHINE,
    START,
    Unit,
    as_nobody,
    btrfs_volume,
    make_unit,
    nobodys_folder,
    serve,
)
from tests.support.trees import Entry, describe_tree, differences, make_odd_tree
from turku_core.storage import restore
from turku_core.storage.snapshots import get_mode

pytestmark = pytest.mark.needs_root


def check_there_and_back(tmp_path: Path, folder: Path, mode: str, volume: Path | None) -> None:
    """Back an odd tree up as nobody, change it, back up again, and restore every snapshot."""
    source = tmp_path / "source"
    make_odd_tree(source, as_root=True)
    first = describe_tree(source)
    with serve(source) as daemon:
        with as_nobody():
            make_unit(folder, volume).back_up(daemon, mode)
        _change(source)
        second = describe_tree(source)
        with as_nobody():
            make_unit(folder, volume).back_up(daemon, mode, at=START + DAY)
    unit = make_unit(folder, volume)
    ids = unit.ids()
    expected = [second] if mode == "none" else [first, second]
    assert len(ids) == len(expected)
    for number, (snapshot, tree) in enumerate(zip(ids, expected, strict=True)):
        target = tmp_path / f"restored-{number}"
        restored = unit.restore(snapshot, target)
        assert restored.ok, restored
        assert differences(tree, describe_tree(target)) == []
        check_push(unit, tmp_path, snapshot, tree)
        with as_nobody():
            folder_, record = next(
                each for each in unit.catalogue.listing().records if each[1].id == snapshot
            )
            assert get_mode(mode, unit.environment).verify(folder_, record) is None


def check_push(unit: Unit, tmp_path: Path, snapshot: str, tree: dict[bytes, Entry]) -> None:
    """Restore to a machine's writable module, as nobody."""
    target = tmp_path / f"pushed-{snapshot}"
    target.mkdir()
    with serve(target, writable=True, module="turku-restore") as daemon, as_nobody():
        chosen = restore.choose_snapshot(unit.catalogue, MACHINE, "docs", snapshot)
        restored = restore.push(chosen, daemon, unit.environment)
    assert restored.ok, restored
    assert differences(tree, describe_tree(target)) == []


def _change(source: Path) -> None:
    (source / "plain").write_text("another text\n")
    (source / "empty").unlink()
    (source / "setuid").chmod(0o755)
    os.chown(source / "private", 77, 88)
    os.setxattr(source / "folder", "user.of.folder", b"no")
    (source / "new").write_text("new\n")


@pytest.mark.parametrize("mode", ["link-dest", "borg", "none"])
def test_every_kind_of_file_comes_back_with_all_its_metadata(tmp_path: Path, mode: str) -> None:
    with nobodys_folder() as folder:
        check_there_and_back(tmp_path, folder, mode, None)


def test_every_kind_of_file_comes_back_from_btrfs(tmp_path: Path) -> None:
    with nobodys_folder() as folder, btrfs_volume() as volume:
        check_there_and_back(tmp_path, folder, "btrfs", volume)


def test_a_btrfs_snapshot_is_removed_without_privileges(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    with nobodys_folder() as folder, btrfs_volume() as volume, serve(source) as daemon:
        with as_nobody():
            unit = make_unit(folder, volume)
            record = unit.back_up(daemon, "btrfs")
            unit.back_up(daemon, "btrfs", at=START + DAY)
            place = unit.catalogue.open(MACHINE, "docs")
            unit.remove(place, record)
        assert unit.ids() == ["20260106T030000Z"]
        assert not place.tree(record.id).exists()


def test_prior_art_11_a_hostile_link_is_only_a_file_and_nothing_runs_as_root(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o777)
    source = tmp_path / "source"
    source.mkdir()
    (source / "escape").symlink_to(victim)
    with nobodys_folder() as folder, serve(source) as daemon:
        with as_nobody():
            make_unit(folder).back_up(daemon, "borg")
        (source / "escape").unlink()
        (source / "escape").mkdir()
        (source / "escape" / "planted").write_text("x")
        with as_nobody():
            unit = make_unit(folder)
            unit.back_up(daemon, "borg", at=START + DAY)
        mirror = unit.catalogue.open(MACHINE, "docs").mirror
        assert (mirror / "escape").is_dir()
        assert mirror.stat().st_uid != 0
    assert list(victim.iterdir()) == []

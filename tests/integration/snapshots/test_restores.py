"""Restores: the whole or some paths, by id, name or time, without skipping what is newer."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.snapshots.support import (
    DAY,
    MACHINE,
    START,
    Unit,
    as_nobody,
    make_unit,
    nobodys_folder,
    serve,
)
from tests.support.trees import describe_tree, differences, make_odd_tree
from turku_core.storage import restore
from turku_core.storage.catalogue import NoSuchSnapshot
from turku_core.storage.verification import Depth, verify

MODES = ["link-dest", "borg"]


def make_backups(tmp_path: Path, mode: str, count: int = 2) -> tuple[Unit, Path]:
    """Back up `count` states of a tree, a day apart; each has its number in `file`."""
    source = tmp_path / "source"
    (source / "folder" / "deep").mkdir(parents=True)
    (source / "folder").chmod(0o750)
    (source / "folder" / "deep" / "file").write_text("deep")
    (source / "-odd *name\udce9").write_text("odd")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        for number in range(count):
            (source / "file").write_text(str(number))
            unit.back_up(daemon, mode, at=START + number * DAY, path="/srv/data")
    return unit, source


def choose(unit: Unit, wanted: str) -> restore.Chosen:
    return restore.choose_snapshot(unit.catalogue, MACHINE, "docs", wanted)


def test_a_snapshot_is_chosen_by_id_name_or_time(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 3)
    ids = unit.ids()
    assert choose(unit, "latest").id == ids[2]
    assert choose(unit, ids[1]).id == ids[1]
    assert choose(unit, "2026-01-06T12:00").id == ids[1]
    assert choose(unit, "2026-01-06T03:00:00Z").id == ids[1]
    assert choose(unit, "2026-01-06T04:00:00+02:00").id == ids[0]


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "link-dest")
    with pytest.raises(NoSuchSnapshot, match="20260106T030000Z, 20260105T030000Z"):
        choose(unit, "20250101T000000Z")
    with pytest.raises(NoSuchSnapshot, match="20260105T030000Z"):
        choose(unit, "2025-01-01")
    with pytest.raises(NoSuchSnapshot, match="there is docs"):
        restore.choose_snapshot(unit.catalogue, MACHINE, "other", "latest")
    with pytest.raises(NoSuchSnapshot, match="no snapshots"):
        restore.choose_snapshot(
            unit.catalogue, "6ba7b811-9dad-41d1-80b4-00c04fd430c8", "docs", "latest"
        )


@pytest.mark.parametrize("mode", MODES)
def test_single_paths_come_with_the_attributes_of_their_folders(tmp_path: Path, mode: str) -> None:
    unit, _ = make_backups(tmp_path, mode)
    target = tmp_path / "target"
    paths = ["folder/deep/file", "/srv/data/-odd *name\udce9"]
    assert unit.restore("20260105T030000Z", target, paths).ok
    assert (target / "folder/deep/file").read_text() == "deep"
    assert (target / "-odd *name\udce9").read_text() == "odd"
    assert (target / "folder").stat().st_mode & 0o777 == 0o750
    assert not (target / "file").exists()


@pytest.mark.parametrize("mode", MODES)
def test_a_path_that_is_not_in_the_snapshot_is_said(tmp_path: Path, mode: str) -> None:
    unit, _ = make_backups(tmp_path, mode)
    with pytest.raises(NoSuchSnapshot, match=r"has no 'nowhere'; .*/srv/data"):
        unit.restore("20260105T030000Z", tmp_path / "target", ["nowhere", "file"])


@pytest.mark.parametrize("path", ["../../etc/passwd", "a/../../b", "/../x", "x\ny"])
def test_a_path_never_leads_out_of_the_snapshot(tmp_path: Path, path: str) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 1)
    with pytest.raises(ValueError, match="path"):
        unit.restore("latest", tmp_path / "target", [path])


def test_prior_art_01_a_link_in_an_old_tree_does_not_lead_a_restore_out(tmp_path: Path) -> None:
    unit = make_unit(tmp_path)
    unit.volume.path.joinpath(MACHINE, "docs.snapshots", "2026-01-01T00:00:00").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("not the machine's")
    folder, record = unit.catalogue.listing().records[0]
    (folder.tree(record.id) / "way out").symlink_to(tmp_path / "secret")
    with pytest.raises(NoSuchSnapshot, match="way out"):
        unit.restore(record.id, tmp_path / "target", ["way out/file"])
    assert unit.restore(record.id, tmp_path / "whole").ok
    assert (tmp_path / "whole" / "way out").is_symlink()


def test_a_session_that_ends_ends_its_restore(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "borg")
    (tmp_path / "machine").mkdir()
    with serve(tmp_path / "machine", writable=True, module="turku-restore") as daemon:
        done = restore.push(
            choose(unit, "20260105T030000Z"), daemon, unit.environment, cancelled=lambda: True
        )
    assert not done.ok
    assert "session ended" in done.message
    place = unit.catalogue.open(MACHINE, "docs")
    assert not any(name.startswith(".restore") for name in os.listdir(place.path))


def test_prior_art_32_the_folder_to_restore_into_is_made(tmp_path: Path) -> None:
    unit, source = make_backups(tmp_path, "link-dest")
    target = tmp_path / "a" / "b" / "target"
    assert unit.restore("latest", target).ok
    assert differences(describe_tree(source), describe_tree(target)) == []


def test_a_folder_that_is_not_empty_is_refused_unless_said(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "link-dest")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    with pytest.raises(restore.RestoreError, match="isn't empty"):
        unit.restore("latest", tmp_path / "target")
    chosen = choose(unit, "latest")
    done = restore.restore_to_folder(
        chosen, tmp_path / "target", unit.environment, into_filled_folder=True
    )
    assert done.ok
    assert (tmp_path / "target" / "mine").read_text() == "mine"


def test_prior_art_33_files_that_are_newer_are_replaced_too(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "borg")
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "file").write_text("corrupted, and newer")
    os.utime(machine / "file", (4e9, 4e9))
    with serve(machine, writable=True, module="turku-restore") as daemon:
        done = restore.push(choose(unit, "latest"), daemon, unit.environment)
    assert done.ok
    assert (machine / "file").read_text() == "1"


def test_prior_art_33_a_corruption_that_keeps_size_and_time_is_found_by_checksum(
    tmp_path: Path,
) -> None:
    unit, source = make_backups(tmp_path, "link-dest")
    machine = tmp_path / "machine"
    machine.mkdir()
    with serve(machine, writable=True, module="turku-restore") as daemon:
        assert restore.push(choose(unit, "latest"), daemon, unit.environment).ok
        status = (machine / "file").stat()
        (machine / "file").write_text("X")
        os.utime(machine / "file", ns=(status.st_atime_ns, status.st_mtime_ns))
        done = restore.push(choose(unit, "latest"), daemon, unit.environment, checksum=True)
    assert (done.ok, done.files) == (True, 1)
    assert (machine / "file").read_text() == (source / "file").read_text()


def test_a_dry_run_tells_what_would_change_and_changes_nothing(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "borg")
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "file").write_text("other text")
    told: list[str] = []
    with serve(machine, writable=True, module="turku-restore") as daemon:
        done = restore.push(
            choose(unit, "20260105T030000Z"),
            daemon,
            unit.environment,
            paths=["file", "folder"],
            dry_run=True,
            on_change=told.append,
        )
    assert done.ok
    assert list(done.changes) == told
    assert [line.split(" ", 1)[1] for line in told] == [
        "file",
        "folder/",
        "folder/deep/",
        "folder/deep/file",
    ]
    assert (machine / "file").read_text() == "other text"
    assert os.listdir(machine) == ["file"]


def test_the_newest_borg_snapshot_is_restored_from_the_mirror(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "borg")
    place = unit.catalogue.open(MACHINE, "docs")
    with restore.open_snapshot(choose(unit, "latest"), unit.environment) as tree:
        assert tree == place.mirror
    with restore.open_snapshot(choose(unit, "20260105T030000Z"), unit.environment) as tree:
        assert tree != place.mirror
        assert (tree / "file").read_text() == "0"
    assert not any(name.startswith(".restore") for name in os.listdir(place.path))


def test_a_mirror_that_is_being_changed_is_not_restored_from(tmp_path: Path) -> None:
    unit, source = make_backups(tmp_path, "borg")
    (source / "file").write_text("half done")
    with serve(source) as daemon:
        unit.receive(daemon, "borg", at=START + 5 * DAY)
    assert unit.restore("latest", tmp_path / "latest").ok
    assert (tmp_path / "latest" / "file").read_text() == "1"
    assert unit.restore("mirror", tmp_path / "mirror").ok
    assert (tmp_path / "mirror" / "file").read_text() == "half done"


def test_a_lone_mirror_is_restored_by_its_id_until_the_next_pull(tmp_path: Path) -> None:
    unit, source = make_backups(tmp_path, "none")
    assert unit.restore("20260106T030000Z", tmp_path / "one").ok
    with serve(source) as daemon:
        unit.receive(daemon, "none", at=START + timedelta(days=3))
    assert unit.ids() == []
    with pytest.raises(NoSuchSnapshot):
        choose(unit, "20260106T030000Z")
    assert unit.restore("mirror", tmp_path / "two").ok


@pytest.mark.needs_root
def test_a_user_restores_as_much_as_the_kernel_allows_and_is_told(tmp_path: Path) -> None:
    make_odd_tree(tmp_path / "source", as_root=True)
    with nobodys_folder() as folder, serve(tmp_path / "source") as daemon:
        with as_nobody():
            unit = make_unit(folder)
            unit.back_up(daemon, "link-dest")
            done = unit.restore("latest", folder / "target")
        assert done.ok
        assert "root only" in done.message
        expected = describe_tree(tmp_path / "source", attributes=False)
        found = describe_tree(folder / "target", attributes=False)
        assert expected.keys() - found.keys() == {b"null device", b"block device"}
        for path, entry in found.items():
            assert entry.kind == expected[path].kind
            assert entry.content == expected[path].content
            assert entry.link_target == expected[path].link_target
            assert entry.mtime_ns == expected[path].mtime_ns


@pytest.mark.needs_root
def test_root_leaves_nothing_on_the_volume_that_the_unit_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with nobodys_folder() as folder, serve(tmp_path / "source") as daemon:
        with as_nobody():
            unit = make_unit(folder)
            first = unit.back_up(daemon, "borg")
            unit.back_up(daemon, "borg", at=START + DAY)
        assert unit.restore(first.id, tmp_path / "target").ok
        assert unit.restore("latest", tmp_path / "latest").ok
        owners = {path.lstat().st_uid for path in folder.rglob("*")}
        assert owners == {65534}
        with as_nobody():
            unit.back_up(daemon, "borg", at=START + 2 * DAY)


@pytest.mark.parametrize("mode", ["link-dest", "borg"])
def test_paths_that_begin_like_a_comment_are_restored_too(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "source"
    names = ("#first", "; second/inside", "third")
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        record = unit.back_up(daemon, mode)
        unit.back_up(daemon, mode, at=START + DAY)
    restored = unit.restore(record.id, tmp_path / "restored", ["#first", "; second/inside"])
    assert restored.ok
    assert restored.files == 2
    assert sorted(os.listdir(tmp_path / "restored")) == ["#first", "; second"]
    assert (tmp_path / "restored/; second/inside").read_text() == "; second/inside"
    for depth in Depth:
        folder = unit.catalogue.open(MACHINE, "docs")
        now = START + 2 * DAY
        verdict = verify(unit.catalogue, folder, record, unit.environment, now, depth=depth)
        assert verdict.proven, verdict

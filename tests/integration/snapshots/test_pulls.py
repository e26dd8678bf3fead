"""What a pull brings, what it says when it doesn't, and that snapshots never change."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.integration.snapshots.support import (
    DAY,
    MACHINE,
    START,
    as_nobody,
    make_unit,
    nobodys_folder,
    serve,
)
from tests.support.trees import acl, describe_tree, differences
from turku_core.storage import mirror
from turku_core.storage.mirror import Daemon, Outcome, PullOptions, Target
from turku_core.storage.snapshots import CommitPending, commit, get_mode, resolve_mode
from turku_core.storage.snapshots import ModeUnavailable as Unavailable

NO_ID = 0xFFFFFFFF

ODD_NAMES = (
    "file",
    "#1",
    "; 2",
    "line\nline",
    "w*[ild]?\\",
    "back\\slash\\",
    "\\#012",
    "caf\udce9",
    " ",
    "- *",
    "\x1b[31mred",
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_rules_leave_out_and_keep(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("keep", "a.tmp", "cache/x", "cache/keep.me", "#comment", "latin-\udce9"):
        write(source / name, name.encode("utf-8", "surrogateescape").hex())
    options = PullOptions(
        filter=("+ /cache/keep.me", "- /cache/*"), exclude=("*.tmp", "#comment", "latin-\udce9")
    )
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        unit.back_up(daemon, "borg")
        assert (unit.catalogue.open(MACHINE, "docs").mirror / "a.tmp").exists()
        unit.back_up(daemon, "borg", at=START + DAY, options=options)
    left = describe_tree(unit.catalogue.open(MACHINE, "docs").mirror)
    assert set(left) == {b".", b"keep", b"cache", b"cache/keep.me"}


@pytest.mark.needs_root
def test_what_could_be_read_is_kept_and_the_record_says_partial(tmp_path: Path) -> None:
    with nobodys_folder() as folder:
        source = folder / "source"
        write(source / "open", "x")
        write(source / "closed", "x")
        (source / "closed").chmod(0)
        os.chown(source / "closed", 0, 0)
        with as_nobody(), serve(source) as daemon:
            record = make_unit(folder).back_up(daemon, "link-dest")
    assert record.partial
    assert not record.good
    assert "Permission denied" in record.summary
    assert "closed" in record.summary


def test_a_path_that_is_missing_is_said(tmp_path: Path) -> None:
    with serve(tmp_path / "nowhere") as daemon:
        _, received = make_unit(tmp_path).receive(daemon, "borg")
    assert received.outcome is Outcome.FAILED
    assert "path isn't there" in received.message


def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon:
        wrong = Daemon(daemon.port, daemon.module, daemon.username, "wrong")
        _, received = make_unit(tmp_path / "unit").receive(wrong, "borg")
    assert received.outcome is Outcome.FAILED
    assert "password" in received.message


def test_nobody_there_means_later(tmp_path: Path) -> None:
    with serve(tmp_path) as daemon:
        pass
    _, received = make_unit(tmp_path / "unit").receive(daemon, "borg")
    assert received.outcome is Outcome.LATER


def test_a_session_that_ends_takes_rsync_with_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        file.write(os.urandom(8 * 1024 * 1024))
    target = tmp_path / "target"
    target.mkdir()
    ended = threading.Event()
    threading.Timer(0.5, ended.set).start()
    with serve(source) as daemon:
        began = time.monotonic()
        received = mirror.pull(
            daemon, Target(target), PullOptions(bwlimit="100k"), cancelled=ended.is_set
        )
        assert time.monotonic() - began < 10
    assert received.outcome is Outcome.LATER
    running = subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, text=True, check=True)
    assert f"{daemon.port}/docs" not in running.stdout


@pytest.mark.needs_root
def test_a_full_volume_is_said_and_what_was_there_stays(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "small"
    place.mkdir()
    write(source / "one", "x")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], check=True)
    try:
        unit = make_unit(tmp_path, place)
        with serve(source) as daemon:
            record = unit.back_up(daemon, "link-dest")
            (source / "large").write_bytes(os.urandom(8 * 1024 * 1024))
            _, received = unit.receive(daemon, "link-dest", at=START + DAY)
        assert received.outcome is Outcome.FAILED
        assert "volume is full" in received.message
        assert unit.ids() == [record.id]
        assert unit.restore(record.id, tmp_path / "restored").ok
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_pull_never_changes_a_snapshot(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "same", "same")
    write(source / "mode", "mode")
    os.link(source / "same", source / "link")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        first = unit.back_up(daemon, "link-dest")
        place = unit.catalogue.open(MACHINE, "docs")
        before = describe_tree(place.tree(first.id), attributes=True)
        (source / "mode").chmod(0o600)
        os.utime(source / "link", ns=(1, 1))
        unit.back_up(daemon, "link-dest", at=START + DAY)
        unit.back_up(daemon, "borg", at=START + 2 * DAY)
        (source / "mode").chmod(0o644)
        unit.back_up(daemon, "none", at=START + 3 * DAY)
    after = describe_tree(place.tree(first.id))
    assert differences(before, after) == []


def test_unchanged_files_share_their_inode_with_the_snapshot_before(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "same", "same")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        records = [unit.back_up(daemon, "link-dest", at=START + n * DAY) for n in range(3)]
    place = unit.catalogue.open(MACHINE, "docs")
    inodes = {(place.tree(record.id) / "same").stat().st_ino for record in records}
    assert len(inodes) == 1
    assert records[-1].bytes_stored == 0


def test_what_a_broken_off_pull_brought_is_not_pulled_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(8):
        (source / "d").mkdir(parents=True, exist_ok=True)
        (source / "d" / f"{number}").write_bytes(os.urandom(1024 * 1024))
    unit = make_unit(tmp_path)
    place = unit.catalogue.open(MACHINE, "docs")
    mode = get_mode("link-dest", unit.environment)
    ended = threading.Event()
    with serve(source) as daemon:
        with place.lock():
            target = mode.prepare(place)
            threading.Timer(3.0, ended.set).start()
            slow = PullOptions(bwlimit="1m")
            received = mirror.pull(daemon, target, slow, cancelled=ended.is_set)
        assert not received.usable
        came = len(list((target.folder / "d").glob("[0-9]")))
        assert came > 0
        record = unit.back_up(daemon, "link-dest")
    assert record.bytes_stored is not None
    assert record.bytes_stored <= (8 - came) * 1024 * 1024
    left = [name for name in os.listdir(place.path) if name.startswith("mirror")]
    assert left == []


def test_a_mirror_waits_until_its_commit_is_done(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "file", "x")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        place, _ = unit.receive(daemon, "borg")
        with pytest.raises(CommitPending):
            unit.receive(daemon, "borg", at=START + DAY)
        commit(unit.catalogue, place, unit.environment)
        unit.back_up(daemon, "borg", at=START + DAY)
    assert len(unit.ids()) == 2
    assert commit(unit.catalogue, place, unit.environment) is None


def test_two_sources_of_a_machine_share_a_repository_and_not_their_names(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "file", "x")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        for name in ("a", "a-b"):
            unit.back_up(daemon, "borg", source=name)
    borg = get_mode("borg", unit.environment)
    for name in ("a", "a-b"):
        assert list(borg.list(unit.catalogue.open(MACHINE, name))) == ["20260105T030000Z"]


def test_the_mode_is_the_sources_wish_or_the_units(tmp_path: Path) -> None:
    def mode(wish: str | None, default: str = "link-dest", large: bool = False) -> str:
        return resolve_mode(wish, default, large_files=large, volume_path=tmp_path)

    assert mode(None) == "link-dest"
    assert mode("attic") == "borg"
    assert mode("link-dest", "borg") == "link-dest"
    assert mode("link-dest", large=True) == "borg"
    assert mode(None, large=True) == "borg"
    assert mode("none", large=True) == "none"
    with pytest.raises(Unavailable, match="isn't a btrfs"):
        mode("btrfs")


MODES = ["link-dest", "borg", "none"]


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", MODES)
def test_files_that_are_no_longer_one_come_back_as_two(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "source"
    for name in ("apart", "together", "alone"):
        write(source / name, name)
        os.link(source / name, source / f"{name} too")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        unit.back_up(daemon, mode)
        for name in ("apart", "alone"):
            # As `cp -p` does: the content and the time are what they were.
            shutil.copy2(source / name, source / "new")
            (source / "new").rename(source / f"{name} too")
        (source / "apart too").chmod(0o4711)
        for number in (1, 2):
            unit.back_up(daemon, mode, at=START + number * DAY)
            assert unit.restore("latest", tmp_path / f"{number}").ok
            assert differences(describe_tree(source), describe_tree(tmp_path / f"{number}")) == []


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", MODES)
def test_an_acl_is_kept_beside_attributes_that_change(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "source"
    for name in ODD_NAMES:
        write(source / "fol*der\\" / name, "x")
    folders = [source, source / "fol*der\\"]
    access = acl((1, 6, NO_ID), (2, 6, 1000), (4, 4, NO_ID), (16, 6, NO_ID), (32, 0, NO_ID))
    for path in (*folders, *folders[1].iterdir()):
        os.setxattr(path, "system.posix_acl_access", access)
    for path in folders:
        os.setxattr(path, "system.posix_acl_default", access)
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        for number in range(3):
            for path in (*folders, *folders[1].iterdir()):
                os.setxattr(path, "user.number", b"%d" % number)
            unit.back_up(daemon, mode, at=START + number * DAY)
            assert unit.restore("latest", tmp_path / f"{number}").ok
            assert differences(describe_tree(source), describe_tree(tmp_path / f"{number}")) == []


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", MODES)
def test_the_owning_groups_rights_in_an_acl_are_kept_when_the_mode_changes(
    tmp_path: Path, mode: str
) -> None:
    source = tmp_path / "source"
    write(source / "folder" / "file", "x")
    access = acl((1, 6, NO_ID), (2, 7, 1000), (4, 0, NO_ID), (16, 0, NO_ID), (32, 0, NO_ID))
    for path in (source / "folder", source / "folder" / "file"):
        os.setxattr(path, "system.posix_acl_access", access)
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        for number, rights in enumerate([0o600, 0o660, 0o640]):
            for path in (source / "folder", source / "folder" / "file"):
                path.chmod(rights)  # where there is an ACL, the group's are its mask
            unit.back_up(daemon, mode, at=START + number * DAY)
            assert unit.restore("latest", tmp_path / f"{number}").ok
            assert differences(describe_tree(source), describe_tree(tmp_path / f"{number}")) == []


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", MODES)
def test_any_change_of_rights_comes_back(tmp_path: Path, mode: str) -> None:
    dice = random.Random(mode)
    source = tmp_path / "source"
    for number in range(300):
        name = ODD_NAMES[number % len(ODD_NAMES)]
        top = source / f"{number % 3}"
        if number % 2:
            write(top / f"{name}{number}", "x")
        else:
            (top / f"{name}{number}").mkdir(parents=True)
    unit = make_unit(tmp_path)
    trees = {}
    with serve(source) as daemon:
        for number in range(4):
            for path in sorted(source.glob("*/*")):
                change_rights(path, dice)
            record = unit.back_up(daemon, mode, at=START + number * DAY)
            trees[record.id] = describe_tree(source)
            assert unit.restore("latest", tmp_path / f"{number}").ok
            assert differences(trees[record.id], describe_tree(tmp_path / f"{number}")) == []
    # What changed in one snapshot changed in none before it.
    for snapshot in unit.ids() if mode != "none" else []:
        assert unit.restore(snapshot, tmp_path / snapshot).ok
        assert differences(trees[snapshot], describe_tree(tmp_path / snapshot)) == []


def change_rights(path: Path, dice: random.Random) -> None:
    """Change what may be changed of who may do what: little, so that much stays what it was."""
    group, mask = dice.choice([0, 2, 6]), dice.choice([2, 6])
    named = [(dice.choice([2, 8]), 4, 1000)] * dice.randrange(2)
    entries = [(1, 6, NO_ID), *named, (4, group, NO_ID), (16, mask, NO_ID), (32, 0, NO_ID)]
    for kind in ("access", "default") if path.is_dir() else ("access",):
        change = dice.randrange(4)
        if change == 0:
            with contextlib.suppress(OSError):
                os.removexattr(path, f"system.posix_acl_{kind}")
        elif change < 3:
            os.setxattr(path, f"system.posix_acl_{kind}", acl(*sorted(entries)))
    if dice.randrange(4) == 0:
        path.chmod(dice.choice([0o600, 0o620, 0o640, 0o660, 0o666, 0o1660, 0o4660, 0o7622]))
    if dice.randrange(4) == 0:
        os.setxattr(path, "user.number", b"%d" % dice.randrange(1000))
    if dice.randrange(8) == 0:
        os.chown(path, dice.randrange(3), dice.randrange(3))


@pytest.mark.parametrize("mode", MODES)
def test_any_time_comes_back(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "source"
    for moment in (-(10**18), -1, 0, 2**31 * 10**9, 4 * 10**18):
        write(source / f"{moment}", "x")
        os.utime(source / f"{moment}", ns=(moment, moment))
    os.utime(source, ns=(-5, -5))
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        first = unit.back_up(daemon, mode)
        if mode != "none":
            unit.back_up(daemon, mode, at=START + DAY)  # else it is the mirror that is restored
    assert unit.restore(first.id, tmp_path / "restored").ok
    for path in (source, *source.iterdir()):
        restored = tmp_path / "restored" / path.relative_to(source)
        assert restored.stat().st_mtime_ns == path.stat().st_mtime_ns

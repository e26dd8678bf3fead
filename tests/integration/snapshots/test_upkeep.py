"""Expiry, verification and convergence on real snapshots, in both layouts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
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
from turku_core.storage import expiry, trouble, verification
from turku_core.storage.records import Record
from turku_core.storage.snapshots import SnapshotError, converge, get_mode
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import RESERVE, Volumes

GRACE = timedelta(days=7)


def make_backups(
    tmp_path: Path, mode: str, count: int, *, retention: str = "last 3 days"
) -> tuple[Unit, SourceFolder]:
    """Back up `count` states of a tree, a day apart."""
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    (source / "same").write_text("same " * 1000)
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        for number in range(count):
            (source / "file").write_text(f"{number} " * 1000)
            unit.back_up(daemon, mode, at=START + number * DAY, retention=retention)
    return unit, unit.catalogue.open(MACHINE, "docs")


def states(report: expiry.ExpiryReport) -> list[tuple[str, str]]:
    return [(change.record.id[6:8], change.state) for change in report.changes]


def expire(unit: Unit, days: float, **values: object) -> expiry.ExpiryReport:
    return expiry.run(
        unit.catalogue,
        unit.environment,
        START + days * DAY,
        trust_clock=True,
        **values,  # type: ignore[arg-type] # checked there
    )


@pytest.mark.parametrize("mode", ["link-dest", "borg"])
def test_what_the_policy_drops_expires_first_and_is_removed_after_the_grace(
    tmp_path: Path, mode: str
) -> None:
    unit, place = make_backups(tmp_path, mode, 5)
    report = expire(unit, 4.1)
    assert states(report) == [("05", "expired"), ("06", "expired")]
    assert report.problems == ()
    assert len(unit.ids()) == 5
    assert expire(unit, 11).changes == ()
    assert unit.restore("20260105T030000Z", tmp_path / "restored").ok
    assert states(expire(unit, 11.2)) == [("05", "removed"), ("06", "removed")]
    assert unit.ids() == ["20260107T030000Z", "20260108T030000Z", "20260109T030000Z"]
    assert sorted(get_mode(mode, unit.environment).list(place)) == unit.ids()


def test_a_longer_policy_takes_back_what_has_expired(tmp_path: Path) -> None:
    unit, place = make_backups(tmp_path, "link-dest", 5)
    expire(unit, 4.1)
    state = place.state()
    place.write_state(type(state)(retention="last 30 days"))
    assert states(expire(unit, 5)) == [("05", "committed"), ("06", "committed")]
    assert all(record.expired_at is None for _, record in unit.catalogue.listing().records)


def test_prior_art_19_a_full_volume_heals_without_a_new_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 6)
    expire(unit, 5.1)
    monkeypatch.setattr(
        Volumes, "over_high_water", lambda self, volume: "20260105T030000Z" in unit.ids()
    )
    assert states(expire(unit, 5.2)) == [("05", "removed")]
    assert len(unit.ids()) == 5


def test_prior_art_04_an_agents_policy_never_takes_the_newest_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 5, retention="last 1 snapshots")
    monkeypatch.setattr(Volumes, "over_high_water", lambda self, volume: True)
    for days in (4.1, 5, 100):
        expire(unit, days)
    assert len(unit.ids()) == 3


def test_prior_art_18_on_a_clock_that_has_jumped_nothing_expires_or_is_removed(
    tmp_path: Path,
) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 5)
    expiry.run(unit.catalogue, unit.environment, START + 4 * DAY)
    report = expiry.run(unit.catalogue, unit.environment, START + 404 * DAY)
    assert report.changes == ()
    assert any("jumped ahead" in sentence for sentence in report.held)


def test_a_dry_run_only_tells(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 5)
    assert len(expire(unit, 4.1, dry_run=True).changes) == 2
    assert all(record.expired_at is None for _, record in unit.catalogue.listing().records)


def test_a_bare_mirror_is_told_of_as_removed_once_it_has_been_pulled_to_again(
    tmp_path: Path,
) -> None:
    unit, _ = make_backups(tmp_path, "none", 3)
    told: list[expiry.Change] = []
    first, second, newest = (f"{START + number * DAY:%d}" for number in range(3))
    # It is no doing of expiry's.
    assert states(expire(unit, 2.1, tell=told.append)) == []
    assert [(change.record.id[6:8], change.state) for change in told] == [
        (first, "removed"), (second, "removed"),
    ]  # fmt: skip
    assert [snapshot[6:8] for snapshot in unit.ids()] == [newest]
    expire(unit, 2.2, tell=told.append)
    assert len(told) == 2


def test_what_a_killed_borg_left_of_a_lock_is_gone_with_the_next_snapshot(tmp_path: Path) -> None:
    unit, place = make_backups(tmp_path, "borg", 1)
    base = unit.environment.state_folder / "borg"
    [cache] = (base / ".cache/borg").glob("?" * 64)
    [security] = (base / ".config/borg/security").glob("?" * 64)
    (security / "location-ab12cd34.tmp").touch()
    # A transaction of borg's cache that had just begun.
    (cache / "txn.tmp").mkdir()
    (cache / "txn.tmp/files.borg").touch()
    for folder in (place.repository, cache):
        (folder / "lock.exclusive.ab12cd34.tmp").mkdir()
        (folder / "lock.exclusive.ef56gh78.tmp").mkdir()
        (folder / "lock.exclusive.ef56gh78.tmp/turku@host.999999999-0").touch()
    make_backups(tmp_path, "borg", 1)
    assert len(unit.ids()) == 2
    assert [each for folder in (place.repository, base) for each in folder.rglob("*.tmp")] == []


def test_a_snapshot_that_is_being_restored_from_is_not_removed(tmp_path: Path) -> None:
    unit, place = make_backups(tmp_path, "link-dest", 5)
    record = unit.catalogue.records(place)[0][0]
    mode = get_mode("link-dest", unit.environment)
    with mode.open_for_restore(place, record) as tree:
        report = expire(unit, 4.1, remove_now=True)
        assert (tree / "file").exists()
    assert any("restored from" in sentence for sentence in report.held)
    assert len(unit.ids()) == 5
    expire(unit, 4.2, remove_now=True)
    assert len(unit.ids()) == 3


def test_prior_art_25_one_source_that_cannot_be_handled_stops_no_other(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 5)
    bad = unit.catalogue.open(MACHINE, "another")
    bad.write_state(type(bad.state())(retention="keep it all please"))
    bad.tree("20260101T000000Z").mkdir()
    report = expire(unit, 4.1)
    assert states(report) == [("05", "expired"), ("06", "expired")]
    assert any("another" in problem for problem in report.problems)


@pytest.mark.parametrize("mode", ["link-dest", "borg"])
def test_prior_art_25_a_lost_or_broken_record_is_written_anew(tmp_path: Path, mode: str) -> None:
    unit, place = make_backups(tmp_path, mode, 3)
    (place.snapshots / "20260105T030000Z.json").unlink()
    (place.snapshots / "20260106T030000Z.json").write_text("{")
    done = converge(unit.catalogue, place, unit.environment)
    assert len(done) == 2
    records, problems = unit.catalogue.records(place)
    assert problems == []
    assert [(record.id[6:8], record.recovered) for record in records] == [
        ("05", True),
        ("06", True),
        ("07", False),
    ]
    assert unit.restore("20260105T030000Z", tmp_path / "restored").ok
    assert converge(unit.catalogue, place, unit.environment) == []


def test_prior_art_20_left_overs_are_swept(tmp_path: Path) -> None:
    unit, place = make_backups(tmp_path, "link-dest", 1)
    (place.snapshots / ".removing-20260101T000000Z" / "sub").mkdir(parents=True)
    (place.path / ".restore-abc" / "sub").mkdir(parents=True)
    (place.snapshots / ".x.json.0123456789abcdef.tmp").write_text("{")
    assert len(converge(unit.catalogue, place, unit.environment)) == 3
    assert not any(name.startswith(".") for name in os.listdir(place.snapshots))


def verify(unit: Unit, place: SourceFolder, record: Record) -> verification.Verdict:
    return verification.verify(unit.catalogue, place, record, unit.environment, START + 10 * DAY)


@pytest.mark.parametrize("mode", ["link-dest", "borg", "none"])
def test_a_sound_snapshot_is_proven(tmp_path: Path, mode: str) -> None:
    unit, place = make_backups(tmp_path, mode, 1)
    record = unit.catalogue.records(place)[0][0]
    verdict = verify(unit, place, record)
    assert verdict.damaged is None
    assert verdict.files_drilled == 2
    assert unit.catalogue.records(place)[0][0].proven_at == START + 10 * DAY
    assert not any(name.startswith(".restore") for name in os.listdir(place.path))


@pytest.mark.needs_root  # who backs up what nobody may read
@pytest.mark.parametrize("mode", ["link-dest", "borg", "none"])
def test_a_snapshot_of_files_that_their_owner_may_not_read_is_proven(
    tmp_path: Path, mode: str
) -> None:
    (tmp_path / "source" / "folder").mkdir(parents=True)
    for path in (tmp_path / "source" / "folder" / "file", tmp_path / "source" / "file"):
        path.write_text("for root\n")
        path.chmod(0)
    (tmp_path / "source" / "folder").chmod(0)
    with nobodys_folder() as home:
        with serve(tmp_path / "source") as daemon, as_nobody():
            unit = make_unit(home)
            record = unit.back_up(daemon, mode)
            verify(unit, unit.catalogue.open(MACHINE, "docs"), record)
        with as_nobody(reading=False):
            verdict = verify(unit, unit.catalogue.open(MACHINE, "docs"), record)
    assert verdict.damaged is None
    assert verdict.files_drilled == 2


@pytest.mark.parametrize("what", ["content", "attributes", "missing", "added"])
def test_damage_to_a_tree_is_found(tmp_path: Path, what: str) -> None:
    unit, place = make_backups(tmp_path, "link-dest", 1)
    record = unit.catalogue.records(place)[0][0]
    file = place.tree(record.id) / "same"
    status = file.stat()
    if what == "content":
        file.write_text("S" + file.read_text()[1:])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif what == "attributes":
        os.setxattr(file, "user.rsync.%stat", b"104755 0,0 0:0")
    elif what == "missing":
        file.unlink()
    else:
        (place.tree(record.id) / "added").write_text("x")
    verdict = verify(unit, place, record)
    assert verdict.damaged is not None
    assert ("added" if what == "added" else "same") in verdict.damaged
    damaged = unit.catalogue.records(place)[0][0]
    assert damaged.damaged == verdict.damaged
    assert not damaged.good


def test_damage_that_was_found_does_not_go_on_into_the_next_snapshot(tmp_path: Path) -> None:
    unit, place = make_backups(tmp_path, "link-dest", 1)
    record = unit.catalogue.records(place)[0][0]
    file = place.tree(record.id) / "same"
    status = file.stat()
    file.write_text("S" + file.read_text()[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert verify(unit, place, record).damaged is not None
    with serve(tmp_path / "source") as daemon:
        new = unit.back_up(daemon, "link-dest", at=START + DAY)
    assert (place.tree(new.id) / "same").read_text() == "same " * 1000
    assert (place.tree(new.id) / "file").stat().st_nlink == 2


def test_damage_to_a_repository_is_found(tmp_path: Path) -> None:
    unit, place = make_backups(tmp_path, "borg", 1)
    record = unit.catalogue.records(place)[0][0]
    segment = max((place.repository / "data" / "0").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    assert verify(unit, place, record).damaged is not None


def test_the_old_layout_is_restored_verified_and_expired_with_the_new(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "link-dest", 3)
    old = unit.volume.path / MACHINE / "docs.snapshots"
    for day in range(1, 5):
        tree = old / f"2026-01-0{day}T03:00:00.123456"
        tree.mkdir(parents=True)
        (tree / "file").write_text(f"old {day}")
    (old / "2026-01-01T03:00:00.123456.json").write_text(json.dumps({"summary": "as it was"}))
    assert len(unit.ids()) == 7
    assert unit.restore("2026-01-02T12:00", tmp_path / "restored").ok
    assert (tmp_path / "restored" / "file").read_text() == "old 2"
    folder, record = unit.catalogue.listing().records[0]
    assert verify(unit, folder, record).damaged is None
    report = expire(unit, 2.1)
    assert [state for _, state in states(report)] == ["expired"] * 4
    kept = json.loads((old / "2026-01-01T03:00:00.123456.json").read_text())
    assert kept["summary"] == "as it was"
    expire(unit, 12)
    assert unit.ids() == ["20260105T030000Z", "20260106T030000Z", "20260107T030000Z"]
    assert [name for name in os.listdir(old) if not name.startswith(".")] == []


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", ["borg", "link-dest"])
def test_prior_art_19_a_volume_without_a_byte_left_heals(tmp_path: Path, mode: str) -> None:
    place, source = tmp_path / "small", tmp_path / "source"
    place.mkdir()
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900m", "none", place], check=True)
    try:
        unit = make_unit(tmp_path, place)
        with serve(source) as daemon:
            for number in range(6):
                (source / "file").write_bytes(os.urandom(4 * 1024 * 1024))
                at = START + number * DAY
                unit.back_up(daemon, mode, at=at, retention="last 1 snapshots")
        expire(unit, 5.1)
        assert (place / RESERVE).exists()
        with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(65536))
        assert os.statvfs(place).f_bavail == 0
        report = expire(unit, 13)
        assert report.problems == ()
        assert [state for _, state in states(report)] == ["removed"] * 3
        assert len(unit.ids()) == 3
        assert os.statvfs(place).f_bavail * os.statvfs(place).f_frsize > 12 * 1024 * 1024
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.needs_root
def test_what_borg_failed_at_is_said_and_a_volume_in_trouble_is_known_by_it(tmp_path: Path) -> None:
    unit, folder = make_backups(tmp_path, "borg", 1)
    before = trouble.incarnation(unit.environment.state_folder, folder.volume.name)
    place = folder.volume.path
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        with (
            pytest.raises(SnapshotError, match=r"borg failed: .*Read-only file system"),
            trouble.noticed(unit.environment.state_folder, folder.volume.name),
        ):
            get_mode("borg", unit.environment).list(folder)
    finally:
        subprocess.run(["umount", place], check=True)
    assert trouble.incarnation(unit.environment.state_folder, folder.volume.name) != before


def test_a_cache_of_borgs_that_a_power_cut_has_emptied_is_made_anew(tmp_path: Path) -> None:
    unit, _ = make_backups(tmp_path, "borg", 4)
    expire(unit, 3.1)
    for name in ("config", "chunks"):
        [file] = unit.environment.state_folder.glob(f"borg/.cache/borg/*/{name}")
        file.write_bytes(b"")
    report = expire(unit, 10.2)
    assert report.problems == ()
    assert states(report) == [("05", "removed")]

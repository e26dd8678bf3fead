"""The catalogue: records that survive, places that are remembered, names that stay inside."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from turku_core.storage.catalogue import Catalogue
from turku_core.storage.links import file_name, readable_name
from turku_core.storage.records import Pending, Record, SourceState, time_of_id
from turku_core.storage.source_folder import Readable, SourceBusy, SourceFolder
from turku_core.storage.volumes import Volume, VolumeNotMounted, Volumes

MACHINE = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
OTHER = "6ba7b811-9dad-41d1-80b4-00c04fd430c8"
START = datetime(2026, 1, 5, 3, 0, 0, 123456, tzinfo=timezone.utc)
ID = "20260105T030000Z"


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    for name in ("one", "two", "state"):
        (tmp_path / name).mkdir()
    places = [
        Volume(name, tmp_path / name, high_water_pct=101, accept_new=name == "one")
        for name in ("one", "two")
    ]
    return Catalogue(Volumes(places, tmp_path / "state"), tmp_path / "state")


def make_record(**values: object) -> Record:
    record = Record(MACHINE, "docs", ID, START, START + timedelta(minutes=1), "borg")
    return replace(record, **values)  # type: ignore[arg-type] # checked by the dataclass


def test_a_record_comes_back_as_it_was_written(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    record = make_record(
        partial=True, summary="two\nlines", bytes_total=2**41, expired_at=START, previous_at=START
    )
    catalogue.write(folder, record)
    assert catalogue.records(folder) == ([record], [])
    assert catalogue.machines() == [MACHINE]


def test_what_another_version_added_to_a_record_stays(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    file = folder.snapshots / f"{ID}.json"
    file.write_text(json.dumps({**make_record().to_json(), "from_the_future": 1}))
    catalogue.write(folder, make_record(expired_at=START))
    assert json.loads(file.read_text())["from_the_future"] == 1


def test_a_volume_is_in_use_when_a_source_has_its_place_there(catalogue: Catalogue) -> None:
    assert catalogue.volumes_in_use() == set()
    catalogue.open(MACHINE, "docs")
    catalogue.open(OTHER, "docs")
    (catalogue.state_folder.parent / "one").rename(catalogue.state_folder.parent / "unmounted")
    assert catalogue.volumes_in_use() == {"one"}


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        "null",
        '{"taken_at": "yesterday"}',
        json.dumps({**make_record().to_json(), "bytes_total": -1}),
        json.dumps({**make_record().to_json(), "taken_at": "2026-01-05T03:00:00"}),
    ],
)
def test_prior_art_25_one_broken_record_stops_no_other_and_is_not_lost(
    catalogue: Catalogue, broken: str
) -> None:
    first, second = catalogue.open(MACHINE, "broken"), catalogue.open(MACHINE, "docs")
    (first.snapshots / f"{ID}.json").write_text(broken)
    catalogue.write(second, make_record())
    listing = catalogue.listing()
    assert [(record.source, record.recovered) for _, record in listing.records] == [
        ("broken", True),
        ("docs", False),
    ]
    assert listing.records[0][1].taken_at == START.replace(microsecond=0)
    assert "broken" in listing.problems[0]


def test_prior_art_25_a_tree_without_a_record_counts_and_is_reported(
    catalogue: Catalogue,
) -> None:
    folder = catalogue.open(MACHINE, "docs")
    folder.tree(ID).mkdir()
    records, problems = catalogue.records(folder)
    assert [record.id for record in records] == [ID]
    assert not records[0].good
    assert "missing" in problems[0]


def test_a_tree_that_waits_for_its_commit_is_not_listed(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    folder.write_pending(Pending(make_record(mode="link-dest"), "boot"))
    folder.tree(ID).mkdir()
    assert catalogue.records(folder) == ([], [])
    assert catalogue.pending() == [folder]
    folder.clear_pending()
    assert catalogue.pending() == []


def test_a_record_without_its_tree_is_damaged(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    catalogue.write(folder, make_record(mode="link-dest"))
    records, problems = catalogue.records(folder)
    assert records[0].damaged == "Its files are gone."
    assert len(problems) == 1


def test_what_is_being_removed_is_not_listed(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    catalogue.write(folder, make_record(removing=True))
    assert catalogue.records(folder) == ([], [])


def test_a_bare_mirror_is_listed_only_as_long_as_it_has_not_changed(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    catalogue.write(folder, make_record(mode="none"))
    assert catalogue.records(folder) == ([], [])
    folder.write_state(SourceState(mirror_id=ID))
    assert [record.id for record in catalogue.records(folder)[0]] == [ID]


@pytest.mark.parametrize(
    "name", ["../../../root/.ssh", "a/b", "/etc", "..", "", ".borg", "a\nb", "-x", "a" * 65]
)
def test_prior_art_01_no_source_name_leads_out_of_the_volume(
    catalogue: Catalogue, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="source"):
        catalogue.open(MACHINE, name)
    with pytest.raises(ValueError, match="machine"):
        catalogue.open(name, "docs")
    assert not (tmp_path / "one" / "machines").exists()


def test_prior_art_01_a_unit_named_like_a_machine_does_not_take_over_its_link(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    for machine in (MACHINE, OTHER):
        catalogue.open(machine, "docs")
    links = tmp_path / "state" / "machines"
    catalogue.link(MACHINE, OTHER)
    catalogue.link(OTHER, MACHINE.upper())
    names = sorted(os.listdir(links))
    assert names == [f"unit-{MACHINE.upper()}", f"unit-{OTHER}"]
    assert os.readlink(links / f"unit-{OTHER}").endswith(MACHINE)


@pytest.mark.parametrize("name", ["../../etc", "..", "a/b/c", ".hidden", "-rf", "x\ny", "", "ü"])
def test_prior_art_01_a_link_stays_in_its_folder(
    catalogue: Catalogue, tmp_path: Path, name: str
) -> None:
    catalogue.open(MACHINE, "docs")
    catalogue.link(MACHINE, name)
    links = tmp_path / "state" / "machines"
    (made,) = os.listdir(links)
    assert made == file_name(name)
    assert not made.startswith((".", "-"))
    assert sorted(os.listdir(tmp_path)) == ["one", "state", "two"]


def test_two_machines_of_one_name_have_two_links(catalogue: Catalogue, tmp_path: Path) -> None:
    for machine in (MACHINE, OTHER):
        catalogue.open(machine, "docs")
        catalogue.link(machine, "prod-web-0")
    links = tmp_path / "state" / "machines"
    assert sorted(os.listdir(links)) == ["prod-web-0", f"prod-web-0~{OTHER[:8]}"]
    catalogue.link(MACHINE, "prod-web-1")
    assert sorted(os.listdir(links)) == ["prod-web-0~6ba7b811", "prod-web-1"]
    catalogue.link(MACHINE, None)
    assert sorted(os.listdir(links)) == ["prod-web-0~6ba7b811"]


def test_a_readable_name_is_made_of_what_there_is() -> None:
    assert readable_name("prod", "web", "web/0") == "prod-web-web/0"
    assert file_name(readable_name(None, None, "web/0")) == "web_0"


def test_a_source_stays_on_its_volume_even_while_that_is_not_mounted(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    folder = catalogue.open(MACHINE, "docs")
    assert folder.volume.name == "one"
    (tmp_path / "one").rename(tmp_path / "away")
    (tmp_path / "one").mkdir()
    with pytest.raises(VolumeNotMounted):
        catalogue.open(MACHINE, "docs")
    assert list((tmp_path / "one").iterdir()) == []


def test_a_source_is_found_where_it_lies_when_its_place_is_forgotten(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    there = SourceFolder(catalogue.volumes.volumes[1], MACHINE, "docs")
    there.create()
    assert catalogue.open(MACHINE, "docs") == there


def test_ids_of_one_second_are_told_apart(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    assert folder.new_id(START) == ID
    catalogue.write(folder, make_record())
    assert folder.new_id(START) == f"{ID}-2"
    folder.write_pending(Pending(make_record(id=f"{ID}-2"), "boot"))
    assert folder.new_id(START) == f"{ID}-3"


def test_a_pending_commit_that_cannot_be_read_is_set_aside(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    (folder.path / "pending.json").write_text("{")
    assert folder.pending() is None
    assert (folder.path / "pending.json.broken").exists()


def test_prior_art_28_a_lock_is_never_removed_and_holds_off_those_who_wait(
    catalogue: Catalogue,
) -> None:
    folder = catalogue.open(MACHINE, "docs")
    inside = []

    def work(name: str) -> None:
        with folder.lock(wait_seconds=20):
            inside.append(name)
            assert len(inside) == 1
            inside.remove(name)

    with folder.lock():
        threads = [threading.Thread(target=work, args=(str(n),)) for n in range(5)]
        for thread in threads:
            thread.start()
        with pytest.raises(SourceBusy), folder.lock():
            pass
        inode = (folder.path / "lock").stat().st_ino
    for thread in threads:
        thread.join()
    assert (folder.path / "lock").stat().st_ino == inode
    with folder.lock():
        pass


def test_readers_hold_off_removal_and_not_each_other(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    with folder.reading(Readable.SNAPSHOTS), folder.reading(Readable.SNAPSHOTS):
        with folder.unread(Readable.MIRROR):
            pass
        with pytest.raises(SourceBusy), folder.unread(Readable.SNAPSHOTS):
            pass


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20260105T030000Z", "2026-01-05T03:00:00+00:00"),
        ("20260105T030000Z-2", "2026-01-05T03:00:00+00:00"),
        ("1424392089.43", "2015-02-20T00:28:09.430000+00:00"),
        ("2015-02-20T03:20:36", "2015-02-20T03:20:36+00:00"),
        ("2015-02-20T03:21:18.152575", "2015-02-20T03:21:18.152575+00:00"),
        ("latest", None),
        ("20261305T030000Z", None),
    ],
)
def test_the_time_is_in_the_name_in_both_layouts(name: str, expected: str | None) -> None:
    found = time_of_id(name)
    assert (None if found is None else found.isoformat()) == expected


def test_the_old_layout_is_listed(catalogue: Catalogue, tmp_path: Path) -> None:
    old = tmp_path / "two" / MACHINE / "docs.snapshots"
    for name in ("1424392089.43", "2015-02-21T03:20:36", "save-this", "working", "_delete-x"):
        (old / name).mkdir(parents=True)
    (old / "latest").symlink_to("2015-02-21T03:20:36")
    (old / "2015-02-21T03:20:36.json").write_text('{"bytes_total": 5, "unknown": []}')
    records = [record for _, record in catalogue.listing(MACHINE).records]
    assert [record.id for record in records if not record.protected] == [
        "1424392089.43",
        "2015-02-21T03:20:36",
    ]
    assert [record.id for record in records if record.protected] == ["save-this"]
    assert records[1].bytes_total == 5
    assert all(record.mode == "link-dest" for record in records)


def test_state_that_is_broken_is_read_as_empty(catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    folder.write_state(SourceState(retention="last 3 days", last_session_at=START))
    assert folder.state().last_session_at == START
    (folder.path / "source.json").write_text("]")
    assert folder.state() == SourceState()

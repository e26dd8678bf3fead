"""What is measured of a storage unit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from turku_core.configuration import write_durably
from turku_core.storage import metrics
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.metrics import Held, look, metrics_text, summary
from turku_core.storage.ping import make_catalogue
from turku_core.storage.queue import Job, Queue
from turku_core.storage.records import Record, SourceState
from turku_core.storage.settings import Settings, read_settings
from turku_core.storage.source_folder import SourceFolder

MACHINE = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
START = datetime(2026, 1, 5, 3, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SECRET = "a-secret-of-this-storage-unit"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A unit with two volumes, one of which is not there."""
    folder = tmp_path / "etc/turku-storage/config.d"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/turku-storage").mkdir(parents=True)
    (tmp_path / "main").mkdir()
    values = {
        "api_url": "http://127.0.0.1:9/v1",
        "name": "store-1",
        "secret": SECRET,
        "volumes": {
            "main": {"path": str(tmp_path / "main"), "accept_new_high_water_pct": 100},
            "other": {"path": str(tmp_path / "gone")},
        },
    }
    (folder / "unit.json").write_text(json.dumps(values))
    return read_settings(tmp_path)


@pytest.fixture
def catalogue(settings: Settings) -> Catalogue:
    return make_catalogue(settings)


def record(day: int, **values: object) -> Record:
    """Return the record of a snapshot that was taken on a day."""
    at = START + day * DAY
    made = Record(MACHINE, "docs", f"{at:%Y%m%dT%H%M%SZ}", at, at, "borg", bytes_total=1000 + day)
    return dataclasses.replace(made, bytes_stored=10, **values)  # type: ignore[arg-type]  # checked by the dataclass


def sample(text: str, name: str, *labels: str) -> float:
    """Return the value of the one sample of a metric whose labels hold these texts."""
    found = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{name}(?:\{{| )", line) and all(label in line for label in labels)
    ]
    assert len(found) == 1, (name, labels, text)
    return found[0]


def sources_of(text: str) -> list[str]:
    """Return the lines about sources."""
    return [line for line in text.splitlines() if line.startswith("turku_storage_source_")]


def settle(folder: SourceFolder) -> None:
    """Let the folder's last change be a minute ago."""
    then = time.time() - 60
    for path in (folder.snapshots, folder.path):
        os.utime(path, (then, then))


def test_snapshots_come_to_counts_and_times() -> None:
    assert summary(
        [
            record(0, expired_at=START + 9 * DAY, proven_at=START + 8 * DAY),
            record(1, damaged="A file differs."),
            record(2, proven_at=START + 5 * DAY),
            record(3, partial=True, unproven="There is no room."),
            record(4, damaged="Another.", unproven="There is no room."),
        ],
        SourceState(proven_at=START + 7 * DAY, restored_at=START + 6 * DAY),
    ) == Held(
        counts={"good": 1, "partial": 1, "damaged": 2, "expired": 1},
        last_success=(START + 3 * DAY).timestamp(),
        last_bytes=1003,
        stored_bytes=50,
        last_proven=(START + 8 * DAY).timestamp(),
        unproven_since=(START + 3 * DAY).timestamp(),
        drills_failed=1,
        last_restored=(START + 6 * DAY).timestamp(),
    )


def test_when_a_source_was_proven_is_known_when_the_snapshot_is_gone() -> None:
    held = summary([record(0)], SourceState(proven_at=START + 7 * DAY))
    assert held.last_proven == (START + 7 * DAY).timestamp()


def test_a_source_without_a_snapshot_has_only_counts() -> None:
    assert summary([], SourceState()) == Held(
        dict.fromkeys(("good", "partial", "damaged", "expired"), 0)
    )


def test_a_source_on_a_volume_is_measured(settings: Settings, catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    for day in (0, 1):
        catalogue.write(folder, record(day))
    known = {
        "machines": {
            MACHINE: {
                "unit_name": 'a "b"/0',
                "ssh_public_key": "ssh-ed25519 "
                "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
            }
        }
    }
    settings.paths.known_machines.write_text(json.dumps(known))
    text = metrics_text(settings)
    labels = f'volume="main",machine="a \\"b\\"/0",machine_uuid="{MACHINE}",source="docs"'
    newest = (START + DAY).timestamp()
    prefix = "turku_storage_source_"
    assert sample(text, f"{prefix}last_success_timestamp_seconds", labels) == newest
    assert sample(text, f"{prefix}snapshots", labels, 'state="good"') == 2
    assert sample(text, f"{prefix}snapshots", labels, 'state="damaged"') == 0
    assert sample(text, f"{prefix}last_backup_bytes", labels) == 1001
    assert sample(text, f"{prefix}stored_bytes", labels) == 20
    assert f"{prefix}last_proven" not in text
    assert sample(text, f"{prefix}unproven_since_timestamp_seconds") == START.timestamp()
    assert sample(text, f"{prefix}drills_failed", labels) == 0
    assert sample(text, "turku_storage_machines") == 1
    assert sample(text, "turku_storage_verify_interval_seconds") == 30 * 24 * 3600


def test_a_volume_says_how_full_it_is_and_one_that_is_away_only_that(settings: Settings) -> None:
    text = metrics_text(settings)
    status = os.statvfs(settings.volumes[0].path)
    assert sample(text, "turku_storage_volume_mounted", 'volume="main"') == 1
    assert sample(text, "turku_storage_volume_size_bytes", 'volume="main"') <= (
        status.f_blocks * status.f_frsize
    )
    assert 0 <= sample(text, "turku_storage_volume_used_ratio", 'volume="main"') <= 1
    assert sample(text, "turku_storage_volume_high_water_ratio", 'volume="main"') == 1
    assert [line for line in text.splitlines() if 'volume="other"' in line] == [
        'turku_storage_volume_mounted{volume="other"} 0'
    ]


def test_what_goes_on_in_the_background_is_measured(settings: Settings) -> None:
    queue = Queue(settings.paths.queue)
    job = Job(MACHINE, "docs", "20260105T030000Z", START)
    queue.add(job)
    queue.add(job.failed("no room", START))
    write_durably(
        settings.paths.worker_state,
        json.dumps({"loops": {"commit 1": {"ended_at": 5.5}, "expiry": {"error": "no"}}}),
    )
    text = metrics_text(settings)
    assert sample(text, "turku_storage_commits_waiting") == 2
    assert sample(text, "turku_storage_commits_failing") == 1
    assert sample(text, "turku_storage_sessions") == 0
    assert sample(text, "turku_storage_slots") == 10
    assert sample(text, "turku_storage_worker_round_failed", "expiry") == 1
    assert sample(text, "turku_storage_worker_round_failed", "commit 1") == 0
    assert sample(text, "turku_storage_worker_round_timestamp_seconds", "commit 1") == 5.5


def test_what_has_not_changed_is_not_read_again(
    settings: Settings, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in ("docs", "mail"):
        folder = catalogue.open(MACHINE, source)
        catalogue.write(folder, dataclasses.replace(record(0), source=source))
        settle(folder)
    first = sources_of(metrics_text(settings))
    read: list[str] = []
    really = Catalogue.records

    def records(self: Catalogue, folder: SourceFolder) -> tuple[list[Record], list[str]]:
        read.append(folder.source)
        return really(self, folder)

    monkeypatch.setattr(Catalogue, "records", records)
    assert sources_of(metrics_text(settings)) == first
    assert read == []
    catalogue.write(catalogue.open(MACHINE, "mail"), record(1))
    assert sample(metrics_text(settings), "turku_storage_source_snapshots", "mail", "good") == 2
    assert read == ["mail"]


def test_a_folder_that_changed_just_now_is_read_again(
    settings: Settings, catalogue: Catalogue
) -> None:
    catalogue.write(catalogue.open(MACHINE, "docs"), record(0))
    metrics_text(settings)
    assert not (settings.paths.state / metrics.KEPT).exists()


def test_the_mirror_that_is_pulled_to_again_is_not_the_snapshot_that_it_was(
    settings: Settings, catalogue: Catalogue
) -> None:
    folder = catalogue.open(MACHINE, "docs")
    made = record(0, mode="none")
    catalogue.write(folder, made)
    folder.write_state(dataclasses.replace(folder.state(), mirror_id=made.id))
    settle(folder)
    assert sample(metrics_text(settings), "turku_storage_source_snapshots", "good") == 1
    folder.write_state(dataclasses.replace(folder.state(), mirror_id=None))
    assert sample(metrics_text(settings), "turku_storage_source_snapshots", "good") == 0


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"a": 1}', '{"PLACE": {"stamp": STAMP}}'])
def test_what_is_kept_and_broken_is_made_anew(
    settings: Settings, catalogue: Catalogue, broken: str
) -> None:
    folder = catalogue.open(MACHINE, "docs")
    catalogue.write(folder, record(0))
    settle(folder)
    stamp = [path.stat().st_mtime_ns for path in (folder.snapshots, folder.path)]
    kept = settings.paths.state / metrics.KEPT
    kept.write_text(broken.replace("PLACE", str(folder.snapshots)).replace("STAMP", str(stamp)))
    assert sample(metrics_text(settings), "turku_storage_source_snapshots", "good") == 1
    assert json.loads(kept.read_bytes())[str(folder.snapshots)]["counts"]["good"] == 1


def test_a_source_in_both_layouts_is_one(settings: Settings, catalogue: Catalogue) -> None:
    folder = catalogue.open(MACHINE, "docs")
    catalogue.write(folder, record(0))
    old = settings.volumes[0].path / MACHINE / "docs.snapshots/2015-02-20T03:21:18.152575"
    old.mkdir(parents=True)
    found = look(catalogue.folders(), catalogue, settings.paths.state / metrics.KEPT)
    assert list(found) == [("main", MACHINE, "docs")]
    assert found["main", MACHINE, "docs"].counts["good"] == 2
    assert found["main", MACHINE, "docs"].last_success == START.timestamp()


def test_nothing_secret_is_in_it(settings: Settings) -> None:
    assert SECRET not in metrics_text(settings)

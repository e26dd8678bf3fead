"""The worker's rounds, one by one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.stand_in_api import StandInApi, running_api
from turku_core.errors import TurkuError
from turku_core.protocol.client import ApiRefused
from turku_core.protocol.messages import BackupResult, SnapshotState, SourceUpdate
from turku_core.storage import expiry, verification
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.expiry import Change, ExpiryReport
from turku_core.storage.queue import Job, Queue
from turku_core.storage.records import Record
from turku_core.storage.reports import Report, Spool
from turku_core.storage.settings import Settings, read_settings
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import Volume, Volumes
from turku_core.storage.worker import (
    LOST_RUN,
    VERIFY_IDLE_SECONDS,
    Worker,
    WorkerRuns,
    WorkerState,
    expiry_report,
    verification_report,
    worker_lock,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
MACHINE = "11111111-1111-4111-8111-111111111111"
RECORD = Record(MACHINE, "docs", "20261122T110000Z", NOW, NOW, "link-dest")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of a unit that has an identity and nothing else."""
    read = read_settings(tmp_path)
    read.paths.state.mkdir(parents=True)
    return replace(read, name="unit", secret="s" * 43, api_urls=("http://127.0.0.1:9/v1",))


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """A worker without volumes."""
    state = settings.paths.state
    return Worker(settings, Catalogue(Volumes((), state), state), lambda: NOW)


@pytest.fixture
def api() -> Iterator[StandInApi]:
    """A stand-in for the API."""
    with running_api() as running:
        yield running


def folder(path: Path) -> SourceFolder:
    """Return a source's folder on a volume."""
    return SourceFolder(Volume("main", path), MACHINE, "docs")


def test_a_volume_that_is_gone_is_no_failure_of_expiry(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = settings.paths.state
    volumes = Volumes((Volume("main", tmp_path / "gone"),), state)
    worker = Worker(settings, Catalogue(volumes, state), lambda: NOW)
    assert len(volumes.problems()) == 1
    worker.expiry_round()
    report = ExpiryReport((), (), (*volumes.problems(), "docs: it can't be removed"))
    monkeypatch.setattr(expiry, "run", lambda *_, **__: report)
    with pytest.raises(TurkuError, match=r"^docs: it can't be removed$"):
        worker.expiry_round()


def test_each_change_of_an_expiry_is_reported(tmp_path: Path) -> None:
    report = expiry_report(Change(folder(tmp_path), RECORD, "removed"))
    assert report.machine == MACHINE
    assert report.sources == {
        "docs": SourceUpdate(None, (SnapshotState("20261122T110000Z", "removed"),))
    }


def test_an_expiry_says_again_what_is_known_of_the_snapshot(tmp_path: Path) -> None:
    known = replace(RECORD, proven_at=NOW, unproven="there is no room")
    report = expiry_report(Change(folder(tmp_path), known, "committed"))
    [snapshot] = report.sources["docs"].snapshots
    assert (snapshot.proven_at, snapshot.error) == (NOW.timestamp(), "there is no room")


@pytest.mark.parametrize(
    ("record", "state"),
    [
        (replace(RECORD, proven_at=NOW), "committed"),
        (replace(RECORD, expired_at=NOW), "expired"),
        (replace(RECORD, damaged="one is wrong"), "damaged"),
        (replace(RECORD, unproven="there is no room"), "committed"),
    ],
)
def test_a_verification_is_reported_with_its_result(record: Record, state: str) -> None:
    [snapshot] = verification_report(record).sources["docs"].snapshots
    assert (snapshot.state, snapshot.error) == (state, record.damaged or record.unproven)
    assert snapshot.proven_at == (None if record.proven_at is None else NOW.timestamp())


def test_prior_art_25_a_snapshot_that_can_not_be_checked_keeps_no_other_out(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [replace(RECORD, id=f"2026112{day}T110000Z") for day in range(3)]
    listing = tuple((folder(tmp_path), record) for record in records)
    checked: list[str] = []

    class Listed:
        records = listing

    def check(_catalogue: Any, _folder: Any, record: Record, *_: Any, **_by_name: Any) -> Any:
        checked.append(record.id)
        raise TurkuError("borg is broken")

    monkeypatch.setattr(Catalogue, "listing", lambda *_: Listed)
    monkeypatch.setattr(verification, "verify", check)
    for _ in records:
        with pytest.raises(TurkuError):
            worker.verify_round()
    assert sorted(checked) == [record.id for record in records]
    assert worker.verify_round() == VERIFY_IDLE_SECONDS


def test_reports_wait_while_the_api_refuses_the_unit_itself(
    settings: Settings, api: StandInApi, tmp_path: Path
) -> None:
    state = settings.paths.state
    unit = replace(settings, api_urls=(api.url,), ssh_ping_host="unit.example.com")
    worker = Worker(unit, Catalogue(Volumes((), state), state), lambda: NOW)
    Spool(settings.paths.reports).add(
        Report(MACHINE, {"docs": SourceUpdate(BackupResult(True, 1, 2))}), NOW
    )
    client = unit.make_client()
    api.answers["storage_update_config"] = (403, "Bad credentials")
    with pytest.raises(ApiRefused):
        worker.config_round(client)
    worker.report_round(client)
    assert api.reports("docs") == []
    api.answers["storage_update_config"] = {"machines": {}}
    worker.config_round(client)
    worker.report_round(client)
    assert len(api.reports("docs")) == 1


def test_a_run_whose_session_was_killed_is_reported_but_for_one_that_was_frozen(
    settings: Settings, api: StandInApi
) -> None:
    state = settings.paths.state
    unit = replace(settings, api_urls=(api.url,), ssh_ping_host="unit.example.com")
    worker = Worker(unit, Catalogue(Volumes((), state), state), lambda: NOW)
    settings.paths.runs.mkdir()
    for source in ("docs", "mail"):
        note = {"machine": MACHINE, "source": source, "began": 1700000000.0}
        (settings.paths.runs / f"{MACHINE}_{source}").write_text(json.dumps(note))
    Queue(settings.paths.queue).add(Job(MACHINE, "mail", "20261122T110000Z", queued_at=NOW))
    worker.report_round(unit.make_client())
    worker.report_round(unit.make_client())
    [report] = api.reports("docs")
    assert report["success"] is False
    assert (report["time_begin"], report["summary"]) == (1700000000.0, LOST_RUN)
    assert api.reports("mail") == []


def test_one_loop_that_fails_is_said_once_and_shown_all_along(
    worker: Worker,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> ExpiryReport:
        return ExpiryReport((), (), ("A volume isn't mounted.",))

    monkeypatch.setattr(expiry, "run", fail)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert worker._round("expiry", worker.expiry_round) is None
    assert [record.message for record in caplog.records] == ["expiry: A volume isn't mounted."]
    state = WorkerState(settings.paths.worker_state, lambda: NOW)
    assert state.error("expiry") == "A volume isn't mounted."


def test_an_unexpected_error_ends_no_loop(worker: Worker) -> None:
    def fail() -> float:
        raise ZeroDivisionError("oops")

    assert worker._round("x", fail) is None
    assert worker._round("x", lambda: 3.0) == 3.0


def test_prior_art_25_a_broken_state_file_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    for content in (b"", b"{}", b"[]", b'{"loops": {"x": {"y": 1}}}', b"\xff"):
        path.write_bytes(content)
        state = WorkerState(path, lambda: NOW + timedelta(hours=1))
        state.ended("x", "error")
        assert WorkerState(path, lambda: NOW).error("x") == "error"


def test_since_when_a_loop_fails_is_kept_until_it_goes_well(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    since = []
    errors = ("", "The API is away.", "The API is away.", "It says no.", "", "Away again.")
    for seconds, error in enumerate(errors):
        # Each is another worker: it is kept over a restart, too.
        state = WorkerState(path, partial(later, seconds))
        state.ended("config", error)
        found = state.loops["config"].failing_since
        since.append(None if found is None else found - NOW.timestamp())
    assert since == [None, 1, 1, 1, None, 5]


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_prior_art_28_there_is_one_worker_and_its_lock_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    with worker_lock(path):
        with pytest.raises(WorkerRuns) as raised, worker_lock(path):
            pass
        assert raised.value.exit_code == 75
    inode = path.stat().st_ino
    with worker_lock(path):
        assert path.stat().st_ino == inode

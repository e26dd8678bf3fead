"""The spool of reports."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support.stand_in_api import StandInApi, running_api
from turku_core.protocol.client import Client
from turku_core.protocol.messages import BackupResult, SourceUpdate, StorageLogin
from turku_core.storage.reports import Report, Spool, summary_text

NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
MACHINE = "11111111-1111-4111-8111-111111111111"
LOGIN = StorageLogin("unit", "s" * 43)


def report(number: int, source: str = "docs") -> Report:
    """Return a report that is told from others by its beginning."""
    return Report(
        MACHINE, {source: SourceUpdate(BackupResult(True, number, number + 1, f"s{number}"))}
    )


@pytest.fixture
def api() -> Iterator[StandInApi]:
    """A stand-in for the API."""
    with running_api() as running:
        yield running


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return Spool(tmp_path / "reports")


def client(api: StandInApi) -> Client:
    """Return a client of the stand-in."""
    return Client([api.url])


def begins(api: StandInApi, source: str = "docs") -> list[float]:
    """Return the beginnings of the runs that were reported."""
    return [each["time_begin"] for each in api.reports(source)]


def test_reports_go_out_in_the_order_they_were_made(api: StandInApi, spool: Spool) -> None:
    for number in range(12):
        spool.add(report(number), NOW)
    assert spool.flush(client(api), LOGIN, lambda: NOW).sent == 12
    assert begins(api) == list(range(12))
    assert spool.waiting() == 0
    assert spool.flush(client(api), LOGIN, lambda: NOW).sent == 0


def test_the_order_is_kept_when_the_clock_is_set_back(api: StandInApi, spool: Spool) -> None:
    spool.add(report(1), NOW)
    spool.add(report(2), NOW.replace(year=2020))
    spool.flush(client(api), LOGIN, lambda: NOW)
    assert begins(api) == [1, 2]


def test_the_request_is_v1s(api: StandInApi, spool: Spool) -> None:
    spool.add(report(1), NOW)
    spool.flush(client(api), LOGIN, lambda: NOW)
    [(name, request)] = api.requests
    assert name == "storage_ping_source_update"
    login = {"name": "unit", "secret": LOGIN.secret}
    assert request["storage"] == {**login, "time": NOW.timestamp()}
    assert request["machine"]["uuid"] == MACHINE
    assert request["machine"]["sources"]["docs"]["snapshot"] == "s1"


def test_prior_art_27_nothing_is_lost_while_the_api_is_away(api: StandInApi, spool: Spool) -> None:
    spool.add(report(1), NOW)
    spool.add(report(2), NOW)
    api.down()
    flushed = spool.flush(client(api), LOGIN, lambda: NOW)
    assert (flushed.sent, flushed.left) == (0, 2)
    assert flushed.error
    api.up()
    assert spool.flush(client(api), LOGIN, lambda: NOW).sent == 2
    assert begins(api) == [1, 2]


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_report_that_is_refused_is_set_aside_and_the_others_go_out(
    api: StandInApi, spool: Spool, tmp_path: Path, status: int
) -> None:
    def answer(request: dict[str, Any]) -> Any:
        return (status, "no") if "bad" in request["machine"]["sources"] else {}

    api.answers["storage_ping_source_update"] = answer
    for number, source in enumerate(["docs", "bad", "docs"]):
        spool.add(report(number, source), NOW)
    flushed = spool.flush(client(api), LOGIN, lambda: NOW)
    assert (flushed.sent, flushed.refused, flushed.left) == (2, 1, 0)
    assert begins(api) == [0, 2]
    assert spool.refused() == 1
    assert spool.flush(client(api), LOGIN, lambda: NOW).refused == 0


def test_prior_art_25_a_broken_report_stops_no_other(
    api: StandInApi, spool: Spool, tmp_path: Path
) -> None:
    spool.add(report(1), NOW)
    for number, content in enumerate([b"", b"{}", b"\xff", b'{"uuid": "../../x"}']):
        (tmp_path / f"reports/0000000000000000000{number}-x.json").write_bytes(content)
    assert spool.flush(client(api), LOGIN, lambda: NOW).sent == 1
    assert spool.refused() == 4


def test_a_stop_is_heard_between_two_reports(api: StandInApi, spool: Spool) -> None:
    for number in range(3):
        spool.add(report(number), NOW)
    asked = iter([False, True])
    assert spool.flush(client(api), LOGIN, lambda: NOW, lambda: next(asked)).left == 2


def test_prior_art_08_no_secret_is_in_the_spool(spool: Spool, tmp_path: Path) -> None:
    spool.add(report(1), NOW)
    [path] = (tmp_path / "reports").glob("*.json")
    assert LOGIN.secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_summary_can_always_be_sent() -> None:
    text = summary_text("a\x00b\udcff\x1b[31m\nline" + "x" * 100_000)
    assert text.startswith("a\\x00b\\udcff\\x1b[31m\nline")
    assert SourceUpdate.from_json(
        SourceUpdate(BackupResult(False, 1, 2, summary=text)).to_json(), "x"
    )

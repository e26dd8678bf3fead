"""What the agent makes of the API's answers, and of lists of snapshots."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from turku_core.agent.backup import progress_words
from turku_core.agent.checkin import Due, jobs_of, sources_of
from turku_core.agent.hooks import hook_environment
from turku_core.agent.registration import pauses
from turku_core.agent.snapshots import NoSuchSnapshot, Snapshot, choose
from turku_core.agent.sources import HookSettings, LocalSource
from turku_core.credentials import make_ssh_key_pair
from turku_core.errors import TurkuError
from turku_core.protocol.messages import SourceSettings, StorageAddress

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
KEY = " ".join(make_ssh_key_pair("")[1].split()[:2])


def storage(name: str = "unit-0") -> dict[str, Any]:
    return {
        "name": name,
        "ssh_ping_host": "storage.example.com",
        "ssh_ping_host_keys": [KEY],
        "ssh_ping_port": 22,
        "ssh_ping_user": "turku-storage",
    }


def answer(**sources: Any) -> dict[str, Any]:
    return {"machine": {"scheduled_sources": sources}}


def local(name: str) -> LocalSource:
    settings = SourceSettings(path=f"/srv/{name}")
    return LocalSource(name, settings, HookSettings(), "a file")


def test_sources_are_grouped_by_their_storage_unit() -> None:
    due = sources_of(
        answer(
            a={"path": "/a", "storage": storage("one")},
            b={"path": "/b", "storage": storage("two")},
            c={"path": "/c", "storage": storage("one")},
        ),
        "scheduled_sources",
    )
    jobs, problems = jobs_of(due, {name: local(name) for name in "abc"})
    assert problems == []
    assert {job.storage.name: [each.local.name for each in job.sources] for job in jobs} == {
        "one": ["a", "c"],
        "two": ["b"],
    }


def test_a_source_that_is_being_backed_up_isnt_started_again() -> None:
    due = sources_of(answer(a={"path": "/a", "storage": storage()}), "scheduled_sources")
    assert jobs_of(due, {"a": local("a")}, {"a"}) == ([], [])


def test_the_path_is_always_the_machines_own() -> None:
    due = sources_of(
        answer(a={"path": "/etc", "storage": storage()}, b={"path": "/b", "storage": storage()}),
        "scheduled_sources",
    )
    jobs, problems = jobs_of(due, {"a": local("a")})
    assert [each.local.path for job in jobs for each in job.sources] == [Path("/srv/a")]
    assert "b" in problems[0]


def test_a_bad_source_of_an_answer_is_left_out_and_named() -> None:
    due = sources_of(
        answer(**{"../x": {}, "no": {"path": "/"}, "a": {"path": "/a", "storage": storage()}}),
        "scheduled_sources",
    )
    assert set(due.sources) == {"a"}
    assert len(due.problems) == 2


@pytest.mark.parametrize("value", [{}, {"machine": []}, {"machine": {"scheduled_sources": 1}}])
def test_an_answer_of_another_shape_is_refused(value: dict[str, Any]) -> None:
    if value == {}:
        with pytest.raises(TurkuError, match="machine: is missing"):
            sources_of(value, "scheduled_sources")
    else:
        with pytest.raises(TurkuError, match="not valid"):
            sources_of(value, "scheduled_sources")


def test_an_answer_without_sources_means_nothing_is_due() -> None:
    assert sources_of({"machine": {}}, "scheduled_sources") == Due({}, ())


BEGIN = datetime(2026, 11, 1, tzinfo=timezone.utc)


def snapshots(*days: int) -> list[Snapshot]:
    unit = StorageAddress.from_json(storage(), "storage")
    return [
        Snapshot.from_json(
            {
                "machine": UUID,
                "source": "docs",
                "id": f"202611{1 + day:02}T000000Z",
                "taken_at": (BEGIN + timedelta(days=day)).isoformat(),
                "state": "committed",
            },
            unit,
        )
        for day in days
    ]


@pytest.mark.parametrize(
    ("wanted", "day"),
    [
        ("latest", 5),
        ("20261103T000000Z", 3),
        ("2026-11-03T00:00:00Z", 3),
        ("2026-11-03T00:59:59+01:00", 1),
        ("2026-11-03", 1),
        ("2026-12-24", 6),
    ],
)
def test_a_snapshot_is_chosen_by_id_or_time(wanted: str, day: int) -> None:
    listed = snapshots(0, 2, 4, 5) if wanted == "2026-12-24" else snapshots(0, 2, 4)
    east = BEGIN.astimezone(timezone(timedelta(hours=1)))
    found = choose(listed, UUID, "docs", wanted, east)
    assert found.taken_at.day == day


@pytest.mark.parametrize(
    "wanted", ["2026-10-31", "20260101T000000Z", "20261102T120000Z", "soon", "--latest"]
)
def test_a_snapshot_that_isnt_there_is_refused_with_what_there_is(wanted: str) -> None:
    with pytest.raises(NoSuchSnapshot, match="There are 3, from 20261101T000000Z to 2026110"):
        choose(snapshots(0, 2, 4), UUID, "docs", wanted, BEGIN)
    with pytest.raises(NoSuchSnapshot, match="--list"):
        choose(snapshots(0), UUID, "mail", wanted, BEGIN)


def test_a_hook_learns_what_it_is_about() -> None:
    inherited = {"PATH": "/bin", "TURKU_SECRET": "x", "RSYNC_PASSWORD": "y"}
    environment = hook_environment("docs", Path("/srv"), None, inherited)
    assert environment == {"PATH": "/bin", "TURKU_SOURCE": "docs", "TURKU_PATH": "/srv"}
    after = hook_environment("docs", Path("/srv"), "success", inherited)
    assert after["TURKU_OUTCOME"] == "success"


def test_the_pauses_between_tries_grow_to_a_bound_and_last_as_long_as_asked() -> None:
    assert list(pauses(0)) == []
    assert list(pauses(1)) == [1]
    tried = list(pauses(120))
    assert sum(tried) == pytest.approx(120)
    assert tried[:3] == [2, 3, 4.5]
    assert max(tried) == 15


@pytest.mark.parametrize(
    ("count", "percent", "words"),
    [
        (3 * 2**20, 40.4, "3.0 MiB, 40 %"),
        (10**400, 10**400, ""),
        (float("nan"), float("inf"), ""),
        (-1, None, ""),
        ("many", [], ""),
    ],
)
def test_a_storage_units_progress_is_shown_when_it_can_be_one(
    count: object, percent: object, words: str
) -> None:
    assert progress_words({"event": "progress", "bytes": count, "percent": percent}) == words

"""What `juju status` says of a storage unit, from what its own tool tells."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import ops

from storage_status import statuses

FULL = 1024**4
NOW = datetime(2026, 5, 31, 12, 0, tzinfo=timezone.utc)


def volume(name: str = "volumes", **values: Any) -> dict[str, Any]:
    """Return a volume as the tool tells of it."""
    return {
        "name": name, "path": f"/srv/{name}", "accept_new": True, "high_water_pct": 80.0,
        "mounted": True, "bytes_total": FULL, "bytes_available": FULL // 2, "used_pct": 50.4,
        "over_high_water": False, **values,
    }  # fmt: skip


def usage(*volumes: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return what the tool tells when nothing goes on, and what differs from that."""
    work = {
        "sessions": [], "slots": 10, "jobs": [], "reports_waiting": 0, "reports_refused": 0,
        "worker": {"config": {"error": ""}, "verification": {"error": ""}},
    }  # fmt: skip
    problems = values.pop("problems", [])
    return {"volumes": list(volumes), "work": {**work, **values}, "problems": problems}


def worst(found: list[ops.StatusBase]) -> ops.StatusBase:
    """Return what Juju shows of them."""
    order = ["blocked", "maintenance", "waiting", "active"]
    return min(found, key=lambda status: order.index(status.name))


def test_all_is_well_and_how_full_it_is() -> None:
    assert statuses(usage(volume(), volume("data", used_pct=1.0)), False, NOW) == [
        ops.ActiveStatus("volumes: 50 % of 1.0 TiB; data: 1 % of 1.0 TiB")
    ]


def test_backups_on_the_root_disk_come_first() -> None:
    assert statuses(usage(volume("folder")), True, NOW) == [
        ops.ActiveStatus(
            "backups lie on the root disk: attach volumes or data; folder: 50 % of 1.0 TiB"
        )
    ]


def test_what_goes_on_and_what_waits_is_counted() -> None:
    told = usage(volume(), sessions=[{}], jobs=[{}, {}], reports_waiting=3)
    assert statuses(told, False, NOW)[-1].message == (
        "volumes: 50 % of 1.0 TiB; 1 session at work; 2 commits waiting; 3 reports waiting for the "
        "API"
    )


def test_a_volume_that_takes_nothing_new_says_why() -> None:
    told = usage(volume(over_high_water=True, used_pct=81.0), volume("folder", accept_new=False))
    assert statuses(told, False, NOW)[-1].message == (
        "volumes: 81 % of 1.0 TiB, over its mark; folder: 50 % of 1.0 TiB, takes nothing new"
    )


def test_prior_art_36_what_failed_reaches_the_status() -> None:
    sentence = "The snapshot x of source docs of machine y could not be made (tried 3 times): full"
    found = worst(statuses(usage(volume(), problems=[sentence]), False, NOW))
    assert (found.name, found.message) == ("blocked", sentence)


def test_a_volume_that_is_not_mounted_is_an_error() -> None:
    sentence = "Volume 'volumes': nothing is mounted on /srv/volumes; mount the volume."
    told = usage(volume(mounted=False), problems=[sentence])
    assert worst(statuses(told, False, NOW)).message == sentence
    assert statuses(told, False, NOW)[-1].message == "volumes: not mounted"


def test_what_has_been_said_of_a_volume_is_not_said_again() -> None:
    sentence = "Volume 'volumes': nothing is mounted on /srv/volumes; mount the volume."
    told = usage(volume(mounted=False), problems=[sentence])
    assert [status.name for status in statuses(told, False, NOW, {"volumes"})] == ["active"]
    assert worst(statuses(told, False, NOW, {"data"})).name == "blocked"


def test_a_loop_that_lacks_a_volume_of_which_all_was_said_is_not_said_either() -> None:
    why = "Volume 'volumes': nothing is mounted on /srv/volumes; mount the volume."
    told = usage(volume(mounted=False), problems=[why, f"The worker's expiry: {why}"])
    assert [each.name for each in statuses(told, False, NOW, {"volumes"})] == ["active"]
    assert worst(statuses(told, False, NOW, {"data"})).name == "blocked"


def test_an_api_that_is_away_is_waited_for() -> None:
    worker = {"config": {"error": "The API is away."}, "verification": {"error": "broken"}}
    sentences = ["The worker's config: The API is away.", "The worker's verification: broken"]
    found = statuses(usage(volume(), worker=worker, problems=sentences), False, NOW)
    assert [(status.name, status.message) for status in found[:2]] == [
        ("waiting", sentences[0]), ("blocked", sentences[1]),
    ]  # fmt: skip


def test_an_api_that_is_away_for_a_moment_is_not_spoken_of() -> None:
    sentences = ["The worker's config: The API is away.", "The worker's expiry: broken"]
    for seconds, names in (
        (5, ["blocked", "active"]),
        (65, ["waiting", "blocked", "active"]),
        # The clock was set back: nobody knows for how long.
        (-5, ["waiting", "blocked", "active"]),
    ):
        since = (NOW - timedelta(seconds=seconds)).timestamp()
        worker = {
            "config": {"error": "The API is away.", "failing_since": since},
            "expiry": {"error": "broken", "failing_since": since},
        }
        found = statuses(usage(volume(), worker=worker, problems=sentences), False, NOW)
        assert [status.name for status in found] == names

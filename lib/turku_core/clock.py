"""The clock, and whether it can be trusted: nothing is removed by one that has jumped."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.configuration import write_durably

logger = logging.getLogger(__name__)

FILE = "clock.json"
"""What is known of the clock, in the state of a part."""

_CLOCK_TOLERANCE = timedelta(hours=1)
_CLOCK_UNSEEN_MAX = timedelta(days=7)
_CLOCK_TRUSTED_AFTER_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Reading:
    """The clock as it was seen: `uptime` is CLOCK_BOOTTIME in seconds, which no one can set."""

    at: datetime
    boot_id: str
    uptime: float


@dataclass(frozen=True)
class ClockState:
    """What is known of the clock; kept in a file.

    `trusted` was read when all was well, `last` is the last reading. `consistent_seconds` is for
    how long it has gone evenly since it jumped, and `problem` says how it jumped.
    """

    trusted: Reading
    last: Reading
    consistent_seconds: float = 0.0
    problem: str | None = None


def judge_clock(state: ClockState | None, reading: Reading) -> ClockState:
    """Compare a reading of the clock with what is known of it; pure.

    A clock is trusted while it goes as evenly as the uptime, over restarts when it hasn't gone back
    nor further ahead than a week. One that jumped is trusted again when it is back in step, or has
    gone evenly for a week.
    """
    if state is None:
        return ClockState(reading, reading)
    jump = _jump(state.trusted, reading)
    if jump is None:
        return ClockState(reading, reading)
    if _jump(state.last, reading) is None and state.problem is not None:
        same_boot = state.last.boot_id == reading.boot_id
        gone = reading.uptime - (state.last.uptime if same_boot else 0.0)
        seconds = state.consistent_seconds + max(gone, 0.0)
        if seconds >= _CLOCK_TRUSTED_AFTER_SECONDS:
            return ClockState(reading, reading)
        return ClockState(state.trusted, reading, seconds, state.problem)
    return ClockState(state.trusted, reading, 0.0, jump)


def _jump(earlier: Reading, later: Reading) -> str | None:
    """Say how the clock jumped between two readings, or None if it didn't."""
    gone = later.at - earlier.at
    if earlier.boot_id == later.boot_id:
        expected = timedelta(seconds=later.uptime - earlier.uptime)
        if abs(gone - expected) <= _CLOCK_TOLERANCE:
            return None
        way = "ahead" if gone > expected else "back"
        return (
            f"the clock jumped {way} to {later.at:%Y-%m-%d %H:%M} (by {abs(gone - expected)}); "
            "it is trusted again after a week of going evenly, or when it is back in step."
        )
    if gone < -_CLOCK_TOLERANCE:
        return (
            f"the clock went back from {earlier.at:%Y-%m-%d %H:%M} to {later.at:%Y-%m-%d %H:%M}; "
            "it is trusted again after a week of going evenly, or when it is back in step."
        )
    if gone > _CLOCK_UNSEEN_MAX:
        return (
            f"Turku wasn't running here since {earlier.at:%Y-%m-%d %H:%M}, or its clock "
            f"jumped to {later.at:%Y-%m-%d %H:%M}; it is trusted after a week of going evenly."
        )
    return None


def observe_clock(file: Path, now: datetime, *, is_right: bool = False) -> str | None:
    """Remember durably that it is `now`; return why the clock can't be trusted, or None.

    To be called at least daily, better hourly. Where it can't be stored (a full disk must be able
    to heal), what was known before stays.

    Args:
        file: Where what is known of the clock is kept.
        now: What the clock says.
        is_right: An operator's word that it is right, whatever it did before.
    """
    reading = Reading(now, boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))
    state = judge_clock(None if is_right else _read_clock(file), reading)
    values = {
        "trusted": _to_json(state.trusted),
        "last": _to_json(state.last),
        "consistent_seconds": state.consistent_seconds,
        "problem": state.problem,
    }
    try:
        write_durably(file, json.dumps(values, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        logger.error("what the clock says can't be stored: %s", error)
    return state.problem


def boot_id() -> str:
    """Return the kernel's id of this boot (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _to_json(reading: Reading) -> dict[str, Any]:
    at = reading.at.astimezone(timezone.utc).isoformat()
    return {"at": at, "boot_id": reading.boot_id, "uptime": reading.uptime}


def _from_json(values: Mapping[str, Any]) -> Reading:
    return Reading(
        fields.moment(fields.required(values, "at"), "at"),
        fields.text(fields.required(values, "boot_id"), "boot_id"),
        fields.number(fields.required(values, "uptime"), "uptime"),
    )


def _read_clock(file: Path) -> ClockState | None:
    try:
        values: dict[str, Any] = json.loads(file.read_text("utf-8"))
        trusted, last = (_from_json(values[name]) for name in ("trusted", "last"))
        seconds, problem = float(values["consistent_seconds"]), values["problem"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.error("%s can't be read, the clock is taken for right: %s", file, error)
        return None
    return ClockState(trusted, last, seconds, None if problem is None else str(problem))

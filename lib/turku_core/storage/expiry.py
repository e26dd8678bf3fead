"""Expiry: which snapshots a retention policy no longer wants, and what is never removed whatever it
says: the newest good snapshot, the floor, anything on a clock that has jumped, and for good nothing
that expired less than the grace period ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from turku_core.retention import Policy
from turku_core.storage.catalogue import Catalogue, Record, SourceFolder
from turku_core.storage.snapshots import Environment

DEFAULT_FLOOR = 3
DEFAULT_GRACE = timedelta(days=7)


@dataclass(frozen=True)
class Decision:
    """What to do with the snapshots of one source.

    `expire` get their time of expiry, `unexpire` lose it (the policy wants them again), `remove`
    are removed for good. `held` says in sentences why something stays that the policy alone would
    have expired.
    """

    expire: tuple[Record, ...] = ()
    unexpire: tuple[Record, ...] = ()
    remove: tuple[Record, ...] = ()
    held: tuple[str, ...] = ()


def decide(
    records: Sequence[Record],
    policy: Policy,
    now: datetime,
    *,
    floor: int = DEFAULT_FLOOR,
    grace: timedelta = DEFAULT_GRACE,
    clock_problem: str | None = None,
    over_high_water: bool = False,
    remove_now: bool = False,
) -> Decision:
    """Decide about one source's snapshots; pure.

    `clock_problem` is the reason not to trust `now` (see `judge_clock`). `over_high_water` and
    `remove_now` (an operator's word) shorten the grace period to nothing.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class ClockState:
    """What was last seen of the clock; kept in `var/lib/turku-storage/clock.json`.

    `consistent_since` is the first time since which no jump was seen.
    """

    seen_at: datetime
    boot_id: str
    uptime: float
    consistent_since: datetime | None
    problem: str | None


def judge_clock(
    last: ClockState | None, now: datetime, *, boot_id: str, uptime: float
) -> ClockState:
    """Compare the clock with what was last seen of it; pure.

    `uptime` is CLOCK_BOOTTIME in seconds, which no one can set.
    """
    raise NotImplementedError


def observe_clock(state_folder: Path, now: datetime) -> str | None:
    """Remember durably that it is `now`; return why the clock can't be trusted, or None.

    To be called by the worker at least hourly.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class Change:
    """One thing that expiry did: the snapshot became `expired`, `committed` again or `removed`."""

    folder: SourceFolder
    record: Record
    state: str


@dataclass(frozen=True)
class ExpiryReport:
    """What one run of expiry did, what it held back, and what went wrong, in sentences."""

    changes: tuple[Change, ...]
    held: tuple[str, ...]
    problems: tuple[str, ...]


def run(
    catalogue: Catalogue,
    environment: Environment,
    now: datetime,
    *,
    floor: int = DEFAULT_FLOOR,
    grace: timedelta = DEFAULT_GRACE,
    default_retention: str = "last 5 days, earliest of month",
    machine: str | None = None,
    source: str | None = None,
    remove_now: bool = False,
    dry_run: bool = False,
    trust_clock: bool = False,
) -> ExpiryReport:
    """Expire and remove snapshots on all mounted volumes, or of one machine or source.

    Also sweeps what crashes left half-made. One source that can't be handled never stops another;
    a busy one is left for the next run.
    """
    raise NotImplementedError

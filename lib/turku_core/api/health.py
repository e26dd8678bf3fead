"""The health of the fleet, in the form of a Nagios plugin.

The form is that of the Monitoring Plugins Development Guidelines: the first line says the state
and what matters most, then ``|`` and performance data; further lines say the rest. The exit code
is the state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from django.db.models import Q

from turku_core.api.holds import wanted_holds
from turku_core.api.models import Machine, Source, StorageUnit
from turku_core.api.overdue import Behind, Kind, find_behind, wanted_machines, wanted_sources
from turku_core.api.proofs import Kind as Unprovenness
from turku_core.api.proofs import find_unproven
from turku_core.commandline import human_time

BEHIND_CRITICAL = timedelta(hours=24)
"""A source that has lacked its backup for longer is critical; before, a warning."""

MACHINE_NOT_SEEN = timedelta(hours=24)
STORAGE_NOT_SEEN_WARNING = timedelta(minutes=30)
STORAGE_NOT_SEEN_CRITICAL = timedelta(hours=2)
SPACE_CRITICAL_PERCENT = 95
LINES_MAX = 10
"""How many of one kind are named; the rest is counted."""


class State(IntEnum):
    """The state of the fleet; the numbers are a plugin's exit codes."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class Problem:
    """One thing that an operator should look at."""

    state: State
    about: str
    sentence: str


@dataclass(frozen=True)
class Check:
    """One aspect of the fleet's health: its problems, and how to count them in the first line."""

    name: str
    noun: str
    problems: tuple[Problem, ...] = ()

    @property
    def state(self) -> State:
        """The worst of the problems' states."""
        return max((problem.state for problem in self.problems), default=State.OK)


@dataclass(frozen=True)
class Health:
    """The whole answer."""

    checks: tuple[Check, ...]
    counts: dict[str, int] = field(default_factory=dict)
    performance: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """The worst of the checks' states."""
        return max((check.state for check in self.checks), default=State.OK)


def fleet_health(now: datetime) -> Health:
    """Look at everything that is wanted: what is retired or paused is silent.

    Args:
        now: An aware datetime in the time zone that schedules are local to.

    Raises:
        DatabaseError: The database doesn't answer.
    """
    behind = find_behind(now)
    units = list(StorageUnit.objects.filter(active=True, published=True, paused=False))
    checks = (
        *(_check_behind(kind, behind, now) for kind in Kind),
        _check_storage_seen(units, now),
        _check_space(units),
        _check_snapshots(now),
        _check_holds(),
        _check_machines_seen(now),
    )
    counts = {
        "machines": wanted_machines().count(),
        "sources": wanted_sources().count(),
        "storage_units": len(units),
        "paused": _count_paused(),
    }
    performance = [f"{name}={count};;;0" for name, count in counts.items()]
    performance += [f"{check.name}={len(check.problems)};0;;0" for check in checks]
    performance += [_space_performance(unit) for unit in units]
    return Health(checks, counts, tuple(performance))


def render(health: Health) -> str:
    """Return the answer as a plugin prints it."""
    state = health.state
    trouble = [check for check in health.checks if check.problems]
    if trouble:
        words = [f"{check.noun}: {len(check.problems)}" for check in trouble]
    else:
        words = [f"{health.counts['sources']} sources of {health.counts['machines']} machines"]
        if health.counts["paused"]:
            words.append(f"{health.counts['paused']} paused")
    first = f"TURKU {state.name}: {', '.join(words)} | {' '.join(health.performance)}"
    lines = [line for check in trouble for line in _lines(check)]
    return "\n".join([first, *lines])


def as_json(health: Health) -> dict[str, object]:
    """Return the answer for a program."""
    return {
        "state": health.state.name,
        "counts": health.counts,
        "checks": {
            check.name: {
                "state": check.state.name,
                "problems": [
                    {"state": problem.state.name, "about": problem.about, "why": problem.sentence}
                    for problem in check.problems
                ],
            }
            for check in health.checks
        },
    }


def unknown(why: str) -> str:
    """Return the answer for when the fleet's health can't be told."""
    return f"TURKU UNKNOWN: {_plain(why)}"


def _lines(check: Check) -> Iterable[str]:
    worst_first = sorted(check.problems, key=lambda problem: -problem.state)
    for problem in worst_first[:LINES_MAX]:
        yield _plain(f"{problem.state.name} {check.name}: {problem.about}: {problem.sentence}")
    if len(worst_first) > LINES_MAX:
        yield f"... {check.noun}, {len(worst_first) - LINES_MAX} more"


def _plain(text: str) -> str:
    """Return text that can't be taken for performance data or another line."""
    return " ".join(text.replace("|", "/").split())


def _check_behind(kind: Kind, behind: Sequence[Behind], now: datetime) -> Check:
    problems = tuple(
        Problem(
            State.CRITICAL if now - each.since > BEHIND_CRITICAL else State.WARNING,
            str(each.source),
            f"{each.reason} Lacking since {human_time(each.since)}; "
            f"last good backup: {human_time(each.last_success) or 'none'}.",
        )
        for each in behind
        if each.kind is kind
    )
    return Check(kind.value, f"{kind.value} sources", problems)


def _check_storage_seen(units: Sequence[StorageUnit], now: datetime) -> Check:
    problems = []
    for unit in units:
        seen = unit.last_checkin_at or unit.registered_at
        quiet = now - seen
        if quiet > STORAGE_NOT_SEEN_WARNING:
            state = State.CRITICAL if quiet > STORAGE_NOT_SEEN_CRITICAL else State.WARNING
            sentence = f"Last seen {human_time(seen)}: look at turku-storage-update-config there."
            problems.append(Problem(state, unit.name, sentence))
    return Check("storage_not_seen", "storage units not seen", tuple(problems))


def used_percent(unit: StorageUnit) -> float:
    """Return how full a storage unit is, from 0 to 100; one that has told no space is full."""
    if unit.space_total <= 0:
        return 100.0
    return min(max(100 * (1 - unit.space_available / unit.space_total), 0.0), 100.0)


def _check_space(units: Sequence[StorageUnit]) -> Check:
    problems = []
    for unit in units:
        used = used_percent(unit)
        if unit.is_at_high_water_mark:
            state = State.CRITICAL if used >= SPACE_CRITICAL_PERCENT else State.WARNING
            sentence = f"{used:.0f} % full: it takes no new sources. Add space or a storage unit."
            problems.append(Problem(state, unit.name, sentence))
    return Check("storage_full", "full storage units", tuple(problems))


def _check_snapshots(now: datetime) -> Check:
    """Look for snapshots that are damaged, or that nobody has proven for too long.

    A drill that can't be made is like a backup that fails: critical after a day.
    """
    problems = []
    for each in find_unproven(now):
        is_critical = each.kind is Unprovenness.DAMAGED or (
            each.kind is Unprovenness.FAILED and now - each.since > BEHIND_CRITICAL
        )
        state = State.CRITICAL if is_critical else State.WARNING
        problems.append(Problem(state, str(each.snapshot), each.reason))
    return Check("unproven", "damaged or unproven snapshots", tuple(problems))


def _check_holds() -> Check:
    """Look for sources whose expiry is held: their machine may have been broken into."""
    problems = tuple(
        Problem(
            State.CRITICAL,
            str(hold.source),
            f"{hold.reason} Since snapshot {hold.snapshot} nothing of it expires on "
            f"{hold.storage.name}: look at the machine, then run turku-storage release there.",
        )
        for hold in wanted_holds()
    )
    return Check("suspicious", "suspicious changes", problems)


def _check_machines_seen(now: datetime) -> Check:
    quiet = now - MACHINE_NOT_SEEN
    machines = wanted_machines().filter(
        Q(last_checkin_at__lt=quiet) | Q(last_checkin_at=None, registered_at__lt=quiet)
    )
    problems = tuple(
        Problem(
            State.WARNING,
            machine.unit_name,
            f"Last seen {human_time(machine.last_checkin_at) or 'never'}. "
            "If it is gone for good: turku-api retire.",
        )
        for machine in machines
    )
    return Check("machines_not_seen", "machines not seen", problems)


def _count_paused() -> int:
    """Count what is silent because an operator said so and might forget."""
    return (
        Machine.objects.filter(active=True, published=True, paused=True).count()
        + Source.objects.filter(
            published=True, paused=True, machine__active=True, machine__published=True
        ).count()
        + StorageUnit.objects.filter(active=True, published=True, paused=True).count()
    )


def _space_performance(unit: StorageUnit) -> str:
    """Return a unit's use of space as performance data: 'label'=value;warning;critical;min;max."""
    label = re.sub(r"[^A-Za-z0-9_.-]", "_", unit.name)
    limits = f"{unit.mark};{SPACE_CRITICAL_PERCENT};0;100"
    return f"'used_{label}'={used_percent(unit):.1f}%;{limits}"

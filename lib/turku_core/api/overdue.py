"""What is overdue and why: the sources that an operator should look at.

A source is silent while it isn't wanted: retired, unpublished or paused, by itself, with its
machine or with its storage unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from django.db.models import F, OuterRef, Q, QuerySet, Subquery

from turku_core.api.due import last_success_of, parse_schedule, schedule_key, when_due
from turku_core.api.models import Backup, Machine, Outcome, Source
from turku_core.commandline import human_time

TOLERANCE = timedelta(hours=1)
"""How late a backup may begin before it is overdue: a busy unit or a reboot is not news."""

MACHINE_QUIET = timedelta(hours=1)
"""After so long without a check-in, that is the reason why a source is overdue."""


class Kind(str, Enum):
    """In which way a source is behind."""

    OVERDUE = "overdue"
    FAILING = "failing"
    MISSED = "missed"


@dataclass(frozen=True)
class Behind:
    """A source without the backup that it should have.

    Attributes:
        source: With its machine and storage unit already read.
        kind: Failing outweighs missed, and missed outweighs overdue.
        since: When the backup that is lacking was due.
        last_success: When the last good backup of its data began.
        reason: A sentence.
    """

    source: Source
    kind: Kind
    since: datetime
    last_success: datetime | None
    reason: str


def wanted_machines() -> QuerySet[Machine]:
    """Select the machines that are to be backed up."""
    return Machine.objects.filter(active=True, published=True, paused=False)


def wanted_sources() -> QuerySet[Source]:
    """Select the sources that are to be backed up."""
    return Source.objects.filter(
        Q(storage=None) | Q(storage__paused=False),
        published=True,
        paused=False,
        machine__active=True,
        machine__published=True,
        machine__paused=False,
    )


def find_behind(now: datetime) -> list[Behind]:
    """Return the sources that are behind, the longest behind first.

    Args:
        now: An aware datetime in the time zone that schedules are local to.
    """
    return sorted(_find(now), key=lambda behind: (behind.since, behind.source.pk))


def _find(now: datetime) -> Iterator[Behind]:
    for source in _candidates(now):
        behind = _examine(source, now)
        if behind is not None:
            yield behind


def _candidates(now: datetime) -> QuerySet[Source]:
    """Select, by what is stored, the few sources that are worth a close look."""
    last_failure = (
        Backup.objects.filter(source=OuterRef("pk"), outcome=Outcome.FAILED)
        .order_by("-time_begin")
        .values("summary")[:1]
    )
    no_success_since_missed = Q(last_success_at=None) | Q(last_success_at__lt=F("missed_at"))
    return (
        wanted_sources()
        .filter(
            Q(next_due_at__lt=now - TOLERANCE)
            | Q(failures__gt=0)
            | ~Q(problem="")
            | (Q(missed_at__gt=F("since")) & no_success_since_missed)
        )
        .select_related("machine", "storage")
        .annotate(last_failure=Subquery(last_failure))
    )


def _examine(source: Source, now: datetime) -> Behind | None:
    last_success = last_success_of(source)
    try:
        since = _due_since(source, last_success, now)
        due = when_due(source, now)
    except ValueError:
        # The schedule isn't valid; the source's problem says so.
        return Behind(source, Kind.OVERDUE, source.since, last_success, _reason(source, now))
    failed_at = source.last_failure_at
    if source.failures and failed_at and (last_success is None or failed_at > last_success):
        return Behind(source, Kind.FAILING, since, last_success, _failure(source))
    if source.lease_until is not None and source.lease_until > now:
        return None
    if due.missed is not None:
        begin, _ = due.missed
        return Behind(source, Kind.MISSED, min(since, begin), last_success, _reason(source, now))
    if since <= now and due.at is not None and due.at < now - TOLERANCE:
        return Behind(source, Kind.OVERDUE, since, last_success, _reason(source, now))
    return None


def _due_since(source: Source, last_success: datetime | None, now: datetime) -> datetime:
    """Return the first time, after the last good backup, at which another was due."""
    if last_success is None:
        return source.since
    after = max(last_success, source.since)
    return parse_schedule(source.frequency).next_due(
        schedule_key(source), after.astimezone(now.tzinfo)
    )


def _failure(source: Source) -> str:
    times = "time" if source.failures == 1 else "times"
    summary: str = getattr(source, "last_failure", None) or "no reason was given"
    return f"It failed {source.failures} {times}: {first_line(summary)}"


def _reason(source: Source, now: datetime) -> str:
    machine, storage = source.machine, source.storage
    if source.problem:
        return source.problem
    if machine.last_checkin_at is None:
        return "The machine has never checked in: run turku-agent-ping there."
    if machine.last_checkin_at < now - MACHINE_QUIET:
        return f"The machine was last seen {human_time(machine.last_checkin_at)}."
    if storage is None:
        return "The source has no storage unit yet."
    if not storage.active or not storage.published:
        return f"The storage unit {storage.name} is not active."
    if storage.last_checkin_at is None or storage.last_checkin_at < now - MACHINE_QUIET:
        seen = human_time(storage.last_checkin_at) or "never"
        return f"The storage unit {storage.name} was last seen {seen}."
    return f"The machine checks in, but no good backup was reported by {storage.name}."


def first_line(text: str, length_max: int = 160) -> str:
    """Return the first line of a text that another program wrote, cut to a bearable length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= length_max else line[: length_max - 1] + "…"

"""What is overdue and why: the sources that an operator should look at.

A source is silent while it isn't wanted: retired, unpublished or paused, by itself, with its
machine or with its storage unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from django.db.models import F, Max, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from turku_core.api.due import (
    is_shared,
    is_wanted,
    last_success_of,
    parse_schedule,
    schedule_key,
)
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
    """Return the sources that are behind, the longest behind first."""
    found = examine(_candidates(now), now).values()
    return sorted(found, key=lambda behind: (behind.since, behind.source.pk))


def examine(sources: Iterable[Source], now: datetime) -> dict[int, Behind]:
    """Return those of some sources that are behind, by their keys.

    Two queries are made however many sources there are, if their machines and storage units have
    been read with them and they come from `with_last_failure`.
    """
    listed = list(sources)
    successes = last_successes(listed)
    for source in listed:
        success = successes[source.pk]
        if success is not None and success > now:
            # Noted while the clock was ahead; counted as it is when the source is due.
            successes[source.pk] = last_success_of(source, now)
    local = now.astimezone(timezone.get_default_timezone())
    found = {source.pk: _examine(source, successes[source.pk], local) for source in listed}
    return {key: behind for key, behind in found.items() if behind is not None}


def with_last_failure(sources: QuerySet[Source]) -> QuerySet[Source]:
    """Read with each source what was said of its last failure."""
    last_failure = (
        Backup.objects.filter(source=OuterRef("pk"), outcome=Outcome.FAILED)
        .order_by("-time_begin")
        .values("summary")[:1]
    )
    annotated: QuerySet[Source] = sources.annotate(last_failure=Subquery(last_failure))
    return annotated


def _candidates(now: datetime) -> QuerySet[Source]:
    """Select, by what is stored, the few sources that are worth a close look."""
    no_success_since_missed = Q(last_success_at=None) | Q(last_success_at__lt=F("missed_at"))
    return with_last_failure(
        wanted_sources()
        .filter(
            Q(next_due_at__lt=now - TOLERANCE)
            | Q(failures__gt=0)
            | ~Q(problem="")
            | (Q(missed_at__gt=F("since")) & no_success_since_missed)
        )
        .select_related("machine", "storage")
    )


def last_successes(sources: Sequence[Source]) -> dict[int, datetime | None]:
    """Return when the last good backup of each source's data began, by whichever machine."""
    shared = {source.name for source in sources if is_shared(source)}
    newest: dict[tuple[str, str, str], datetime | None] = {}
    if shared:
        service = ("machine__environment_name", "machine__service_name", "name")
        rows = (
            Source.objects.filter(shared_service=True, name__in=shared)
            .order_by()
            .values_list(*service)
            .annotate(newest=Max("last_success_at"))
        )
        newest = {(row[0], row[1], row[2]): row[3] for row in rows}
    return {
        source.pk: newest.get(
            (source.machine.environment_name, source.machine.service_name, source.name)
        )
        if is_shared(source)
        else source.last_success_at
        for source in sources
    }


def _examine(source: Source, last_success: datetime | None, now: datetime) -> Behind | None:
    if not is_wanted(source) or (source.storage is not None and source.storage.paused):
        return None
    try:
        schedule = parse_schedule(source.frequency)
    except ValueError:
        # The source's problem says what is wrong with it.
        return Behind(source, Kind.OVERDUE, source.since, last_success, _reason(source, now))
    key = schedule_key(source)
    counted_from = source.since.astimezone(now.tzinfo)
    success = last_success.astimezone(now.tzinfo) if last_success else None
    # When the first run that is lacking was due; a newcomer's is due at once.
    since = counted_from
    if success is not None:
        then = max(success, counted_from)
        since = schedule.due_at(key, last_success=success, since=counted_from, now=then)
    failed_at = source.last_failure_at
    if source.failures and failed_at and (success is None or failed_at > success):
        since = min(since, failed_at)
        return Behind(source, Kind.FAILING, since, last_success, _failure(source))
    if source.lease_until is not None and source.lease_until > now:
        return None
    missed = schedule.missed(key, last_success=success, since=counted_from, now=now)
    if missed is not None:
        return Behind(source, Kind.MISSED, min(since, missed[0]), success, _reason(source, now))
    at = schedule.due_at(key, last_success=success, since=counted_from, now=now)
    if at < now - TOLERANCE:
        return Behind(source, Kind.OVERDUE, since, last_success, _reason(source, now))
    return None


def _failure(source: Source) -> str:
    times = "time" if source.failures == 1 else "times"
    summary: str = getattr(source, "last_failure", None) or "no reason was given"
    return f"It failed {source.failures} {times}: {first_line(summary).rstrip('.')}."


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

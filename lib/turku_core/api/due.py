"""When a source is due: `Source.next_due_at` and `Machine.next_due_at`.

Both are computed at events (a configuration, a report, a hand-out, a pause) and stored, so that
an idle check-in compares one number. They are lower bounds: when the time has come, a check-in
looks at the source again, and may find a window over or another machine's backup good enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from django.db import transaction
from django.db.models import Max, Min, Q
from django.db.models.functions import Least
from django.utils import timezone

from turku_core.api import records
from turku_core.api.models import Backup, Machine, Source
from turku_core.api.models.backups import GOOD_OUTCOMES
from turku_core.schedule import LONGEST_PAUSE, UTC, Schedule, retry_at

ABSENT_AFTER = timedelta(minutes=15)
"""A machine that hasn't checked in for so long (three check-ins of five minutes) is away."""

parse_schedule = lru_cache(maxsize=4096)(Schedule.parse)


@dataclass(frozen=True)
class Due:
    """What a schedule says of a source at a moment.

    Attributes:
        at: When the next run should begin; the moment itself or earlier means now. None: never.
        missed: The last window that is over and had no good run.
    """

    at: datetime | None
    missed: tuple[datetime, datetime] | None = None


def peers_of(source: Source) -> Q:
    """Select the sources that hold the same data as a shared source, itself included."""
    machine = source.machine
    return Q(
        name=source.name,
        shared_service=True,
        machine__environment_name=machine.environment_name,
        machine__service_name=machine.service_name,
    )


def is_shared(source: Source) -> bool:
    """Whether other machines may hold the same data; without a service, nobody is meant."""
    return source.shared_service and bool(source.machine.service_name)


def schedule_key(source: Source) -> str:
    """Return what spreads the source over its window; machines that share one share its place."""
    if is_shared(source):
        machine = source.machine
        return f"{machine.environment_name}\n{machine.service_name}\n{source.name}"
    return str(source.pk)


def last_success_of(source: Source, now: datetime) -> datetime | None:
    """Return when the last good backup of the source's data began, by whichever machine.

    One that began later than `now` was noted while the clock was ahead. Then the record is asked
    for the newest one that didn't, or the source would be backed up again in a period that has
    its run, and, since a later one is known, again and again.
    """
    peers = Source.objects.filter(peers_of(source)) if is_shared(source) else None
    newest: datetime | None = source.last_success_at
    if peers is not None:
        newest = peers.aggregate(newest=Max("last_success_at"))["newest"]
    if newest is None or newest <= now:
        return newest
    runs = Backup.objects.filter(source__in=[source] if peers is None else peers)
    began: datetime | None = (
        runs.filter(outcome__in=GOOD_OUTCOMES)
        # A storage unit's clock may have been ahead as well.
        .annotate(began=Least("time_begin", "recorded_at"))
        .filter(began__lte=now)
        .aggregate(newest=Max("began"))["newest"]
    )
    return began


def is_machine_wanted(machine: Machine) -> bool:
    """Whether the machine is to be backed up at all, as far as it and an operator say."""
    return machine.active and machine.published and not machine.paused


def is_wanted(source: Source) -> bool:
    """Whether the source is to be backed up at all, as far as it, its machine and operators say."""
    return source.published and not source.paused and is_machine_wanted(source.machine)


def when_due(source: Source, now: datetime) -> Due:
    """Say when the source is due, and which window it has missed.

    Raises:
        ValueError: Its schedule isn't valid (a hand in the database; `update_config` checks it).
    """
    if not is_wanted(source):
        return Due(None)
    schedule = parse_schedule(source.frequency)
    key = schedule_key(source)
    last_success = last_success_of(source, now)
    local = now.astimezone(timezone.get_default_timezone())
    missed = schedule.missed(key, last_success=last_success, since=source.since, now=local)
    if missed is not None:
        missed = (_utc(missed[0]), _utc(missed[1]))
    retry = _retry_of(source, now)
    if source.requested_at is not None:
        return Due(max(now, retry or now), missed)
    # What the schedule says at the time of the retry: the window may be over by then.
    moment = local if retry is None else max(local, retry.astimezone(local.tzinfo), key=_utc)
    at = _utc(schedule.due_at(key, last_success=last_success, since=source.since, now=moment))
    return Due(at if retry is None else max(at, retry), missed)


def _retry_of(source: Source, now: datetime) -> datetime | None:
    if not source.failures or source.last_failure_at is None:
        return None
    if source.last_failure_at > now + LONGEST_PAUSE:
        # Noted while the clock was ahead: nobody knows how long ago it is.
        return None
    return retry_at(source.failures, source.last_failure_at)


def _utc(moment: datetime) -> datetime:
    # Times of one zone are compared by what the clock on the wall shows; instants are meant.
    return moment.astimezone(UTC)


def refresh(source: Source, now: datetime) -> bool:
    """Compute and store when the source is due, and put a window that it missed on the record.

    A source that is leased is looked at again when its lease ends; one whose lease ran out
    without a report has had a failed run. A schedule that isn't valid becomes the source's problem
    and nobody else's. Inside a transaction that holds the machine's row.

    Returns:
        Whether the source is due now.
    """
    records.note_lost_run(source, now)
    before = (source.next_due_at, source.missed_at, source.problem)
    try:
        due = when_due(source, now)
    except ValueError as error:
        source.problem = f"The schedule {source.frequency!r} is not valid: {error}."[:1024]
        due = Due(None)
    if due.missed is not None:
        records.note_missed_window(source, due.missed, now)
    at = due.at
    if at is not None and source.lease_until is not None and source.lease_until > now:
        at = max(at, source.lease_until)
    if at is not None and at > now and not source.failures and source.storage_id is not None:
        # What kept it from being handed out when it was due is over.
        source.problem = ""
    source.next_due_at = at
    if (source.next_due_at, source.missed_at, source.problem) != before:
        source.save(update_fields=["next_due_at", "missed_at", "problem"])
    return at is not None and at <= now


def refresh_machine(machine: Machine) -> None:
    """Store the earliest time at which a source of the machine may be due."""
    earliest = None
    if is_machine_wanted(machine):
        wanted = Source.objects.filter(machine=machine, published=True, paused=False)
        earliest = wanted.aggregate(at=Min("next_due_at"))["at"]
    Machine.objects.filter(pk=machine.pk).update(next_due_at=earliest)


def begin_again(machine: Machine, now: datetime) -> None:
    """Let the schedules of a machine count from `now`, after it was paused or away."""
    with transaction.atomic():
        for source in machine.sources.select_related("machine", "storage"):
            source.since = now
            source.save(update_fields=["since"])
            refresh(source, now)
        refresh_machine(machine)


def record_missed_windows(now: datetime) -> int:
    """Look at the sources whose time has come and whose machines don't check in.

    A machine that checks in has its missed windows and lost runs noted then; this is for those
    that don't, and is called by housekeeping.

    Returns:
        How many sources were looked at.
    """
    quiet = now - ABSENT_AFTER
    machines = (
        Machine.objects.filter(next_due_at__lte=quiet, active=True)
        .exclude(last_checkin_at__gte=quiet)
        .values_list("pk", flat=True)
    )
    looked_at = 0
    for pk in list(machines):
        with transaction.atomic():
            machine = Machine.objects.select_for_update(no_key=True).get(pk=pk)
            for source in machine.sources.select_related("machine", "storage").filter(
                next_due_at__lte=quiet
            ):
                refresh(source, now)
                looked_at += 1
            refresh_machine(machine)
    return looked_at

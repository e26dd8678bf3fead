"""Handing out due sources: each to one session at a time, and no unit more than it can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from turku_core.api import due, filters, placement, shared_services
from turku_core.api.models import Assignment, Machine, Source, StorageUnit
from turku_core.fields import FieldError
from turku_core.protocol.messages import RunningSession

HANDED_OUT_FOR = timedelta(minutes=10)
"""From a check-in to the session, and from one renewal to the next."""

SESSION_FOR = timedelta(hours=12)
"""A session with a storage unit that doesn't renew leases."""


KEY_FETCHED_WITHIN = timedelta(seconds=5)
"""When to ask again for what waits for its storage unit to fetch a key: it looks every 20 s."""

SLOT_FREE_WITHIN = timedelta(minutes=1)
"""When to ask again for what waits for another machine's session to end."""

UNIT_REGISTERS_WITHIN = timedelta(seconds=30)
"""When to ask again in a new Turku, which may have machines before its first storage unit."""


@dataclass(frozen=True)
class Obstacle:
    """Why a storage unit can't take a session of a machine now.

    Attributes:
        sentence: For a person.
        come_back: When it is worth asking again, if it passes by itself; None: it may not.
    """

    sentence: str
    come_back: timedelta | None = None


@dataclass(frozen=True)
class HandedOut:
    """What became of a machine's due sources.

    Attributes:
        sources: The ones that were leased just now, each with its machine and storage unit.
        come_back: When the machine had better ask again for others; None: at its own time.
    """

    sources: Sequence[Source]
    come_back: timedelta | None = None


def hand_out(machine_id: int, now: datetime, session_with: StorageUnit | None = None) -> HandedOut:
    """Lease the sources of a machine that are due and whose storage units can serve them.

    Args:
        machine_id: The machine, which has shown its secret or whose storage unit asks.
        now: The time.
        session_with: The storage unit that the machine has a session with, when the unit asks;
            sources elsewhere are then left for the machine's other sessions.
    """
    with transaction.atomic():
        # The order in which rows are locked is the same everywhere: machine, units, sources.
        machine = Machine.objects.select_for_update(no_key=True).get(pk=machine_id)
        sources = _due_sources(machine, now, session_with)
        units = _lock_units({source.storage_id for source in sources if source.storage_id})
        obstacles = {
            pk: _unit_obstacle(unit, machine, now, session_with) for pk, unit in units.items()
        }
        handed_out = []
        for source in sources:
            obstacle = obstacles.get(source.storage_id)
            problem = obstacle.sentence if obstacle else _source_obstacle(source, now)
            if problem:
                _set_problem(source, problem)
            elif _lease(source, now):
                handed_out.append(source)
        due.refresh_machine(machine)
    pauses = [each.come_back for each in obstacles.values() if each and each.come_back]
    if not units and not StorageUnit.objects.exists():
        pauses.append(UNIT_REGISTERS_WITHIN)
    return HandedOut(handed_out, min(pauses, default=None))


def give_back(machine_id: int, last: datetime | None, now: datetime) -> None:
    """End the leases of a machine of which it never heard, since the answer was lost.

    The sources are then due as they were before, and no run is put on the record.

    Args:
        machine_id: The machine, which has shown its secret.
        last: When the last sources that it knows of were handed out to it; None: it knows of none.
        now: The time.
    """
    with transaction.atomic():
        machine = Machine.objects.select_for_update(no_key=True).get(pk=machine_id)
        held = machine.sources.select_related("storage", "lease_storage")
        for source in _handed_out_since(held, last, now).order_by("pk"):
            # A session has opened: somebody must have heard.
            if source.leased_at is None or source.lease_until != source.leased_at + HANDED_OUT_FOR:
                continue
            source.machine = machine
            release(source)
            source.save(update_fields=["leased_at", "lease_until", "lease_storage"])
            due.refresh(source, now)
        due.refresh_machine(machine)


def is_unheard_of(last: datetime | None, now: datetime) -> Exists:
    """Select the machines to which something was handed out of which they may not have heard."""
    return Exists(_handed_out_since(Source.objects.filter(machine=OuterRef("pk")), last, now))


def _handed_out_since(
    sources: QuerySet[Source], last: datetime | None, now: datetime
) -> QuerySet[Source]:
    after = now - HANDED_OUT_FOR
    return sources.filter(leased_at__gt=after if last is None else max(after, last))


def _due_sources(machine: Machine, now: datetime, session_with: StorageUnit | None) -> list[Source]:
    candidates = machine.sources.select_related("storage", "lease_storage").filter(
        published=True, paused=False, next_due_at__lte=now
    )
    if session_with is not None:
        candidates = candidates.filter(storage=session_with)
    found = []
    for source in candidates.order_by("pk"):
        source.machine = machine
        if due.refresh(source, now) and _has_place(machine, source, now):
            found.append(source)
    return found


def _has_place(machine: Machine, source: Source, now: datetime) -> bool:
    if not placement.is_homeless(source):
        return True
    before = source.problem
    placed = placement.place(machine, source, now)
    if placed or source.problem != before:
        source.save(update_fields=["storage", "problem"])
    return placed


def _lock_units(ids: set[int]) -> dict[int | None, StorageUnit]:
    """Lock storage units, so that nobody else counts their free slots meanwhile."""
    locked = StorageUnit.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk")
    return {unit.pk: unit for unit in locked}


def _unit_obstacle(
    unit: StorageUnit, machine: Machine, now: datetime, session_with: StorageUnit | None
) -> Obstacle | None:
    """Say why the storage unit can't take a session of the machine now; None when it can."""
    if not unit.active or not unit.published:
        return Obstacle(f"Storage unit {unit.name} is not in service.")
    if unit.paused:
        return Obstacle(f"Storage unit {unit.name} is paused.")
    slots = _slots_of(unit)
    if _count_other_machines(unit, machine, now) >= slots:
        return Obstacle(
            f"Storage unit {unit.name} has all its {slots} slots taken.", SLOT_FREE_WITHIN
        )
    if session_with is None and not _knows_key(unit, machine):
        return Obstacle(
            f"Storage unit {unit.name} has not fetched the machine's SSH key yet.",
            KEY_FETCHED_WITHIN,
        )
    return None


def _slots_of(unit: StorageUnit) -> int:
    """Return how many sessions the unit is sent at once: its own word, or the operator's cap."""
    cap: int = settings.TURKU_SESSION_SLOTS
    return min(unit.slots, cap) if cap else unit.slots


def _count_other_machines(unit: StorageUnit, machine: Machine, now: datetime) -> int:
    live = Source.objects.filter(lease_storage=unit, lease_until__gt=now).exclude(machine=machine)
    return live.order_by().values("machine").distinct().count()


def _knows_key(unit: StorageUnit, machine: Machine) -> bool:
    return Assignment.objects.filter(
        machine=machine, storage=unit, announced_key=machine.ssh_key_fingerprint
    ).exists()


def _source_obstacle(source: Source, now: datetime) -> str:
    try:
        filters.splice(source.filter, filters.stored_rules)
    except FieldError as error:
        return f"The source's filter can't be used: {error}."
    if due.is_shared(source):
        return shared_services.obstacle(source, now)
    return ""


def _set_problem(source: Source, problem: str) -> None:
    if source.problem != problem:
        source.problem = problem
        source.save(update_fields=["problem"])


def _lease(source: Source, now: datetime) -> bool:
    """Take the lease if nobody has it; the database decides between two that try at once."""
    until = now + HANDED_OUT_FOR
    problem = source.problem if source.failures else ""
    free = Q(lease_until__isnull=True) | Q(lease_until__lte=now)
    taken = Source.objects.filter(free, pk=source.pk).update(
        leased_at=now,
        lease_until=until,
        lease_storage=source.storage,
        next_due_at=until,
        problem=problem,
    )
    return taken == 1


def open_session(machine: Machine, unit: StorageUnit, now: datetime) -> list[Source]:
    """Return the sources that a session of `machine` with `unit` is for, their leases extended.

    These are the ones that a check-in handed out, and what has become due since.
    """
    hand_out(machine.pk, now, session_with=unit)
    until = now + (HANDED_OUT_FOR if unit.renews_leases else SESSION_FOR)
    leased = machine.sources.filter(lease_storage=unit, lease_until__gt=now)
    sources = list(leased.select_related("machine", "storage").order_by("name"))
    _extend([source.pk for source in sources], unit, until)
    return sources


def renew(unit: StorageUnit, running: Sequence[RunningSession], now: datetime) -> None:
    """Extend the leases of the sessions that the unit says are alive.

    Only leases that it holds: a lease that a report has ended meanwhile isn't taken again.
    """
    alive = {(each.machine, name) for each in running for name in each.sources}
    if not alive:
        return
    held = Source.objects.filter(lease_storage=unit, lease_until__isnull=False).order_by("pk")
    rows = held.values_list("pk", "machine__uuid", "name")
    _extend([pk for pk, *key in rows if tuple(key) in alive], unit, now + HANDED_OUT_FOR)


def _extend(ids: Sequence[int], unit: StorageUnit, until: datetime) -> None:
    held = Source.objects.filter(pk__in=ids, lease_storage=unit)
    held.filter(lease_until__lt=until).update(lease_until=until)


def release(source: Source) -> None:
    """End the lease of a source; the caller saves it."""
    source.leased_at = source.lease_until = source.lease_storage = None

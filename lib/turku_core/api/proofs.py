"""What isn't proven: the snapshots of which nobody knows that they can be restored.

A storage unit proves each of its snapshots once in an interval, by a restore drill. A drill that
fails is as bad as a backup that fails, and is told in the same places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from django.db.models import Q, QuerySet

from turku_core.api.models import Snapshot, SnapshotState, Source, StorageUnit
from turku_core.api.overdue import first_line, wanted_sources
from turku_core.commandline import human_time

INTERVAL_DAYS = 30.0
"""In which time a storage unit proves its snapshots, unless it says otherwise."""

TOLERANCE = 2
"""How many intervals may go by until a snapshot that isn't proven is news."""


class Kind(str, Enum):
    """In which way a snapshot isn't proven, the worst first."""

    DAMAGED = "damaged"
    FAILED = "drill-failed"
    OVERDUE = "drill-overdue"


@dataclass(frozen=True)
class Unproven:
    """A snapshot that can't be relied on.

    Attributes:
        snapshot: With its source, machine and storage unit already read.
        kind: The worst that is to be said of it.
        since: When it should have been proven at the latest.
        reason: A sentence.
    """

    snapshot: Snapshot
    kind: Kind
    since: datetime
    reason: str


def find_unproven(now: datetime, sources: QuerySet[Source] | None = None) -> list[Unproven]:
    """Return the snapshots that aren't proven, of all wanted sources or of some.

    Units that prove no snapshots (they speak v1 alone) report none, and are not held to it.
    """
    chosen = wanted_sources() if sources is None else sources
    held = Snapshot.objects.filter(
        source__in=chosen, storage__isnull=False, storage__paused=False
    ).select_related("storage", "source__machine", "source__storage")
    found = held.filter(
        Q(state=SnapshotState.DAMAGED)
        | Q(state=SnapshotState.COMMITTED) & (~Q(error="") | _overdue(now))
    )
    return [_unproven(snapshot, now) for snapshot in found]


def worst_by_source(found: Iterable[Unproven]) -> dict[int, Unproven]:
    """Return of each source, by its key, the worst that is to be said of one of its snapshots."""
    order = list(Kind)
    worst: dict[int, Unproven] = {}
    for each in sorted(found, key=lambda each: (order.index(each.kind), each.since)):
        if each.snapshot.source_id is not None:
            worst.setdefault(each.snapshot.source_id, each)
    return worst


def interval_of(unit: StorageUnit | None) -> timedelta:
    """Return in which time a storage unit proves its snapshots."""
    told = None if unit is None else unit.told_verify_interval_days
    return timedelta(days=max(1.0, INTERVAL_DAYS if told is None else told))


def _overdue(now: datetime) -> Q:
    overdue = Q(pk__in=[])
    by_interval: dict[timedelta, list[int]] = {}
    for unit in StorageUnit.objects.only("pk", "told_verify_interval_days"):
        by_interval.setdefault(interval_of(unit), []).append(unit.pk)
    for interval, units in by_interval.items():
        old = now - TOLERANCE * interval
        overdue |= Q(storage__in=units, taken_at__lt=old) & (
            Q(proven_at=None) | Q(proven_at__lt=old)
        )
    return overdue


def _unproven(snapshot: Snapshot, now: datetime) -> Unproven:
    interval = interval_of(snapshot.storage)
    first = snapshot.taken_at or snapshot.reported_at
    due = first if snapshot.proven_at is None else snapshot.proven_at + interval
    # One that is damaged, or can't be drilled, was found to be so at the latest when it was told.
    told = min(due, snapshot.reported_at, now)
    said = first_line(snapshot.error).rstrip(".")
    if snapshot.state == SnapshotState.DAMAGED:
        return Unproven(snapshot, Kind.DAMAGED, told, f"Damaged: {said or 'no reason was given'}.")
    if said:
        reason = f"Its restore drill could not be made: {said}."
        return Unproven(snapshot, Kind.FAILED, told, reason)
    proven = human_time(snapshot.proven_at) or "never"
    reason = f"Last proven {proven}: look at turku-storage-worker on {snapshot.storage_name}."
    return Unproven(snapshot, Kind.OVERDUE, due, reason)

"""Records that are kept for a set time, deleted in bulk.

Deleting goes in chunks, each a short transaction of its own, so that check-ins are served
meanwhile and a prune that is broken off has done its part. The last good record of a source stays
however old it is: it is what an operator looks for when a machine has been away for long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from django.db import models
from django.db.models import OuterRef, QuerySet, Subquery

from turku_core.api.models import (
    Backup,
    RestoreGrant,
    RestoreOrder,
    Snapshot,
    SnapshotState,
    Source,
)
from turku_core.api.models.backups import GOOD_OUTCOMES

CHUNK = 500
"""Rows of one transaction; below the 999 variables of a statement that an old SQLite allows."""


@dataclass(frozen=True)
class Pruned:
    """How many rows were deleted (or would be)."""

    backups: int = 0
    snapshots: int = 0
    grants: int = 0
    orders: int = 0


def prune(
    before: datetime,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Pruned:
    """Delete what was recorded before a time and is of no more use.

    These are records of backups (but the last good one of each source), snapshots that storage
    units said they have removed, restore grants that have ended, and restore orders.

    Args:
        before: An aware datetime.
        dry_run: Count, and delete nothing.
        progress: Called after each chunk with the number of rows deleted so far.
    """
    done = 0

    def sweep(rows: QuerySet[models.Model], kept: Collection[int] = ()) -> int:
        nonlocal done
        count = 0
        last = 0
        while chunk := list(
            rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:CHUNK]
        ):
            last = chunk[-1]
            victims = [key for key in chunk if key not in kept]
            if not dry_run:
                rows.model._default_manager.filter(pk__in=victims).delete()
                done += len(victims)
                progress(done)
            count += len(victims)
        return count

    return Pruned(
        backups=sweep(Backup.objects.filter(recorded_at__lt=before), _last_good_records()),
        snapshots=sweep(
            Snapshot.objects.filter(state=SnapshotState.REMOVED, reported_at__lt=before)
        ),
        grants=sweep(RestoreGrant.objects.filter(until__lt=before)),
        orders=sweep(RestoreOrder.objects.filter(ended_at__lt=before)),
    )


def _last_good_records() -> set[int]:
    """Return the keys of each source's newest good record."""
    newest = (
        Backup.objects.filter(source=OuterRef("pk"), outcome__in=GOOD_OUTCOMES)
        .order_by("-time_begin")
        .values("pk")[:1]
    )
    found = Source.objects.annotate(newest=Subquery(newest)).values_list("newest", flat=True)
    return {key for key in found if key is not None}

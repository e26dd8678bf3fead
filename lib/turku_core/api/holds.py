"""Holds as the storage units report them: what is suspicious, for an operator to look at.

Nothing here ends a hold, for the API could be in the wrong hands as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from django.db.models import Q, QuerySet

from turku_core.api.models import Hold, Source, StorageUnit
from turku_core.protocol.messages import HoldState


def record_hold(source: Source, unit: StorageUnit, state: HoldState, now: datetime) -> None:
    """Take over what a storage unit says; the same again changes nothing."""
    if not state.held:
        Hold.objects.filter(source=source, storage=unit).delete()
        return
    Hold.objects.update_or_create(
        source=source,
        storage=unit,
        defaults={
            "since": now
            if state.since is None
            else datetime.fromtimestamp(state.since, timezone.utc),
            "snapshot": state.snapshot or "",
            "reason": state.reason,
            "share": state.share,
            "reported_at": now,
        },
    )


def wanted_holds() -> QuerySet[Hold]:
    """Select the holds that an operator has not silenced, oldest last.

    A machine could withdraw its sources, or itself, to be silent: that doesn't count here.
    """
    return (
        Hold.objects.filter(
            Q(source__paused=False),
            source__machine__active=True,
            source__machine__paused=False,
            storage__active=True,
            storage__paused=False,
        )
        .select_related("source__machine", "storage")
        .order_by("-since", "pk")
    )


def reasons(sources: Sequence[Source]) -> dict[int, str]:
    """Return why the expiry of some of the sources is held, by their keys, in one query."""
    found = Hold.objects.filter(source__in=[source.pk for source in sources]).order_by("since")
    return {hold.source_id: hold.reason for hold in found}

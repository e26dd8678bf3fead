"""Shared services: several machines hold the same data, and one of them backs it up in a period."""

from __future__ import annotations

from datetime import datetime

from turku_core.api import due
from turku_core.api.models import Source


def obstacle(source: Source, now: datetime) -> str:
    """Say why another machine backs up the source's data now; empty when this one may.

    The machine that made the last good backup goes on making them, so that the data is on one
    storage unit and each run is short. Another takes over as soon as that machine is away, paused
    or has failed. Inside a transaction: the sources of the service are locked, so that two
    machines that ask at once don't both get a yes.
    """
    peers = (
        Source.objects.select_for_update(no_key=True, of=("self",))
        .select_related("machine", "storage")
        .filter(due.peers_of(source))
        .order_by("pk")
    )
    group = list(peers)
    others = [peer for peer in group if peer.pk != source.pk]
    for peer in others:
        if peer.lease_until is not None and peer.lease_until > now:
            return f"{peer.machine.unit_name} is backing up the shared service now."
    if not _is_due(source, now):
        return "Another machine has just backed up the shared service."
    done = [peer for peer in group if peer.last_success_at is not None]
    keeper = max(done, key=lambda peer: (peer.last_success_at, peer.pk), default=None)
    if keeper is not None and keeper.pk != source.pk and _can_go_on(keeper, now):
        return f"{keeper.machine.unit_name} backs up the shared service."
    return ""


def _is_due(source: Source, now: datetime) -> bool:
    at = due.when_due(source, now).at
    return at is not None and at <= now


def _can_go_on(keeper: Source, now: datetime) -> bool:
    seen, unit = keeper.machine.last_checkin_at, keeper.storage
    try:
        return (
            seen is not None
            and seen > now - due.ABSENT_AFTER
            and not keeper.failures
            and unit is not None
            and unit.active
            and unit.published
            and not unit.paused
            and _is_due(keeper, now)
        )
    except ValueError:
        # Its schedule isn't valid.
        return False

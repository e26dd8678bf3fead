"""When the API's clock has gone back: what was written while it was ahead must hold nothing up.

A lease that ends in ten years, a retry in ten years, a next run in ten years: each would keep a
source from being backed up for as long. A machine's own check-ins tell: the last one can't have
been later than this one.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Max

from turku_core.api import due, leases, restore_orders
from turku_core.api.models import Backup, Machine, Source
from turku_core.api.models.backups import GOOD_OUTCOMES

log = logging.getLogger(__name__)

TOLERANCE = timedelta(minutes=5)
"""How far the clocks of API units may differ without anybody noticing it here."""

LONG = timedelta(hours=2)
"""By how much the clock was ahead when a run of then is taken for one of its true time. With less
it may be one of the same window, which must not have two."""

_NOT_LATER = ("since", "last_failure_at", "missed_at", "requested_at", "leased_at")


def has_gone_back(last_checkin_at: datetime | None, now: datetime) -> bool:
    """Say whether the clock has gone back since a machine's last check-in."""
    return last_checkin_at is not None and last_checkin_at > now + TOLERANCE


def set_right(machine_id: int, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Bring what is stored of a machine to a time that isn't later than it can be.

    A lease isn't ended, since its session may be alive: it ends as one would that was handed out
    just now. A good run from the future is one from the past when its storage unit says so; else
    it stays, in case the clock is wrong now: see `due.last_success_of`.

    Returns:
        When a source of the machine may be due, and when an order is.
    """
    with transaction.atomic():
        machine = Machine.objects.select_for_update(no_key=True).get(pk=machine_id)
        log.warning("machine %s: the clock has gone back since its last check-in", machine)
        sources = machine.sources.select_related("storage", "lease_storage").order_by("pk")
        for source in sources.select_for_update(no_key=True, of=("self",)):
            source.machine = machine
            _set_source_right(source, now)
            due.refresh(source, now)
        due.refresh_machine(machine)
        restore_orders.not_later(machine, now)
    machine.refresh_from_db(fields=["next_due_at", "next_order_at"])
    return machine.next_due_at, machine.next_order_at


def _set_source_right(source: Source, now: datetime) -> None:
    for name in _NOT_LATER:
        value = getattr(source, name)
        if value is not None and value > now:
            setattr(source, name, now)
    if source.last_success_at is not None and source.last_success_at > now:
        good = Backup.objects.filter(source=source, outcome__in=GOOD_OUTCOMES, time_begin__lte=now)
        newest = good.aggregate(began=Max("time_begin"), recorded=Max("recorded_at"))
        if newest["recorded"] is not None and newest["recorded"] > newest["began"] + LONG:
            source.last_success_at = newest["began"]
    if source.lease_until is not None:
        unit = source.lease_storage
        lasts = leases.SESSION_FOR if unit and not unit.renews_leases else leases.HANDED_OUT_FOR
        source.lease_until = min(source.lease_until, now + lasts)
    source.save(update_fields=[*_NOT_LATER, "last_success_at", "lease_until"])

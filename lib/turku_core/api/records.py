"""Putting runs on the record."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from django.utils import timezone

from turku_core.api.models import Backup, Outcome, Source, StorageUnit

log = logging.getLogger(__name__)

PROBLEM_CHARACTERS_MAX = 1024


def add_backup(
    source: Source, storage: StorageUnit | None, outcome: Outcome, **values: Any
) -> bool:
    """Put one run of `source` on the record, unless it is there already.

    Two records of a source with the same snapshot, beginning and outcome are one. `values` are
    the other fields of `Backup`: `snapshot`, `time_begin`, `time_end`, `recorded_at` and more.

    Returns:
        Whether it was new.
    """
    identity = {
        "source": source,
        "snapshot": values.pop("snapshot", ""),
        "time_begin": values.pop("time_begin"),
        "outcome": outcome,
    }
    _, is_new = Backup.objects.get_or_create(
        **identity, defaults={**subject(source, storage), **values}
    )
    return is_new


def subject(source: Source, storage: StorageUnit | None) -> dict[str, Any]:
    """Return the fields that say what a record is about, but for the source's reference."""
    machine = source.machine
    return {
        "machine": machine,
        "storage": storage,
        "machine_uuid": machine.uuid,
        "environment_name": machine.environment_name,
        "service_name": machine.service_name,
        "unit_name": machine.unit_name,
        "source_name": source.name,
        "storage_name": storage.name if storage else "",
    }


def shown(moment: datetime) -> str:
    """Return a time as an operator reads it: in the configured zone, to the minute."""
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M %Z}"


def note_missed_window(source: Source, window: tuple[datetime, datetime], now: datetime) -> None:
    """Put a window that went by without a good run on the record, once; sets `missed_at`."""
    begin, end = window
    if source.missed_at is not None and source.missed_at >= end:
        return
    source.missed_at = end
    add_backup(
        source,
        source.storage,
        Outcome.MISSED,
        time_begin=begin,
        time_end=end,
        recorded_at=now,
        summary=_why_missed(source, begin),
    )


def _why_missed(source: Source, begin: datetime) -> str:
    seen = source.machine.last_checkin_at
    if seen is None or seen < begin:
        return "The machine did not check in during the window."
    return source.problem or "No good backup was made in the window."


def note_lost_run(source: Source, now: datetime) -> None:
    """Put a run on the record as failed when its lease ran out and nobody told how it ended."""
    leased_at, until, unit = source.leased_at, source.lease_until, source.lease_storage
    if until is None or until > now or leased_at is None:
        return
    name = unit.name if unit else "that is gone"
    source.problem = (
        f"Handed out for storage unit {name} at {shown(leased_at)}, and no result was reported "
        f"until {shown(until)}: see the logs of the agent and of the unit."
    )
    source.failures += 1
    source.last_failure_at = until
    source.leased_at = source.lease_until = source.lease_storage = None
    # Only if the lease is still the one that ran out: a unit may be renewing it right now.
    changed = Source.objects.filter(pk=source.pk, lease_until=until).update(
        problem=source.problem,
        failures=source.failures,
        last_failure_at=until,
        leased_at=None,
        lease_until=None,
        lease_storage=None,
    )
    if not changed:
        source.refresh_from_db()
        return
    log.warning("machine %s, source %s: %s", source.machine, source.name, source.problem)
    add_backup(
        source,
        unit,
        Outcome.FAILED,
        time_begin=leased_at,
        time_end=until,
        recorded_at=now,
        summary=source.problem,
    )

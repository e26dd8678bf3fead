"""What the first page of the administration site shows."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django import template
from django.db import models

from turku_core.api import clock
from turku_core.api.health import STORAGE_NOT_SEEN_WARNING, used_percent
from turku_core.api.holds import wanted_holds
from turku_core.api.models import Backup, RestoreGrant, StorageUnit
from turku_core.api.overdue import Kind, find_behind, wanted_machines, wanted_sources
from turku_core.api.states import storage_state
from turku_core.commandline import human_size

register = template.Library()

ROWS_MAX = 15
ONE_DAY = timedelta(days=1)
MIB = 1024 * 1024


@register.inclusion_tag("turku_api/dashboard.html")
def dashboard() -> dict[str, Any]:
    """Return what needs attention, the storage units, and the backups of the last day."""
    now = clock.now()
    behind = find_behind(now)
    last_day = Backup.objects.filter(time_begin__gte=now - ONE_DAY)
    outcomes = dict(last_day.order_by().values_list("outcome").annotate(count=models.Count("pk")))
    return {
        "machine_count": wanted_machines().count(),
        "source_count": wanted_sources().count(),
        "grant_count": RestoreGrant.objects.filter(until__gt=now).count(),
        "hold_count": wanted_holds().count(),
        "outcomes": outcomes,
        "behind": behind[:ROWS_MAX],
        "behind_count": len(behind),
        "kinds": {kind.value: sum(each.kind is kind for each in behind) for kind in Kind},
        "units": [_unit(unit, now) for unit in StorageUnit.objects.filter(active=True)],
    }


def _unit(unit: StorageUnit, now: datetime) -> dict[str, Any]:
    seen = unit.last_checkin_at
    return {
        "unit": unit,
        "state": storage_state(unit),
        "used": round(used_percent(unit)),
        "full": unit.is_at_high_water_mark,
        "available": human_size(unit.space_available * MIB),
        "quiet": seen is None or now - seen > STORAGE_NOT_SEEN_WARNING,
    }

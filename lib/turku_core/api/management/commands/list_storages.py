"""``turku-api list-storages``."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q

from turku_core.api.health import used_percent
from turku_core.api.management.command import ListingCommand
from turku_core.api.models import StorageUnit
from turku_core.api.states import storage_state
from turku_core.commandline import human_size

MIB = 1024 * 1024


class Command(ListingCommand):
    """Lists the storage units."""

    help = "List the storage units: state, space, sources."
    headings = ("name", "state", "used", "available", "total", "mark", "sources", "last seen")
    nothing = "There is no storage unit yet; see docs/how-to for registering one."

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each storage unit; sizes are bytes in JSON."""
        units = StorageUnit.objects.annotate(
            source_count=Count(
                "sources", filter=Q(sources__published=True, sources__machine__active=True)
            )
        ).order_by("name")
        as_size = int if options["json"] else human_size
        return [
            {
                "name": unit.name,
                "state": storage_state(unit),
                "used": f"{used_percent(unit):.0f} %",
                "available": as_size(unit.space_available * MIB),
                "total": as_size(unit.space_total * MIB),
                "mark": f"{unit.mark} %",
                "sources": unit.source_count,
                "last seen": unit.last_checkin_at,
            }
            for unit in units
        ]

"""``turku-api list-holds``."""

from __future__ import annotations

from typing import Any

from turku_core.api.management.command import ListingCommand
from turku_core.api.models import Hold


class Command(ListingCommand):
    """Lists the sources of which nothing expires."""

    help = "List the sources of which nothing expires after a suspicious change."
    headings = ("machine", "source", "storage", "since", "snapshot", "why")
    nothing = "Nothing is held."

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each hold, the newest first."""
        holds = Hold.objects.select_related("source__machine", "storage").order_by("-since", "pk")
        return [
            {
                "machine": hold.source.machine.unit_name,
                "uuid": hold.source.machine.uuid,
                "source": hold.source.name,
                "storage": hold.storage.name,
                "since": hold.since,
                "snapshot": hold.snapshot,
                "changed share": hold.share,
                "why": hold.reason,
            }
            for hold in holds
        ]

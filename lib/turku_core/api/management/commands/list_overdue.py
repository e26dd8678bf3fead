"""``turku-api list-overdue``."""

from __future__ import annotations

from typing import Any

from turku_core.api import clock
from turku_core.api.management.command import ListingCommand
from turku_core.api.overdue import find_behind


class Command(ListingCommand):
    """Lists the sources without the backup that they should have."""

    help = "List what is overdue, failing or missed, and why."
    headings = ("machine", "source", "state", "since", "last good", "why")
    nothing = "Nothing is overdue."

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each such source, the longest behind first."""
        return [
            {
                "machine": behind.source.machine.unit_name,
                "uuid": behind.source.machine.uuid,
                "source": behind.source.name,
                "state": behind.kind.value,
                "since": behind.since,
                "last good": behind.last_success,
                "why": behind.reason,
            }
            for behind in find_behind(clock.now())
        ]

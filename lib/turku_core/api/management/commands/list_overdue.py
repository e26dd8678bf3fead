"""``turku-api list-overdue``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from turku_core.api import clock
from turku_core.api.management.command import ListingCommand
from turku_core.api.overdue import Behind, find_behind
from turku_core.api.proofs import Unproven, find_unproven, worst_by_source


class Command(ListingCommand):
    """Lists the sources that lack a backup, or the proof that one can be restored."""

    help = "List what is overdue, failing, missed, damaged or not proven, and why."
    headings = ("machine", "source", "state", "since", "last good", "why")
    nothing = "Nothing is overdue."

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each such source, the longest behind first."""
        now = clock.now()
        return [*map(_behind_row, find_behind(now)), *map(_unproven_row, _worst(now))]


def _worst(now: datetime) -> list[Unproven]:
    return sorted(worst_by_source(find_unproven(now)).values(), key=lambda each: each.since)


def _behind_row(behind: Behind) -> dict[str, Any]:
    return {
        "machine": behind.source.machine.unit_name,
        "uuid": behind.source.machine.uuid,
        "source": behind.source.name,
        "state": behind.kind.value,
        "since": behind.since,
        "last good": behind.last_success,
        "why": behind.reason,
    }


def _unproven_row(unproven: Unproven) -> dict[str, Any]:
    snapshot = unproven.snapshot
    source = snapshot.source
    return {
        "machine": snapshot.unit_name,
        "uuid": snapshot.machine_uuid,
        "source": snapshot.source_name,
        "state": unproven.kind.value,
        "since": unproven.since,
        "last good": None if source is None else source.last_success_at,
        "why": f"Snapshot {snapshot.name}: {unproven.reason}",
    }

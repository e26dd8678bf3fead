"""``turku-api list-restore-grants``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ListingCommand
from turku_core.api.models import RestoreGrant


class Command(ListingCommand):
    """Lists who may restore whose snapshots."""

    help = "List which machines may restore which others' snapshots."
    headings = ("id", "machine", "may restore", "until", "allowed by")
    nothing = "No machine may restore another one's snapshots."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what to leave out."""
        super().add_arguments(parser)
        parser.add_argument("--all", action="store_true", help="also grants that have ended")

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each grant."""
        grants = RestoreGrant.objects.select_related("machine", "from_machine")
        if not options["all"]:
            grants = grants.filter(until__gt=clock.now())
        return [
            {
                "id": grant.pk,
                "machine": grant.machine.unit_name if grant.machine else grant.machine_uuid,
                "machine uuid": grant.machine_uuid,
                "may restore": (
                    grant.from_machine.unit_name if grant.from_machine else grant.from_machine_uuid
                ),
                "from machine uuid": grant.from_machine_uuid,
                "until": grant.until,
                "allowed by": grant.created_by,
            }
            for grant in grants
        ]

"""``turku-api list-machines``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Count, Q

from turku_core.api.management.command import ListingCommand
from turku_core.api.models import Machine
from turku_core.api.states import machine_state


class Command(ListingCommand):
    """Lists the machines."""

    help = "List the machines: state, sources, when they were last seen."
    headings = ("unit", "environment", "service", "state", "sources", "last seen", "uuid")
    nothing = "There is no machine yet; see docs/how-to for registering one."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what to leave out."""
        super().add_arguments(parser)
        parser.add_argument(
            "--all", action="store_true", help="also machines that are retired or not active"
        )

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each machine."""
        machines = Machine.objects.annotate(
            source_count=Count("sources", filter=Q(sources__published=True))
        ).order_by("environment_name", "service_name", "unit_name")
        if not options["all"]:
            machines = machines.filter(active=True, published=True)
        return [
            {
                "unit": machine.unit_name,
                "environment": machine.environment_name,
                "service": machine.service_name,
                "state": machine_state(machine),
                "sources": machine.source_count,
                "last seen": machine.last_checkin_at,
                "uuid": machine.uuid,
            }
            for machine in machines
        ]

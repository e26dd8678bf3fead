"""``turku-api list-restores``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import ORDER_HEADINGS, ListingCommand, order_row
from turku_core.api.models import RestoreOrder


class Command(ListingCommand):
    """Lists the restores that were ordered here."""

    help = "List the restores that were ordered, and how they went."
    headings = ORDER_HEADINGS
    nothing = "No restore was ordered."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add how many."""
        super().add_arguments(parser)
        parser.add_argument("--limit", type=int, default=20, help="at most so many (20)")

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each order."""
        return [
            order_row(order) for order in RestoreOrder.objects.all()[: max(options["limit"], 1)]
        ]

"""``turku-api cancel-restore``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.models import RestoreOrder
from turku_core.api.operations import NotFound
from turku_core.api.restore_orders import cancel
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Takes back an order that no machine has fetched yet."""

    help = "Take back a restore that was ordered and not fetched yet."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the order."""
        super().add_arguments(parser)
        parser.add_argument("id", type=int, help="the order's number in `list-restores`")

    def handle(self, **options: Any) -> None:
        """Cancel it."""
        order = RestoreOrder.objects.filter(pk=options["id"]).first()
        if order is None:
            raise NotFound(
                f"There is no restore order {options['id']}; `turku-api list-restores` shows them."
            )
        cancel(order, clock.now())
        if options["json"]:
            print_json({"id": order.pk, "cancelled": True})
        else:
            print(f"The restore order {order.pk} ({order}) is cancelled.")

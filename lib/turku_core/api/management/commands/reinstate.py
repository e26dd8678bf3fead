"""``turku-api reinstate``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_machine, reinstate
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Takes a machine back."""

    help = "Take back a machine that was retired or deactivated."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the machine."""
        super().add_arguments(parser)
        parser.add_argument("machine", help="its unit name or UUID")

    def handle(self, **options: Any) -> None:
        """Take it back, unless its SSH key is another machine's by now."""
        machine = find_machine(options["machine"])
        reinstate(machine, clock.now())
        if options["json"]:
            print_json({"machine": machine.uuid, "active": True})
        else:
            print(f"{machine.unit_name} is active again.")

"""``turku-api backup-now``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_machine, request_backups
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Asks a machine for backups, outside their schedules."""

    help = "Make sources of a machine due at once, whatever their schedules say."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the machine and its sources."""
        super().add_arguments(parser)
        parser.add_argument("machine", help="its unit name or UUID")
        parser.add_argument("sources", nargs="*", metavar="SOURCE", help="default: all")

    def handle(self, **options: Any) -> None:
        """Make them due; the machine asks for itself."""
        machine = find_machine(options["machine"])
        sources = request_backups(machine, options["sources"], clock.now())
        names = [source.name for source in sources]
        if options["json"]:
            print_json({"machine": machine.uuid, "sources": names})
        else:
            print(
                f"{machine.unit_name} is told at its next check-in, within 5 minutes, to back up: "
                f"{', '.join(names)}."
            )

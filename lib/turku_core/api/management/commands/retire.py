"""``turku-api retire``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_machine
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Lets a machine go; its backups stay."""

    help = "Retire a machine: no more calls, sessions or alerts; its backups stay."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the machine."""
        super().add_arguments(parser)
        parser.add_argument("machine", help="its unit name or UUID")

    def handle(self, **options: Any) -> None:
        """Retire it."""
        machine = find_machine(options["machine"])
        machine.retire(clock.now())
        if options["json"]:
            print_json({"machine": machine.uuid, "retired_at": machine.retired_at})
        else:
            print(
                f"{machine.unit_name} is retired; its backups stay, and another machine can be "
                f"let restore them: turku-api allow-restore NEW {machine.uuid}."
            )

"""``turku-api disable-registration-key``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_registration_key
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Disables a key, and if asked what registered with it."""

    help = "Stop new registrations with a key, and if asked what came with it."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the key's name."""
        super().add_arguments(parser)
        parser.add_argument("name", help="the key's name")
        parser.add_argument(
            "--with-machines",
            action="store_true",
            help="also deactivate every machine and storage unit that registered with it",
        )

    def handle(self, **options: Any) -> None:
        """Say what was done, and what goes on working."""
        key = find_registration_key(options["name"])
        count = key.disable(with_machines=options["with_machines"], now=clock.now())
        if options["json"]:
            print_json({"name": key.name, "active": False, "deactivated": count})
        elif options["with_machines"]:
            print(f"{key.name} is disabled, and {count} that registered with it are deactivated.")
        else:
            print(f"{key.name} is disabled; what registered with it goes on working.")

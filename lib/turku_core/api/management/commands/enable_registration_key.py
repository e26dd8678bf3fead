"""``turku-api enable-registration-key``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_registration_key
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Enables a key again."""

    help = "Let newcomers in with a key again; what was deactivated stays so."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the key's name."""
        super().add_arguments(parser)
        parser.add_argument("name", help="the key's name")

    def handle(self, **options: Any) -> None:
        """Enable it."""
        key = find_registration_key(options["name"])
        key.enable()
        if options["json"]:
            print_json({"name": key.name, "active": True})
        else:
            print(f"{key.name} lets newcomers in again.")

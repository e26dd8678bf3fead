"""``turku-api rotate-registration-key``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_registration_key
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Gives a key a new secret and shows it, this once."""

    help = "Give a registration key a new secret; it is printed this once."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the key's name."""
        super().add_arguments(parser)
        parser.add_argument("name", help="the key's name")

    def handle(self, **options: Any) -> None:
        """Print the secret alone on standard output, so that a script can take it."""
        key = find_registration_key(options["name"])
        secret = key.rotate()
        if options["json"]:
            print_json({"name": key.name, "kind": key.kind, "secret": secret})
        else:
            self.note(f"The new secret of {key.name}, which is shown this once:")
            print(secret)

"""``turku-api create-registration-key``."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.models import KeyKind, RegistrationKey
from turku_core.commandline import print_json
from turku_core.errors import ConfigurationError


class Command(ReportingCommand):
    """Makes a key and shows its secret, this once."""

    help = "Make a registration key; its secret is printed this once."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the key's name and kind."""
        super().add_arguments(parser)
        parser.add_argument("name", help="the key's name, such as web-servers")
        parser.add_argument(
            "--kind",
            choices=KeyKind.values,
            default=KeyKind.MACHINE.value,
            help="what it lets in (default: %(default)s)",
        )
        parser.add_argument("--comment", default="", help="what it is for")

    def handle(self, **options: Any) -> None:
        """Print the secret alone on standard output, so that a script can take it."""
        try:
            key, secret = RegistrationKey.create_with_secret(
                options["name"], options["kind"], options["comment"]
            )
        except ValidationError as error:
            raise ConfigurationError(
                f"The key {options['name']} can't be made: {' '.join(error.messages)}"
            ) from error
        if options["json"]:
            print_json({"name": key.name, "kind": key.kind, "secret": secret})
        else:
            self.note(f"The secret of {key.name}, which is shown this once:")
            print(secret)

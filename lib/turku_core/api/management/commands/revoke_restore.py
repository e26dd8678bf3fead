"""``turku-api revoke-restore``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.models import RestoreGrant
from turku_core.api.operations import NotFound
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Ends a restore grant at once."""

    help = "End a restore grant at once."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the grant."""
        super().add_arguments(parser)
        parser.add_argument("id", type=int, help="its number in list-restore-grants")

    def handle(self, **options: Any) -> None:
        """End it; a restore that runs is let end."""
        grant = RestoreGrant.objects.filter(pk=options["id"]).first()
        if grant is None:
            raise NotFound(
                f"There is no grant {options['id']}; `turku-api list-restore-grants` shows them."
            )
        grant.end(clock.now())
        if options["json"]:
            print_json({"id": grant.pk, "until": grant.until})
        else:
            print(f"Grant {grant.pk} has ended.")

"""``turku-api pause``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.management.pausing import add_subject, find_subject
from turku_core.api.operations import pause
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Pauses a machine, a source or a storage unit."""

    help = "Pause a machine, a source or a storage unit; restores still work."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what to pause."""
        super().add_arguments(parser)
        add_subject(parser)

    def handle(self, **options: Any) -> None:
        """Pause it; sessions that run are let end."""
        subject = find_subject(options["kind"], options["names"])
        pause(subject)
        if options["json"]:
            print_json({"kind": options["kind"], "name": str(subject), "paused": True})
        else:
            print(f"{subject} is paused, and silent in `turku-api health`, until `resume`.")

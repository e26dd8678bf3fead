"""``turku-api resume``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.management.pausing import add_subject, find_subject
from turku_core.api.operations import resume
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Ends a pause."""

    help = "Resume a machine, a source or a storage unit that is paused."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what to resume."""
        super().add_arguments(parser)
        add_subject(parser)

    def handle(self, **options: Any) -> None:
        """Resume it; what went by meanwhile was not missed."""
        subject = find_subject(options["kind"], options["names"])
        resume(subject, clock.now())
        if options["json"]:
            print_json({"kind": options["kind"], "name": str(subject), "paused": False})
        else:
            print(f"{subject} is resumed.")

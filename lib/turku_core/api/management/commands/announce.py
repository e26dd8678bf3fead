"""``turku-api announce``."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.announcements import Announced, announce
from turku_core.api.management.command import ReportingCommand, print_changes, read_items


class Command(ReportingCommand):
    """Lets the machines and storage units of relations register."""

    help = "Let machines and storage units that a charm's relations name register."

    def add_arguments(self, parser: CommandParser) -> None:
        """Say what is read."""
        super().add_arguments(parser)
        parser.epilog = (
            'Standard input says who they are: {"announcements": [...]}, each item '
            '{"key", "unit", "machine_uuid", "ssh_public_key", "unit_name"} (the last may be '
            'missing) or {"key", "unit", "storage"}.'
        )

    def handle(self, **options: Any) -> None:
        """Say which units' words were new, and who came and went by them."""
        changes = announce(read_items("announcements", Announced.from_json), clock.now())
        for problem in changes.problems:
            self.note(problem)
        print_changes(dataclasses.asdict(changes), as_json=options["json"])

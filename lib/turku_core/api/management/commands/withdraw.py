"""``turku-api withdraw``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.announcements import withdraw
from turku_core.api.management.command import ReportingCommand, print_changes


class Command(ReportingCommand):
    """Takes back what units of a relation have announced."""

    help = "Take back what a unit, or a whole relation, has announced."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add whose."""
        super().add_arguments(parser)
        parser.epilog = (
            "Machines that nobody announces any more are retired, storage units deactivated. Their "
            "backups stay; the next announcement takes them back."
        )
        parser.add_argument(
            "--key", required=True, metavar="NAME", help="the relation's registration key"
        )
        parser.add_argument(
            "--unit", metavar="UNIT", help="only what this unit has announced; default: all of them"
        )

    def handle(self, **options: Any) -> None:
        """Say who is let go."""
        changes = withdraw(options["key"], options["unit"], clock.now())
        answer = {"retired": changes.retired, "deactivated": changes.deactivated}
        print_changes(answer, as_json=options["json"])

"""``turku-api list-backups``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Q

from turku_core.api.management.command import BACKUP_HEADINGS, ListingCommand, backup_row
from turku_core.api.models import Backup, Outcome
from turku_core.api.operations import find_machine, find_storage_unit


class Command(ListingCommand):
    """Lists records of backups, newest first."""

    help = "List the records of backups, newest first."
    headings = BACKUP_HEADINGS
    nothing = "There is no such record."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what to pick."""
        super().add_arguments(parser)
        parser.add_argument("--machine", help="only of this machine (unit name or UUID)")
        parser.add_argument("--source", help="only of sources of this name")
        parser.add_argument("--storage", help="only on this storage unit")
        parser.add_argument(
            "--failed", action="store_true", help="only those that failed or were missed"
        )
        parser.add_argument(
            "--limit", type=int, default=100, help="at most so many (default: %(default)s)"
        )

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each record."""
        wanted = Q()
        if options["machine"]:
            wanted &= Q(machine=find_machine(options["machine"]))
        if options["storage"]:
            wanted &= Q(storage=find_storage_unit(options["storage"]))
        if options["source"]:
            wanted &= Q(source_name=options["source"])
        if options["failed"]:
            wanted &= Q(outcome__in=(Outcome.FAILED, Outcome.MISSED))
        return [backup_row(each) for each in Backup.objects.filter(wanted)[: options["limit"]]]

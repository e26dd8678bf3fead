"""``turku-api copy-database``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.database import require_migrated_database
from turku_core.api.database_copy import copy_database
from turku_core.api.management.command import ReportingCommand
from turku_core.commandline import print_json, print_table


class Command(ReportingCommand):
    """Moves the API from SQLite to PostgreSQL."""

    help = "Copy a SQLite database of Turku's into an empty PostgreSQL."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the file."""
        super().add_arguments(parser)
        parser.add_argument(
            "--from",
            type=Path,
            required=True,
            metavar="PATH",
            dest="path",
            help="the SQLite file; it stays as it is",
        )

    def handle(self, **options: Any) -> None:
        """Copy, and say how many rows there are."""
        require_migrated_database()
        counts = copy_database(options["path"])
        if options["json"]:
            print_json({"copied": counts})
        else:
            print_table(("table", "rows"), sorted(counts.items()))

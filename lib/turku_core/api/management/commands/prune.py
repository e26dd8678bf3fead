"""``turku-api prune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import parse_duration
from turku_core.api.pruning import prune
from turku_core.commandline import Progress, print_json
from turku_core.errors import TurkuError


class Command(ReportingCommand):
    """Deletes old records."""

    help = "Delete old records, but never the last good one of a source."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the age."""
        super().add_arguments(parser)
        parser.add_argument(
            "--older-than",
            metavar="DURATION",
            default=f"{settings.TURKU_RECORD_RETENTION_DAYS}d",
            help="such as 90d or 52w (default: record_retention_days, %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="count, and delete nothing")
        parser.add_argument(
            "--trust-clock",
            action="store_true",
            help="the clock is right, although it jumped: delete by it, from now on",
        )

    def handle(self, **options: Any) -> None:
        """Prune in chunks, with progress on a terminal."""
        now = clock.now()
        before = now - parse_duration(options["older_than"])
        problem = clock.problem(now, is_right=options["trust_clock"] and not options["dry_run"])
        if problem is not None and not options["dry_run"]:
            raise TurkuError(f"Nothing is deleted: {problem} If it is right, say --trust-clock.")
        progress = Progress()
        pruned = prune(
            before,
            dry_run=options["dry_run"],
            progress=lambda done: progress.show(f"{done} records deleted"),
        )
        progress.clear()
        if options["json"]:
            print_json({**asdict(pruned), "dry_run": options["dry_run"]})
        else:
            done = "Would delete" if options["dry_run"] else "Deleted"
            print(
                f"{done} {pruned.backups} records of backups, {pruned.snapshots} of removed "
                f"snapshots, {pruned.grants} of ended grants and {pruned.orders} of restore orders."
            )

"""``turku-api metrics``."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import Command as TurkuCommand
from turku_core.api.metrics import metrics_text
from turku_core.metrics import scrape


class Command(TurkuCommand):
    """Prints the metrics of the fleet."""

    help = "Print the metrics of the fleet in Prometheus' text form."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add ``--http``."""
        parser.add_argument(
            "--http",
            action="store_true",
            help="answer the HTTP request on standard input, as the socket unit needs it",
        )

    def handle(self, **options: Any) -> None:
        """Print them, or answer one scrape."""
        code = scrape.show(lambda: metrics_text(clock.now()), http=options["http"])
        if code:
            sys.exit(code)

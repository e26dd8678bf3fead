"""``turku-api show-filter-set``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import find_filter_set
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Shows a filter set's rules."""

    help = "Show the rules of a filter set, as set-filter-set reads them."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the set's name."""
        super().add_arguments(parser)
        parser.add_argument("name", help="the filter set's name")

    def handle(self, **options: Any) -> None:
        """Print one rule a line."""
        filter_set = find_filter_set(options["name"])
        if options["json"]:
            print_json({"name": filter_set.name, "rules": filter_set.rules})
        else:
            print("\n".join(filter_set.rules))

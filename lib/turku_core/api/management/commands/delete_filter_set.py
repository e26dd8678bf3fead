"""``turku-api delete-filter-set``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.operations import delete_filter_set, find_filter_set
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Deletes a filter set that nothing uses."""

    help = "Delete a filter set that no source and no other set uses."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the set's name."""
        super().add_arguments(parser)
        parser.add_argument("name", help="the filter set's name")

    def handle(self, **options: Any) -> None:
        """Delete it."""
        delete_filter_set(find_filter_set(options["name"]))
        if options["json"]:
            print_json({"name": options["name"], "deleted": True})
        else:
            print(f"The filter set {options['name']} is deleted.")

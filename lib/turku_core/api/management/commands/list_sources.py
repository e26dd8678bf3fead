"""``turku-api list-sources``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import SOURCE_HEADINGS, ListingCommand, source_rows
from turku_core.api.models import Source
from turku_core.api.operations import find_machine


class Command(ListingCommand):
    """Lists the sources."""

    help = "List the sources: where they are kept, when due, when last proven."
    headings = SOURCE_HEADINGS
    nothing = "There is no source; they come from the machines' /etc/turku-agent/sources.d."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the machine."""
        super().add_arguments(parser)
        parser.add_argument("machine", nargs="?", help="only of this machine (unit name or UUID)")

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each source."""
        sources = Source.objects.select_related("machine", "storage").order_by(
            "machine__unit_name", "name"
        )
        if options["machine"]:
            sources = sources.filter(machine=find_machine(options["machine"]))
        else:
            sources = sources.filter(published=True, machine__active=True, machine__published=True)
        return source_rows(sources)

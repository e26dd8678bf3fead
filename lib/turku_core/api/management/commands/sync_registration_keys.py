"""``turku-api sync-registration-keys``."""

from __future__ import annotations

import dataclasses
from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand, print_changes, read_items
from turku_core.api.relation_keys import RelationKey, sync_keys


class Command(ReportingCommand):
    """Takes over the registration keys of a charm's relations."""

    help = "Take over the registration keys of a charm's relations."

    def add_arguments(self, parser: CommandParser) -> None:
        """Say what is read."""
        super().add_arguments(parser)
        parser.epilog = (
            'Standard input says which keys there are: {"keys": [{"name", "kind", "secret"}]}. '
            "Relations' keys that it doesn't name are disabled; keys made by hand are left alone."
        )

    def handle(self, **options: Any) -> None:
        """Say which keys were made, changed, enabled and disabled."""
        changes = sync_keys(read_items("keys", RelationKey.from_json), clock.now())
        print_changes(dataclasses.asdict(changes), as_json=options["json"])

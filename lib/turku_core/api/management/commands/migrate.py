"""``turku-api migrate``."""

from __future__ import annotations

import argparse
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.core.management.commands.migrate import Command as DjangoCommand

from turku_core.api.database import mark_database, migrating, require_database
from turku_core.api.management.command import DJANGO_OPTIONS


class Command(DjangoCommand):
    """Django's own command, one unit at a time, and with words when the database isn't there."""

    help = "Bring the database up to date; of several units at once, one does."
    suppressed_base_arguments = set(DJANGO_OPTIONS)

    def add_arguments(self, parser: CommandParser) -> None:
        """Take Django's arguments, which its developers need, without showing them to operators."""
        super().add_arguments(parser)
        for action in parser._actions:
            if action.dest != "help":
                action.help = argparse.SUPPRESS

    def handle(self, *arguments: Any, **options: Any) -> None:
        """Migrate."""
        with migrating(settings.DATA_FOLDER):
            require_database()
            super().handle(*arguments, **options)
            mark_database()

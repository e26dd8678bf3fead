"""``turku-api health``."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError

from turku_core.api import clock
from turku_core.api.database import require_migrated_database, require_sound_database
from turku_core.api.health import State, as_json, fleet_health, render, unknown
from turku_core.api.management.command import ReportingCommand
from turku_core.commandline import print_json
from turku_core.errors import TurkuError


class Command(ReportingCommand):
    """The Nagios-compatible check of the fleet."""

    help = "Check the fleet, in the form and with the exit codes of a Nagios plugin."

    def execute(self, *arguments: Any, **options: Any) -> str | None:
        """Answer UNKNOWN, on standard output, when the database can't be asked."""
        try:
            require_migrated_database()
            require_sound_database()
            return BaseCommand.execute(self, *arguments, **options)
        except (TurkuError, DatabaseError) as error:
            if options["json"]:
                print_json({"state": State.UNKNOWN.name, "why": str(error)})
            else:
                print(unknown(str(error)))
            sys.exit(State.UNKNOWN)

    def handle(self, **options: Any) -> None:
        """Print the answer; the exit code is the state."""
        health = fleet_health(clock.now())
        if options["json"]:
            print_json(as_json(health))
        else:
            print(render(health))
        sys.exit(health.state)

"""``turku-api allow-restore``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import ReportingCommand, operator_name
from turku_core.api.operations import allow_restore, find_machine, parse_duration
from turku_core.commandline import human_time, print_json


class Command(ReportingCommand):
    """Lets a machine restore another one's snapshots, for a while."""

    help = "Let a machine restore another one's snapshots, for a while."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add both machines and the duration."""
        super().add_arguments(parser)
        parser.add_argument("new", help="who may restore: a unit name or UUID")
        parser.add_argument("old", help="whose snapshots: a unit name or UUID")
        parser.add_argument(
            "--for",
            dest="duration",
            default="7d",
            metavar="DURATION",
            help="for how long: 90m, 12h, 7d or 2w (default: %(default)s)",
        )

    def handle(self, **options: Any) -> None:
        """Make the grant, which ends by itself."""
        duration = parse_duration(options["duration"])
        machine, from_machine = find_machine(options["new"]), find_machine(options["old"])
        grant = allow_restore(machine, from_machine, duration, clock.now(), operator_name())
        if options["json"]:
            print_json(
                {
                    "id": grant.pk,
                    "machine": machine.uuid,
                    "from_machine": from_machine.uuid,
                    "until": grant.until,
                }
            )
        else:
            print(
                f"{machine.unit_name} may restore what was backed up of {from_machine.unit_name} "
                f"until {human_time(grant.until)} (grant {grant.pk}): turku-agent-ping --list."
            )

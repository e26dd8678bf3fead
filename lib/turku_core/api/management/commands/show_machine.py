"""``turku-api show-machine``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser

from turku_core.api.management.command import (
    BACKUP_HEADINGS,
    SOURCE_HEADINGS,
    ReportingCommand,
    as_object,
    backup_row,
    print_rows,
    source_rows,
)
from turku_core.api.models import Backup
from turku_core.api.operations import find_machine
from turku_core.api.states import machine_state
from turku_core.commandline import human_time, print_json

BACKUPS_SHOWN = 10


class Command(ReportingCommand):
    """Shows one machine with its sources and newest backups."""

    help = "Show a machine, its sources and its newest backups."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the machine."""
        super().add_arguments(parser)
        parser.add_argument("machine", help="its unit name or UUID")

    def handle(self, **options: Any) -> None:
        """Print three calm blocks, or one JSON object."""
        machine = find_machine(options["machine"])
        facts = {
            "uuid": machine.uuid,
            "unit": machine.unit_name,
            "environment": machine.environment_name,
            "service": machine.service_name,
            "comment": machine.comment,
            "state": machine_state(machine),
            "version": machine.version,
            "ssh key": machine.ssh_key_fingerprint,
            "registered": machine.registered_at,
            "last seen": machine.last_checkin_at,
        }
        sources = source_rows(machine.sources.select_related("storage", "machine"))
        newest = Backup.objects.filter(machine=machine)[:BACKUPS_SHOWN]
        backups = [backup_row(each) for each in newest]
        if options["json"]:
            rows = {
                "sources": [as_object(row) for row in sources],
                "backups": [as_object(row) for row in backups],
            }
            print_json({**as_object(facts), **rows})
            return
        for name, value in facts.items():
            shown = human_time(value) if isinstance(value, datetime) else value
            print(f"{name + ':':13}{shown or '-'}")
        print()
        print_rows(SOURCE_HEADINGS[1:], sources, "It has no source.")
        print()
        print_rows(BACKUP_HEADINGS[1:], backups, "It has no backup yet.")

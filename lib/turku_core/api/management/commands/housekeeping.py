"""``turku-api housekeeping``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management import call_command

from turku_core.api import clock, due, restore_orders
from turku_core.api.management.command import ReportingCommand
from turku_core.api.pruning import Pruned, prune
from turku_core.api.serve import CERTIFICATES, read_serve_options, with_own_certificate
from turku_core.commandline import print_json
from turku_core.configuration import read_folder


class Command(ReportingCommand):
    """What the hourly timer runs."""

    help = "Note missed windows, prune, renew the certificate: for an hourly timer."

    def handle(self, **options: Any) -> None:
        """Do everything that nobody's call brings about."""
        now = clock.now()
        looked_at = due.record_missed_windows(now)
        problem = clock.problem(now)
        if problem is None:
            restore_orders.lapse(now)
            pruned = prune(now - timedelta(days=settings.TURKU_RECORD_RETENTION_DAYS))
        else:
            self.note(f"Nothing is deleted for its age: {problem}")
            pruned = Pruned()
        call_command("clearsessions")
        served = read_serve_options(read_folder(settings.CONFIGURATION_FOLDER))
        with_own_certificate(served, settings.DATA_FOLDER / CERTIFICATES, now)
        if options["json"]:
            print_json({"sources_looked_at": looked_at, **asdict(pruned)})
        else:
            print(
                f"Looked at {looked_at} late sources; deleted {pruned.backups} old records of "
                f"backups, {pruned.snapshots} of removed snapshots, {pruned.grants} of grants, "
                f"{pruned.orders} of restore orders."
            )

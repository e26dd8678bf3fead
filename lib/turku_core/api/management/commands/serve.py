"""``turku-api serve``."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandParser
from django.core.wsgi import get_wsgi_application
from django.db import connections

from turku_core.api import clock
from turku_core.api.database import (
    DatabaseNotMigrated,
    DatabaseNotMigratedYet,
    require_migrated_database,
)
from turku_core.api.management.command import Command as BaseCommand
from turku_core.api.serve import (
    CERTIFICATES,
    override,
    read_serve_options,
    serve,
    with_own_certificate,
)
from turku_core.commandline import set_log_level
from turku_core.configuration import read_folder, remove_left_overs


class Command(BaseCommand):
    """Serves the API in the foreground, until SIGTERM."""

    help = "Serve the API and the administration site."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options; each overrules the one of that name in the configuration."""
        parser.add_argument(
            "--migrate",
            action="store_true",
            help="bring the database up to date first, unless migrate_on_start is false",
        )
        parser.add_argument(
            "--listen", metavar="HOST:PORT", help="where to listen; port 0 takes a free one"
        )
        parser.add_argument("--certificate", metavar="FILE", help="the TLS certificate (PEM)")
        parser.add_argument("--key", metavar="FILE", help="the TLS certificate's private key (PEM)")
        parser.add_argument("--workers", type=int, metavar="N", help="worker processes")

    def handle(self, **options: Any) -> None:
        """Refuse to serve from a database that isn't migrated."""
        configured = read_serve_options(read_folder(settings.CONFIGURATION_FOLDER))
        chosen = override(
            configured,
            {name: options[name] for name in ("listen", "certificate", "key", "workers")},
        )
        set_log_level(settings.TURKU_LOG_LEVEL)
        for folder in (settings.DATA_FOLDER, settings.DATA_FOLDER / CERTIFICATES):
            remove_left_overs(folder)
        if options["migrate"] and settings.TURKU_MIGRATE_ON_START:
            call_command("migrate", interactive=False, verbosity=0)
        _require_migrated_database()
        # A connection must not be shared by the processes that are forked from this one.
        connections.close_all()
        serve(
            with_own_certificate(chosen, settings.DATA_FOLDER / CERTIFICATES, clock.now()),
            get_wsgi_application,
        )


def _require_migrated_database() -> None:
    try:
        require_migrated_database()
    except DatabaseNotMigrated as error:
        if settings.TURKU_MIGRATE_ON_START:
            raise
        raise DatabaseNotMigratedYet(
            "This unit serves as soon as another one has brought the database up to date with "
            "`turku-api migrate` (migrate_on_start is false here)."
        ) from error

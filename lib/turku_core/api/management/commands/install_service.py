"""``turku-api install-service``."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from turku_core.api.install import install
from turku_core.api.management.command import ReportingCommand
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Installs the API as a service of systemd."""

    help = "Install the API as a systemd service with its user, folders and timer."

    def handle(self, **options: Any) -> None:
        """Say what was changed."""
        installed = install(settings.ROOT)
        if options["json"]:
            changed = [str(path) for path in installed.changed]
            print_json({"changed": changed, "started": installed.started})
            return
        for path in installed.changed:
            print(f"{path} is written.")
        print("turku-api runs." if installed.started else "Nothing is started below another root.")

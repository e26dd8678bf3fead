"""``turku-api create-admin``."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser

from turku_core import credentials
from turku_core.api.management.command import ReportingCommand
from turku_core.commandline import print_json


class Command(ReportingCommand):
    """Makes an administrator, or gives one a new password, and shows it this once."""

    help = "Make an administrator of the site; the password is printed this once."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the name."""
        super().add_arguments(parser)
        parser.add_argument("name", nargs="?", default="admin", help="default: %(default)s")

    def handle(self, **options: Any) -> None:
        """Print the password alone on standard output."""
        model = get_user_model()
        name = model.normalize_username(options["name"])
        user = model.objects.filter(username=name).first() or model(username=name)
        password = credentials.make_secret()
        user.is_staff = user.is_superuser = user.is_active = True
        user.set_password(password)
        user.save()
        if options["json"]:
            print_json({"name": name, "password": password})
        else:
            self.note(f"The password of {name}, which is shown this once:")
            print(password)

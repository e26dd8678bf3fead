"""Django's command dispatcher with Turku's commands in the foreground."""

from __future__ import annotations

import pkgutil
import sys
from typing import NoReturn

from django.core.management import ManagementUtility, get_commands, load_command_class
from django.core.management.base import BaseCommand

from turku_core.api.management import commands
from turku_core.commandline import usage_error

_OFTEN_NEEDED = ("changepassword", "dumpdata", "loaddata", "shell", "check")
"""Django's own commands that an operator of Turku has a use for."""


class Utility(ManagementUtility):
    """Runs one command. Its errors go to the caller; an unknown command ends the process."""

    def main_help_text(self, commands_only: bool = False) -> str:
        """Return a line for each command of Turku's, and the names of the useful rest."""
        ours = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
        if commands_only:
            return "\n".join(sorted(get_commands()))
        width = max(map(len, ours))
        lines = ["Commands of turku-api:", ""]
        for name in ours:
            summary = load_command_class("turku_core.api", name).help
            lines.append(f"  {name.replace('_', '-'):{width}}  {summary}")
        lines += ["", "Django's own, among others: " + ", ".join(_OFTEN_NEEDED) + "."]
        lines += ["`turku-api COMMAND --help` explains one."]
        return "\n".join(lines)

    def fetch_command(self, subcommand: str) -> BaseCommand:
        """Return the command of that name, or end the process with a sentence."""
        if self.settings_exception is not None:
            raise self.settings_exception
        if subcommand not in get_commands():
            self._refuse(subcommand)
        return super().fetch_command(subcommand)

    def _refuse(self, subcommand: str) -> NoReturn:
        name = subcommand.replace("_", "-")
        usage_error(sys.argv[0].rpartition("/")[2], f"there is no command {name}; see `help`.")

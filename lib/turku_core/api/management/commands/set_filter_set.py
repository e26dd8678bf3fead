"""``turku-api set-filter-set``."""

from __future__ import annotations

import sys
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandParser

from turku_core.api.management.command import ReportingCommand
from turku_core.api.models import FilterSet
from turku_core.commandline import print_json
from turku_core.errors import ConfigurationError


class Command(ReportingCommand):
    """Makes a filter set, or replaces its rules."""

    help = "Make a filter set or replace its rules, which are read from stdin."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the set's name."""
        super().add_arguments(parser)
        parser.add_argument("name", help="what sources say after `merge`")
        parser.add_argument("--comment", help="what it is for")

    def handle(self, **options: Any) -> None:
        """Read one rule a line; empty lines and lines with # before them are passed over."""
        if sys.stdin.isatty():
            self.note("Write one rsync filter rule a line, then Ctrl-D:")
        lines = (line.rstrip("\r\n") for line in sys.stdin)
        rules = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        found = FilterSet.objects.filter(name=options["name"]).first()
        filter_set = found or FilterSet(name=options["name"])
        filter_set.rules = rules
        if options["comment"] is not None:
            filter_set.comment = options["comment"]
        try:
            filter_set.full_clean()
        except ValidationError as error:
            raise ConfigurationError(
                f"The filter set {options['name']} is not valid: {' '.join(error.messages)}"
            ) from error
        filter_set.save()
        if options["json"]:
            print_json({"name": filter_set.name, "rules": rules})
        else:
            done = "has new rules" if found else "is made"
            print(f"The filter set {filter_set.name} {done}: {len(rules)}.")

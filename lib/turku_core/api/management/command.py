"""What Turku's management commands share."""

from __future__ import annotations

import getpass
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError

from turku_core import fields
from turku_core.api import holds
from turku_core.api.database import DatabaseUnreachable, require_migrated_database
from turku_core.api.models import Backup, RestoreOrder, Source
from turku_core.api.overdue import first_line
from turku_core.api.states import source_state
from turku_core.commandline import (
    add_json_option,
    human_duration,
    human_size,
    human_time,
    print_json,
    print_table,
)
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError

T = TypeVar("T")

logger = logging.getLogger(__name__)

DJANGO_OPTIONS = frozenset(
    {
        "--version",
        "--verbosity",
        "--settings",
        "--pythonpath",
        "--traceback",
        "--no-color",
        "--force-color",
        "--skip-checks",
    }
)
"""Options that Django gives every command, and that ours have no use for."""

SOURCE_HEADINGS = (
    *("machine", "source", "state", "frequency", "storage"),
    *("last good", "next due", "proven"),
)
BACKUP_HEADINGS = ("machine", "source", "outcome", "begun", "took", "stored", "snapshot", "summary")

ITEMS_MAX = 100_000
"""How many things a command may be told at once."""

ORDER_HEADINGS = ("id", "machine", "source", "of", "snapshot", "to", "state", "ordered", "message")

SUMMARY_CHARACTERS_MAX = 60
"""A longer summary is cut in a table; JSON has the whole of it."""


class Command(BaseCommand):
    """A management command of Turku's.

    `handle` gets the parsed options by name. It raises a `TurkuError` for the operator, and ends
    the process itself only where its exit code says more than done or failed.
    """

    requires_system_checks = []
    suppressed_base_arguments = set(DJANGO_OPTIONS)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Name the command with hyphens in its help."""
        return super().create_parser(prog_name, subcommand.replace("_", "-"), **kwargs)

    def execute(self, *arguments: Any, **options: Any) -> str | None:
        """Run the command; say so when the database is the reason why it can't."""
        try:
            return super().execute(*arguments, **options)
        except DatabaseError as error:
            require_migrated_database()
            logger.debug("the error in full", exc_info=True)
            raise DatabaseUnreachable(f"The database refused: {error}.") from error

    def note(self, sentence: str) -> None:
        """Say something to a person, beside the answer that a program may read."""
        print(sentence, file=sys.stderr)


def read_items(key: str, item: Callable[[object, str], T]) -> tuple[T, ...]:
    """Read ``{key: [...]}`` from standard input, where secrets are better off than in arguments.

    Raises:
        ConfigurationError: It is something else, or `item` (as in `fields.items`) refused one.
    """
    try:
        request = json.load(sys.stdin)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"Standard input is not JSON: {error}.") from error
    try:
        listed = fields.required(fields.mapping(request, "standard input"), key)
        return fields.items(listed, key, item, ITEMS_MAX)
    except FieldError as error:
        raise ConfigurationError(f"{error}.") from error


class ReportingCommand(Command):
    """A command that answers with data: in words or as JSON."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Add ``--json``."""
        add_json_option(parser)


class ListingCommand(ReportingCommand):
    """A command that answers with rows: as a table of some columns, or whole as JSON."""

    headings: Sequence[str]
    """The keys of a row that the table shows, in order."""

    nothing: str
    """What is said when there is no row."""

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows, with times as datetimes."""
        raise NotImplementedError

    def handle(self, **options: Any) -> None:
        """Print the rows."""
        rows = self.rows(options)
        if options["json"]:
            print_json([as_object(row) for row in rows])
        else:
            print_rows(self.headings, rows, self.nothing)


_LONG = ("summary", "message")


def print_rows(headings: Sequence[str], rows: Sequence[Mapping[str, Any]], nothing: str) -> None:
    """Print the columns `headings` of some rows, or the sentence `nothing`."""
    if not rows:
        print(nothing)
        return
    print_table(headings, [[_shown(heading, row[heading]) for heading in headings] for row in rows])


def as_object(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON has it: under the names of a table's headings, written with `_`."""
    return {key.replace(" ", "_"): value for key, value in row.items()}


def print_changes(changes: Mapping[str, Sequence[str]], *, as_json: bool) -> None:
    """Print what was changed: for a person a line for each kind of change that there was."""
    if as_json:
        print_json(changes)
        return
    lines = [f"{kind}: {', '.join(names)}" for kind, names in changes.items() if names]
    print("\n".join(lines) or "Nothing had to be changed.")


def _shown(heading: str, value: Any) -> Any:
    """Return a value as it stands in a table: a time that a person can read, a line of a text."""
    if isinstance(value, datetime):
        return human_time(value)
    return first_line(value, SUMMARY_CHARACTERS_MAX) if heading in _LONG else value


def operator_name() -> str:
    """Return who runs the command, for the record."""
    try:
        return f"{getpass.getuser()} (turku-api)"
    except (KeyError, OSError):
        return "turku-api"


def source_rows(sources: Iterable[Source]) -> list[dict[str, Any]]:
    """Return sources as rows; their machines and storage units should have been read with them."""
    listed = list(sources)
    held = holds.reasons(listed)
    return [_source_row(source, held.get(source.pk, "")) for source in listed]


def _source_row(source: Source, held: str) -> dict[str, Any]:
    return {
        "machine": source.machine.unit_name,
        "uuid": source.machine.uuid,
        "source": source.name,
        "path": source.path,
        "state": f"{source_state(source)}, held" if held else source_state(source),
        "frequency": source.frequency,
        "retention": source.retention,
        "storage": source.storage.name if source.storage else None,
        "last good": source.last_success_at,
        "next due": source.next_due_at,
        "proven": source.last_proven_at,
        "failures": source.failures,
        "problem": source.problem,
        "held": held,
    }


def backup_row(backup: Backup) -> dict[str, Any]:
    """Return a record as a row."""
    return {
        "machine": backup.unit_name,
        "uuid": backup.machine_uuid,
        "source": backup.source_name,
        "storage": backup.storage_name,
        "outcome": backup.outcome,
        "begun": backup.time_begin,
        "ended": backup.time_end,
        "took": human_duration(backup.time_end - backup.time_begin),
        "stored": human_size(backup.bytes_stored),
        "bytes stored": backup.bytes_stored,
        "bytes total": backup.bytes_total,
        "files total": backup.files_total,
        "snapshot": backup.snapshot,
        "summary": backup.summary,
    }


def order_row(order: RestoreOrder) -> dict[str, Any]:
    """Return a restore order as a row."""
    wanted_place = "in place" if order.in_place else order.target or "the restore folder"
    return {
        "id": order.pk,
        "machine": order.unit_name,
        "machine uuid": order.machine_uuid,
        "source": order.source_name,
        "of": order.from_unit_name,
        "of uuid": order.from_machine_uuid,
        "snapshot": order.restored_snapshot or order.snapshot,
        "paths": order.paths,
        "to": order.restored_to or wanted_place,
        "in place": order.in_place,
        "dry run": order.dry_run,
        "state": order.state,
        "ordered": order.ordered_at,
        "ordered by": order.ordered_by,
        "handed out": order.handed_out_at,
        "ended": order.ended_at,
        "files": order.files,
        "bytes": order.bytes,
        "changes": order.changes,
        "message": order.message,
    }

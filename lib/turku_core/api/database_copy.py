"""Moving from SQLite to PostgreSQL: every row of one database is copied into the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core.management.color import no_style
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    IntegrityError,
    OperationalError,
    connections,
    transaction,
)
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Model, QuerySet
from django.db.models.sql import InsertQuery

from turku_core.api.models import Announcement, RegistrationKey
from turku_core.api.operations import NotPossible
from turku_core.errors import ConfigurationError

SOURCE = "copied"
"""The alias of the database that is copied."""

ROWS_AT_ONCE = 500

REPLACED: tuple[type[Model], ...] = (ContentType, Permission, Session, Announcement)
"""What the new database may hold: what migrating has made, and what the charm says again."""


def copy_database(path: Path) -> dict[str, int]:
    """Copy Turku's SQLite database at `path` into the configured PostgreSQL, all or nothing.

    Primary keys stay what they are. The file is only read. Nobody writes to the new database
    meanwhile.

    Returns:
        How many rows each table has, which were counted on both sides.

    Raises:
        ConfigurationError: There is no such database, or the configured one isn't PostgreSQL.
        NotPossible: The new database isn't empty, the two were not migrated alike, or PostgreSQL
            refuses a row.
        DatabaseError: The new database doesn't answer.
    """
    if connections[DEFAULT_DB_ALIAS].vendor != "postgresql":
        raise ConfigurationError(
            "The configured database isn't PostgreSQL: set database_url to the new one first."
        )
    models = apps.get_models(include_auto_created=True)
    with _opened(path), transaction.atomic(SOURCE), transaction.atomic(DEFAULT_DB_ALIAS):
        _require_same_schema(path)
        _lock(models)
        _require_nothing_to_lose(models)
        for model in models:
            _rows(model, DEFAULT_DB_ALIAS)._raw_delete(DEFAULT_DB_ALIAS)
        counts = {model._meta.db_table: _copy(model) for model in models}
        _set_sequences(models)
    return counts


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}.")
    settings = {
        "ENGINE": "django.db.backends.sqlite3",
        # As a URI, so that nothing is ever written to it: sqlite.org/uri.html.
        "NAME": f"file:{quote(str(path.absolute()))}?mode=ro",
    }
    known = connections.settings
    known[SOURCE] = connections.configure_settings({**known, SOURCE: settings})[SOURCE]
    try:
        yield
    finally:
        connections[SOURCE].close()
        del connections[SOURCE]
        del known[SOURCE]


def _require_same_schema(path: Path) -> None:
    try:
        old = set(MigrationRecorder(connections[SOURCE]).applied_migrations())
    except DatabaseError as error:
        raise ConfigurationError(f"{path} is no database of Turku's: {error}.") from error
    new = set(MigrationRecorder(connections[DEFAULT_DB_ALIAS]).applied_migrations())
    if not old:
        raise ConfigurationError(f"{path} is no database of Turku's: it has no tables.")
    for where, lacks in ((str(path), new - old), ("The new database", old - new)):
        if lacks:
            names = ", ".join(sorted(f"{app}.{name}" for app, name in lacks))
            raise NotPossible(
                f"{where} lacks the migrations {names}: run `turku-api migrate` on it, with the "
                "same version of Turku; nothing was copied."
            )


def _lock(models: list[type[Model]]) -> None:
    """Let nobody write to the new database until the end of the transaction."""
    connection = connections[DEFAULT_DB_ALIAS]
    tables = ", ".join(connection.ops.quote_name(model._meta.db_table) for model in models)
    with connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE")


def _require_nothing_to_lose(models: list[type[Model]]) -> None:
    found = []
    for model in models:
        rows = _rows(model, DEFAULT_DB_ALIAS)
        if model is RegistrationKey:
            rows = rows.filter(from_relation=False)
        if model not in REPLACED and (count := rows.count()):
            found.append(f"{count} {model._meta.verbose_name_plural}")
    if found:
        raise NotPossible(
            f"The new database is in use already, it has {', '.join(found)}: copying goes into an "
            "empty one; nothing was copied."
        )


def _rows(model: type[Model], alias: str) -> QuerySet[Model]:
    return model._base_manager.using(alias)


def _copy(model: type[Model]) -> int:
    """Copy a table and return how many rows it has."""
    rows = _rows(model, SOURCE).order_by("pk").iterator(ROWS_AT_ONCE)
    fields = model._meta.concrete_fields
    try:
        while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
            # Raw: a field that notes the time of its making keeps the time that it has.
            query = InsertQuery(model)
            query.insert_values(fields, batch, raw=True)
            query.get_compiler(DEFAULT_DB_ALIAS).execute_sql()
    except (OperationalError, IntegrityError):
        raise
    except DatabaseError as error:
        # SQLite keeps whatever it is given; PostgreSQL holds texts to their length.
        raise NotPossible(
            f"PostgreSQL refuses a row of the table {model._meta.db_table}: "
            f"{' '.join(str(error).split())}. Nothing was copied."
        ) from error
    before, after = (_rows(model, alias).count() for alias in (SOURCE, DEFAULT_DB_ALIAS))
    if before != after:
        raise NotPossible(
            f"Of {before} rows in the table {model._meta.db_table}, {after} would have arrived; "
            "nothing was copied."
        )
    return after


def _set_sequences(models: list[type[Model]]) -> None:
    connection = connections[DEFAULT_DB_ALIAS]
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), models):
            cursor.execute(statement)

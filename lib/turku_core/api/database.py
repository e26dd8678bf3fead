"""Whether the database is there, and as new as the program."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.migrations.exceptions import MigrationSchemaMissing
from django.db.migrations.executor import MigrationExecutor

from turku_core.errors import ConfigurationError, TryAgainLater, TurkuError

MIGRATION_LOCK = 0x7475726B75
"""The number of PostgreSQL's advisory lock under which units migrate; any would do, once chosen."""


class DatabaseUnreachable(TurkuError):
    """The database doesn't answer; the message says what its client said."""


class DatabaseNotMigrated(ConfigurationError):
    """The database's tables are older than the program, or were never made."""


class DatabaseNotMigratedYet(TryAgainLater):
    """Another unit of the cluster is to bring the database up to date, and hasn't so far."""


def require_migrated_database() -> None:
    """Return when the database answers and has every migration that this program brings.

    Raises:
        DatabaseUnreachable: It doesn't answer.
        DatabaseNotMigrated: A migration is missing.
    """
    try:
        executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except MigrationSchemaMissing as error:
        raise DatabaseUnreachable(f"The database can't be used: {error}.") from error
    except DatabaseError as error:
        raise _unreachable(error) from error
    if missing:
        raise DatabaseNotMigrated(
            f"The database lacks {len(missing)} migrations: run `turku-api migrate`, or "
            "`turku-api serve --migrate`."
        )


@contextmanager
def migrating(data_folder: Path) -> Iterator[None]:
    """Keep other units from migrating the database meanwhile.

    Args:
        data_folder: The API's; SQLite's units, which share it, wait for each other there.

    Raises:
        DatabaseUnreachable: The database doesn't answer, or refuses what is done meanwhile.
    """
    try:
        with _one_at_a_time(data_folder):
            yield
    except DatabaseError as error:
        raise _unreachable(error) from error


@contextmanager
def _one_at_a_time(data_folder: Path) -> Iterator[None]:
    connection = connections[DEFAULT_DB_ALIAS]
    if connection.vendor == "postgresql":
        # It ends with the connection, so also when this process is killed.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        yield
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
        return
    descriptor = os.open(data_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unreachable(error: DatabaseError) -> DatabaseUnreachable:
    return DatabaseUnreachable(
        f"The database can't be reached: {' '.join(str(error).split())}. Look at database_url in "
        "etc/turku-api/config.d, and whether the database server runs."
    )

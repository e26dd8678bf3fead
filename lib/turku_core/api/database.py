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

from turku_core.configuration import write_durably
from turku_core.errors import ConfigurationError, TryAgainLater, TurkuError

MIGRATION_LOCK = 0x7475726B75
"""The number of PostgreSQL's advisory lock under which units migrate; any would do, once chosen."""


class DatabaseUnreachable(TurkuError):
    """The database doesn't answer; the message says what its client said."""


class DatabaseLost(ConfigurationError):
    """SQLite's file is gone or empty, and it had tables once."""


class DatabaseDamaged(TurkuError):
    """SQLite's file is damaged; the message says what SQLite found."""


class DatabaseNotMigrated(ConfigurationError):
    """The database's tables are older than the program, or were never made."""


class DatabaseNotMigratedYet(TryAgainLater):
    """Another unit of the cluster is to bring the database up to date, and hasn't so far."""


def require_migrated_database() -> None:
    """Return when the database answers and has every migration that this program brings.

    Raises:
        DatabaseUnreachable: It doesn't answer.
        DatabaseLost: It is gone.
        DatabaseNotMigrated: A migration is missing.
    """
    require_database()
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


def require_database() -> None:
    """Return unless SQLite's file is gone or empty, and had tables once.

    An empty database would be taken for a fleet without machines, and all would be well.

    Raises:
        DatabaseLost: It is.
    """
    mark = _mark_of_sqlite()
    if mark is None or not mark.exists():
        return
    file = mark.with_suffix("")
    # Whoever opens a file that is gone makes an empty one, which has a header soon.
    if not file.exists() or not _has_tables():
        raise DatabaseLost(
            f"{file} is gone or empty, and it had tables: stop the API and bring a copy back or, "
            f"to begin without machines and records, remove {mark}."
        )


def _has_tables() -> bool:
    try:
        return bool(connections[DEFAULT_DB_ALIAS].introspection.table_names())
    except DatabaseError:
        return True  # it is damaged, which is found and told elsewhere


def mark_database() -> None:
    """Note beside SQLite's file that it has tables; see `require_database`."""
    mark = _mark_of_sqlite()
    if mark is not None and not mark.exists():
        write_durably(mark, "", 0o600)


def require_sound_database() -> None:
    """Let SQLite look through its whole file. PostgreSQL looks after its own.

    Raises:
        DatabaseDamaged: There is something wrong with it.
    """
    if _mark_of_sqlite() is None:
        return
    try:
        with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
            cursor.execute("PRAGMA quick_check(1)")
            (found,) = cursor.fetchone()
    except DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise DatabaseDamaged(
            f"The database is damaged ({' '.join(found.split())}): stop the API and bring a copy "
            "of it back."
        )


def _mark_of_sqlite() -> Path | None:
    """Return where it is noted that SQLite's file has tables; None for another database."""
    connection = connections[DEFAULT_DB_ALIAS]
    name = str(connection.settings_dict["NAME"])
    if connection.vendor != "sqlite" or not name.startswith("/"):
        return None
    return Path(f"{name}.made")


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

"""Whether the database is there, and as new as the program."""

from __future__ import annotations

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.migrations.exceptions import MigrationSchemaMissing
from django.db.migrations.executor import MigrationExecutor

from turku_core.errors import ConfigurationError, TurkuError


class DatabaseUnreachable(TurkuError):
    """The database doesn't answer; the message says what its client said."""


class DatabaseNotMigrated(ConfigurationError):
    """The database's tables are older than the program, or were never made."""


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
        raise DatabaseUnreachable(
            f"The database can't be reached: {' '.join(str(error).split())}. Look at database_url "
            "in etc/turku-api/config.d, and whether the database server runs."
        ) from error
    if missing:
        raise DatabaseNotMigrated(
            f"The database lacks {len(missing)} migrations: run `turku-api migrate`, or "
            "`turku-api serve --migrate`."
        )

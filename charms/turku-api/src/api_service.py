"""The workload as a service: its account, its configuration, its start."""

from __future__ import annotations

import http.client
import json
import logging
import pwd
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from turku_charm import host
from turku_charm.api_relation import write_if_changed
from turku_charm.programs import Programs
from turku_charm.workload import Workload
from turku_core import __file__ as library
from turku_core.api.install import SERVICE, TIMER, USER, ensure_user, give_folders
from turku_core.configuration import write_durably
from turku_core.errors import ConfigurationError, TurkuError
from website import PORT

logger = logging.getLogger(__name__)

PROGRAM = "turku-api"
MIGRATE_SECONDS_MAX = 3600.0
COPY_SECONDS_MAX = 4 * 3600.0
HEALTH_SECONDS_MAX = 10.0


def newest_schema() -> str:
    """Return the name of the newest migration that this charm brings."""
    folder = Path(library).parent / "api/migrations"
    return max(path.stem for path in folder.glob("[0-9]*.py"))


class CopyRefused(TurkuError):
    """There is data both in SQLite and in PostgreSQL; which one counts, an operator has to say."""


@dataclass(frozen=True)
class Service:
    """The API's service on this machine."""

    workload: Workload

    @property
    def root(self) -> Path:
        """What all paths are below."""
        return self.workload.root

    @property
    def data(self) -> Path:
        """The data folder: SQLite, the own CA, the secret key."""
        return self.root / "var/lib/turku-api"

    @property
    def sqlite(self) -> Path:
        """The SQLite database, which is there or not."""
        return self.data / "turku.sqlite3"

    @property
    def configuration(self) -> Path:
        """The file of options that this charm writes."""
        return self.root / "etc/turku-api/config.d/50-juju.json"

    @property
    def database_ca(self) -> Path:
        """The authority of PostgreSQL's certificate."""
        return self.root / "etc/turku-api/postgresql-ca.crt"

    @property
    def programs(self) -> Programs:
        """The workload's programs; run by root, they become the data folder's owner."""
        return self.workload.programs()

    def prepare(self) -> tuple[int, int] | None:
        """Make the account and its folders; return its user and group ids.

        Below another root nobody is made, and None means whoever runs this.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        self.configuration.parent.mkdir(parents=True, exist_ok=True)
        if self.root != Path("/"):
            return None
        ensure_user(USER)
        entry = pwd.getpwnam(USER)
        # A storage that another machine had may belong to that one's number.
        is_new = self.configuration.parent.stat().st_gid != entry.pw_gid
        if is_new or self.data.stat().st_uid != entry.pw_uid:
            give_folders(self.root, USER)
        return entry.pw_uid, entry.pw_gid

    def write(self, values: Mapping[str, Any], group: int | None) -> bool:
        """Write the options; return whether they changed. The file may hold a password."""
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        return write_if_changed(self.configuration, text, 0o600 if group is None else 0o640, group)

    def is_running(self) -> bool:
        """Say whether the API serves."""
        return host.is_running(SERVICE)

    def has_database(self) -> bool:
        """Ask the running API on this machine whether its database serves it.

        Only its own clear word counts: one that is too busy to answer isn't said to lack anything.
        """
        if self.root != Path("/"):
            return True
        # To ourselves: nothing secret is sent, and the certificate is for other names.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", PORT, timeout=HEALTH_SECONDS_MAX, context=context
        )
        try:
            connection.request("POST", "/v1/health", b"{}", {"Content-Type": "application/json"})
            return connection.getresponse().status != HTTPStatus.SERVICE_UNAVAILABLE
        except (OSError, http.client.HTTPException):
            return True
        finally:
            connection.close()

    def start(self, migrate: bool) -> None:
        """Start the service, or start it anew.

        Args:
            migrate: Whether to bring the database up to date first.

        Raises:
            TurkuError: The database can't be migrated, or the service doesn't start.
        """
        if migrate:
            self.migrate()
        done = self.programs.run_json(PROGRAM, "install-service")
        if not (done["started"] and done["changed"]):
            host.restart(SERVICE)
        if not self.is_running():
            raise TurkuError(f"{SERVICE} doesn't run: see journalctl -u {SERVICE}.")

    def stop(self) -> None:
        """Stop the service and its timer, also for the next boot."""
        for unit in (TIMER, SERVICE):
            host.stop(unit)

    def migrate(self) -> None:
        """Bring the database up to date. Raises TurkuError."""
        self.programs.run(PROGRAM, "migrate", seconds_max=MIGRATE_SECONDS_MAX)

    def has_tables(self) -> bool:
        """Say whether the configured database was ever Turku's. Raises TurkuError."""
        try:
            self.programs.run_json(PROGRAM, "list-storages")
        except ConfigurationError:
            pass  # It answers, and lacks migrations: some of them, or all.
        else:
            return True
        listed = self.programs.run(PROGRAM, "showmigrations", "turku_api", "--plan")
        return any(line.startswith("[X]") for line in listed.splitlines())

    def is_empty(self) -> bool:
        """Say whether the configured database knows no machine and no storage unit."""
        machines = self.programs.run_json(PROGRAM, "list-machines", "--all")
        return not machines and not self.programs.run_json(PROGRAM, "list-storages")

    def copy_sqlite(self) -> None:
        """Copy SQLite's data into the configured PostgreSQL.

        Raises:
            TurkuError: It failed, and nothing was copied.
        """
        self.programs.run(
            PROGRAM, "copy-database", "--from", str(self.sqlite), seconds_max=COPY_SECONDS_MAX
        )

    def move_to_postgresql(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        group: int | None,
        relation: int,
    ) -> None:
        """Copy the data from SQLite to PostgreSQL; nothing serves meanwhile.

        When it fails, SQLite is served from again. SQLite's file stays as it is in either case. A
        PostgreSQL that has Turku's data already is taken as it is when SQLite knows nobody.

        Args:
            before: The options with SQLite, which the service runs with.
            after: Those with PostgreSQL.
            group: The id of the group that may read the file of options.
            relation: The id of the relation that the database comes from.

        Raises:
            CopyRefused: There is data on both sides.
            TurkuError: PostgreSQL doesn't answer, or the copy failed.
        """
        if self._is_copied(relation):
            return
        try:
            knows_nobody = self.is_empty()
            self.write(after, group)
            self.migrate()
            if self.is_empty():
                self.stop()
                self.copy_sqlite()
            elif knows_nobody:
                logger.warning("SQLite knew nobody: what is in PostgreSQL is taken as it is")
            else:
                raise CopyRefused(
                    "PostgreSQL has machines or storage units of a Turku already, and so has "
                    "SQLite, which is served from as before: integrate with an empty database."
                )
        except TurkuError:
            self.write(before, group)
            if not self.is_running():
                self.start(migrate=False)
            raise
        write_durably(self._copied, f"{relation}\n")

    @property
    def _copied(self) -> Path:
        """The note of a copy that was made, for a hook that is killed before it can tell others."""
        return self.data / "copied-to-relation"

    def _is_copied(self, relation: int) -> bool:
        return self._copied.exists() and self._copied.read_text("ascii").strip() == str(relation)

    def remove(self) -> None:
        """Take the service and the programs away; the data and the configuration stay."""
        for unit in sorted((self.root / "etc/systemd/system").glob("turku-api*")):
            if "@" not in unit.name:
                host.stop(unit.name)
            unit.unlink()
        self.workload.remove()

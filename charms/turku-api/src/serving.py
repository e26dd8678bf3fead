"""One unit's service: which database it serves from, with which certificate, and that it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import ops

import api_certificates
import api_identity
import postgresql_client
from api_certificates import Certificates, Issued
from api_config import ApiConfig
from api_identity import Identity
from api_service import CopyRefused, Service, newest_schema
from database_choice import Facts, Task, choose, decide
from peers import POSTGRESQL, SQLITE, Peers
from postgresql_client import Postgresql
from registration_keys import KINDS
from turku_charm.api_relation import write_if_changed
from turku_charm.cos_agent import metrics_listen
from turku_charm.statuses import Blocked, NotReady
from turku_charm.workload import WorkloadError
from website import ENDPOINT as WEBSITE
from website import PORT

logger = logging.getLogger(__name__)

STORAGE = "data"


class Serving:
    """Brings the unit's service to what it should be, and tells the peers of it.

    Args:
        charm: For its model.
        memory: The charm's stored state. Used here: ``knows_relations``, ``serving``,
            ``started_with``, ``detaching``, ``withdrawals`` and ``refused``.
    """

    def __init__(self, charm: ops.CharmBase, service: Service, peers: Peers, memory: Any) -> None:
        self._charm = charm
        self._service = service
        self._peers = peers
        self._memory = memory
        self._certificates = Certificates(charm)

    def serve(self, load_config: Callable[[], ApiConfig]) -> None:
        """Bring the unit's service to what it should be.

        Raises:
            NotReady: Others have to do something first.
            Blocked: An operator has to act.
            TurkuError: Something failed; what served before goes on.
        """
        self._require_storage()
        if not self._service.workload.is_installed():
            self._service.workload.install()
        config = load_config()
        owner = self._service.prepare()
        group = None if owner is None else owner[1]
        self._say_where_sqlite_is()
        database = self._database()
        task = self._choose_task(database)
        names = self._names(config)
        identity = self._identity(names)
        api_identity.write(self._service.data, identity, owner)
        issued = self._certificates.issued(names)
        if issued is not None:
            api_certificates.write(self._service.root, issued, group)
        values = self._values(config, names, issued)
        if database is not None and task is not Task.SERVE_SQLITE:
            on_postgresql = {**values, "database_url": self._database_url(database)}
            if task is Task.MOVE and not self._move(values, on_postgresql, group, database):
                task = Task.SERVE_SQLITE
            else:
                values = on_postgresql
        self._service.write(values, group)
        migrates = self._migrates(task, database)
        self._bring_up(values, identity, migrates)
        self._say_that_we_serve(task, database, issued)
        self._certificates.require_readable()

    def _require_storage(self) -> None:
        if not self._memory.detaching and self._charm.model.storages[STORAGE]:
            return
        self._memory.serving = False
        self._memory.started_with = None
        if self._service.is_running():
            self._service.stop()
        with contextlib.suppress(NotReady):
            self._peers.say(addresses={})
        raise Blocked(
            f"The storage {STORAGE} isn't attached: juju attach-storage {self._charm.unit.name} "
            "with the one that it had."
        )

    def _say_where_sqlite_is(self) -> None:
        """Say whether we have an SQLite database. One that we had and lost is not replaced."""
        has_it = self._service.sqlite.exists()
        record = self._peers.record
        was_ours = record.database == SQLITE and record.sqlite_unit == self._charm.unit.name
        if self._peers.own.has_sqlite and not has_it and was_ours:
            raise Blocked(
                f"The database {self._service.sqlite} was here and is gone: put it back from a "
                "backup. An empty one would forget every machine and every backup."
            )
        self._peers.say(has_sqlite=has_it)

    def _relation(self, endpoint: str) -> ops.Relation | None:
        relation = self._charm.model.get_relation(endpoint)
        return relation if relation is not None and relation.active else None

    def _database(self) -> Postgresql | None:
        """Ask for a database, where one is related, and return what was given."""
        relation = self._relation(postgresql_client.ENDPOINT)
        if relation is None:
            return None
        name = postgresql_client.database_name(self._charm.app.name, self._charm.model.uuid)
        if self._charm.unit.is_leader():
            postgresql_client.request(relation, self._charm.app, name)
        return postgresql_client.read(self._charm.model, relation, name)

    def _choose_task(self, database: Postgresql | None) -> Task:
        """Say what this unit is to do, after the leader has put on record what is new."""
        facts = self._facts(database)
        if self._charm.unit.is_leader():
            facts = replace(facts, record=choose(facts))
            self._peers.put_on_record(facts.record)
        if facts.record.database == SQLITE and facts.record.sqlite_unit != self._charm.unit.name:
            # Another unit keeps the records, also of whoever has gone.
            self._memory.serving = False
            self._memory.withdrawals = []
            self._peers.say(addresses={})
        return decide(facts, self._charm.app.name)

    def _facts(self, database: Postgresql | None) -> Facts:
        record, units = self._peers.record, self._peers.units()
        relation = self._relation(postgresql_client.ENDPOINT)
        return Facts(
            unit=self._charm.unit.name,
            is_leader=self._charm.unit.is_leader(),
            schema=newest_schema(),
            record=record,
            units=set(units),
            with_sqlite={name for name, unit in units.items() if unit.has_sqlite},
            relation=None if relation is None else relation.id,
            is_given=database is not None,
            knows_relations=self._memory.knows_relations,
            copied=units[record.sqlite_unit].copied if record.sqlite_unit in units else None,
        )

    def _addresses(self) -> dict[str, str]:
        """Return under which address each side reaches this unit, by endpoint. Raises NotReady."""
        addresses = {}
        for endpoint in (*KINDS, WEBSITE):
            binding = self._charm.model.get_binding(endpoint)
            address = None if binding is None else binding.network.ingress_address
            if address is None:
                raise NotReady("Waiting for this unit's address.")
            addresses[endpoint] = str(address)
        return addresses

    def _names(self, config: ApiConfig) -> tuple[str, ...]:
        """Return all names and addresses that the unit's certificate has to be good for."""
        names = set(self._addresses().values())
        return tuple(sorted(names | ({config.external_host} if config.external_host else set())))

    def _identity(self, names: tuple[str, ...]) -> Identity:
        """Return the units' own CA and secret key, which the first leader makes."""
        known = self._peers.record.identity
        if known is not None:
            return api_identity.read(self._charm.model, known)
        if not self._charm.unit.is_leader():
            raise NotReady("Waiting for the leader to make the units' own CA.")
        identity = api_identity.make(self._service.data, names, datetime.now(timezone.utc))
        shared = api_identity.share(self._charm.app, self._charm.model, identity)
        self._peers.put_on_record(replace(self._peers.record, identity=shared))
        return identity

    def _values(
        self, config: ApiConfig, names: tuple[str, ...], issued: Issued | None
    ) -> dict[str, Any]:
        """Return the workload's options, with SQLite."""
        has_ipv6 = any(":" in name for name in names)
        values = {
            **config.values(),
            "listen": f"{'[::]' if has_ipv6 else '0.0.0.0'}:{PORT}",
            "migrate_on_start": False,
        }
        if issued is None:
            values["certificate_names"] = list(names)
        else:
            certificate, key = api_certificates.files(self._service.root)
            values |= {"certificate": str(certificate), "key": str(key)}
        listen = metrics_listen(self._charm)
        return values if listen is None else {**values, "metrics_listen": listen}

    def _database_url(self, database: Postgresql) -> str:
        path = self._service.database_ca
        if database.ca_certificate is not None:
            write_if_changed(path, database.ca_certificate, 0o644)
        return database.url(path)

    def _move(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        group: int | None,
        database: Postgresql,
    ) -> bool:
        """Copy SQLite to PostgreSQL; return False when that was refused, now or earlier."""
        if self._memory.refused == database.relation:
            return False
        try:
            self._service.move_to_postgresql(before, after, group, database.relation)
        except CopyRefused as error:
            logger.warning("%s", error)
            self._memory.refused = database.relation
            return False
        self._peers.say(copied=database.relation)
        return True

    def _migrates(self, task: Task, database: Postgresql | None) -> bool:
        """Say whether this unit migrates the database before it starts.

        Raises:
            Blocked: The database is another one than that which has the data.
        """
        if task is not Task.SERVE_POSTGRESQL or database is None:
            return task is Task.SERVE_SQLITE
        record = self._peers.record
        is_other = record.database == POSTGRESQL and record.database_relation != database.relation
        if is_other and not self._service.has_tables():
            raise Blocked(
                "The data is in another PostgreSQL: the database that is given now is empty. "
                "Restore the data into it, or integrate with the former one."
            )
        return self._charm.unit.is_leader() and record.migrated != newest_schema()

    def _bring_up(self, values: Mapping[str, Any], identity: Identity, migrates: bool) -> None:
        """Run the charm's version with these options; go back if that version doesn't start."""
        text = json.dumps([values, identity.to_secret()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        rolled_back = None
        try:
            was_started = self._service.workload.upgrade(lambda: self._service.start(migrates))
        except WorkloadError as error:
            if not self._service.workload.is_installed():
                raise
            # The version before serves, and what else has changed is for it as well.
            was_started, rolled_back = False, error
        is_up_to_date = self._memory.started_with == digest and self._service.is_running()
        if not was_started and not is_up_to_date:
            self._service.start(migrates)
        self._memory.started_with = digest
        if rolled_back is not None:
            raise rolled_back

    def _say_that_we_serve(
        self, task: Task, database: Postgresql | None, issued: Issued | None
    ) -> None:
        self._memory.serving = True
        if task is not Task.SERVE_SQLITE and database is not None and self._charm.unit.is_leader():
            self._peers.put_on_record(
                replace(
                    self._peers.record,
                    database=POSTGRESQL,
                    sqlite_unit=None,
                    database_relation=database.relation,
                    migrated=newest_schema(),
                )
            )
        self._peers.say(
            addresses=self._addresses(),
            authorities=None if issued is None else issued.authorities,
            has_sqlite=self._service.sqlite.exists(),
        )
        self._charm.unit.set_ports(PORT)
        version = self._service.workload.version()
        if version is not None:
            self._charm.unit.set_workload_version(version)
        if task is Task.SERVE_SQLITE and database is not None:
            raise Blocked(
                "SQLite and PostgreSQL both have machines or storage units, so SQLite is served "
                f"from as before: juju remove-relation {self._charm.app.name}:database, and "
                "integrate with an empty one."
            )

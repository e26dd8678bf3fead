#!/usr/bin/env python3
"""The charm of Turku's API: events become one `reconcile`, and facts become the status."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ops

import api_certificates
import api_identity
import postgresql_client
import unit_records
from api_actions import ACTIONS, ROTATE, RotateKey, rotate_key
from api_certificates import Certificates, Issued
from api_config import ApiConfig
from api_identity import Identity
from api_service import CopyRefused, Service, newest_schema
from database_choice import Facts, Task, choose, decide
from peers import ENDPOINT as CLUSTER
from peers import POSTGRESQL, SQLITE, Peers
from postgresql_client import Postgresql
from registration_keys import KINDS, Keys, is_of_relation, key_name, relations
from turku_charm.actions import Result, answer
from turku_charm.api_relation import publish, write_if_changed
from turku_charm.cos_agent import metrics_listen, publish_cos_agent
from turku_charm.programs import Programs
from turku_charm.statuses import Blocked, NotReady, status_of
from turku_charm.workload import Workload
from turku_core.api.install import SERVICE
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.relations import URLS_MAX, ApiAccess
from website import ENDPOINT as WEBSITE
from website import PORT, base_url, website

logger = logging.getLogger(__name__)

STORAGE = "data"


class TurkuApiCharm(ops.CharmBase):
    """Serves Turku's API and hands its relations what they need to reach it."""

    root = Path("/")
    _stored = ops.StoredState()  # type: ignore[no-untyped-call]  # ops gives it no types

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        self._stored.set_default(
            problem=None,  # what the last reconcile could not do: a status' name and message
            serving=False,
            started_with=None,  # what the service was last started with, as a digest
            detaching=False,
            leaving=False,
            has_begun=False,  # past the start hook, from which on all relations are known
            sweep=True,  # every unit's announcement has to be looked at
            withdrawals=[],  # keys and units that are gone, and not yet so in the database
            synced=None,
            refused=None,  # the database relation whose database has data of its own
        )
        self._service = Service(Workload("api", self.charm_dir, self.root))
        self._peers = Peers(self)
        self._certificates = Certificates(self)
        self._keys = Keys(self)
        self._changed: tuple[ops.Relation, ops.Unit] | None = None
        self._observe_life()
        self._observe_relations()
        self._observe_actions()

    def _observe_life(self) -> None:
        observe, on = self.framework.observe, self.on
        for event in (on.install, on.upgrade_charm, on.start, on.config_changed, on.leader_elected):
            observe(event, self._on_sweep)
        for event in (on.update_status, on.secret_changed):
            observe(event, self._on_anything)
        observe(on[STORAGE].storage_attached, self._on_storage_attached)
        observe(on[STORAGE].storage_detaching, self._on_storage_detaching)
        observe(on.stop, self._on_stop)
        observe(on.remove, self._on_remove)
        observe(on.collect_unit_status, self._on_collect_unit_status)

    def _observe_relations(self) -> None:
        observe, on = self.framework.observe, self.on
        for endpoint in (
            CLUSTER, WEBSITE, postgresql_client.ENDPOINT, api_certificates.ENDPOINT, "cos-agent"
        ):  # fmt: skip
            for event in (
                on[endpoint].relation_created,
                on[endpoint].relation_joined,
                on[endpoint].relation_changed,
                on[endpoint].relation_broken,
            ):
                observe(event, self._on_anything)
        observe(on[CLUSTER].relation_departed, self._on_departed)
        for endpoint in KINDS:
            observe(on[endpoint].relation_created, self._on_anything)
            observe(on[endpoint].relation_joined, self._on_unit_changed)
            observe(on[endpoint].relation_changed, self._on_unit_changed)
            observe(on[endpoint].relation_departed, self._on_departed)
            observe(on[endpoint].relation_broken, self._on_anything)

    def _observe_actions(self) -> None:
        for name in (*ACTIONS, ROTATE):
            self.framework.observe(self.on[name].action, self._on_action)

    # Events

    def _on_anything(self, _: ops.EventBase) -> None:
        self._reconcile()

    def _on_sweep(self, event: ops.EventBase) -> None:
        self._stored.sweep = True
        if isinstance(event, ops.StartEvent):
            self._stored.has_begun = True
        if isinstance(event, (ops.ConfigChangedEvent, ops.UpgradeCharmEvent)):
            self._stored.refused = None
        self._reconcile()

    def _on_unit_changed(self, event: ops.RelationJoinedEvent | ops.RelationChangedEvent) -> None:
        if event.unit is not None:
            self._changed = (event.relation, event.unit)
        self._reconcile()

    def _on_departed(self, event: ops.RelationDepartedEvent) -> None:
        if event.departing_unit == self.unit:
            # We go, and all that we seem to lose stays.
            self._stored.leaving = True
        elif event.departing_unit is not None and event.relation.name in KINDS:
            gone = [key_name(event.relation), event.departing_unit.name]
            self._stored.withdrawals = [*_plain(self._stored.withdrawals), gone]
        self._reconcile()

    def _on_storage_attached(self, _: ops.StorageAttachedEvent) -> None:
        self._stored.detaching = False
        self._reconcile()

    def _on_storage_detaching(self, _: ops.StorageDetachingEvent) -> None:
        self._stored.detaching = True
        self._reconcile()

    def _on_stop(self, _: ops.StopEvent) -> None:
        self._stored.leaving = True
        self._attempt(self._service.stop)

    def _on_remove(self, _: ops.RemoveEvent) -> None:
        self._attempt(self._service.remove)

    # The state that everything is brought to

    def _reconcile(self) -> None:
        """Bring everything to what it should be, as far as it goes; note what doesn't."""
        if self._stored.leaving:
            return
        steps = (self._serve, self._lead, self._keep_records, self._tell_neighbours)
        problems = [self._attempt(step) for step in steps]
        status = next((status_of(problem) for problem in problems if problem is not None), None)
        self._stored.problem = None if status is None else [status.name, status.message]

    def _attempt(self, step: Callable[[], object]) -> TurkuError | None:
        try:
            step()
        except TurkuError as error:
            level = logging.INFO if isinstance(error, NotReady) else logging.WARNING
            logger.log(level, "%s", error)
            return error
        return None

    def _serve(self) -> None:
        """Bring this unit's service to what it should be."""
        self._require_storage()
        if not self._service.workload.is_installed():
            self._service.workload.install()
        config = self._config()
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
            api_certificates.write(self.root, issued, group)
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

    def _require_storage(self) -> None:
        if not self._stored.detaching and self.model.storages[STORAGE]:
            return
        self._stored.serving = False
        self._stored.started_with = None
        if self._service.is_running():
            self._service.stop()
        raise Blocked(
            f"The storage {STORAGE} isn't attached: juju attach-storage {self.unit.name} with the "
            "one that it had."
        )

    def _config(self) -> ApiConfig:
        try:
            return self.load_config(ApiConfig)
        except ValueError as error:
            raise Blocked(str(error)) from error

    def _say_where_sqlite_is(self) -> None:
        """Say whether we have an SQLite database. One that we had and lost is not replaced."""
        has_it = self._service.sqlite.exists()
        record = self._peers.record
        was_ours = record.database == SQLITE and record.sqlite_unit == self.unit.name
        if self._peers.own.has_sqlite and not has_it and was_ours:
            raise Blocked(
                f"The database {self._service.sqlite} was here and is gone: put it back from a "
                "backup. An empty one would forget every machine and every backup."
            )
        self._peers.say(has_sqlite=has_it)

    def _relation(self, endpoint: str) -> ops.Relation | None:
        relation = self.model.get_relation(endpoint)
        return relation if relation is not None and relation.active else None

    def _database(self) -> Postgresql | None:
        """Ask for a database, where one is related, and return what was given."""
        relation = self._relation(postgresql_client.ENDPOINT)
        if relation is None:
            return None
        name = postgresql_client.database_name(self.app.name, self.model.uuid)
        if self.unit.is_leader():
            postgresql_client.request(relation, self.app, name)
        return postgresql_client.read(self.model, relation, name)

    def _choose_task(self, database: Postgresql | None) -> Task:
        """Say what this unit is to do, after the leader has put on record what is new."""
        facts = self._facts(database)
        if self.unit.is_leader():
            facts = replace(facts, record=choose(facts))
            self._peers.put_on_record(facts.record)
        if facts.record.database == SQLITE and facts.record.sqlite_unit != self.unit.name:
            # Another unit keeps the records, also of whoever has gone.
            self._stored.serving = False
            self._stored.withdrawals = []
            self._peers.say(addresses={})
        return decide(facts, self.app.name)

    def _facts(self, database: Postgresql | None) -> Facts:
        record, units = self._peers.record, self._peers.units()
        relation = self._relation(postgresql_client.ENDPOINT)
        return Facts(
            unit=self.unit.name,
            is_leader=self.unit.is_leader(),
            schema=newest_schema(),
            record=record,
            units=set(units),
            with_sqlite={name for name, unit in units.items() if unit.has_sqlite},
            relation=None if relation is None else relation.id,
            is_given=database is not None,
            copied=units[record.sqlite_unit].copied if record.sqlite_unit in units else None,
        )

    def _addresses(self) -> dict[str, str]:
        """Return under which address each side reaches this unit, by endpoint. Raises NotReady."""
        addresses = {}
        for endpoint in (*KINDS, WEBSITE):
            binding = self.model.get_binding(endpoint)
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
            return api_identity.read(self.model, known)
        if not self.unit.is_leader():
            raise NotReady("Waiting for the leader to make the units' own CA.")
        identity = api_identity.make(self._service.data, names, datetime.now(timezone.utc))
        shared = api_identity.share(self.app, self.model, identity)
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
            certificate, key = api_certificates.files(self.root)
            values |= {"certificate": str(certificate), "key": str(key)}
        listen = metrics_listen(self)
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
        if self._stored.refused == database.relation:
            return False
        try:
            self._service.move_to_postgresql(before, after, group, database.relation)
        except CopyRefused as error:
            logger.warning("%s", error)
            self._stored.refused = database.relation
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
        return self.unit.is_leader() and record.migrated != newest_schema()

    def _bring_up(self, values: Mapping[str, Any], identity: Identity, migrates: bool) -> None:
        """Run the charm's version with these options; go back if that version doesn't start."""
        text = json.dumps([values, identity.to_secret()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        was_started = self._service.workload.upgrade(lambda: self._service.start(migrates))
        is_up_to_date = self._stored.started_with == digest and self._service.is_running()
        if not was_started and not is_up_to_date:
            self._service.start(migrates)
        self._stored.started_with = digest

    def _say_that_we_serve(
        self, task: Task, database: Postgresql | None, issued: Issued | None
    ) -> None:
        self._stored.serving = True
        if task is not Task.SERVE_SQLITE and database is not None and self.unit.is_leader():
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
        self.unit.set_ports(PORT)
        version = self._service.workload.version()
        if version is not None:
            self.unit.set_workload_version(version)
        if task is Task.SERVE_SQLITE and database is not None:
            raise Blocked(
                "SQLite and PostgreSQL both have machines or storage units, so SQLite is served "
                f"from as before: juju remove-relation {self.app.name}:database, and integrate "
                "with an empty one."
            )

    def _lead(self) -> None:
        """Let every relation know where the API is, and how to register."""
        if not self.unit.is_leader():
            return
        record = self._peers.record
        ids = self._keys.mint(record.keys)
        gone = {name: id_ for name, id_ in record.keys.items() if name not in ids}
        if self._stored.has_begun:
            for name, secret_id in gone.items():
                self._keys.revoke(name, secret_id)
        else:
            # A unit that has just come is told of its relations one by one.
            ids |= gone
        self._peers.put_on_record(replace(record, keys=ids))
        if record.identity is not None:
            self._publish(ids, api_identity.read(self.model, record.identity).ca_certificate)

    def _publish(self, keys: Mapping[str, str], own_ca: str) -> None:
        units = self._peers.units().values()
        trusted = api_certificates.trusted(own_ca, [unit.authorities for unit in units])
        external = self._config().external_base
        for name, relation in relations(self.model).items():
            addresses = {unit.addresses.get(relation.name) for unit in units} - {None}
            urls = [external] if external else sorted(base_url(each) for each in addresses if each)
            if urls:
                access = ApiAccess(tuple(urls[:URLS_MAX]), trusted, name, keys[name])
                publish(relation, self.app, access.to_databag())

    def _keep_records(self) -> None:
        """Let the database know who the relations' units are, and which of them are gone."""
        if not self._stored.serving:
            return
        programs = self._service.programs
        while withdrawals := _plain(self._stored.withdrawals):
            unit_records.withdraw(programs, *withdrawals[0])
            self._stored.withdrawals = withdrawals[1:]
        record = self._peers.record
        if record.database == POSTGRESQL and not self.unit.is_leader():
            return
        keys = self._keys.read(record.keys)
        synced = unit_records.fingerprint(keys)
        if self._stored.sweep or self._stored.synced != synced:
            unit_records.sync_keys(programs, keys)
            self._stored.synced = synced
        self._announce(programs)

    def _announce(self, programs: Programs) -> None:
        """Record what the unit of this event says; what all units say, when that has to be."""
        if self._stored.sweep:
            found = relations(self.model).values()
            units = [(relation, unit) for relation in found for unit in relation.units]
        else:
            units = [] if self._changed is None else [self._changed]
        # Until it is done, all units are looked at again.
        self._stored.sweep = True
        unit_records.announce(programs, units)
        self._stored.sweep = False

    def _tell_neighbours(self) -> None:
        """Let the load balancer and the collector of metrics know of this unit."""
        for relation in self.model.relations[WEBSITE]:
            address = self._peers.own.addresses.get(WEBSITE)
            if self._stored.serving and address is not None:
                publish(relation, self.unit, website(self.unit.name, address))
            else:
                publish(relation, self.unit, {})
        publish_cos_agent(self)

    def _on_collect_unit_status(self, event: ops.CollectStatusEvent) -> None:
        if self._stored.leaving:
            event.add_status(ops.MaintenanceStatus("Leaving."))
        elif self._stored.problem:
            name, message = _plain(self._stored.problem)
            event.add_status(ops.StatusBase.from_name(name, message))
        elif not self._service.is_running():
            event.add_status(ops.BlockedStatus(f"{SERVICE} doesn't run: see journalctl -u it."))
        else:
            event.add_status(ops.ActiveStatus(self._active_message()))

    def _active_message(self) -> str:
        record = self._peers.record
        database = "PostgreSQL" if record.database == POSTGRESQL else "SQLite"
        return f"{base_url(self._peers.own.addresses['agents'])}, {database}"

    # Actions

    def _on_action(self, event: ops.ActionEvent) -> None:
        """Carry an action out whose parameters are valid, on a unit that serves."""
        name = event.handle.kind.removesuffix("_action").replace("_", "-")
        parameters, body = ACTIONS.get(name, (RotateKey, self._rotate_registration_key))
        asked = event.load_params(parameters, errors="fail")

        def carry_out() -> Result:
            self._require_serving()
            return body(self._service.programs, asked)

        answer(event, carry_out)

    def _require_serving(self) -> None:
        if self._stored.serving:
            return
        problem = _plain(self._stored.problem)
        why = f": {problem[1]}" if problem else "."
        raise Blocked(f"{self.unit.name} doesn't serve{why}")

    def _rotate_registration_key(self, programs: Programs, asked: RotateKey) -> Result:
        """Rotate a relation's key over the relation, and any other by the workload."""
        if not is_of_relation(asked.name):
            return rotate_key(programs, asked)
        keys = self._peers.record.keys
        if asked.name not in keys:
            known = ", ".join(sorted(keys)) or "none"
            raise ConfigurationError(
                f"There is no relation with the registration key {asked.name}; there are: {known}."
            )
        if not self.unit.is_leader():
            raise Blocked(
                f"Only the leader can change a relation's key: run it on {self.app.name}/leader."
            )
        self._keys.rotate(asked.name, keys[asked.name])
        self._stored.sweep = True
        self._keep_records()
        text = f"The registration key {asked.name} has a new secret, handed over the relation."
        return Result(text, {"name": asked.name, "handed_over": True})


def _plain(value: Any) -> Any:
    """Return a stored value as the plain list that it was."""
    if isinstance(value, ops.StoredList):
        return [_plain(each) for each in value]
    return value


if __name__ == "__main__":  # pragma: no cover
    ops.main(TurkuApiCharm)

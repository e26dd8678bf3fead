#!/usr/bin/env python3
"""The charm of Turku's API: events become one `reconcile`, and facts become the status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ops

import unit_records
from api_actions import ACTIONS, ROTATE, RotateKey, rotate_key
from api_certificates import ENDPOINT as CERTIFICATES
from api_config import ApiConfig
from api_service import Service
from leading import keep_keys, publish_access
from peers import ENDPOINT as CLUSTER
from peers import POSTGRESQL, Peers
from postgresql_client import ENDPOINT as DATABASE
from registration_keys import KINDS, Keys, is_of_relation, key_name, relations
from serving import STORAGE, Serving
from turku_charm.actions import Result, answer
from turku_charm.api_relation import publish
from turku_charm.cos_agent import ENDPOINT as COS_AGENT
from turku_charm.cos_agent import publish_cos_agent
from turku_charm.programs import Programs
from turku_charm.statuses import Blocked, NotReady, status_of
from turku_charm.workload import Workload
from turku_core.api.install import SERVICE
from turku_core.errors import ConfigurationError, TurkuError
from website import ENDPOINT as WEBSITE
from website import base_url, website

logger = logging.getLogger(__name__)


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
            knows_relations=False,  # Juju has told of all relations that there were at first
            sweep=True,  # every unit's announcement has to be looked at
            withdrawals=[],  # keys and units that are gone, and not yet so in the database
            synced=None,
            refused=None,  # the database relation whose database has data of its own
        )
        self._service = Service(Workload("api", self.charm_dir, self.root))
        self._peers = Peers(self)
        self._serving = Serving(self, self._service, self._peers, self._stored)
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
        for endpoint in (CLUSTER, WEBSITE, DATABASE, CERTIFICATES, COS_AGENT):
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
        if not isinstance(event, ops.InstallEvent):
            # The hook of each relation that is there comes after `install`, and before the others.
            self._stored.knows_relations = True
        if isinstance(event, (ops.ConfigChangedEvent, ops.UpgradeCharmEvent)):
            self._stored.refused = None
        self._reconcile()

    def _on_unit_changed(self, event: ops.RelationJoinedEvent | ops.RelationChangedEvent) -> None:
        if event.unit is not None:
            self._changed = (event.relation, event.unit)
        self._record_or_reconcile()

    def _on_departed(self, event: ops.RelationDepartedEvent) -> None:
        if event.departing_unit == self.unit:
            # We go, and all that we seem to lose stays.
            self._stored.leaving = True
        elif event.departing_unit is not None and event.relation.name in KINDS:
            gone = [key_name(event.relation), event.departing_unit.name]
            self._stored.withdrawals = [*_plain(self._stored.withdrawals), gone]
            self._record_or_reconcile()
            return
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

    def _record_or_reconcile(self) -> None:
        """Do what another side's unit asks for alone, where all else is as it should be.

        Thousands of agents come in as many events.
        """
        is_well = self._stored.serving and not self._stored.problem and not self._stored.sweep
        if not is_well or self._stored.leaving or self._attempt(self._keep_records) is not None:
            self._reconcile()

    def _attempt(self, step: Callable[[], object]) -> TurkuError | None:
        try:
            step()
        except TurkuError as error:
            level = logging.INFO if isinstance(error, NotReady) else logging.WARNING
            logger.log(level, "%s", error)
            return error
        return None

    def _serve(self) -> None:
        self._serving.serve(self._config)

    def _config(self) -> ApiConfig:
        try:
            return self.load_config(ApiConfig)
        except ValueError as error:
            raise Blocked(str(error)) from error

    def _lead(self) -> None:
        """Let every relation know where the API is, and how to register."""
        if self.unit.is_leader():
            keep_keys(
                self._peers,
                self._keys,
                sees_all_relations=self._stored.knows_relations,
                look_again=self._stored.sweep,
            )
            publish_access(self, self._peers, self._config().external_base)

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
        elif not self._stored.serving:
            event.add_status(ops.WaitingStatus("Not started yet."))
        elif not self._service.is_running():
            event.add_status(
                ops.BlockedStatus(f"{SERVICE} doesn't run: see journalctl -u {SERVICE}.")
            )
        elif not self._service.has_database():
            event.add_status(
                ops.WaitingStatus(f"Waiting for {self._database}: it doesn't answer the API.")
            )
        else:
            url = base_url(self._peers.own.addresses["agents"])
            event.add_status(ops.ActiveStatus(f"{url}, {self._database}"))

    @property
    def _database(self) -> str:
        return "PostgreSQL" if self._peers.record.database == POSTGRESQL else "SQLite"

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


if __name__ == "__main__":
    ops.main(TurkuApiCharm)

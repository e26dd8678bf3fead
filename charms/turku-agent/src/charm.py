#!/usr/bin/env python3
"""The subordinate charm that backs up its principal's machine."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import ops

import agent_actions
from agent_machine import Claim, Machine
from agent_places import read_places
from agent_sources import Files, names_of_others, resolve
from agent_status import unit_status
from agent_workload import Agent
from backup_hooks import write_hooks
from turku_charm import api_relation
from turku_charm.actions import answer
from turku_charm.cos_agent import metrics_listen, publish_cos_agent
from turku_charm.statuses import Blocked, NotReady
from turku_core import __version__, fields
from turku_core.agent.sources import load_sources
from turku_core.agent.status import read_status
from turku_core.errors import TurkuError

logger = logging.getLogger(__name__)

RESTORE_ORDERS = ("restore-folder", "anywhere", "none")


@dataclass(frozen=True)
class AgentConfig:
    """The charm's options. Raises ValueError for what isn't valid."""

    sources: str
    restore_orders: str
    log_level: str

    def __post_init__(self) -> None:
        for option, value, known in (
            ("restore-orders", self.restore_orders, RESTORE_ORDERS),
            ("log-level", self.log_level, fields.LOG_LEVELS),
        ):
            if value not in known:
                raise ValueError(
                    f"The option {option} must be one of {', '.join(known)}, not {value!r}."
                )


class TurkuAgentCharm(ops.CharmBase):
    """Makes the machine what the charm's relations and options say, at every event anew."""

    root = Path("/")

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        self._machine = Machine(self.root)
        self._agent = Agent(self.root, self.charm_dir, self._machine)
        self._files = Files(self._agent.locations.sources)
        self._problems: list[TurkuError] = []
        self._remarks: tuple[str, ...] = ()
        self._since: datetime | None = None
        on = self.on
        framework.observe(on.install, self._on_new_charm)
        framework.observe(on.upgrade_charm, self._on_new_charm)
        framework.observe(on.update_status, self._on_update_status)
        framework.observe(on.remove, self._on_remove)
        for event in (on.start, on.config_changed, on.secret_changed):
            framework.observe(event, self._on_change)
        for endpoint in ("host", "api", "sources", "backup", "cos-agent"):
            events = on[endpoint]
            for event in (
                events.relation_created,
                events.relation_joined,
                events.relation_changed,
                events.relation_departed,
                events.relation_broken,
            ):
                framework.observe(event, self._on_change)
        framework.observe(on.collect_unit_status, self._on_collect_unit_status)
        framework.observe(on["backup-now"].action, self._on_backup_now)
        framework.observe(on["list-snapshots"].action, self._on_list_snapshots)
        framework.observe(on["restore"].action, self._on_restore)
        framework.observe(on["check"].action, self._on_check)

    # Events

    def _on_new_charm(self, _: ops.EventBase) -> None:
        self._reconcile(is_new=True)

    def _on_change(self, _: ops.EventBase) -> None:
        self._reconcile()

    def _on_update_status(self, _: ops.EventBase) -> None:
        self._reconcile()
        self._agent.refresh_status(datetime.now(timezone.utc))

    def _on_remove(self, _: ops.EventBase) -> None:
        with self._machine.locked():
            claims = self._machine.claims()
            others = [claim for claim in claims if claim.unit != self.unit.name]
            for claim in [*self._machine.gone(), *claims]:
                if claim not in others:
                    self._leave(claim, others)
            if others:
                self._settle(others)
            else:
                self._agent.remove()

    def _on_collect_unit_status(self, event: ops.CollectStatusEvent) -> None:
        if self._since is None:
            return  # an action changes nothing of what the status says
        event.add_status(
            unit_status(
                self._problems,
                self._remarks,
                load_sources(self._files.folder).sources.keys(),
                read_status(self._agent.locations),
                self._since,
                datetime.now(timezone.utc),
            )
        )

    # Actions

    def _on_backup_now(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(agent_actions.BackUpNow, errors="fail")
        answer(event, lambda: agent_actions.back_up_now(self._agent.programs, wanted))

    def _on_list_snapshots(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(agent_actions.ListSnapshots, errors="fail")
        answer(event, lambda: agent_actions.list_snapshots(self._agent.programs, wanted))

    def _on_restore(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(agent_actions.Restore, errors="fail")
        answer(event, lambda: agent_actions.restore(self._agent.programs, wanted))

    def _on_check(self, event: ops.ActionEvent) -> None:
        answer(event, lambda: agent_actions.check(self._agent.programs))

    # The one way in which things become as they should be

    def _reconcile(self, *, is_new: bool = False) -> None:
        """Make the machine what is wanted of it; what can't be done is said in the status."""
        with self._machine.locked():
            mine, claims = self._stake_claim(is_new=is_new)
            self._since = datetime.fromisoformat(mine.since)
            with self._going_on():
                self._agent.install_packages()
            with self._going_on():
                self._agent.install(mine, claims)
                self.unit.set_workload_version(self._agent.workload.version() or "")
            with self._going_on():
                self._introduce()
            self._settle(claims)
        publish_cos_agent(self)

    def _stake_claim(self, *, is_new: bool) -> tuple[Claim, list[Claim]]:
        """Bring this unit's claim and files up to date; return it, and all claims."""
        claims = self._machine.claims()
        others = [claim for claim in claims if claim.unit != self.unit.name]
        mine = next((claim for claim in claims if claim not in others), None)
        if mine is None or not mine.since or is_new:
            mine = self._renewed(mine)
        mine = self._with_values(mine)
        mine = self._with_api(mine)
        mine = self._with_sources(mine, others)
        self._machine.save(mine)
        self._files.write(mine)
        for gone in self._machine.gone():
            self._leave(gone, [mine, *others])
        for sentence in self._files.problems():
            self._note(Blocked(sentence))
        return mine, self._machine.claims()

    def _renewed(self, former: Claim | None) -> Claim:
        now = datetime.now(timezone.utc).isoformat()
        if former is not None and former.since:
            return dataclasses.replace(former, release=__version__, adopted=now)
        return Claim(self.unit.name, self.app.name, since=now, release=__version__, adopted=now)

    def _with_values(self, mine: Claim) -> Claim:
        """Return the claim with what the options and the principal make of the configuration."""
        mine = dataclasses.replace(mine, metrics_listen=metrics_listen(self))
        try:
            config, principal = self._config(), self._principal()
        except TurkuError as error:
            self._note(error)
            return mine
        values = {
            "environment_name": self.model.name,
            "service_name": principal.partition("/")[0],
            "unit_name": principal,
            "restore_orders": config.restore_orders,
            "log_level": config.log_level,
        }
        return dataclasses.replace(mine, values=values)

    def _with_api(self, mine: Claim) -> Claim:
        """Return the claim with what the API says; while it says nothing, what it said before."""
        try:
            api = api_relation.read_api(self.model)
        except TurkuError as error:
            self._note(error)
            if api_relation.find_relation(self.model) is None:
                return dataclasses.replace(mine, access=None, secret=None)
            return mine
        return dataclasses.replace(mine, access=api.access.to_databag(), secret=api.secret)

    def _with_sources(self, mine: Claim, others: Sequence[Claim]) -> Claim:
        """Return the claim with what the places of this unit say is to be backed up."""
        hooks = self._agent.hooks / mine.file_stem
        option = str(self.config["sources"])
        said = read_places(self.model, self._principal_if_known(), option, mine, hooks)
        if said.hooks is not None:
            write_hooks(hooks, said.hooks)
        self._remarks = tuple(remark for place in said.places for remark in place.remarks)
        names, clashes = self._files.names_of_principals([mine, *others])
        resolved = resolve(said.places, mine.places, names_of_others(mine, others) | names)
        for sentence in (*clashes, *resolved.problems):
            self._note(Blocked(sentence))
        return dataclasses.replace(mine, places=resolved.places)

    def _introduce(self) -> None:
        """Publish who the machine is, so that the API lets it register."""
        identity = self._agent.identity()
        unit = dataclasses.replace(identity, unit_name=self._principal())
        for relation in self.model.relations[api_relation.ENDPOINT]:
            if relation.active:
                api_relation.publish(relation, self.unit, unit.to_databag())

    def _settle(self, claims: Sequence[Claim]) -> None:
        """Make the configuration what the claims amount to, and tell the API what has changed."""
        with self._going_on():
            self._agent.configure(claims)
            self._agent.tell()

    def _leave(self, claim: Claim, others: Sequence[Claim]) -> None:
        """Take away what a unit made for itself alone."""
        self._files.remove(claim, others)
        write_hooks(self._agent.hooks / claim.file_stem, {})
        self._machine.drop(claim)

    # What Juju says

    def _config(self) -> AgentConfig:
        try:
            return self.load_config(AgentConfig)
        except ValueError as error:
            raise Blocked(str(error)) from error

    def _principal(self) -> str:
        principal = self._principal_if_known()
        if principal is None:
            raise NotReady("Waiting for the principal.")
        return principal

    def _principal_if_known(self) -> str | None:
        """Return the principal unit that this unit is beside."""
        named = os.environ.get("JUJU_PRINCIPAL_UNIT")
        if named:
            return named
        for endpoint in ("host", "sources"):
            for relation in self.model.relations[endpoint]:
                for unit in relation.units:
                    return unit.name
        return None

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Go on after an error, and say it in the status."""
        try:
            yield
        except TurkuError as error:
            self._note(error)

    def _note(self, error: TurkuError) -> None:
        """Let the status say what is wrong, once."""
        if str(error) not in map(str, self._problems):
            logger.warning("%s", error)
            self._problems.append(error)


if __name__ == "__main__":
    ops.main(TurkuAgentCharm)

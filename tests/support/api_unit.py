"""A unit of the API's charm in tests: real programs and a real database, below its own root."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import ops
import pytest
from ops import testing
from scenario import _runtime

from tests.support.charms import CHARMS, charm_folder, load_charm
from tests.support.workload import use_this_environment
from turku_charm import host
from turku_charm.programs import Programs
from turku_core.errors import TurkuError
from turku_core.relations import ApiAccess

CHARM = load_charm("turku-api")
DATA = testing.Storage("data")


def content(secret: testing.Secret) -> dict[str, str]:
    """Return the newest content of a secret; ops.testing doesn't say of which type it is."""
    newest: Any = secret.latest_content
    return dict(newest)


@dataclass
class Systemd:
    """A stand-in for systemd, which runs nothing here: what runs, and what was asked of it."""

    running: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    fails: str | None = None

    def is_running(self, service: str) -> bool:
        """Say whether a service was started and not stopped since."""
        return service in self.running

    def restart(self, service: str) -> None:
        """Start a service, unless the test says why it can't be."""
        self.asked.append(f"restart {service}")
        if self.fails is not None:
            raise TurkuError(self.fails)
        self.running.add(service)

    def stop(self, service: str) -> None:
        """Stop a service."""
        self.asked.append(f"stop {service}")
        self.running.discard(service)


@dataclass
class Api:
    """A unit of the charm with a machine of its own, or what of one is needed here.

    Each event's state is kept, so that the next one finds what the last one left.
    """

    root: Path
    systemd: Systemd
    unit: int = 0
    state: testing.State = field(default_factory=testing.State)

    def __post_init__(self) -> None:
        """Make the context, which loads the charm's own metadata."""
        charm_type = type("Charm", (CHARM.TurkuApiCharm,), {"root": self.root})
        self.context: testing.Context[ops.CharmBase] = testing.Context(
            charm_type,
            meta=_yaml("charmcraft.yaml"),
            charm_root=charm_folder("turku-api", self.root),
            unit_id=self.unit,
            app_name="turku-api",
        )
        self.on = self.context.on

    def run(self, event: Any, **changes: Any) -> testing.State:
        """Run one hook, on the last state with some of it changed."""
        self.state = self.context.run(event, replace(self.state, **changes))
        return self.state

    def act(self, name: str, /, **params: Any) -> dict[str, Any]:
        """Run an action and return what it answered as data; `text` has what people read."""
        named = {key.replace("_", "-"): value for key, value in params.items()}
        self.run(self.on.action(name, params=named))
        results = self.context.action_results or {}
        self.text = str(results.get("result", ""))
        return dict(json.loads(str(results["json"])))

    def failure(self, name: str, /, **params: Any) -> str:
        """Run an action that fails, and return its sentence."""
        named = {key.replace("_", "-"): value for key, value in params.items()}
        with pytest.raises(testing.ActionFailed) as failed:
            self.run(self.on.action(name, params=named))
        return failed.value.message

    def leave(self, relation: Any) -> None:
        """Run a `departed` hook of a relation because this very unit goes."""
        make = _runtime.Runtime._get_event_env

        def with_own_unit(*arguments: Any, **keywords: Any) -> dict[str, str]:
            # ops.testing can name a departing unit of the other side alone.
            return {
                **make(*arguments, **keywords),
                "JUJU_DEPARTING_UNIT": f"turku-api/{self.unit}",
            }

        with mock.patch.object(_runtime.Runtime, "_get_event_env", with_own_unit):
            units = relation.peers_data if relation.endpoint == "cluster" else (0,)
            remote = next(iter(units))
            self.run(self.on.relation_departed(relation, remote_unit=remote))

    @property
    def status(self) -> tuple[str, str]:
        """The unit's status and its words."""
        return self.state.unit_status.name, self.state.unit_status.message

    @property
    def options(self) -> dict[str, Any]:
        """What the charm wrote for the workload."""
        path = self.root / "etc/turku-api/config.d/50-juju.json"
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return values

    @property
    def programs(self) -> Programs:
        """The unit's programs."""
        return Programs(Path(sys.executable).parent, self.root)

    def ask(self, *words: str) -> Any:
        """Return what the unit's `turku-api` answers as JSON."""
        return self.programs.run_json("turku-api", *words)

    def keys(self) -> dict[str, str]:
        """Return the state of each registration key in the database."""
        return {key["name"]: key["state"] for key in self.ask("list-registration-keys")}

    def relation(self, relation: testing.RelationBase) -> Any:
        """Return a relation as the last hook left it."""
        return self.state.get_relation(relation.id)

    def published(self, relation: testing.RelationBase) -> ApiAccess:
        """Return what the other side of a relation reads of us."""
        access = ApiAccess.from_databag(self.relation(relation).local_app_data)
        assert access is not None
        return access

    @property
    def peers(self) -> Any:
        """Return the peer relation as the last hook left it."""
        return next(each for each in self.state.relations if each.endpoint == "cluster")

    def secret_of(self, relation: testing.RelationBase) -> testing.Secret:
        """Return the secret of a relation's registration key."""
        return self.state.get_secret(label=f"{relation.endpoint}-{relation.id}")

    def content_of(self, relation: testing.RelationBase) -> dict[str, str]:
        """Return the newest content of the secret of a relation's registration key."""
        return content(self.secret_of(relation))

    def with_relations(self, *relations: testing.RelationBase) -> dict[str, Any]:
        """Return the change of the state that adds or replaces relations."""
        ids = {each.id for each in relations}
        others = [each for each in self.state.relations if each.id not in ids]
        return {"relations": [*others, *relations]}

    def without_relations(self, *relations: testing.RelationBase) -> dict[str, Any]:
        """Return the change of the state that takes relations away."""
        ids = {each.id for each in relations}
        return {"relations": [each for each in self.state.relations if each.id not in ids]}

    def start_up(self) -> None:
        """Run the hooks of a unit's first minute."""
        self.run(self.on.storage_attached(DATA))
        self.run(self.on.install())
        if self.state.leader:
            self.run(self.on.leader_elected())
        self.run(self.on.config_changed())
        self.run(self.on.start())


def _yaml(name: str) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = yaml.safe_load((CHARMS / "turku-api" / name).read_text("utf-8"))
    return values


def first_state() -> testing.State:
    """Return the state of a leader with its storage and its peer relation."""
    return testing.State(leader=True, storages=[DATA], relations=[testing.PeerRelation("cluster")])


def stand_in_for_systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """Replace systemd, and let the workload be this environment's programs."""
    use_this_environment(monkeypatch)
    stand_in = Systemd()
    for name in ("is_running", "restart", "stop"):
        monkeypatch.setattr(host, name, getattr(stand_in, name))
    return stand_in

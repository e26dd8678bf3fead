"""Agent units in tests: the real charm and its real programs, below a root of their own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ops
import pytest
import yaml
from ops import testing

from tests.support.charms import CHARMS, load_charm
from tests.support.workload import use_this_environment
from turku_charm import host
from turku_core.credentials import make_secret
from turku_core.relations import ApiAccess

CHARM = load_charm("turku-agent")
METADATA = yaml.safe_load((CHARMS / "turku-agent/charmcraft.yaml").read_text("utf-8"))
KEY = "a-registration-key"
_JUJUS_OWN = ("egress-subnets", "ingress-address", "private-address")


@dataclass
class Host:
    """A stand-in for apt and systemd, which tests can't have: what was asked of them."""

    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    installed: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def told(self) -> int:
        """Return how often the API was to be told since the last time."""
        count = self.started.count("turku-update-config.service")
        self.started.clear()
        return count


class AgentUnit:
    """One agent unit: each event's state is what the next one begins with.

    Attributes:
        root: The machine, which several units may share.
        key: The registration key that the API grants.
    """

    def __init__(self, root: Path, name: str = "turku-agent/0", principal: str = "web/0") -> None:
        self.root = root
        self.name = name
        self.principal = principal
        application, _, number = name.partition("/")
        charm = type("Charm", (CHARM.TurkuAgentCharm,), {"root": root})
        self.context: testing.Context[ops.CharmBase] = testing.Context(
            charm,
            meta={k: v for k, v in METADATA.items() if k not in ("config", "actions", "parts")},
            config=METADATA["config"],
            actions=METADATA["actions"],
            app_name=application,
            unit_id=int(number),
        )
        self.state = testing.State(model=testing.Model(name="fleet"))
        remote, _, remote_number = principal.partition("/")
        self.host = testing.SubordinateRelation(
            "host", remote_app_name=remote, remote_unit_id=int(remote_number)
        )
        self.key = KEY
        self.secret = testing.Secret({"secret": self.key})
        self.api = testing.Relation("api", remote_app_name="turku-api")
        self._access = ApiAccess(("https://127.0.0.1:9/v1",), None, "agents-7", self.secret.id)

    def key_is(self, name: str, url: str, certificate: Path) -> None:
        """Let it be a real API that speaks over the relation."""
        self.key = make_secret()
        self.secret = testing.Secret({"secret": self.key})
        text = certificate.read_text("utf-8")
        self._access = ApiAccess((url,), text, name, self.secret.id)

    def api_says(self, **changes: Any) -> testing.Relation:
        """Return the relation `api` with what the API writes."""
        access = self._access
        databag = dataclasses.replace(access, **changes).to_databag()
        return dataclasses.replace(self.api, remote_app_data=databag)

    def run(self, event: str, relation: Any = None, **changes: Any) -> testing.State:
        """Run one hook, on the last state with some of it changed.

        Args:
            event: Such as ``install`` or ``relation_changed``.
            relation: The relation that it is about, if any.
            changes: What is different since the last hook: ``relations``, ``secrets``, ``config``.
        """
        self.state = dataclasses.replace(self.state, **changes)
        arguments = [] if relation is None else [self.state.get_relation(relation.id)]
        self.state = self.context.run(getattr(self.context.on, event)(*arguments), self.state)
        return self.state

    def join(self, *relations: Any, **config: str) -> testing.State:
        """Install the unit, with everything that it needs related already."""
        self.run("install")
        return self.run(
            "config_changed",
            relations=[self.host, self.api_says(), *relations],
            secrets=[self.secret],
            config=config,
        )

    def act(self, action: str, **parameters: Any) -> dict[str, Any]:
        """Run an action and return its results. Raises `testing.ActionFailed`."""
        event = self.context.on.action(action, params=parameters)
        self.state = self.context.run(event, self.state)
        return dict(self.context.action_results or {})

    @property
    def status(self) -> Any:
        """The unit's status."""
        return self.state.unit_status

    def published(self) -> Mapping[str, str]:
        """Return what the unit says over the relation `api`."""
        return self.written(self.api)

    def written(self, relation: testing.RelationBase) -> dict[str, str]:
        """Return what the unit says over a relation, without what Juju says there."""
        databag: Any = self.state.get_relation(relation.id).local_unit_data
        return {key: databag[key] for key in databag if key not in _JUJUS_OWN}

    def path(self, name: str) -> Path:
        """Return a path on the machine."""
        return self.root / name

    def drop(self, name: str, text: str) -> Path:
        """Drop a file into ``sources.d``, as a principal's charm does."""
        path = self.root / "etc/turku-agent/sources.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def sources(self, name: str | None = None) -> dict[str, Any]:
        """Return what the charm wrote into one of its files; it isn't there: nothing."""
        name = name or f"charm-{self.name.replace('/', '-')}.json"
        path = self.root / "etc/turku-agent/sources.d" / name
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def configuration(self) -> dict[str, Any]:
        """Return the agent's configuration as the charm wrote it."""
        path = self.root / "etc/turku-agent/config.d/50-juju.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def content(self) -> dict[str, str]:
        """Return every file on the machine, with its content."""
        return contents(self.root, self.root.rglob("*"))


def contents(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the content of files, by their names below `root`."""
    return {
        str(path.relative_to(root)): path.read_text("utf-8", "replace")
        for path in sorted(paths)
        if path.is_file()
    }


def use_stand_in_host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Keep the charm from the real apt and systemd, and give it this environment's programs."""
    fake = Host()
    use_this_environment(monkeypatch)
    monkeypatch.delenv("JUJU_PRINCIPAL_UNIT", raising=False)
    monkeypatch.setattr(host, "start_anew", fake.started.append)
    monkeypatch.setattr(host, "stop", fake.stopped.append)
    monkeypatch.setattr(host, "forget_failures", fake.forgotten.append)
    monkeypatch.setattr(host, "install_packages", fake.installed.extend)
    return fake

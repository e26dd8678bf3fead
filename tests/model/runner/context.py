"""One run of a hook or an action: what its tools see, and what it leaves when it ends well."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.model.runner.entities import Entities, Relation, Secret, Unit
from tests.model.runner.resolver import Hook


@dataclass
class Action:
    """An action: what it was given, and what came of it."""

    name: str
    id: str
    parameters: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    failure: str | None = None


@dataclass
class Context:
    """A run.

    Remote databags are as they were when it began; what it writes itself it reads at once. Nothing
    of it is the model's before `commit`, except statuses, which Juju takes at once.
    """

    id: str
    entities: Entities
    unit: Unit
    hook: Hook | None
    action: Action | None
    lock: threading.RLock
    addresses: dict[str, str]
    written: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    ports: set[str] = field(default_factory=set)
    secrets: dict[str, Secret] = field(default_factory=dict)
    removed_secrets: set[str] = field(default_factory=set)
    tracked: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    snapshot: dict[int, Relation] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take the state of the model as it is now."""
        with self.lock:
            self.state = dict(self.unit.state)
            self.ports = set(self.unit.ports)
            self.snapshot = {
                relation.id: copy.deepcopy(relation)
                for relation in self.entities.relations_of(self.unit)
            }
            self.secrets = {
                secret.id: copy.deepcopy(secret)
                for secret in self.entities.secrets.values()
                if self.owns(secret) or secret.is_granted_to(self.unit)
            }
            self.tracked = dict(self.unit.tracked)
            self.labels = dict(self.unit.labels)
            self.versions = self._versions()

    def _versions(self) -> dict[str, int]:
        versions = {"config": self.entities.applications[self.unit.application].config_revision}
        if self.hook is not None and self.hook.relation is not None:
            versions |= self.snapshot[self.hook.relation.id].versions
            for name in self.snapshot[self.hook.relation.id].ends:
                versions.setdefault(name, 0)
        if self.hook is not None and self.hook.secret is not None:
            versions["secret"] = self.secrets[self.hook.secret].latest
        return versions

    @property
    def is_leader(self) -> bool:
        """Whether the unit leads its application."""
        return self.entities.applications[self.unit.application].leader == self.unit.name

    def owns(self, secret: Secret) -> bool:
        """Whether the secret is this unit's or its application's."""
        return secret.owner in (self.unit.name, self.unit.application)

    def settings(self, relation_id: int, who: str) -> dict[str, str]:
        """Return a databag with what this run has written to it."""
        settings = dict(self.snapshot[relation_id].data.get(who, {}))
        settings |= self.written.get((relation_id, who), {})
        return {key: value for key, value in settings.items() if value}

    def commit(self) -> None:
        """Make everything that the run has written the model's, all at once."""
        with self.lock:
            for (relation_id, who), settings in self.written.items():
                relation = self.entities.relations.get(relation_id)
                if relation is not None:
                    relation.write(who, settings)
            self.unit.state = self.state
            self.unit.ports = self.ports
            self.unit.tracked = self.tracked
            self.unit.labels = self.labels
            for secret in self.secrets.values():
                if self.owns(secret):
                    self.entities.secrets[secret.id] = secret
            for secret_id in self.removed_secrets:
                self.entities.secrets.pop(secret_id, None)

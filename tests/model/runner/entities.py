"""What a model holds: applications, units, relations, secrets, storage. Data, and no behaviour."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Settings = dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """One end of relations, as the charm's metadata names it."""

    name: str
    interface: str
    role: str
    container: bool


@dataclass(frozen=True)
class Charm:
    """An unpacked charm and its metadata.

    Attributes:
        folder: Where it lies unpacked, on the host.
        revision: Which upload of the application's charm it is.
    """

    folder: Path
    revision: int
    metadata: dict[str, Any]
    options: dict[str, Any]
    actions: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, revision: int) -> Charm:
        """Read an unpacked charm's files."""
        options = _yaml(folder / "config.yaml").get("options", {})
        actions = _yaml(folder / "actions.yaml")
        return cls(folder, revision, _yaml(folder / "metadata.yaml"), options, actions)

    @property
    def is_subordinate(self) -> bool:
        """Whether its units live beside a principal's."""
        return bool(self.metadata.get("subordinate"))

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """The endpoints; every charm provides ``juju-info``."""
        found = {"juju-info": Endpoint("juju-info", "juju-info", "provides", False)}
        for role in ("provides", "requires", "peers"):
            for name, spec in (self.metadata.get(role) or {}).items():
                container = spec.get("scope") == "container"
                found[name] = Endpoint(name, spec["interface"], role, container)
        return found

    @property
    def storages(self) -> dict[str, dict[str, Any]]:
        """The storages that it declares, by name."""
        return dict(self.metadata.get("storage") or {})


@dataclass
class Application:
    """An application."""

    name: str
    charm: Charm
    config: dict[str, Any] = field(default_factory=dict)
    config_revision: int = 1
    units: dict[str, Unit] = field(default_factory=dict)
    next_number: int = 0
    leader: str | None = None

    def effective_config(self) -> dict[str, Any]:
        """Return the options with their defaults; one without either is left out."""
        merged = {name: spec.get("default") for name, spec in self.charm.options.items()}
        merged |= self.config
        return {name: value for name, value in merged.items() if value is not None}


@dataclass
class Storage:
    """A storage instance of a unit: where it lies on the unit's machine.

    Attributes:
        size: Such as ``400M``; None for one that is a folder of the machine's root disk.
    """

    id: str
    name: str
    kind: str
    location: str
    size: str | None = None
    attached: bool = False
    detaching: bool = False


@dataclass
class SeenRelation:
    """How much of a relation a unit's hooks have been told.

    Attributes:
        members: The remote units that have joined, with the version of their settings last told.
        applications: The version of the remote application's settings last told.
    """

    created: bool = False
    members: dict[str, int] = field(default_factory=dict)
    application: int = 0
    broken: bool = False


@dataclass
class Seen:
    """How far a unit's hooks have come."""

    installed: bool = False
    started: bool = False
    config_revision: int = 0
    charm_revision: int = 0
    led: bool = False
    follows: bool = False
    stopped: bool = False
    removed: bool = False
    relations: dict[int, SeenRelation] = field(default_factory=dict)
    secrets: dict[str, int] = field(default_factory=dict)


@dataclass
class Unit:
    """A unit: where it runs, and how far its hooks have come."""

    name: str
    application: str
    machine: str
    principal: str | None = None
    dying: bool = False
    status: tuple[str, str] = ("waiting", "agent initialising")
    application_status: tuple[str, str] | None = None
    workload_version: str = ""
    ports: set[str] = field(default_factory=set)
    state: dict[str, str] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    charm: Charm | None = None
    seen: Seen = field(default_factory=Seen)
    tracked: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    update_status_wanted: bool = False

    @property
    def number(self) -> int:
        """The unit's number."""
        return int(self.name.rpartition("/")[2])

    @property
    def tag(self) -> str:
        """The unit's name as it stands in paths: ``unit-NAME-N``."""
        return f"unit-{self.name.replace('/', '-')}"


@dataclass
class Relation:
    """A relation, and every databag in it by the name of the unit or application.

    Attributes:
        ends: The endpoint of each application; a peer relation has one.
        versions: How often a databag has changed.
    """

    id: int
    ends: dict[str, Endpoint]
    dying: bool = False
    data: dict[str, Settings] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it is among an application's own units."""
        return len(self.ends) == 1

    @property
    def container(self) -> bool:
        """Whether a unit sees only the unit beside it."""
        return any(end.container for end in self.ends.values())

    def remote_application(self, application: str) -> str:
        """Return the application at the other end; a peer relation's is its own."""
        return next((name for name in self.ends if name != application), application)

    def write(self, who: str, settings: Settings) -> None:
        """Set a databag; an empty value takes a key out."""
        old = self.data.get(who, {})
        new = {key: value for key, value in {**old, **settings}.items() if value}
        if new != old or who not in self.versions:
            self.data[who] = new
            self.versions[who] = self.versions.get(who, 0) + 1


@dataclass
class Secret:
    """A secret, its revisions, and whom it was granted to over which relation."""

    id: str
    owner: str
    label: str
    description: str = ""
    revisions: dict[int, dict[str, str]] = field(default_factory=dict)
    grants: dict[int, set[str]] = field(default_factory=dict)

    @property
    def latest(self) -> int:
        """The newest revision's number."""
        return max(self.revisions)

    def is_granted_to(self, unit: Unit) -> bool:
        """Whether a unit, or its application, was let read it."""
        return any({unit.name, unit.application} & names for names in self.grants.values())


@dataclass
class Entities:
    """Everything in a model."""

    name: str
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    applications: dict[str, Application] = field(default_factory=dict)
    relations: dict[int, Relation] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    next_relation: int = 0
    next_storage: int = 0

    def unit(self, name: str) -> Unit:
        """Return a unit. Raises KeyError."""
        return self.applications[name.rpartition("/")[0]].units[name]

    def units(self) -> list[Unit]:
        """Return all units, in the order in which they came."""
        return [unit for each in self.applications.values() for unit in each.units.values()]

    def relations_of(self, unit: Unit) -> list[Relation]:
        """Return the relations that a unit is in; in a container's, with who is beside it."""
        return [
            relation
            for relation in self.relations.values()
            if unit.application in relation.ends
            and (
                not relation.container
                or unit.principal is None
                or relation.remote_application(unit.application) in self._neighbours(unit)
            )
        ]

    def _neighbours(self, unit: Unit) -> set[str]:
        """Return the applications of a subordinate's principal and of the others beside that."""
        assert unit.principal is not None
        beside = {each.application for each in self.units() if each.principal == unit.principal}
        return beside | {unit.principal.rpartition("/")[0]}

    def remote_units(self, relation: Relation, unit: Unit) -> list[str]:
        """Return the names of the units that a unit sees in a relation, sorted."""
        other = self.applications.get(relation.remote_application(unit.application))
        if other is None:
            return []
        found = [each for each in other.units.values() if each.name != unit.name]
        if relation.container:
            container = unit.principal or unit.name
            found = [each for each in found if container in (each.name, each.principal)]
        return sorted((each.name for each in found), key=_in_order)


def _in_order(name: str) -> tuple[str, int]:
    application, _, number = name.rpartition("/")
    return application, int(number)


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}

"""Charms joined: what one unit's hook writes is what the next unit's hook reads.

`ops.testing` runs one hook of one unit on a state that the test makes up. `Joined` makes that state
of what the other units' hooks really left: databags, leadership, secrets and their grants. It
queues the hooks that follow from each change, and runs them until nothing changes any more.

It keeps Juju's rules as far as two charms can tell: only the leader writes application data, a
secret is seen by whom it was granted to, a subordinate sees its own principal alone, relations end
with a `departed` for each unit and then `broken`. It has no machines: each unit has a folder for a
root, and the charms' `root` is set to it.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import ops
import yaml
from ops import testing
from scenario import _runtime

HOOKS_MAX = 400
"""More hooks than that without coming to rest are two charms that answer each other for ever."""

Databag = dict[str, str]
AModel = TypeVar("AModel", bound="Joined")


@dataclass
class Link:
    """A relation between two endpoints, with every databag in it, by unit and by application."""

    id: int
    ends: tuple[tuple[str, str], tuple[str, str]]
    interface: str
    container: bool
    data: dict[str, Databag] = field(default_factory=dict)

    def endpoint_of(self, app: str) -> str:
        """Return the endpoint of an application in it."""
        return dict(self.ends)[app]

    def other(self, app: str) -> str:
        """Return the application at the other end."""
        (first, _), (second, _) = self.ends
        return second if app == first else first


@dataclass
class Unit:
    """A unit: its charm, its folder, and the state that its last hook left."""

    name: str
    app: App
    context: testing.Context[ops.CharmBase]
    state: testing.State
    root: Path
    principal: str | None
    storages: frozenset[testing.Storage] = frozenset()
    seen_secrets: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The unit's number."""
        return int(self.name.rpartition("/")[2])

    @property
    def status(self) -> Any:
        """The unit's status."""
        return self.state.unit_status


@dataclass
class App:
    """An application: its charm, configuration, units and secrets."""

    name: str
    charm: type[ops.CharmBase]
    metadata: dict[str, Any]
    config: dict[str, Any]
    units: dict[str, Unit] = field(default_factory=dict)
    next_number: int = 0
    secrets: dict[str, testing.Secret] = field(default_factory=dict)

    @property
    def leader(self) -> str | None:
        """The first unit leads."""
        return next(iter(self.units), None)


Hook = tuple[str, str, Callable[[Unit], Any]]
"""The unit, what the hook is called, and what makes its event of the unit's present state."""


class Joined:
    """A model of joined charms."""

    def __init__(self, folder: Path, name: str = "fleet") -> None:
        self.folder = folder
        self.name = name
        self.apps: dict[str, App] = {}
        self.links: dict[int, Link] = {}
        self.queue: deque[Hook] = deque()
        self.hooks_run: list[str] = []

    def deploy(
        self,
        name: str,
        charm: type[ops.CharmBase],
        charm_folder: Path | None = None,
        metadata: Mapping[str, Any] | None = None,
        units: int = 1,
        config: Mapping[str, Any] | None = None,
        storages: frozenset[testing.Storage] = frozenset(),
    ) -> App:
        """Deploy an application; a subordinate's units come with its relation."""
        if metadata is None:
            assert charm_folder is not None
            metadata = yaml.safe_load((charm_folder / "charmcraft.yaml").read_text("utf-8"))
        app = App(name, charm, dict(metadata), dict(config or {}))
        self.apps[name] = app
        if "peers" in app.metadata:
            for endpoint in app.metadata["peers"]:
                self._link(((name, endpoint), (name, endpoint)))
        if not app.metadata.get("subordinate"):
            for _ in range(units):
                self.add_unit(name, storages=storages)
        return app

    def add_unit(
        self,
        name: str,
        principal: str | None = None,
        storages: frozenset[testing.Storage] = frozenset(),
        root: Path | None = None,
    ) -> str:
        """Add a unit and queue its first hooks; subordinates share their principal's root."""
        app = self.apps[name]
        number = app.next_number
        app.next_number += 1
        unit_name = f"{name}/{number}"
        if root is None:
            root = (
                self.folder / unit_name.replace("/", "-")
                if principal is None
                else (self._unit(principal).root)
            )
        root.mkdir(parents=True, exist_ok=True)
        own = type(app.charm.__name__, (app.charm,), {"root": root})
        own.__module__ = app.charm.__module__
        context: testing.Context[ops.CharmBase] = testing.Context(
            own,
            meta={key: app.metadata[key] for key in app.metadata if key not in _NOT_METADATA},
            config=app.metadata.get("config"),
            actions=app.metadata.get("actions"),
            app_name=name,
            unit_id=number,
        )
        unit = Unit(unit_name, app, context, testing.State(), root, principal, storages)
        app.units[unit_name] = unit
        for storage in storages:
            self._queue(unit_name, f"{storage.name}-storage-attached", _storage_attached(storage))
        self._queue(unit_name, "install", lambda u: u.context.on.install())
        for link in self.links.values():
            if name in dict(link.ends) and not link.container:
                self._queue(unit_name, "relation-created", _created(link.id))
        leads = "leader-elected" if app.leader == unit_name else None
        if leads:
            self._queue(unit_name, leads, lambda u: u.context.on.leader_elected())
        self._queue(unit_name, "config-changed", lambda u: u.context.on.config_changed())
        self._queue(unit_name, "start", lambda u: u.context.on.start())
        for link in self.links.values():
            if name in dict(link.ends) and not link.container:
                self._join(link, unit_name)
        return unit_name

    def integrate(self, one: str, two: str) -> int:
        """Relate two endpoints, ``APP:ENDPOINT``; return the relation's id."""
        first, second = (tuple(text.split(":")) for text in (one, two))
        link = self._link(((first[0], first[1]), (second[0], second[1])))
        if link.container:
            sub, host = self._subordinate_first(link)
            for principal in list(self.apps[host].units):
                with_one = [u for u in self.apps[sub].units.values() if u.principal == principal]
                subordinate = with_one[0].name if with_one else self.add_unit(sub, principal)
                for unit in (subordinate, principal):
                    self._queue(unit, "relation-created", _created(link.id))
                self._pair(link, subordinate, principal)
            return link.id
        for app, _ in link.ends:
            for unit in self.apps[app].units:
                self._queue(unit, "relation-created", _created(link.id))
        for mine in self.apps[first[0]].units:
            for theirs in self.apps[second[0]].units:
                self._pair(link, mine, theirs)
        return link.id

    def remove_relation(self, link_id: int) -> None:
        """End a relation: departed for each unit, then broken, on both sides."""
        link = self.links[link_id]
        for app, _ in link.ends:
            for name in self.apps[app].units:
                for remote in self._remotes(link, name):
                    self._queue(name, "relation-departed", self._departed(link_id, remote, remote))
                self._queue(name, "relation-broken", self._broken(link_id))
        self.settle()
        del self.links[link_id]
        for unit in [unit for each in self.apps.values() for unit in each.units.values()]:
            if unit.principal and not self._has_principal(unit):
                self.remove_unit(unit.name)

    def remove_unit(self, name: str) -> None:
        """Remove a unit, and first the subordinates beside it."""
        for app in list(self.apps.values()):
            for other in list(app.units.values()):
                if other.principal == name:
                    self.remove_unit(other.name)
        unit = self._unit(name)
        for link in [link for link in self.links.values() if unit.app.name in dict(link.ends)]:
            for remote in self._remotes(link, name):
                self._queue(remote, "relation-departed", self._departed(link.id, name, name))
                self._queue(name, "relation-departed", self._departed(link.id, remote, name))
            self._queue(name, "relation-broken", self._broken(link.id))
        self._queue(name, "stop", lambda u: u.context.on.stop())
        self._queue(name, "remove", lambda u: u.context.on.remove())
        self.settle()
        led = unit.app.leader == name
        del unit.app.units[name]
        for link in self.links.values():
            link.data.pop(name, None)
        if led and unit.app.leader:
            self._queue(unit.app.leader, "leader-elected", lambda u: u.context.on.leader_elected())

    def configure(self, app: str, **options: Any) -> None:
        """Change an application's configuration; underscores stand for hyphens."""
        self.apps[app].config |= {key.replace("_", "-"): value for key, value in options.items()}
        for unit in self.apps[app].units:
            self._queue(unit, "config-changed", lambda u: u.context.on.config_changed())

    def run(self, unit: str, action: str, **parameters: Any) -> dict[str, Any]:
        """Run an action and return its results. Raises `testing.ActionFailed`."""
        given = {key.replace("_", "-"): value for key, value in parameters.items()}
        self._run(unit, f"action {action}", lambda u: u.context.on.action(action, params=given))
        return dict(self._unit(unit).context.action_results or {})

    def update_status(self) -> None:
        """Queue an update-status for every unit."""
        for app in self.apps.values():
            for unit in app.units:
                self._queue(unit, "update-status", lambda u: u.context.on.update_status())

    def settle(self) -> int:
        """Run hooks until none is left to run; return how many ran."""
        count = 0
        while self.queue:
            unit, name, make = self.queue.popleft()
            if unit.rpartition("/")[0] in self.apps and unit in self._unit_names():
                self._run(unit, name, make)
                count += 1
            assert count < HOOKS_MAX, f"the charms don't come to rest: {self.hooks_run[-20:]}"
        return count

    def copy(self: AModel) -> AModel:
        """Return a model as this one is, at rest; what happens in one is not seen in the other.

        The units keep their folders, since charms write down where they are.
        """
        assert not self.queue, "hooks are left to run"
        units = [unit for app in self.apps.values() for unit in app.units.values()]
        return copy.deepcopy(self, {id(unit.context): unit.context for unit in units})

    def statuses(self) -> dict[str, str]:
        """Return each unit's status in a line."""
        return {
            name: f"{unit.status.name}: {unit.status.message}"
            for app in self.apps.values()
            for name, unit in app.units.items()
        }

    def unit(self, name: str) -> Unit:
        """Return a unit."""
        return self._unit(name)

    # How a hook is run, and what follows from it.

    def _run(self, name: str, hook: str, make: Callable[[Unit], Any]) -> None:
        unit = self._unit(name)
        unit.state = self._state_of(unit)
        before = self._written_by(unit)
        secrets_before = dict(unit.app.secrets)
        made = make(unit)
        event, departing = made if isinstance(made, tuple) else (made, None)
        self.hooks_run.append(f"{name} {hook}")
        with _departing(departing):
            unit.state = unit.context.run(event, unit.state)
        self._take_over(unit)
        self._follow_databags(unit, before)
        self._follow_secrets(unit, secrets_before)

    def _state_of(self, unit: Unit) -> testing.State:
        leads = unit.app.leader == unit.name
        relations = [self._relation_of(unit, link) for link in self._links_of(unit)]
        return dataclasses.replace(
            unit.state,
            leader=leads,
            config=unit.app.config,
            relations=frozenset(relations),
            secrets=frozenset(self._secrets_of(unit)),
            storages=unit.storages,
            planned_units=len(unit.app.units),
            model=testing.Model(self.name, uuid="4bb1ac7f-4f6c-45b6-8d9e-7c2d8d6d3c01"),
            networks=frozenset(
                testing.Network(endpoint, bind_addresses=[_loopback()])
                for endpoint in {
                    relation.endpoint
                    for relation in relations
                    if not isinstance(relation, testing.SubordinateRelation)
                }
            ),
        )

    def _relation_of(self, unit: Unit, link: Link) -> testing.RelationBase:
        app = unit.app.name
        mine: dict[str, Any] = {
            "endpoint": link.endpoint_of(app),
            "interface": link.interface,
            "id": link.id,
            "local_app_data": dict(link.data.get(app, {})),
            "local_unit_data": dict(link.data.get(unit.name, {})),
        }
        remotes = self._remotes(link, unit.name)
        data = {_number(each): dict(link.data.get(each, {})) for each in remotes}
        if link.other(app) == app:
            return testing.PeerRelation(**mine, peers_data=data)
        theirs = dict(link.data.get(link.other(app), {}))
        if link.container and unit.principal is not None:
            return testing.SubordinateRelation(
                **mine,
                remote_app_name=link.other(app),
                remote_app_data=theirs,
                remote_unit_id=next(iter(data), 0),
                remote_unit_data=next(iter(data.values()), {}),
            )
        return testing.Relation(
            **mine,
            remote_app_name=link.other(app),
            remote_app_data=theirs,
            remote_units_data=data,
        )

    def _secrets_of(self, unit: Unit) -> list[testing.Secret]:
        found = [
            testing.Secret(
                _latest(secret),
                id=secret.id,
                owner="app",
                label=secret.label,
                remote_grants=secret.remote_grants,
            )
            for secret in unit.app.secrets.values()
        ]
        own = {secret.id for secret in found}
        for app in self.apps.values():
            for secret in app.secrets.values():
                granted = {
                    name
                    for link_id in secret.remote_grants
                    for name in secret.remote_grants[link_id]
                }
                if secret.id not in own and granted & {unit.app.name, unit.name}:
                    found.append(testing.Secret(_latest(secret), id=secret.id, owner=None))
        return found

    def _take_over(self, unit: Unit) -> None:
        """Note what the hook wrote: its unit's databags, and as leader the application's."""
        leads = unit.app.leader == unit.name
        for relation in unit.state.relations:
            link = self.links.get(relation.id)
            if link is not None:
                link.data[unit.name] = dict(relation.local_unit_data)
                if leads:
                    link.data[unit.app.name] = dict(relation.local_app_data)
        if leads:
            unit.app.secrets = {
                secret.id: secret for secret in unit.state.secrets if secret.owner == "app"
            }

    def _written_by(self, unit: Unit) -> dict[tuple[int, str], Databag]:
        return {
            (link.id, who): dict(link.data.get(who, {}))
            for link in self._links_of(unit)
            for who in (unit.name, unit.app.name)
        }

    def _follow_databags(self, unit: Unit, before: Mapping[tuple[int, str], Databag]) -> None:
        for (link_id, who), old in before.items():
            link = self.links[link_id]
            if link.data.get(who, {}) == old:
                continue
            for remote in self._remotes(link, unit.name):
                make = _changed(link_id, unit.number if who == unit.name else None)
                self._queue(remote, "relation-changed", make, once=True)

    def _follow_secrets(self, unit: Unit, before: Mapping[str, testing.Secret]) -> None:
        for secret_id, secret in unit.app.secrets.items():
            old = before.get(secret_id)
            if old is None or _latest(old) == _latest(secret):
                continue
            for app in self.apps.values():
                for name in app.units:
                    if app is not unit.app and self._sees(name, secret_id):
                        self._queue(name, "secret-changed", _secret_changed(secret_id))

    def _sees(self, unit: str, secret_id: str) -> bool:
        return any(secret.id == secret_id for secret in self._secrets_of(self._unit(unit)))

    # Who is joined with whom.

    def _link(self, ends: tuple[tuple[str, str], tuple[str, str]]) -> Link:
        container = False
        interface = ""
        for app, endpoint in ends:
            for role in ("provides", "requires", "peers"):
                spec = self.apps[app].metadata.get(role, {}).get(endpoint)
                if spec:
                    container |= spec.get("scope") == "container"
                    interface = interface or spec["interface"]
                    assert spec["interface"] == interface, f"{ends}: the interfaces differ"
        assert interface, f"{ends}: no such endpoints"
        link = Link(len(self.hooks_run) + len(self.links) + 1, ends, interface, container)
        while link.id in self.links:
            link.id += 1
        self.links[link.id] = link
        return link

    def _links_of(self, unit: Unit) -> Iterator[Link]:
        for link in self.links.values():
            is_mine = unit.app.name in dict(link.ends)
            is_other_principals = (
                link.container and unit.principal is not None and not self._remotes(link, unit.name)
            )
            if is_mine and not is_other_principals:
                yield link

    def _remotes(self, link: Link, unit_name: str) -> list[str]:
        unit = self._unit(unit_name)
        other = self.apps[link.other(unit.app.name)]
        if other is unit.app:
            return [name for name in other.units if name != unit_name]
        if link.container:
            return [
                name
                for name, each in other.units.items()
                if name == unit.principal or each.principal == unit_name
            ]
        return list(other.units)

    def _subordinate_first(self, link: Link) -> tuple[str, str]:
        (first, _), (second, _) = link.ends
        return (first, second) if self.apps[first].metadata.get("subordinate") else (second, first)

    def _has_principal(self, unit: Unit) -> bool:
        return any(
            link.container and unit.app.name in dict(link.ends) and self._remotes(link, unit.name)
            for link in self.links.values()
        )

    def _join(self, link: Link, unit: str) -> None:
        for remote in self._remotes(link, unit):
            self._pair(link, unit, remote)

    def _pair(self, link: Link, one: str, other: str) -> None:
        for unit, remote in ((one, other), (other, one)):
            self._queue(unit, "relation-changed", _changed(link.id, None), once=True)
            self._queue(unit, "relation-joined", _joined(link.id, _number(remote)))
            self._queue(unit, "relation-changed", _changed(link.id, _number(remote)), once=True)

    def _departed(self, link_id: int, remote: str, departing: str) -> Callable[[Unit], Any]:
        def make(unit: Unit) -> tuple[Any, str]:
            relation = unit.state.get_relation(link_id)
            event = unit.context.on.relation_departed(relation, remote_unit=_number(remote))
            return event, departing

        return make

    def _broken(self, link_id: int) -> Callable[[Unit], Any]:
        def make(unit: Unit) -> Any:
            relation = unit.state.get_relation(link_id)
            if isinstance(relation, testing.Relation):
                empty = dataclasses.replace(relation, remote_units_data={})
                others = [each for each in unit.state.relations if each.id != link_id]
                unit.state = dataclasses.replace(unit.state, relations=frozenset([*others, empty]))
                relation = empty
            return unit.context.on.relation_broken(relation)

        return make

    def _queue(
        self, unit: str, name: str, make: Callable[[Unit], Any], *, once: bool = False
    ) -> None:
        key = getattr(make, "key", None)
        if once and any(
            each[0] == unit and getattr(each[2], "key", None) == key is not None
            for each in self.queue
        ):
            return
        self.queue.append((unit, name, make))

    def _unit(self, name: str) -> Unit:
        return self.apps[name.rpartition("/")[0]].units[name]

    def _unit_names(self) -> set[str]:
        return {name for app in self.apps.values() for name in app.units}


_NOT_METADATA = frozenset(
    {"config", "actions", "base", "platforms", "parts", "type", "charm-libs", "links"}
)


class _Maker:
    """Makes a hook's event of the unit's state; two of one key are one hook."""

    def __init__(self, key: tuple[Any, ...], make: Callable[[Unit], Any]) -> None:
        self.key = key
        self._make = make

    def __call__(self, unit: Unit) -> Any:
        return self._make(unit)


def _storage_attached(storage: testing.Storage) -> Callable[[Unit], Any]:
    return lambda unit: unit.context.on.storage_attached(storage)


def _created(link_id: int) -> Callable[[Unit], Any]:
    return lambda unit: unit.context.on.relation_created(unit.state.get_relation(link_id))


def _joined(link_id: int, remote: int) -> Callable[[Unit], Any]:
    return lambda unit: unit.context.on.relation_joined(
        unit.state.get_relation(link_id), remote_unit=remote
    )


def _changed(link_id: int, remote: int | None) -> Callable[[Unit], Any]:
    return _Maker(
        ("changed", link_id, remote),
        lambda unit: unit.context.on.relation_changed(
            unit.state.get_relation(link_id), remote_unit=remote
        ),
    )


def _secret_changed(secret_id: str) -> Callable[[Unit], Any]:
    return lambda unit: unit.context.on.secret_changed(unit.state.get_secret(id=secret_id))


def _latest(secret: testing.Secret) -> dict[str, str]:
    content: dict[str, str] = dict(secret.latest_content)
    return content


def _number(unit: str) -> int:
    return int(unit.rpartition("/")[2])


def _loopback() -> testing.BindAddress:
    return testing.BindAddress([testing.Address("127.0.0.1")])


@contextmanager
def _departing(unit: str | None) -> Iterator[None]:
    """Say who departs: `ops.testing` can only name remote units, and never the one that it is."""
    if unit is None:
        yield
        return
    make = _runtime.Runtime._get_event_env

    def with_departing(*arguments: Any, **keywords: Any) -> dict[str, str]:
        return {**make(*arguments, **keywords), "JUJU_DEPARTING_UNIT": unit}

    with mock.patch.object(_runtime.Runtime, "_get_event_env", with_departing):
        yield
    assert "JUJU_DEPARTING_UNIT" not in os.environ

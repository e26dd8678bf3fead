"""Which hook a unit runs next: what there is, compared with what its hooks have been told.

Nothing is queued. After each hook the question is asked again, so whatever happened meanwhile,
also while a hook failed, is taken into account in the order in which Juju takes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.runner.entities import Entities, Relation, SeenRelation, Storage, Unit


@dataclass(frozen=True)
class Hook:
    """A hook to run.

    Attributes:
        name: Such as ``api-relation-changed``.
        relation: The relation that it is about.
        remote_application, remote_unit, departing_unit: As its environment tells them.
        secret: The id of the secret that it is about.
        storage: The storage instance that it is about.
    """

    name: str
    relation: Relation | None = None
    remote_application: str | None = None
    remote_unit: str | None = None
    departing_unit: str | None = None
    secret: str | None = None
    storage: Storage | None = field(default=None, compare=False)


def next_hook(entities: Entities, unit: Unit) -> Hook | None:
    """Return the hook that a unit runs next, or None when it has been told everything."""
    seen = unit.seen
    if seen.removed:
        return None
    application = entities.applications[unit.application]
    if not seen.installed:
        return _attach(unit) or Hook("install")
    if seen.charm_revision != application.charm.revision and not unit.dying:
        return Hook("upgrade-charm")
    created = _created(entities, unit)
    if created:
        return created
    if unit.dying:
        return _leave(entities, unit)
    if application.leader == unit.name and not seen.led:
        return Hook("leader-elected")
    if application.leader != unit.name and not seen.started and not seen.follows:
        return Hook("leader-settings-changed")
    if seen.config_revision != application.config_revision:
        return Hook("config-changed")
    if not seen.started:
        return Hook("start")
    return (
        _storage(unit)
        or _relations(entities, unit)
        or _secrets(entities, unit)
        or (Hook("update-status") if unit.update_status_wanted else None)
    )


def note(entities: Entities, unit: Unit, hook: Hook, versions: dict[str, int]) -> None:
    """Note that a hook has run to its end.

    Args:
        versions: The versions of the databags that the hook was run with.
    """
    seen = unit.seen
    unit.failures = 0
    application = entities.applications[unit.application]
    if hook.storage is not None:
        hook.storage.attached = hook.name.endswith("-attached")
        if hook.name.endswith("-detaching"):
            unit.storages.pop(hook.storage.id, None)
    elif hook.relation is not None:
        _note_relation(seen.relations.setdefault(hook.relation.id, SeenRelation()), hook, versions)
    elif hook.secret is not None:
        seen.secrets[hook.secret] = versions["secret"]
    elif hook.name == "install":
        seen.installed = True
        seen.charm_revision = application.charm.revision
    elif hook.name == "upgrade-charm":
        seen.charm_revision = application.charm.revision
        seen.config_revision = 0
    elif hook.name == "leader-elected":
        seen.led = True
    elif hook.name == "leader-settings-changed":
        seen.follows = True
    elif hook.name == "config-changed":
        seen.config_revision = versions["config"]
    elif hook.name == "start":
        seen.started = True
    elif hook.name == "stop":
        seen.stopped = True
    elif hook.name == "remove":
        seen.removed = True
    elif hook.name == "update-status":
        unit.update_status_wanted = False


def _note_relation(seen: SeenRelation, hook: Hook, versions: dict[str, int]) -> None:
    kind = hook.name.rpartition("-")[2]
    if kind == "created":
        seen.created = True
    elif kind == "broken":
        seen.broken = True
    elif kind == "departed":
        assert hook.remote_unit is not None
        seen.members.pop(hook.remote_unit, None)
    elif kind == "joined":
        assert hook.remote_unit is not None
        seen.members[hook.remote_unit] = -1  # its `changed` comes next
    elif hook.remote_unit is not None:
        seen.members[hook.remote_unit] = versions[hook.remote_unit]
    else:
        assert hook.remote_application is not None
        seen.application = versions[hook.remote_application]


def _attach(unit: Unit) -> Hook | None:
    for storage in unit.storages.values():
        if not storage.attached and not storage.detaching:
            return Hook(f"{storage.name}-storage-attached", storage=storage)
    return None


def _storage(unit: Unit) -> Hook | None:
    for storage in unit.storages.values():
        if storage.detaching:
            return Hook(f"{storage.name}-storage-detaching", storage=storage)
    return _attach(unit)


def _created(entities: Entities, unit: Unit) -> Hook | None:
    for relation in entities.relations_of(unit):
        seen = unit.seen.relations.get(relation.id)
        if (seen is None or not seen.created) and not relation.dying and not unit.dying:
            return _relation_hook(relation, unit, "created")
    return None


def _relations(entities: Entities, unit: Unit) -> Hook | None:
    relations = sorted(
        entities.relations_of(unit), key=lambda relation: (relation.is_peer, relation.id)
    )
    for relation in relations:
        seen = unit.seen.relations.get(relation.id)
        if seen is None or seen.broken:
            continue
        hook = _of_relation(entities, unit, relation, seen)
        if hook is not None:
            return hook
    return None


def _of_relation(
    entities: Entities, unit: Unit, relation: Relation, seen: SeenRelation
) -> Hook | None:
    present = [
        name
        for name in entities.remote_units(relation, unit)
        if not relation.dying and not entities.unit(name).dying and name in relation.versions
    ]
    for name in sorted(seen.members):
        if name not in present:
            return _relation_hook(relation, unit, "departed", name, departing=name)
    if relation.dying:
        return _relation_hook(relation, unit, "broken")
    other = relation.remote_application(unit.application)
    if not relation.is_peer and relation.versions.get(other, 0) > seen.application and present:
        return _relation_hook(relation, unit, "changed")
    for name in present:
        if seen.members.get(name) == -1:
            return _relation_hook(relation, unit, "changed", name)
    for name in present:
        if name not in seen.members:
            return _relation_hook(relation, unit, "joined", name)
    for name in present:
        if relation.versions[name] > seen.members[name]:
            return _relation_hook(relation, unit, "changed", name)
    is_told = entities.applications[unit.application].leader == unit.name  # it wrote it itself
    if relation.is_peer and not is_told and relation.versions.get(other, 0) > seen.application:
        return _relation_hook(relation, unit, "changed")
    return None


def _relation_hook(
    relation: Relation,
    unit: Unit,
    kind: str,
    remote: str | None = None,
    departing: str | None = None,
) -> Hook:
    return Hook(
        f"{relation.ends[unit.application].name}-relation-{kind}",
        relation=relation,
        remote_application=relation.remote_application(unit.application),
        remote_unit=remote,
        departing_unit=departing,
    )


def _secrets(entities: Entities, unit: Unit) -> Hook | None:
    for secret in entities.secrets.values():
        told = unit.seen.secrets.get(secret.id, unit.tracked.get(secret.id))
        is_consumer = secret.owner not in (unit.name, unit.application)
        if is_consumer and told is not None and secret.latest > told and secret.is_granted_to(unit):
            return Hook("secret-changed", secret=secret.id)
    return None


def _leave(entities: Entities, unit: Unit) -> Hook | None:
    for relation in entities.relations_of(unit):
        seen = unit.seen.relations.get(relation.id)
        if seen is None or not seen.created or seen.broken:
            continue
        if seen.members:
            name = min(seen.members)
            # What goes is this unit, unless the relation or the other one goes too.
            goes = relation.dying or name not in entities.remote_units(relation, unit)
            departing = name if goes else unit.name
            return _relation_hook(relation, unit, "departed", name, departing=departing)
        return _relation_hook(relation, unit, "broken")
    for storage in unit.storages.values():
        if storage.attached:
            return Hook(f"{storage.name}-storage-detaching", storage=storage)
    if not unit.seen.stopped:
        return Hook("stop")
    return Hook("remove")

"""The registration keys that a charm keeps, one for each relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db import transaction

from turku_core import credentials, fields
from turku_core.api.models import KeyKind, RegistrationKey
from turku_core.api.operations import NotPossible
from turku_core.fields import FieldError, join, required


@dataclass(frozen=True)
class RelationKey:
    """A relation's key, as the charm made it."""

    name: str
    kind: str
    secret: str = field(repr=False)

    @classmethod
    def from_json(cls, value: object, place: str) -> RelationKey:
        """Check one item of the ``keys``."""
        key = fields.mapping(value, place)
        kind = required(key, "kind", place)
        if kind not in KeyKind.values:
            raise FieldError(join(place, "kind"), f"must be one of {', '.join(KeyKind.values)}")
        return cls(
            fields.name(required(key, "name", place), join(place, "name")),
            kind,
            fields.secret(required(key, "secret", place), join(place, "secret")),
        )


@dataclass
class KeyChanges:
    """The names of the keys that were changed, by what was done."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    enabled: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)


def sync_keys(wanted: Sequence[RelationKey], now: datetime) -> KeyChanges:
    """Make the keys of relations what the charm says, all at once or not at all.

    A key that isn't wanted any more is disabled: it lets nothing new in, and what registered with
    it goes on working. Keys that somebody made by hand are left alone.

    Raises:
        NotPossible: A name is that of a key made by hand, or of the other kind; or is there twice.
    """
    by_name = {key.name: key for key in wanted}
    if len(by_name) < len(wanted):
        raise NotPossible("A registration key's name is there twice; nothing was changed.")
    changes = KeyChanges()
    with transaction.atomic():
        known = {
            key.name: key
            for key in RegistrationKey.objects.select_for_update(no_key=True).order_by("pk")
        }
        for name, key in by_name.items():
            if name in known:
                _change(known[name], key, changes)
            else:
                _create(key)
                changes.created.append(name)
        for name, row in known.items():
            if row.from_relation and row.active and name not in by_name:
                row.disable(with_machines=False, now=now)
                changes.disabled.append(name)
    return changes


def _create(key: RelationKey) -> None:
    RegistrationKey.objects.create(
        name=key.name,
        kind=key.kind,
        secret_hash=credentials.hash_secret(key.secret),
        from_relation=True,
    )


def _change(row: RegistrationKey, key: RelationKey, changes: KeyChanges) -> None:
    if not row.from_relation:
        raise NotPossible(
            f"There is a registration key {row.name} already that was made by hand; nothing was "
            "changed."
        )
    if row.kind != key.kind:
        raise NotPossible(
            f"The registration key {row.name} lets in a {row.kind}, and can't become one for a "
            f"{key.kind}; nothing was changed."
        )
    if not credentials.secret_matches(key.secret, row.secret_hash):
        row.secret_hash = credentials.hash_secret(key.secret)
        row.save(update_fields=["secret_hash"])
        changes.changed.append(row.name)
    if not row.active:
        row.enable()
        changes.enabled.append(row.name)

"""The registration key of each relation: a Juju secret, which only the other side may read."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ops

from turku_core import fields
from turku_core.credentials import make_secret
from turku_core.errors import TurkuError

logger = logging.getLogger(__name__)

KINDS = {"agents": "machine", "storages": "storage"}
"""What registers with the keys of an endpoint's relations."""

CONTENT = "secret"
_NAME = re.compile(rf"({'|'.join(KINDS)})-[0-9]+")


@dataclass(frozen=True)
class Key:
    """A relation's registration key."""

    name: str
    kind: str
    secret: str = field(repr=False)

    def as_json(self) -> dict[str, str]:
        """Return it as `turku-api sync-registration-keys` takes it."""
        return {"name": self.name, "kind": self.kind, "secret": self.secret}


def key_name(relation: ops.Relation) -> str:
    """Return the name of a relation's key, which is its secret's label too."""
    return f"{relation.name}-{relation.id}"


def is_of_relation(name: str) -> bool:
    """Say whether a key of this name can only be a relation's."""
    return _NAME.fullmatch(name) is not None


def relations(model: ops.Model) -> dict[str, ops.Relation]:
    """Return the relations that have a key, by its name."""
    return {
        key_name(relation): relation
        for endpoint in KINDS
        for relation in model.relations[endpoint]
        if relation.active
    }


class Keys:
    """The keys as this hook sees them.

    A secret that was made or changed in this hook is remembered: Juju shows it from the next on.
    """

    def __init__(self, charm: ops.CharmBase) -> None:
        self._charm = charm
        self._fresh: dict[str, str] = {}

    def mint(self, known: Mapping[str, str], *, look_again: bool) -> dict[str, str]:
        """Make the keys that are missing and let the other side read them; for the leader.

        Args:
            known: The ids of the secrets there are, by key name.
            look_again: Whether to see that those are really there, and granted.

        Returns:
            The ids of the secrets of all relations there are.
        """
        ids = {}
        for name, relation in relations(self._charm.model).items():
            if name in known and not look_again:
                ids[name] = known[name]
                continue
            secret = self._find(name, known.get(name)) or self._make(name)
            secret.grant(relation)
            ids[name] = secret.id or secret.get_info().id
        return ids

    def revoke(self, name: str, secret_id: str) -> None:
        """Take a key away whose relation is gone; for the leader."""
        secret = self._find(name, secret_id)
        if secret is not None:
            secret.remove_all_revisions()

    def rotate(self, name: str, secret_id: str) -> None:
        """Give a key a new secret, as a new revision that the other side hears of.

        Raises:
            TurkuError: There is no such secret.
        """
        secret = self._find(name, secret_id)
        if secret is None:
            raise TurkuError(f"The secret of the registration key {name} is gone.")
        self._fresh[name] = make_secret()
        secret.set_content({CONTENT: self._fresh[name]})

    def read(self, ids: Mapping[str, str]) -> list[Key]:
        """Return the keys of these secrets; one that can't be read (any more) is left out."""
        keys = []
        for name, secret_id in sorted(ids.items()):
            text = self._fresh.get(name) or self._content(name, secret_id)
            if text is not None:
                keys.append(Key(name, KINDS[name.rpartition("-")[0]], text))
        return keys

    def _content(self, name: str, secret_id: str) -> str | None:
        try:
            content: dict[str, Any] = self._charm.model.get_secret(id=secret_id).get_content(
                refresh=True
            )
            return fields.secret(fields.required(content, CONTENT), CONTENT)
        except (ops.SecretNotFoundError, ops.ModelError, ValueError) as error:
            logger.warning("the registration key %s can't be read: %s", name, error)
            return None

    def _find(self, name: str, secret_id: str | None) -> ops.Secret | None:
        """Return a secret that is there, also when its id was never put on record."""
        for place in ({"id": secret_id}, {"label": name}):
            try:
                if None not in place.values():
                    secret = self._charm.model.get_secret(**place)
                    secret.get_info()
                    return secret
            except ops.SecretNotFoundError:
                continue
        return None

    def _make(self, name: str) -> ops.Secret:
        self._fresh[name] = make_secret()
        return self._charm.app.add_secret(
            {CONTENT: self._fresh[name]}, label=name, description=f"Registration key {name}"
        )

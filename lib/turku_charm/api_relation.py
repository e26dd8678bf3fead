"""The `api` relation as agents and storage units see it: where the API is, and how to register."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ops

from turku_charm.statuses import Blocked, NotReady
from turku_core import fields
from turku_core.configuration import write_durably
from turku_core.fields import FieldError
from turku_core.relations import ApiAccess

ENDPOINT = "api"
JUJU_KEYS = frozenset({"egress-subnets", "ingress-address", "private-address"})
SECRET_KEY = "secret"
"""The key of the registration key itself in the relation's Juju secret."""


@dataclass(frozen=True)
class Api:
    """What the relation says, with the registration key at hand.

    Attributes:
        secret: The registration key itself; None when the API has made none (yet).
    """

    access: ApiAccess
    secret: str | None = field(repr=False)


def find_relation(model: ops.Model) -> ops.Relation | None:
    """Return the relation to the API: the newest, while one goes and another comes."""
    there = (relation for relation in model.relations[ENDPOINT] if relation.active)
    return max(there, key=lambda relation: relation.id, default=None)


def read_api(model: ops.Model) -> Api:
    """Return what the API's side of the relation says.

    Raises:
        Blocked: There is no relation, or what it carries isn't valid.
        NotReady: The API has yet to write, or to grant the secret.
    """
    relation = find_relation(model)
    if relation is None:
        raise Blocked("There is no API: juju integrate it with turku-api.")
    try:
        access = ApiAccess.from_databag(relation.data[relation.app])
    except FieldError as error:
        raise Blocked(
            f"What {relation.app.name} says over the relation is not valid: {error}."
        ) from error
    if access is None:
        raise NotReady(f"Waiting for {relation.app.name} to say where the API is.")
    return Api(access, _read_secret(model, access, relation.app.name))


def _read_secret(model: ops.Model, access: ApiAccess, who: str) -> str | None:
    if access.registration_secret_id is None:
        return None
    try:
        content = model.get_secret(id=access.registration_secret_id).get_content(refresh=True)
        return fields.secret(fields.required(content, SECRET_KEY), SECRET_KEY)
    except (ops.SecretNotFoundError, ops.ModelError):
        # The reference and the grant arrive in either order.
        raise NotReady(f"Waiting for {who} to grant the registration key.") from None
    except FieldError as error:
        raise Blocked(f"The registration key of {who} is not valid: {error}.") from error


def write_configuration(
    folder: Path, api: Api, values: Mapping[str, object], group: int | None = None
) -> bool:
    """Write the API's part, and `values`, into a folder ``config.d``; a later file wins over it.

    Args:
        folder: Such as ``/etc/turku-agent/config.d``.
        api: Where the API is.
        values: What the charm adds, by option.
        group: The id of the group that may read the files besides root.

    Returns:
        Whether anything changed.
    """
    certificate = folder / "juju-ca.crt"
    content: dict[str, object] = {"api_url": list(api.access.urls), **values}
    changed = False
    if api.access.ca_certificate is not None:
        changed |= write_if_changed(certificate, api.access.ca_certificate, 0o644)
        content["api_ca_certificate"] = str(certificate)
    if api.secret is not None:
        content["api_auth_name"] = api.access.registration_key
        content["api_auth_secret"] = api.secret
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    mode = 0o600 if group is None else 0o640
    return write_if_changed(folder / "50-juju.json", text, mode, group) or changed


def write_if_changed(path: Path, text: str, mode: int, group: int | None = None) -> bool:
    """Write a file unless it holds the text already; return whether it was written."""
    if path.exists() and path.read_text("utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text, mode)
    if group is not None:
        os.chown(path, -1, group)
    return True


def publish(
    relation: ops.Relation, who: ops.Unit | ops.Application, databag: Mapping[str, str]
) -> None:
    """Make our side of a relation exactly `databag`; what is no longer in it is taken out.

    The keys that Juju itself writes into a unit's databag stay.
    """
    data = relation.data[who]
    for key in set(data) - set(databag) - JUJU_KEYS:
        del data[key]
    data.update(databag)

"""The `database` relation (interface `postgresql_client`), from the side that asks.

We speak the interface's first form: the leader asks with flat keys in the application's databag,
and the answer has flat keys and the ids of two secrets. It is the form that the PostgreSQL and
PgBouncer charms of today answer (they are built on data_interfaces v0), and one that providers of
the second form (v1, dpcharmlibs-interfaces) answer as well. A request in the second form, which is
all that dpcharmlibs-interfaces can make, the former don't see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import ops

from turku_charm.statuses import Blocked, NotReady
from turku_core import fields
from turku_core.fields import FieldError

ENDPOINT = "database"
DATABASE_PORT = 5432
REQUESTED_SECRETS = ("username", "password", "tls", "tls-ca", "uris")
"""What the provider is to put into secrets. Without this it would write passwords in the clear."""


@dataclass(frozen=True)
class Postgresql:
    """A database that was given.

    Attributes:
        relation: The relation's id.
        hosts: Host and port of each server; the one that can be written to is found among them.
        ca_certificate: The authority of the servers' certificates; None: it speaks no TLS.
    """

    relation: int
    hosts: tuple[tuple[str, int], ...]
    name: str
    user: str
    password: str = field(repr=False)
    ca_certificate: str | None = field(default=None, repr=False)

    def url(self, ca_file: Path) -> str:
        """Return the API's option ``database_url``.

        Args:
            ca_file: Where `ca_certificate` lies, if there is one.
        """
        parameters = {
            "host": ",".join(host for host, _ in self.hosts),
            "port": ",".join(str(port) for _, port in self.hosts),
        }
        if len(self.hosts) > 1:
            parameters["target_session_attrs"] = "read-write"
        if self.ca_certificate is not None:
            parameters |= {"sslmode": "verify-full", "sslrootcert": str(ca_file)}
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@/{quote(self.name, safe='')}?{urlencode(parameters)}"


def database_name(app: str, model_uuid: str) -> str:
    """Return the name to ask for: one that no other model's application asks the same server for.

    It stays the same when the application is deployed again in its model, and finds its data.
    """
    return f"{app.replace('-', '_')[:30]}_{model_uuid.replace('-', '')[:8]}"


def request(relation: ops.Relation, app: ops.Application, name: str) -> None:
    """Ask for a database; for the leader alone."""
    asked = {"database": name, "requested-secrets": json.dumps(list(REQUESTED_SECRETS))}
    relation.data[app].update(asked)


def read(model: ops.Model, relation: ops.Relation, name: str) -> Postgresql | None:
    """Return the database that was given over a relation; None while none was.

    Args:
        model: For its secrets.
        relation: The relation.
        name: The name that was asked for, when the answer doesn't repeat it.

    Raises:
        NotReady: The secret was not granted yet.
        Blocked: What the other side says is not valid.
    """
    databag = relation.data[relation.app]
    if databag.get("subordinated") == "true" and not _is_subordinate_ready(relation):
        return None
    login = _contents(model, databag, "secret-user", relation.app.name)
    if not databag.get("endpoints") or not login.get("username"):
        return None
    tls = _contents(model, databag, "secret-tls", relation.app.name)
    try:
        return Postgresql(
            relation=relation.id,
            hosts=tuple(_host(part) for part in databag["endpoints"].split(",")),
            name=fields.name(databag.get("database", name), "database"),
            user=fields.text(login["username"], "username"),
            password=fields.text(fields.required(login, "password"), "password"),
            ca_certificate=tls.get("tls-ca") if tls.get("tls", "").lower() == "true" else None,
        )
    except FieldError as error:
        raise Blocked(f"What {relation.app.name} says of the database isn't valid: {error}.") from (
            error
        )


def _contents(
    model: ops.Model, databag: Mapping[str, str], key: str, who: str
) -> Mapping[str, str]:
    """Return a secret's content, or the databag itself, where older providers put it."""
    secret_id = databag.get(key)
    if not secret_id:
        return databag
    try:
        return model.get_secret(id=secret_id).get_content(refresh=True)
    except (ops.SecretNotFoundError, ops.ModelError):
        raise NotReady(f"Waiting for {who} to grant the database's password.") from None


def _is_subordinate_ready(relation: ops.Relation) -> bool:
    """Say whether the pooler on this machine is ready: each of its units says so for its own."""
    return any(relation.data[unit].get("state") == "ready" for unit in relation.units)


def _host(text: str) -> tuple[str, int]:
    name, colon, number = text.strip().rpartition(":")
    if not colon or (":" in name and not name.startswith("[")):
        name, number = text.strip(), str(DATABASE_PORT)
    if not number.isdecimal():
        raise FieldError("endpoints", f"must be HOST:PORT, not {fields.shown(text)}")
    return fields.host(name.strip("[]"), "endpoints"), fields.port(int(number), "endpoints")

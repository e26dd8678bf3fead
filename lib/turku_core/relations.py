"""The databags of the charms' relations, both ends, as typed values.

Each class is what one side writes: `to_databag` makes the strings that Juju carries, and
`from_databag` takes them in on the other side, where every value is hostile until it has been
checked. An empty databag is an other side that isn't ready: `from_databag` returns None then.
Keys that aren't known are passed over, so that a newer side can say more to an older one.

| relation | interface | who writes | class |
|---|---|---|---|
| turku-api:agents - turku-agent:api | turku_agent | the API's application | `ApiAccess` |
| | | each agent's unit | `AgentUnit` |
| turku-api:storages - turku-storage:api | turku_storage | the API's application | `ApiAccess` |
| | | each storage unit | `StorageUnit` |
| a principal's - turku-agent:sources | turku_sources | the principal's unit | `PrincipalSources` |
| a principal's - turku-agent:backup | backup | the principal's application | `BackupRequest` |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from turku_core import fields
from turku_core.credentials import PublicKey
from turku_core.fields import FieldError

T = TypeVar("T")

SCHEMA = "1"
"""The schema that we write. A side that finds none reads what it knows all the same."""

URLS_MAX = 16
CERTIFICATES_BYTES_MAX = 256 * 1024
JSON_CHARACTERS_MAX = 1024 * 1024
"""Of one value in a databag, before it is parsed. A thousand sources are the largest."""

FILESET_PATHS_MAX = 1000

_SCRIPTS = ("run-before-backup", "run-after-backup", "run-before-restore", "run-after-restore")


@dataclass(frozen=True)
class ApiAccess:
    """How agents and storage units reach the API, and what they register with.

    Attributes:
        urls: Base URLs such as ``https://192.0.2.10/v1``, tried in turn.
        ca_certificate: The authorities to trust, in PEM form; None: the system's.
        registration_key: The name of the relation's registration key.
        registration_secret_id: The URI of the Juju secret whose ``secret`` is the key itself; None
            until the API's leader has made it.
    """

    urls: tuple[str, ...]
    ca_certificate: str | None
    registration_key: str | None
    registration_secret_id: str | None

    def to_databag(self) -> dict[str, str]:
        """Return what the API's leader writes for its application."""
        return _without_none(
            {
                "version": SCHEMA,
                "api_urls": json.dumps(list(self.urls)),
                "ca_certificate": self.ca_certificate,
                "registration_key": self.registration_key,
                "registration_secret_id": self.registration_secret_id,
            }
        )

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> ApiAccess | None:
        """Take in what the API's application wrote; None while it has no URL.

        Raises:
            FieldError: A value isn't what it should be.
        """
        if not databag.get("api_urls"):
            return None
        return cls(
            urls=_json(databag, "api_urls", _urls),
            ca_certificate=_optional(databag, "ca_certificate", _certificates),
            registration_key=_optional(databag, "registration_key", fields.name),
            registration_secret_id=_optional(databag, "registration_secret_id", _secret_id),
        )


@dataclass(frozen=True)
class AgentUnit:
    """Which machine an agent's unit runs on, so that the API lets this machine register.

    Attributes:
        machine_uuid: The machine's UUID in Turku, the same for all agent units on the machine.
        ssh_public_key: The key with which it will log in to its storage units.
        unit_name: The name by which operators know the machine, such as ``postgresql/0``.
    """

    machine_uuid: str
    ssh_public_key: PublicKey
    unit_name: str | None = None

    def to_databag(self) -> dict[str, str]:
        """Return what the agent's unit writes."""
        return _without_none(
            {
                "version": SCHEMA,
                "machine_uuid": self.machine_uuid,
                "ssh_public_key": self.ssh_public_key.line,
                "unit_name": self.unit_name,
            }
        )

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> AgentUnit | None:
        """Take in what an agent's unit wrote; None while it has no identity.

        Raises:
            FieldError: A value isn't what it should be.
        """
        if not databag.get("machine_uuid"):
            return None
        return cls(
            machine_uuid=fields.uuid(databag["machine_uuid"], "machine_uuid"),
            ssh_public_key=fields.public_key(
                fields.required(databag, "ssh_public_key"), "ssh_public_key"
            ),
            unit_name=_optional(databag, "unit_name", fields.label),
        )


@dataclass(frozen=True)
class StorageUnit:
    """Which storage unit a unit is, and where agents reach it.

    Attributes:
        name: The name by which the API knows it.
        ssh_host, ssh_port: Where agents reach its sshd.
        ssh_host_keys: The sshd's host keys.
    """

    name: str
    ssh_host: str
    ssh_port: int
    ssh_host_keys: tuple[PublicKey, ...]

    def to_databag(self) -> dict[str, str]:
        """Return what the storage unit writes."""
        return {
            "version": SCHEMA,
            "name": self.name,
            "ssh_host": self.ssh_host,
            "ssh_port": str(self.ssh_port),
            "ssh_host_keys": json.dumps([key.line for key in self.ssh_host_keys]),
        }

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> StorageUnit | None:
        """Take in what a storage unit wrote; None while it has no name.

        Raises:
            FieldError: A value isn't what it should be.
        """
        if not databag.get("name"):
            return None
        return cls(
            name=fields.name(databag["name"], "name"),
            ssh_host=fields.host(fields.required(databag, "ssh_host"), "ssh_host"),
            ssh_port=_json(databag, "ssh_port", fields.port),
            ssh_host_keys=_json(databag, "ssh_host_keys", fields.public_keys),
        )


@dataclass(frozen=True)
class PrincipalSources:
    """The sources that a principal asks to be backed up on its own machine.

    Attributes:
        sources: By name, each as it would stand in a file of ``sources.d``.
    """

    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_databag(self) -> dict[str, str]:
        """Return what the principal's unit writes."""
        return {"version": SCHEMA, "sources": json.dumps(self.sources, sort_keys=True)}

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> PrincipalSources | None:
        """Take in what the principal's unit wrote; None while it names no sources.

        Only the outline is checked here: each source is held to the rules of ``sources.d`` where
        all of them come together.

        Raises:
            FieldError: It isn't an object of sources.
        """
        if not databag.get("sources"):
            return None
        return cls(_json(databag, "sources", _sources))


@dataclass(frozen=True)
class BackupRequest:
    """What a principal of the ``backup`` interface wants backed up.

    The interface is other charms': its requirer's leader writes flat strings into its application's
    databag, and the provider writes nothing.

    Attributes:
        fileset: Absolute paths of files or folders; in the databag with commas between them.
        scripts: The programs to run around backups and restores, by the interface's keys.
    """

    fileset: tuple[str, ...]
    scripts: Mapping[str, str] = field(default_factory=dict)

    def to_databag(self) -> dict[str, str]:
        """Return what a requirer's leader writes (for tests: we are the provider)."""
        return {"fileset": ",".join(self.fileset), **self.scripts}

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> BackupRequest | None:
        """Take in what the requirer's leader wrote; None while the databag is empty.

        Raises:
            FieldError: A value isn't what the interface says.
        """
        if not databag:
            return None
        paths = [path.strip() for path in fields.required(databag, "fileset").split(",")]
        fileset = fields.items(
            [path for path in paths if path], "fileset", fields.absolute_path, FILESET_PATHS_MAX
        )
        if not fileset:
            raise FieldError("fileset", "must name at least one absolute path")
        scripts = {
            key: fields.absolute_path(databag[key], key) for key in _SCRIPTS if key in databag
        }
        return cls(fileset, scripts)


def _without_none(values: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def _optional(databag: Mapping[str, str], key: str, check: Callable[[object, str], T]) -> T | None:
    value = databag.get(key)
    return None if not value else check(value, key)


def _json(databag: Mapping[str, str], key: str, check: Callable[[object, str], T]) -> T:
    text = fields.required(databag, key)
    if len(text) > JSON_CHARACTERS_MAX:
        raise FieldError(key, f"must be at most {JSON_CHARACTERS_MAX} characters long")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError(key, "must be JSON") from error
    return check(value, key)


def _urls(value: object, field: str) -> tuple[str, ...]:
    urls = fields.items(value, field, _url, URLS_MAX)
    if not urls:
        raise FieldError(field, "must list at least one URL")
    return urls


def _url(value: object, field: str) -> str:
    url = fields.text(value, field)
    if not url.startswith("https://") or " " in url or "@" in url:
        raise FieldError(field, f"must be an https:// URL, not {fields.shown(value)}")
    return url.rstrip("/")


def _certificates(value: object, field: str) -> str:
    text = fields.long_text(value, field, CERTIFICATES_BYTES_MAX)
    if "-----BEGIN CERTIFICATE-----" not in text or "PRIVATE KEY" in text:
        raise FieldError(field, "must be certificates in PEM form")
    return text


def _secret_id(value: object, field: str) -> str:
    """Return a Juju secret's URI; across models it names the model as well."""
    uri = fields.text(value, field, 200)
    if " " in uri or uri.startswith("-"):
        raise FieldError(field, f"must be the URI of a Juju secret, not {fields.shown(value)}")
    return uri


def _sources(value: object, field: str) -> dict[str, dict[str, Any]]:
    listed = fields.mapping(value, field)
    if len(listed) > fields.SOURCES_MAX:
        raise FieldError(field, f"must have at most {fields.SOURCES_MAX} sources")
    return {
        fields.name(name, f"{field}, name"): fields.mapping(source, fields.join(field, name))
        for name, source in listed.items()
    }

"""Where the agent keeps its files, and its configuration as typed values."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from turku_core import fields
from turku_core.configuration import Merged, read_folder
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError

Value = TypeVar("Value")
Default = TypeVar("Default")

_URLS_MAX = 16


@dataclass(frozen=True)
class Locations:
    """The agent's files and folders, all below one root.

    Attributes:
        root: ``/`` on a real machine; any folder when trying it out or testing.
    """

    root: Path

    @property
    def configuration(self) -> Path:
        """The folder of the machine's configuration files."""
        return self.root / "etc/turku-agent/config.d"

    @property
    def sources(self) -> Path:
        """The folder of the files that say what is backed up."""
        return self.root / "etc/turku-agent/sources.d"

    @property
    def state(self) -> Path:
        """The folder of what the agent itself makes and keeps."""
        return self.root / "var/lib/turku-agent"

    @property
    def identity(self) -> Path:
        """The folder of the generated configuration: the machine's UUID and secret."""
        return self.state / "config.d"

    @property
    def ssh_key(self) -> Path:
        """The private SSH key; the public one is beside it, with ``.pub``."""
        return self.state / "ssh_key"

    @property
    def status(self) -> Path:
        """What the API said last of how the sources fare."""
        return self.state / "status.json"

    @property
    def status_is_old(self) -> Path:
        """A file that is there when `status` is worth asking for again at the next check-in."""
        return self.run / "status-is-old"

    @property
    def orders(self) -> Path:
        """What is known of restores that were ordered at the API and aren't reported yet."""
        return self.state / "restore_orders"

    @property
    def checked_in(self) -> Path:
        """A file whose time is that of the last check-in that the API answered.

        It outlives a restart of the machine, after which the API may be out of reach.
        """
        return self.state / "checked-in"

    @property
    def handed_out(self) -> Path:
        """When the API handed out the last sources that the agent heard of, by the API's clock."""
        return self.state / "handed-out"

    @property
    def restore(self) -> Path:
        """The default restore folder."""
        return self.state / "restore"

    @property
    def run(self) -> Path:
        """The folder of locks and of what lives only as long as a session."""
        return self.root / "run/turku-agent"

    @property
    def machine_id(self) -> Path:
        """The file that tells one installed system from another, machine-id(5)."""
        return self.root / "etc/machine-id"


@dataclass(frozen=True)
class RegistrationKey:
    """The key that a newcomer shows once; the oldest configurations have no name for it."""

    name: str | None
    secret: str

    def to_json(self) -> dict[str, str] | str:
        """Return it as the protocol's ``auth``."""
        return self.secret if self.name is None else {"name": self.name, "secret": self.secret}

    def __repr__(self) -> str:
        return f"RegistrationKey(name={self.name!r})"


class OrdersAllowed(str, Enum):
    """Where a restore that was ordered at the API may write on this machine."""

    RESTORE_FOLDER = "restore-folder"
    ANYWHERE = "anywhere"
    NONE = "none"


@dataclass(frozen=True)
class Settings:
    """The machine's configuration.

    Attributes:
        api_urls: Base URLs of the API, tried in turn.
        api_ca_certificate: A PEM file with the authorities to trust instead of the system's.
        registration_key: What the machine shows at its first registration; None when it is
            registered already or has none.
        unit_name: The machine's readable name; the host's name when none is configured.
        published: Whether the machine is to be backed up at all.
        gonogo_program: A program and its arguments, run before each check-in; empty for none.
        restore_path: The restore folder.
        restore_orders: Where a restore that was ordered at the API may write.
        log_level: From which level on the agent logs.
    """

    api_urls: tuple[str, ...]
    api_ca_certificate: Path | None
    registration_key: RegistrationKey | None
    environment_name: str | None
    service_name: str | None
    unit_name: str
    published: bool
    gonogo_program: tuple[str, ...]
    restore_path: Path
    restore_orders: OrdersAllowed
    log_level: str


def load_settings(locations: Locations) -> Settings:
    """Read the configuration folder.

    Keys that aren't ours are passed over: fielded configurations have more of them.

    Raises:
        ConfigurationError: A value isn't valid; the message names the file and the line.
    """
    merged = read_folder(locations.configuration)
    read = _Reader(merged)
    urls = read.optional("api_url", _urls, ())
    if not urls:
        raise ConfigurationError(
            f"No API is configured: put api_url into a file in {locations.configuration}."
        )
    return Settings(
        api_urls=urls,
        api_ca_certificate=read.optional("api_ca_certificate", _path, None),
        registration_key=_registration_key(read),
        environment_name=read.optional("environment_name", _label_or_none, None),
        service_name=read.optional("service_name", _label_or_none, None),
        unit_name=read.optional("unit_name", _label_or_none, None) or socket.gethostname(),
        published=read.optional("published", fields.boolean, True),
        gonogo_program=read.optional("gonogo_program", _program, ()),
        restore_path=read.optional("restore_path", _path, None) or locations.restore,
        restore_orders=read.optional(
            "restore_orders", _orders_allowed, OrdersAllowed.RESTORE_FOLDER
        ),
        log_level=read.optional("log_level", fields.log_level, "warning"),
    )


class _Reader:
    """Takes checked values out of merged files, and names the file when one isn't valid."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged

    def optional(
        self, key: str, check: Callable[[Any, str], Value], default: Default
    ) -> Value | Default:
        try:
            return fields.optional(self._merged.values, key, check, default)
        except FieldError as error:
            raise ConfigurationError(f"{self._merged.origin(key)}: {error}.") from error


def _registration_key(read: _Reader) -> RegistrationKey | None:
    secret = read.optional("api_auth_secret", fields.secret, None)
    if secret is not None:
        return RegistrationKey(read.optional("api_auth_name", fields.name, None), secret)
    return read.optional("api_auth", _old_auth, None)


def _old_auth(value: object, field: str) -> RegistrationKey | None:
    if isinstance(value, Mapping):
        values = fields.mapping(value, field)
        return RegistrationKey(
            fields.optional(values, "name", fields.name, None, field),
            fields.secret(fields.required(values, "secret", field), fields.join(field, "secret")),
        )
    return None if value == "" else RegistrationKey(None, fields.secret(value, field))


def _urls(value: object, field: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    urls = fields.items(listed, field, _url, _URLS_MAX)
    return tuple(dict.fromkeys(urls))


def _url(value: object, field: str) -> str:
    url = fields.text(value, field).rstrip("/")
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest or " " in url or "@" in rest:
        raise FieldError(
            field, f"must be a URL such as https://turku.example.com/v1, not {fields.shown(value)}"
        )
    return url


def _path(value: object, field: str) -> Path | None:
    return None if value == "" else Path(fields.absolute_path(value, field))


def _label_or_none(value: object, field: str) -> str | None:
    return None if value == "" else fields.label(value, field)


def _orders_allowed(value: object, field: str) -> OrdersAllowed:
    try:
        return OrdersAllowed(value)
    except ValueError:
        words = ", ".join(OrdersAllowed)
        raise FieldError(field, f"must be one of {words}, not {fields.shown(value)}") from None


def _program(value: object, field: str) -> tuple[str, ...]:
    if value == "":
        return ()
    words = fields.items([value] if isinstance(value, str) else value, field, _argument, 64)
    if words and not words[0].startswith("/"):
        raise FieldError(field, f"must be a program's absolute path, not {fields.shown(words[0])}")
    return words


def _argument(value: object, field: str) -> str:
    argument = fields.text(value, field, 4096)
    if not argument:
        raise FieldError(field, "must not be empty")
    return argument

"""The settings of a storage unit: where its files lie, and what an operator may choose."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from turku_core import fields
from turku_core.configuration import Merged, read_folder
from turku_core.credentials import KeyFormatError, PublicKey, identity_checksum
from turku_core.errors import ConfigurationError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import DEFAULT_RETENTION, Auth, StorageLogin, retention
from turku_core.storage.records import Cycle
from turku_core.storage.volumes import Volume

T = TypeVar("T")

HOST_KEYS_FOLDER = Path("/etc/ssh")
"""Where sshd(8) keeps its host keys, ``ssh_host_*_key``, beside their public halves."""


@dataclass(frozen=True)
class Paths:
    """The files and folders of a storage unit below one root."""

    root: Path

    @property
    def configuration(self) -> Path:
        """The operator's ``*.json`` and ``*.yaml`` files."""
        return self.root / "etc/turku-storage/config.d"

    @property
    def state(self) -> Path:
        """Everything that the storage unit remembers; its owner is the unit's user."""
        return self.root / "var/lib/turku-storage"

    @property
    def generated_configuration(self) -> Path:
        """The folder of the unit's own name and secret."""
        return self.state / "config.d"

    @property
    def identity(self) -> Path:
        """The file with the generated name and secret."""
        return self.generated_configuration / "identity.json"

    @property
    def queue(self) -> Path:
        """The jobs that wait for the worker."""
        return self.state / "queue"

    @property
    def reports(self) -> Path:
        """The reports that the API doesn't have yet."""
        return self.state / "reports"

    @property
    def written_to(self) -> tuple[Path, ...]:
        """The folders of the state that files are durably written to."""
        own = (self.state, self.generated_configuration, self.queue, self.reports)
        return (*own, self.state / "places", self.authorized_keys.parent)

    @property
    def slots(self) -> Path:
        """The files that the sessions alive hold locks on."""
        return self.state / "slots"

    @property
    def runs(self) -> Path:
        """The notes of what sessions pull."""
        return self.state / "runs"

    @property
    def known_machines(self) -> Path:
        """The API's last list of machines."""
        return self.state / "known_machines.json"

    @property
    def authorized_keys(self) -> Path:
        """The SSH keys of the machines, as sshd(8) reads them."""
        return self.state / ".ssh/authorized_keys"

    @property
    def worker_lock(self) -> Path:
        """The file that the one worker holds a lock on."""
        return self.state / "worker.lock"

    @property
    def worker_state(self) -> Path:
        """What the worker did last, for an operator."""
        return self.state / "worker.json"

    @property
    def session_log(self) -> Path:
        """The log of the sessions where there is no syslog."""
        return self.state / "sessions.log"


@dataclass(frozen=True)
class Settings:
    """What a storage unit was told, checked and typed.

    Attributes:
        api_urls: The API's base URLs, tried in turn.
        api_ca_certificate: A PEM file to trust instead of the system's authorities.
        registration: The registration key, needed for the first registration only.
        name, secret: The unit's identity; None before it is made.
        ssh_ping_host, ssh_ping_port, ssh_ping_user, ssh_ping_host_keys: Where agents reach it.
        published: Whether new sources may be placed here.
        snapshot_mode: The mode of sources that wish for none, on volumes that have none of their
            own.
        default_retention: The policy of sources that came without one.
        volumes: The file systems that hold backups.
        slots: How many sessions may pull at once; as many again may restore.
        commits_at_once: How many snapshots the worker makes at once.
        expiry_floor: How many of a source's newest good snapshots are never expired.
        expiry_grace: How long an expired snapshot is kept before it is removed.
        cycle: In which time every snapshot and every source is proven again.
        io_timeout: Seconds without a byte after which a pull is given up.
        log_level: From which level on the unit logs; None: warnings, and of sessions what they do.
    """

    paths: Paths
    api_urls: tuple[str, ...]
    api_ca_certificate: Path | None
    registration: Auth | None = field(repr=False)
    name: str | None
    secret: str | None = field(repr=False)
    ssh_ping_host: str
    ssh_ping_port: int
    ssh_ping_user: str | None
    ssh_ping_host_keys: tuple[PublicKey, ...]
    published: bool
    snapshot_mode: str
    default_retention: str
    volumes: tuple[Volume, ...]
    slots: int
    commits_at_once: int
    expiry_floor: int
    expiry_grace: timedelta
    cycle: Cycle
    io_timeout: int
    log_level: str | None

    @property
    def login(self) -> StorageLogin:
        """What the unit shows to the API.

        Raises:
            ConfigurationError: The unit has no identity yet.
        """
        if self.name is None or self.secret is None:
            raise ConfigurationError(
                "This storage unit isn't registered yet: run turku-storage-update-config."
            )
        return StorageLogin(self.name, self.secret)

    def make_client(self, timeout: tuple[float, float] | None = None) -> Client:
        """Return a client of the API. Raises ConfigurationError when no URL is set."""
        if timeout is None:
            return Client(self.api_urls, self.api_ca_certificate)
        return Client(self.api_urls, self.api_ca_certificate, timeout)


def read_settings(root: Path) -> Settings:
    """Read the settings of the storage unit whose files lie below `root`.

    Raises:
        ConfigurationError: A file can't be read, or a value isn't what its option takes; the
            message names the file and the line.
    """
    # The forced command names the root, and sshd runs it in another folder.
    paths = Paths(root.absolute())
    # The unit's own files come last: nothing an operator drops in takes its identity away.
    own = read_folder(paths.generated_configuration)
    _check_identity(own)
    merged = read_folder(paths.configuration)
    for key, value in own.values.items():
        merged.values[key] = value
    merged.origins.update(own.origins)
    read = _Reader(merged)
    return Settings(
        paths=paths,
        api_urls=read("api_url", _urls, ()),
        api_ca_certificate=read("api_ca_certificate", _path, None),
        registration=_registration(merged),
        name=read("name", fields.name, None),
        secret=read("secret", fields.secret, None),
        ssh_ping_host=read("ssh_ping_host", fields.host, None) or socket.getfqdn(),
        ssh_ping_port=read("ssh_ping_port", fields.port, 22),
        ssh_ping_user=read("ssh_ping_user", fields.user, None),
        ssh_ping_host_keys=read("ssh_ping_host_keys", _host_keys, ()),
        published=read("published", fields.boolean, True),
        snapshot_mode=read("snapshot_mode", fields.snapshot_mode, "borg"),
        default_retention=read("default_retention", retention, DEFAULT_RETENTION),
        volumes=_volumes(merged),
        slots=read("slots", _count(1, 1000), 10),
        commits_at_once=read("commits_at_once", _count(1, 64), 2),
        expiry_floor=read("expiry_floor", _count(1, 1000), 3),
        expiry_grace=timedelta(days=read("expiry_grace_days", _days, 7.0)),
        cycle=Cycle(
            timedelta(days=read("verify_interval_days", _days, 30.0)),
            timedelta(days=read("whole_drill_interval_days", _days, 180.0)),
        ),
        io_timeout=read("io_timeout_seconds", _count(1, 86400), 600),
        log_level=read("log_level", fields.log_level, None),
    )


def _check_identity(own: Merged) -> None:
    name, secret = (str(own.values.get(key, "")) for key in ("name", "secret"))
    expected = identity_checksum(name, secret)
    if own.values.pop("checksum", expected) != expected:
        raise ConfigurationError(
            f"{own.origin('checksum')}: the name and the secret aren't those that were written, so "
            "the file is damaged. Bring it back; without it this is another storage unit."
        )


def read_host_keys(folder: Path = HOST_KEYS_FOLDER) -> tuple[PublicKey, ...]:
    """Return this host's own SSH host keys, which anyone on it may read.

    A file that holds no key of a type that agents accept (DSA) is passed over.

    Raises:
        ConfigurationError: There is none.
    """
    keys = []
    for path in sorted(folder.glob("ssh_host_*_key.pub")):
        try:
            keys.append(PublicKey.parse(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, KeyFormatError):
            continue
    if not keys:
        raise ConfigurationError(
            f"There is no SSH host key in {folder}: make them with `ssh-keygen -A`, or set "
            f"ssh_ping_host_keys."
        )
    return tuple(keys)


class _Reader:
    """Takes values out of the merged files, and names their place when they aren't valid."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged

    def __call__(self, key: str, check: Callable[[object, str], T], default: object) -> Any:
        value = self._merged.values.get(key)
        return default if value is None else _checked(self._merged, check, value, key)


def _checked(merged: Merged, check: Callable[[object, str], T], value: object, *keys: str) -> T:
    try:
        return check(value, ".".join(keys))
    except ValueError as error:
        raise ConfigurationError(f"{merged.origin(*keys)}: {error}.") from error


def _registration(merged: Merged) -> Auth | None:
    name, secret = merged.values.get("api_auth_name"), merged.values.get("api_auth_secret")
    if secret is not None:
        return Auth(
            None if name is None else _checked(merged, fields.name, name, "api_auth_name"),
            _checked(merged, fields.secret, secret, "api_auth_secret"),
        )
    older = merged.values.get("api_auth")
    return None if older is None else _checked(merged, Auth.from_json, older, "api_auth")


def _volumes(merged: Merged) -> tuple[Volume, ...]:
    volumes = _checked(merged, fields.mapping, merged.values.get("volumes") or {}, "volumes")
    return tuple(_volume(merged, name, volumes[name]) for name in sorted(volumes))


def _volume(merged: Merged, name: str, value: object) -> Volume:
    values = _checked(merged, fields.mapping, value, "volumes", name)

    def read(key: str, check: Callable[[object, str], T], default: T) -> T:
        found = values.get(key)
        return default if found is None else _checked(merged, check, found, "volumes", name, key)

    path = read("path", _path, None)
    if path is None:
        raise ConfigurationError(
            f"{merged.origin('volumes', name)}: volumes.{name}.path: is missing."
        )
    return Volume(
        name=_checked(merged, lambda _, where: fields.name(name, where), name, "volumes", name),
        path=path,
        accept_new=read("accept_new", fields.boolean, True),
        high_water_pct=read(
            "accept_new_high_water_pct",
            lambda each, where: fields.number(each, where, 1, 100),
            80.0,
        ),
        mount_required=read("mount_required", fields.boolean, False),
        snapshot_mode=read("snapshot_mode", fields.snapshot_mode, None),
    )


def _urls(value: object, where: str) -> tuple[str, ...]:
    return fields.items([value] if isinstance(value, str) else value, where, _url, 100)


def _url(value: object, where: str) -> str:
    url = fields.text(value, where)
    if not url.startswith(("https://", "http://")):
        raise fields.FieldError(where, "must be a URL that begins with https://")
    return url.rstrip("/")


def _path(value: object, where: str) -> Path:
    return Path(fields.absolute_path(value, where))


def _host_keys(value: object, where: str) -> tuple[PublicKey, ...]:
    """Check a list of key lines, or a text with one on each line, as fielded units have it."""
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    return fields.public_keys(value, where)


def _count(low: int, high: int) -> Callable[[object, str], int]:
    return lambda value, where: fields.integer(value, where, low, high)


def _days(value: object, where: str) -> float:
    return fields.number(value, where, 0, 36500)

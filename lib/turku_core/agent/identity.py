"""Who the machine is: its UUID, its secret and its SSH key pair."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from turku_core import fields
from turku_core.agent.locks import held
from turku_core.agent.settings import Locations
from turku_core.configuration import (
    ensure_private_folder,
    read_file,
    read_folder,
    remove_left_overs,
    sync_folder,
    write_durably,
)
from turku_core.credentials import (
    PublicKey,
    identity_checksum,
    make_secret,
    make_ssh_key_pair,
)
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError

logger = logging.getLogger(__name__)

_FILE = "identity.json"
_REPLACED = ".replaced"
_CHECKSUM = "checksum"
"""Its key in the file: damage may leave a UUID a UUID, which would be another machine's."""


@dataclass(frozen=True)
class Identity:
    """The machine's identity.

    Attributes:
        uuid: The machine's UUID.
        secret: What it shows to the API at each call.
        ssh_key: The file of its private SSH key.
    """

    uuid: str
    secret: str = field(repr=False)
    ssh_key: Path

    def login(self) -> dict[str, str]:
        """Return the ``machine`` that each call to the API carries."""
        return {"uuid": self.uuid, "secret": self.secret}

    def public_key(self) -> PublicKey:
        """Read the public SSH key.

        Raises:
            ConfigurationError: The file is missing or holds something else.
        """
        path = _public(self.ssh_key)
        try:
            return PublicKey.parse(path.read_text("utf-8").strip())
        except OSError as error:
            raise ConfigurationError(f"{path} can't be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConfigurationError(f"{path}: {error}.") from error


class NoIdentity(ConfigurationError):
    """The machine has no identity yet."""


class ForeignIdentity(ConfigurationError):
    """The identity was made on another machine: this one is a clone of it."""


def load_identity(locations: Locations) -> Identity:
    """Read the identity, and refuse one that was copied here with the disk of another machine.

    Raises:
        NoIdentity: There is none yet.
        ForeignIdentity: The machine's ID isn't the one that the identity was made under.
        ConfigurationError: It is damaged.
    """
    identity = _load(locations)
    if identity is None:
        raise NoIdentity(
            f"This machine has no identity in {locations.identity} yet: run turku-update-config."
        )
    return identity


def ensure_identity(locations: Locations, *, new: bool = False) -> Identity:
    """Return the identity; make what is missing of it, once, even when two do so at the same time.

    Args:
        locations: Where the agent keeps its files.
        new: Put the present identity aside and make another one. The files keep their names with
            ``.replaced`` behind them.
    """
    ensure_private_folder(locations.state)
    ensure_private_folder(locations.identity)
    with held(locations.state / ".lock"):
        for folder in (locations.state, locations.identity):
            remove_left_overs(folder)
        if new:
            _put_aside(locations)
        identity = _load(locations)
        if identity is None:
            _make_credentials(locations)
        elif _recorded_machine(locations) is None:
            _record_machine(locations)
        _ensure_key_pair(locations)
    return load_identity(locations)


def _load(locations: Locations) -> Identity | None:
    merged = read_folder(locations.identity)
    if "machine_uuid" not in merged.values and "machine_secret" not in merged.values:
        return None
    try:
        identity = Identity(
            fields.uuid(fields.required(merged.values, "machine_uuid"), "machine_uuid"),
            fields.secret(fields.required(merged.values, "machine_secret"), "machine_secret"),
            locations.ssh_key,
        )
    except FieldError as error:
        raise ConfigurationError(
            f"{merged.origin(error.field)}: {error}. Bring the file back, or make a new identity "
            "with turku-update-config --new-identity."
        ) from error
    checksum = identity_checksum(identity.uuid, identity.secret)
    if merged.values.get(_CHECKSUM, checksum) != checksum:
        raise ConfigurationError(
            f"{merged.origin(_CHECKSUM)}: the UUID and the secret aren't those that were written, "
            "so the file is damaged. Bring it back, or make a new identity with "
            "turku-update-config --new-identity."
        )
    recorded = merged.values.get("machine_id_hash")
    present = _machine_id_hash(locations)
    if recorded is not None and present is not None and recorded != present:
        raise ForeignIdentity(
            f"The identity in {locations.identity} was made on another machine, so this one is "
            "probably a clone of it; two machines with one identity would overwrite each other's "
            "backups. Make a new identity with turku-update-config --new-identity, or, if it is "
            "the same machine after a new installation, take machine_id_hash out of the file."
        )
    return identity


def _recorded_machine(locations: Locations) -> object:
    return read_folder(locations.identity).values.get("machine_id_hash")


def _machine_id_hash(locations: Locations) -> str | None:
    """Return a hash of the machine's ID, or None where there is none.

    machine-id(5) asks that the ID itself is not given away, only an application's hash of it.
    """
    try:
        machine_id = locations.machine_id.read_bytes().strip()
    except OSError:
        return None
    if not machine_id or machine_id == b"uninitialized":
        return None
    return hashlib.sha256(b"turku-agent:" + machine_id).hexdigest()


def _make_credentials(locations: Locations) -> None:
    values = {"machine_uuid": str(uuid.uuid4()), "machine_secret": make_secret()}
    values[_CHECKSUM] = identity_checksum(values["machine_uuid"], values["machine_secret"])
    machine = _machine_id_hash(locations)
    if machine is not None:
        values["machine_id_hash"] = machine
    write_durably(locations.identity / _FILE, json.dumps(values, indent=2) + "\n", 0o600)
    logger.info("made the identity of machine %s", values["machine_uuid"])


def _record_machine(locations: Locations) -> None:
    """Note, beside an identity from before, on which machine it is at home."""
    machine = _machine_id_hash(locations)
    if machine is None:
        return
    path = locations.identity / _FILE
    values = read_file(path)[0] if path.exists() else {}
    values["machine_id_hash"] = machine
    write_durably(path, json.dumps(values, indent=2) + "\n", 0o600)


def _ensure_key_pair(locations: Locations) -> None:
    private, public = locations.ssh_key, _public(locations.ssh_key)
    if not private.exists():
        private_text, public_line = make_ssh_key_pair("turku-agent")
        # The private key comes last: it is what says that the pair is whole.
        write_durably(public, public_line + "\n", 0o644)
        write_durably(private, private_text, 0o600)
        return
    derived = _derive_public_line(private)
    if not public.exists() or public.read_bytes().split()[:2] != derived.encode().split()[:2]:
        write_durably(public, derived + "\n", 0o644)


def _derive_public_line(private: Path) -> str:
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
    except ValueError as error:
        raise ConfigurationError(
            f"{private} is not an SSH private key without a passphrase: bring it back, or move it "
            "away and run turku-update-config again."
        ) from error
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{line.decode('ascii')} turku-agent"


def _put_aside(locations: Locations) -> None:
    """Rename the files of the present identity, so that nothing reads them and nothing is lost."""
    for path in locations.identity.iterdir():
        if path.suffix in (".json", ".yaml", ".yml") and not path.name.startswith("."):
            path.rename(path.with_name(path.name + _REPLACED))
    sync_folder(locations.identity)
    for path in (locations.ssh_key, _public(locations.ssh_key)):
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_name(path.name + _REPLACED))
    sync_folder(locations.state)


def _public(private: Path) -> Path:
    return private.with_name(private.name + ".pub")

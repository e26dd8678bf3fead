"""What all units have in common and only they may know: their own CA, and Django's secret key.

The first leader makes both in its data folder, with the workload's own functions, and hands them to
the other units in a Juju secret of the application. From then on the secret is the truth: a unit
that has others in its data folder takes these.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import ops

from turku_charm.api_relation import write_if_changed
from turku_charm.statuses import NotReady
from turku_core import fields
from turku_core.api.certificates import ensure_certificates
from turku_core.api.secret_key import read_or_make_secret_key
from turku_core.errors import TurkuError
from turku_core.fields import FieldError

LABEL = "identity"
CERTIFICATES = "certificates"
"""The folder of our own CA in the data folder, as turku_core.api.serve has it."""

SECRET_KEY_FILE = "secret_key"


@dataclass(frozen=True)
class Identity:
    """The content of the secret.

    Attributes:
        ca_certificate, ca_key: The units' own CA, in PEM form.
        secret_key: Django's secret key.
    """

    ca_certificate: str
    ca_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    def to_secret(self) -> dict[str, str]:
        """Return the secret's content."""
        return {
            "ca-certificate": self.ca_certificate,
            "ca-key": self.ca_key,
            "secret-key": self.secret_key,
        }

    @classmethod
    def from_secret(cls, content: dict[str, str]) -> Identity:
        """Take in the secret's content. Raises FieldError."""
        return cls(
            ca_certificate=fields.long_text(
                fields.required(content, "ca-certificate"), "ca-certificate"
            ),
            ca_key=fields.long_text(fields.required(content, "ca-key"), "ca-key"),
            secret_key=fields.secret(fields.required(content, "secret-key"), "secret-key"),
        )


def make(data: Path, names: Collection[str], now: datetime) -> Identity:
    """Return the identity in a data folder, making first what of it isn't there.

    Args:
        data: The API's data folder; a storage that served before has an identity already.
        names: The names and addresses of this unit, for its server certificate.
        now: An aware datetime.

    Raises:
        ConfigurationError: What is there is damaged.
    """
    made = ensure_certificates(data / CERTIFICATES, names, now)
    return Identity(
        ca_certificate=made.ca_certificate.read_text("ascii"),
        ca_key=(data / CERTIFICATES / "ca.key").read_text("ascii"),
        secret_key=read_or_make_secret_key(data),
    )


def share(app: ops.Application, model: ops.Model, identity: Identity) -> str:
    """Put the identity into a secret of the application and return its id; for the leader."""
    try:
        secret = model.get_secret(label=LABEL)
    except ops.SecretNotFoundError:
        secret = app.add_secret(
            identity.to_secret(), label=LABEL, description="The API's own CA and secret key"
        )
    return secret.id or secret.get_info().id


def read(model: ops.Model, secret_id: str) -> Identity:
    """Return the identity that the leader shared.

    Raises:
        NotReady: It can't be read yet.
        TurkuError: It isn't one.
    """
    try:
        return Identity.from_secret(model.get_secret(id=secret_id).get_content(refresh=True))
    except (ops.SecretNotFoundError, ops.ModelError):
        raise NotReady("Waiting for the units' common secret.") from None
    except FieldError as error:
        raise TurkuError(f"The secret that the units share isn't valid: {error}.") from error


def write(data: Path, identity: Identity, owner: tuple[int, int] | None) -> bool:
    """Make a data folder's identity this one; return whether anything changed.

    Args:
        data: The API's data folder, which exists.
        identity: The identity.
        owner: The user and group ids that files belong to; None: whoever runs this.
    """
    folder = data / CERTIFICATES
    if not folder.is_dir():
        folder.mkdir(mode=0o700)
    files = {
        folder / "ca.key": identity.ca_key,
        folder / "ca.crt": identity.ca_certificate,
        data / SECRET_KEY_FILE: identity.secret_key + "\n",
    }
    changed = False
    for path, text in files.items():
        mode = 0o644 if path.suffix == ".crt" else 0o600
        changed |= write_if_changed(path, text, mode)
    # Also the server's own key, which the library made as whoever runs this.
    for path in (data / SECRET_KEY_FILE, folder, *folder.iterdir()):
        _give(path, owner)
    return changed


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    if owner is not None:
        os.chown(path, *owner)

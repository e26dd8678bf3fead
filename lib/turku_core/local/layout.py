"""Where a local Turku's files lie: the roots of its parts, below one folder."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from turku_core import fields
from turku_core.errors import ConfigurationError, TurkuError

STORAGE_UNIT = "local"
"""The name of the one storage unit."""

FOLDER_BYTES_MAX = 70
"""Longer paths leave no room for the names of Unix sockets (108 bytes, unix(7)) below them."""


@dataclass(frozen=True)
class Layout:
    """The files and folders of the local Turku in `folder`."""

    folder: Path

    @property
    def api(self) -> Path:
        """The root of the API."""
        return self.folder / "api"

    @property
    def storage(self) -> Path:
        """The root of the storage unit."""
        return self.folder / "storage"

    @property
    def volume(self) -> Path:
        """The storage unit's one volume."""
        return self.folder / "volume"

    @property
    def sshd(self) -> Path:
        """The SSH daemon's configuration and host key."""
        return self.folder / "sshd"

    @property
    def own_authorized_keys(self) -> Path:
        """Keys that whoever tries it adds to those of the machines; there is none at first."""
        return self.sshd / "authorized_keys"

    @property
    def logs(self) -> Path:
        """What each process said, a file for each."""
        return self.folder / "logs"

    @property
    def lock(self) -> Path:
        """The file that the supervisor holds a lock on while it runs."""
        return self.folder / "lock"

    @property
    def state(self) -> Path:
        """What is running and where, while it runs; the ports stay for the next time."""
        return self.folder / "local.json"

    @property
    def registration_keys(self) -> Path:
        """The two registration keys."""
        return self.folder / "registration_keys.json"

    @property
    def admin_password(self) -> Path:
        """The password of the administration site's user ``admin``."""
        return self.folder / "admin_password"

    @property
    def certificates(self) -> Path:
        """The API's CA and its server certificate."""
        return self.api / "var/lib/turku-api/certificates"

    @property
    def ca_certificate(self) -> Path:
        """The certificate that machines trust the API by."""
        return self.certificates / "ca.crt"

    def machine(self, name: str) -> Path:
        """Return the root of a machine.

        Raises:
            ConfigurationError: The name isn't valid.
        """
        try:
            return self.folder / "machines" / fields.name(name, "the machine's name")
        except fields.FieldError as error:
            raise ConfigurationError(f"{error}.") from error


def make_layout(folder: Path) -> Layout:
    """Return the layout of a folder, which need not be there yet.

    Raises:
        ConfigurationError: The path is too long for the sockets below it, or is one that
            OpenSSH's configuration can't name.
    """
    path = folder.absolute()
    if len(str(path).encode("utf-8", "surrogateescape")) > FOLDER_BYTES_MAX:
        raise ConfigurationError(
            f"The folder's path {path} is longer than {FOLDER_BYTES_MAX} bytes, which leaves no "
            "room for the sockets below it: choose a shorter one."
        )
    if any(character in str(path) for character in '"%\\') or not str(path).isprintable():
        raise ConfigurationError(
            f"The folder's path {str(path)!a} has a character that OpenSSH's configuration can't "
            "hold: choose another."
        )
    return Layout(path)


def program(name: str) -> str:
    """Return the path of a console script of this installation.

    Raises:
        TurkuError: It isn't installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise TurkuError(
            f"The program {name} isn't installed: install turku-core[agent,api,storage]."
        )
    return found


def distribution_program(name: str, package: str) -> str:
    """Return the path of a program of the distribution, also from the sbin folders.

    Raises:
        TurkuError: It isn't installed; the message names its package on Debian and Ubuntu.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise TurkuError(f"The program {name} isn't installed: install the package {package}.")
    return found

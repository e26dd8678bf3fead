"""Whose files they are: a storage unit's belong to its user, whoever types the command."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass

from turku_core.configuration import ensure_private_folder
from turku_core.errors import ConfigurationError
from turku_core.storage.settings import Paths


@dataclass(frozen=True)
class Owner:
    """The unit's user."""

    uid: int
    gid: int
    name: str
    home: str


def find_owner(paths: Paths) -> Owner:
    """Return who owns the unit's state.

    Raises:
        ConfigurationError: The state isn't there, or its owner has no name.
    """
    try:
        uid = paths.state.stat().st_uid
        entry = pwd.getpwuid(uid)
    except (OSError, KeyError) as error:
        raise ConfigurationError(
            f"{paths.state} isn't there or has no known owner: run turku-storage "
            f"install-service, or make the folder for the storage unit's user."
        ) from error
    return Owner(uid, entry.pw_gid, entry.pw_name, entry.pw_dir)


def become_owner(paths: Paths) -> None:
    """Go on as the unit's user for good: root steps down, anybody else is told who it is.

    A state folder that isn't there is made, except by root: then nobody knows whose it should be.

    Raises:
        ConfigurationError: This process runs as another user.
    """
    os.umask(0o077)
    if not paths.state.is_dir() and os.geteuid() != 0:
        _make_state(paths)
    owner = find_owner(paths)
    _require(owner)
    if os.geteuid() != owner.uid:
        os.initgroups(owner.name, owner.gid)
        os.setgid(owner.gid)
        os.setuid(owner.uid)
        os.environ["HOME"] = owner.home


def _make_state(paths: Paths) -> None:
    try:
        ensure_private_folder(paths.state)
    except OSError as error:
        raise ConfigurationError(
            f"{paths.state} can't be made ({error.strerror}): run turku-storage install-service "
            f"as root."
        ) from error


def _require(owner: Owner) -> None:
    if os.geteuid() not in (0, owner.uid):
        raise ConfigurationError(
            f"This storage unit belongs to the user {owner.name}: run the command as {owner.name} "
            f"or as root."
        )


@contextlib.contextmanager
def acting_as(owner: Owner) -> Iterator[None]:
    """Make and read files as the unit's user while the context lasts, if this process is root's.

    Raises:
        ConfigurationError: This process runs as another user.
    """
    _require(owner)
    if os.geteuid() == owner.uid:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(owner.name, owner.gid))
    os.setegid(owner.gid)
    os.seteuid(owner.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)

"""The readable names of machines: links in `machines/` that never shadow a UUID."""

from __future__ import annotations

import fcntl
import os
import re
import uuid as uuid_module
from pathlib import Path

from turku_core.errors import TurkuError

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def looks_like_uuid(text: str) -> bool:
    """Say whether a name has the form of a UUID, in whatever case."""
    return _UUID.fullmatch(text) is not None


def readable_name(environment: str | None, service: str | None, unit: str) -> str:
    """Return the readable name of a machine: `<environment>-<service>-<unit>`."""
    return "-".join(part for part in (environment, service, unit) if part)


def file_name(text: str) -> str:
    """Return a plain file name made of any text: no slash, no leading dot, never a UUID's form."""
    name = re.sub(r"[^A-Za-z0-9_.@+-]", "_", text)[:200].lstrip(".-") or "unnamed"
    return f"unit-{name}" if _UUID.fullmatch(name) else name


def free_link(links: Path, name: str, machine: str, target: str, former: object) -> str:
    """Return a name that is free, or this machine's own already."""
    for candidate in (name, f"{name}~{machine[:8]}", f"{name}~{machine}"):
        path = links / candidate
        if not os.path.lexists(path):
            return candidate
        if path.is_symlink() and (candidate == former or os.readlink(path) == target):
            return candidate
    raise TurkuError(f"{links}: there is no free name for the link to machine {machine}.")


def point(link: Path, target: str) -> None:
    """Make a symbolic link point somewhere, in one step."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    descriptor = os.open(link.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # One at a time, so that what is there already was left by a process that was killed.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in link.parent.glob(".*.tmp"):
            left.unlink()
        temporary = link.with_name(f".{uuid_module.uuid4().hex}.tmp")
        temporary.symlink_to(target)
        temporary.rename(link)
    finally:
        os.close(descriptor)

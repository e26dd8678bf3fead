"""A limit of the host's kernel that is too low for many machines; raised while there is a model.

Each machine's systemd, logind and D-Bus have 7 inotify instances together, and root's own and those
of all its containers count as one user's: with the usual 128 the 19th machine doesn't boot.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.model.runner.network import NAMESPACES

PREFIX = "tkm"
"""How the names of models' network namespaces begin."""

INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
ENOUGH = 8192
BEFORE = Path("/run/turku-model-inotify")
"""Holds the host's own value meanwhile."""


def raise_limit() -> None:
    """Let there be machines enough; the model's network is open already."""
    with _alone():
        before = int(INSTANCES.read_text())
        if before < ENOUGH:
            BEFORE.write_text(f"{before}\n")
            INSTANCES.write_text(f"{ENOUGH}\n")


def restore_limit() -> None:
    """Give the host its own value again, if no other model is open."""
    with _alone():
        if BEFORE.exists() and not any(NAMESPACES.glob(f"{PREFIX}*")):
            INSTANCES.write_text(BEFORE.read_text())
            BEFORE.unlink()


@contextmanager
def _alone() -> Iterator[None]:
    NAMESPACES.mkdir(exist_ok=True)
    descriptor = os.open(NAMESPACES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

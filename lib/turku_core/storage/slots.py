"""Slots: how many sessions may be at work at once, and which are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from turku_core import fields
from turku_core.configuration import ensure_private_folder
from turku_core.errors import TryAgainLater
from turku_core.protocol.messages import RunningSession

PULL = "pull"
RESTORE = "restore"
MACHINE_SLOTS = {PULL: 1, RESTORE: 4}
"""How many slots of each kind one machine may have at once."""

_TRIES = 3
_PAUSE_SECONDS = 0.05


class SlotsFull(TryAgainLater):
    """As many sessions as there are slots are at work."""


@contextlib.contextmanager
def hold_slot(
    folder: Path, count: int, machine: str, sources: Sequence[str], kind: str = PULL
) -> Iterator[None]:
    """Hold one of `count` slots while the context lasts.

    A slot is a lock on a file (flock(2)), so it ends with the process however that ends. The files
    are never removed. A machine has only so many of the slots, whatever it does, so that none can
    keep the others out.

    Args:
        folder: Where the slots' files are.
        machine, sources: Who is at work, for `running`.
        kind: Slots of one kind don't take those of another.

    Raises:
        SlotsFull: None is free, or the machine has its share.
    """
    ensure_private_folder(folder)
    with contextlib.ExitStack() as stack:
        own = _take(folder, f"{kind}_{machine}", MACHINE_SLOTS[kind])
        if own is None:
            raise SlotsFull(
                "Another session of this machine is at work here: come back in a few minutes."
            )
        stack.callback(os.close, own)
        descriptor = _take(folder, kind, count)
        if descriptor is None:
            raise SlotsFull(
                f"All {count} slots of this storage unit are taken: come back in a few minutes."
            )
        stack.callback(os.close, descriptor)
        stack.callback(os.ftruncate, descriptor, 0)
        text = json.dumps({"machine": machine, "sources": list(sources)}).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
        yield


def _take(folder: Path, name: str, count: int) -> int | None:
    for attempt in range(_TRIES):
        for number in range(count):
            descriptor = _open(folder / f"{name}-{number}")
            if _lock(descriptor, fcntl.LOCK_EX):
                return descriptor
            os.close(descriptor)
        if attempt + 1 < _TRIES:
            # `running` holds a lock for an instant when it looks whether a slot is taken.
            time.sleep(_PAUSE_SECONDS)
    return None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def running(folder: Path) -> list[RunningSession]:
    """Return who is being backed up now."""
    found = []
    for path in sorted(folder.glob(f"{PULL}-*")):
        descriptor = _open(path)
        try:
            if _lock(descriptor, fcntl.LOCK_SH):
                continue
            with contextlib.suppress(ValueError, fields.FieldError):
                values = json.loads(os.pread(descriptor, 1 << 20, 0))
                found.append(RunningSession.from_json(values, str(path)))
        finally:
            os.close(descriptor)
    return found

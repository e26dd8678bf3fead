"""Runs that ended without a word: what was being pulled when the storage unit went down.

A session leaves a note of each source that it pulls, and takes it away when it has told how that
ended. A note that nobody holds is of a session that was killed, with or without the machine below
it. The worker reports such a run, so that its source can be handed out again before its lease ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from turku_core import fields
from turku_core.checked_json import dumps, loads
from turku_core.configuration import ensure_private_folder

logger = logging.getLogger(__name__)

_BYTES_MAX = 4096


@dataclass(frozen=True)
class LostRun:
    """A run that its session never told the end of."""

    machine: str
    source: str
    began: datetime


@contextlib.contextmanager
def noted(folder: Path, machine: str, source: str, began: datetime) -> Iterator[None]:
    """Leave a note of a run while the context lasts.

    Args:
        folder: Where the notes are.
        began: Aware.
    """
    ensure_private_folder(folder)
    path = folder / f"{machine}_{source}"
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        # Held by the process (flock(2)): it ends with it, however that ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        note = {"machine": machine, "source": source, "began": began.timestamp()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, dumps(note).encode(), 0)
        os.fsync(descriptor)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def lost(folder: Path) -> Iterator[LostRun]:
    """Return the runs whose sessions have died; a note goes once its run has been dealt with."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # it ended meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = os.pread(descriptor, _BYTES_MAX, 0)
            if text:  # else it is just being written
                try:
                    run = _read(text)
                except ValueError as error:
                    # Its lease ends by itself.
                    logger.error("The note of a run, %s, is broken: %s", path, error)
                else:
                    yield run
                path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _read(text: bytes) -> LostRun:
    note = loads(text, "note")
    return LostRun(
        fields.uuid(fields.required(note, "machine"), "machine"),
        fields.name(fields.required(note, "source"), "source"),
        datetime.fromtimestamp(
            fields.number(fields.required(note, "began"), "began"), timezone.utc
        ),
    )

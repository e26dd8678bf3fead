"""Trouble with a volume's file system, after which what wasn't on the disk yet isn't trusted.

A file system that turned read-only, failed to write or went away has lost what it hadn't written,
files of the right name among it, also when the host itself was never down. What was pulled before
and not synced since is compared by checksum then, or taken again.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turku_core import clock
from turku_core.configuration import ensure_private_folder, write_durably

logger = logging.getLogger(__name__)

_WORDS = tuple(os.strerror(each) for each in (errno.EROFS, errno.EIO, errno.ESHUTDOWN))


def incarnation(state_folder: Path, volume: str) -> str:
    """Return what changes when unsynced data of a volume may be lost: with each boot and trouble.

    Args:
        state_folder: `var/lib/turku-storage`.
        volume: The volume's name.
    """
    try:
        since = _file(state_folder, volume).read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return clock.boot_id()
    return f"{clock.boot_id()} {since}"


def note(state_folder: Path, volume: str) -> None:
    """Note that a volume is in trouble now."""
    try:
        ensure_private_folder(_file(state_folder, volume).parent)
        write_durably(_file(state_folder, volume), secrets.token_hex(8) + "\n")
    except OSError as error:
        logger.error("volume %s: its trouble can't be noted: %s", volume, error)


def note_if(state_folder: Path, volume: str, words: str) -> None:
    """Note trouble if an error's or a program's words tell of it."""
    if any(each in words for each in _WORDS):
        note(state_folder, volume)


@contextmanager
def noticed(state_folder: Path, volume: str) -> Iterator[None]:
    """Note trouble that an exception in the context tells of."""
    try:
        yield
    except Exception as error:
        note_if(state_folder, volume, str(error))
        raise


def _file(state_folder: Path, volume: str) -> Path:
    return state_folder / "trouble" / volume

"""Locks between processes. A lock's file is never removed: two could then hold different files."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `path`, a file that is made or a folder that is there.

    Args:
        path: What is locked, with flock(2): the kernel lets go of it when the process ends,
            however it ends.
        wait: Whether to wait for another process that holds it.

    Yields:
        Whether the lock is held; always true when it waits.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)

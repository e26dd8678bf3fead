"""Taking turns on a host: hooks run side by side, those of all models, until a time is measured."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """The turns of everyone who uses the same folder, in this process and in others."""

    def __init__(self, folder: Path) -> None:
        # Who waits to be alone keeps the gate closed, so that nobody new comes in before.
        self._gate = folder / "gate"
        self._inside = folder / "inside"

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Have a turn, unless somebody is alone or waits to be."""
        with _locked(self._gate, fcntl.LOCK_EX):
            inside = _lock(self._inside, fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(inside)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until everyone else's turn has ended, and have one that nobody shares."""
        with _locked(self._gate, fcntl.LOCK_EX), _locked(self._inside, fcntl.LOCK_EX):
            yield


@contextmanager
def _locked(file: Path, how: int) -> Iterator[None]:
    descriptor = _lock(file, how)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(file: Path, how: int) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

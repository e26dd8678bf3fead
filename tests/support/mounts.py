"""A mount namespace of a test's own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNS = 0x00020000
"""linux/sched.h"""

_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Be in a mount namespace of one's own while the context lasts (root only).

    So nobody who makes a namespace meanwhile gets a copy of our mounts, and keeps them in use.
    """
    folder = Path.cwd()
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _LIBC.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            assert _LIBC.setns(outside, _CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
            os.chdir(folder)
    finally:
        os.close(outside)

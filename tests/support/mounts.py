"""A mount namespace of a test's own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

_CLONE_NEWNS = 0x00020000
"""linux/sched.h"""

_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Be in a mount namespace of one's own while the context lasts (root only).

    So nobody who makes a namespace meanwhile gets a copy of our mounts, and keeps them in use.
    """
    paths = ("/proc/thread-self/ns/mnt", "/", ".")
    outside, root, folder = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
    try:
        assert _LIBC.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            assert _LIBC.setns(outside, _CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
            # It leads to the namespace's own root, which isn't ours in a chroot: setns(2).
            os.chdir(root)
            os.chroot(".")
            os.chdir(folder)
    finally:
        for each in (outside, root, folder):
            os.close(each)

"""Django's secret key: made once, kept in a file of its own."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from turku_core.configuration import write_durably
from turku_core.credentials import make_secret


def read_or_make_secret_key(folder: Path) -> str:
    """Return the key in `folder`, which must exist, making it first when there is none.

    Processes that start at once agree on one key: the folder is locked while it is made.
    """
    path = folder / "secret_key"
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not path.exists():
            write_durably(path, make_secret() + "\n", mode=0o600)
        return path.read_text(encoding="ascii").strip()
    finally:
        os.close(descriptor)

"""Django's secret key: made once, kept in a file of its own."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from turku_core import fields
from turku_core.configuration import write_durably
from turku_core.credentials import make_secret

logger = logging.getLogger(__name__)


def read_or_make_secret_key(folder: Path) -> str:
    """Return the key in `folder`, which must exist, making it first when there is none.

    One that is damaged is made anew: it only signs the administration site's sessions.

    Processes that start at once agree on one key: the folder is locked while it is made.
    """
    path = folder / "secret_key"
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            return fields.secret(path.read_text(encoding="ascii").strip(), "secret_key")
        except FileNotFoundError:
            pass
        except ValueError as error:
            logger.error("%s is damaged (%s) and is made anew.", path, error)
        key = make_secret()
        write_durably(path, key + "\n", mode=0o600)
        return key
    finally:
        os.close(descriptor)

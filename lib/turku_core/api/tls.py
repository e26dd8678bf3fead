"""The server's TLS: one context for all connections, made anew when its files were replaced.

A renewed certificate is so in use at the next connection, and nothing has to be reloaded.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_Version = tuple[tuple[int, int], ...]


class CertificateContext:
    """Gives a TLS context for a certificate and its key; gunicorn calls it at each connection."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (certificate, key)
        self._version: _Version | None = None
        self._context: ssl.SSLContext | None = None

    def __call__(self, config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """Return the context (gunicorn's setting ``ssl_context``).

        Files that can't be read just now, or that don't belong together while they are being
        replaced, leave the context as it was.

        Args:
            config: gunicorn's configuration; not needed.
            default: Makes a context as gunicorn would: TLS 1.2 or later, and our files.
        """
        try:
            version = self._read_version()
            if self._context is None or version != self._version:
                self._context, self._version = default(), version
        except (OSError, ssl.SSLError) as error:
            if self._context is None:
                raise
            log.warning("the certificate in use stays, for %s: %s", self._files[0], error)
        return self._context

    def _read_version(self) -> _Version:
        states = (os.stat(path) for path in self._files)
        return tuple((state.st_ino, state.st_mtime_ns) for state in states)

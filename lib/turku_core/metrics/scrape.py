"""Answering one scrape: HTTP on a connection that systemd took, in a process that then ends.

No HTTP server of the standard library is used: the answer is one, the request's content is of no
interest beyond its first line, and the process should be there in no time.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
from collections.abc import Callable

from turku_core.errors import DONE, FAILED, ConfigurationError, TurkuError
from turku_core.metrics.exposition import CONTENT_TYPE

logger = logging.getLogger(__name__)

PATH = "/metrics"
REQUEST_BYTES_MAX = 16 * 1024
REQUEST_SECONDS = 10.0
ANSWER_SECONDS = 30.0
_PLAIN = "text/plain; charset=utf-8"


class _BadRequest(Exception):
    """The other side doesn't speak HTTP, or not in time."""


def show(make_text: Callable[[], str], *, http: bool) -> int:
    """Print the metrics, or answer the HTTP request that is waiting on standard input.

    Args:
        make_text: Makes the metrics' text.
        http: Whether standard input is a connection, as systemd hands it over (``Accept=yes``).

    Returns:
        The exit code.

    Raises:
        ConfigurationError: Standard input is no connection.
    """
    if not http:
        sys.stdout.write(make_text())
        return DONE
    if not stat.S_ISSOCK(os.fstat(sys.stdin.fileno()).st_mode):
        raise ConfigurationError(
            "--http is for systemd or another super-server: standard input is no connection."
        )
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as connection:
        return answer(connection, make_text)


def answer(connection: socket.socket, make_text: Callable[[], str]) -> int:
    """Read one HTTP request from a connection, and answer it.

    An error while the metrics are made is logged, and answered with 500 and no details: whoever
    scrapes sees that the target is down, and its operator finds the reason in the journal.

    Returns:
        The exit code.
    """
    connection.settimeout(REQUEST_SECONDS)
    try:
        method, target = _request(connection)
    except (_BadRequest, OSError) as error:
        logger.info("no request came: %s", error)
        return DONE
    code, status, content_type, text = DONE, "200 OK", _PLAIN, ""
    if method not in ("GET", "HEAD"):
        status, text = "405 Method Not Allowed", "Only GET.\n"
    elif target.partition("?")[0] != PATH:
        status, text = "404 Not Found", f"The metrics are at {PATH}.\n"
    else:
        try:
            content_type, text = CONTENT_TYPE, make_text()
        except Exception as error:
            known = isinstance(error, TurkuError)
            logger.error("the metrics can't be made: %s", error, exc_info=not known)
            code, status, content_type = FAILED, "500 Internal Server Error", _PLAIN
            text = "The metrics can't be made: see the journal.\n"
    body = text.encode("utf-8", "replace")
    head = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Allow: GET, HEAD",
        "Connection: close",
        "\r\n",
    ]
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.sendall("\r\n".join(head).encode("ascii") + (b"" if method == "HEAD" else body))
    except OSError as error:
        logger.info("the answer was not taken: %s", error)
    return code


def _request(connection: socket.socket) -> tuple[str, str]:
    """Return the method and the target of a request whose head has been read to its end."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(4096)
        head += received
        if not received or len(head) > REQUEST_BYTES_MAX:
            raise _BadRequest("it is not whole, or too long")
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _BadRequest("it is not HTTP/1")
    return words[0], words[1]

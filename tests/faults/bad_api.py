"""A proxy before the API that spoils answers: what stands between a machine and an API may."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from turku_core.api.certificates import ensure_certificates
from turku_core.configuration import ensure_private_folder

SPOILS = (
    "500",
    "html",
    "garbage",
    "redirect",
    "half",
    "lost",
    "reset",
    "wrong type",
    "empty object",
    "403 page",
    "404 page",
)


@dataclass
class Plan:
    """Which answers to spoil, and how: the next `left` ones to the call `name`."""

    name: str = ""
    kind: str = ""
    left: int = 0
    struck: int = 0
    strayed: int = 0
    """Requests that came to where the redirects point."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> str | None:
        """Return how to spoil the answer to this call, or None."""
        with self.lock:
            if name != self.name or self.left == 0:
                return None
            self.left -= 1
            self.struck += 1
            return self.kind


@dataclass(frozen=True)
class BadApi:
    """The proxy: its base URL's port, its CA's certificate, and what it is to do."""

    port: int
    ca_certificate: Path
    plan: Plan

    def spoil(self, name: str, kind: str, times: int = 1) -> None:
        """Spoil the next answers to a call."""
        with self.plan.lock:
            self.plan.name, self.plan.kind, self.plan.left = name, kind, times
            self.plan.struck = 0

    def url(self, host: str = "127.0.0.1") -> str:
        """Return the API's base URL by way of the proxy."""
        return f"https://{host}:{self.port}/v1"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that break; that is what they are for here."""


@contextlib.contextmanager
def bad_api(
    folder: Path,
    upstream: str,
    names: list[str],
    dice: random.Random,
    made_at: datetime | None = None,
) -> Iterator[BadApi]:
    """Serve the API at `upstream` with answers that can be spoilt, while the context lasts.

    Its certificate is made now if it isn't there, or as at another time.
    """
    ensure_private_folder(folder)
    certificates = ensure_certificates(folder, names, made_at or datetime.now(timezone.utc))
    plan = Plan()
    server = _Server(("127.0.0.1", 0), _handler(plan, upstream, dice))
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield BadApi(server.server_port, certificates.ca_certificate, plan)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(plan: Plan, upstream: str, dice: random.Random) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = self.path.removeprefix("/v1/")
            if name == "stray":
                plan.strayed += 1
            kind = plan.take(name)
            if kind is None:
                self._pass_on(*_ask(upstream, self.path, body))
            else:
                _SPOILERS[kind](self, lambda: _ask(upstream, self.path, body), dice)

        def _pass_on(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


Answer = tuple[int, str, bytes]


def _ask(upstream: str, path: str, body: bytes) -> Answer:
    place = urlsplit(upstream)
    # The proxy's own way to the API is not what is tried here.
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(place.netloc, context=context, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read()
    finally:
        connection.close()


Spoiler = Callable[[BaseHTTPRequestHandler, Callable[[], Answer], random.Random], None]


def _say(status: int, content: bytes, kind: str = "application/json") -> Spoiler:
    def spoil(
        handler: BaseHTTPRequestHandler, _ask: Callable[[], Answer], _dice: random.Random
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Location", "/v1/stray")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return spoil


def _garbage(
    handler: BaseHTTPRequestHandler, _ask: Callable[[], Answer], dice: random.Random
) -> None:
    handler.wfile.write(dice.randbytes(2000))
    handler.close_connection = True


def _half(handler: BaseHTTPRequestHandler, ask: Callable[[], Answer], _dice: random.Random) -> None:
    """The API does it, and half of its answer comes through."""
    status, kind, content = ask()
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def _lost(handler: BaseHTTPRequestHandler, ask: Callable[[], Answer], _dice: random.Random) -> None:
    """The API does it, and nothing of its answer comes through."""
    ask()
    handler.close_connection = True


def _reset(
    handler: BaseHTTPRequestHandler, _ask: Callable[[], Answer], _dice: random.Random
) -> None:
    handler.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
    )
    handler.close_connection = True


def _stall(
    handler: BaseHTTPRequestHandler, _ask: Callable[[], Answer], _dice: random.Random
) -> None:
    """Say nothing, until the caller has had enough."""
    handler.rfile.read(1)
    handler.close_connection = True


_SPOILERS: dict[str, Spoiler] = {
    "500": _say(500, b"oops"),
    "html": _say(200, b"<html>Please log in</html>", "text/html"),
    "garbage": _garbage,
    "redirect": _say(307, b""),
    "half": _half,
    "lost": _lost,
    "reset": _reset,
    "wrong type": _say(200, json.dumps({"machine": [1], "machines": "x"}).encode()),
    "empty object": _say(200, b"{}"),
    "403 page": _say(403, b"<html>Forbidden by the firewall</html>", "text/html"),
    "404 page": _say(404, b"\r\n<html>Not found</html>", "text/html"),
    "stall": _stall,
}
assert set(_SPOILERS) == {*SPOILS, "stall"}

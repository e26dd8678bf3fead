"""A stand-in for the API, for the storage unit's own tests: real HTTP, and answers made to order.

The end-to-end tests use the real API.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any] | tuple[int, str]
"""A JSON object, or an HTTP status and a text."""


class StandInApi:
    """Answers each call with what a test has put into `answers`, and remembers the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[dict[str, Any]], Answer]] = {
            "storage_update_config": {"machines": {}},
            "storage_ping_checkin": (403, "Bad credentials"),
            "storage_ping_source_update": {},
        }
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The base URL, the same when it is down."""
        return f"http://127.0.0.1:{self._port}/v1"

    def calls(self, name: str) -> list[dict[str, Any]]:
        """Return the requests of one call, in order."""
        return [request for called, request in self.requests if called == name]

    def reports(self, source: str) -> list[dict[str, Any]]:
        """Return how the runs of a source were reported to have ended, in order."""
        return [report for report in self._updates(source) if "time_begin" in report]

    def inventory(self, source: str) -> list[dict[str, Any]]:
        """Return what was reported of a source's snapshots later on, in order."""
        return [each for report in self._updates(source) for each in report.get("snapshots", [])]

    def _updates(self, source: str) -> list[dict[str, Any]]:
        return [
            request["machine"]["sources"][source]
            for request in self.calls("storage_ping_source_update")
            if source in request["machine"]["sources"]
        ]

    def up(self) -> None:
        """Begin to answer."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, body = api._answer(self.path, self._body())
                self.send_response(status)
                kind = "application/json" if status == 200 else "text/plain; charset=utf-8"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def _body(self) -> dict[str, Any]:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                value: dict[str, Any] = json.loads(raw)
                return value

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: what matters is in `requests`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        name = path.removeprefix("/v1/")
        self.requests.append((name, request))
        answer = self.answers.get(name, (404, "no such call"))
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, dict):
            return 200, json.dumps(answer).encode()
        return answer[0], answer[1].encode()


@contextlib.contextmanager
def running_api() -> Iterator[StandInApi]:
    """Run a stand-in while the context lasts."""
    api = StandInApi()
    api.up()
    try:
        yield api
    finally:
        api.down()

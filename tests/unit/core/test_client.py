"""The client, against real sockets: what each kind of answer becomes."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from turku_core.errors import ConfigurationError
from turku_core.protocol import client as client_module
from turku_core.protocol.client import (
    ApiInvalid,
    ApiNotFound,
    ApiRefused,
    ApiUnreachable,
    Client,
)


@contextmanager
def api(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[str]:
    """Serve one fixed answer on loopback; yield the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_an_answer_is_a_json_object() -> None:
    with api(200, b'{"healthy": true}') as url:
        assert Client([url + "/"]).call("health", {}) == {"healthy": True}


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (400, ApiInvalid, "machine.uuid: is missing"),
        (403, ApiRefused, "refused the credentials"),
        (404, ApiNotFound, "machine.uuid: is missing"),
    ],
)
def test_the_apis_own_refusal_is_final(status: int, error: type[Exception], words: str) -> None:
    with api(status, b"machine.uuid: is missing") as first, api(200, b"{}") as second:
        with pytest.raises(error, match=words):
            Client([first, second]).call("update_config", {})


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (500, b"oops", {}),
        (502, b"<html>", {}),
        (404, b"", {}),
        (404, b"<html>no such page</html>", {"Content-Type": "text/html"}),
        (403, b"\n<!DOCTYPE html><html>firewall</html>", {"Content-Type": "text/html"}),
        (400, b'{"message": "bad gateway"}', {"Content-Type": "application/json"}),
        (200, b"<html>", {}),
        (200, b"[1]", {}),
        (200, b"[" * 100_000, {}),
        (307, b"", {"Location": "http://127.0.0.1:1/v1/health"}),
    ],
)
def test_a_url_that_does_not_answer_as_the_api_is_left_for_the_next(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    with api(status, body, headers) as broken, api(200, b'{"ok": 1}') as good:
        assert Client([closed_url(), broken, good]).call("health", {}) == {"ok": 1}
        with pytest.raises(ApiUnreachable) as caught:
            Client([broken]).call("health", {})
    assert broken in str(caught.value)
    assert caught.value.exit_code == 75


def test_when_nothing_answers_every_url_is_named_with_its_reason() -> None:
    urls = [closed_url(), closed_url()]
    with pytest.raises(ApiUnreachable, match="Connection refused") as caught:
        Client(urls).call("health", {})
    assert all(url in str(caught.value) for url in urls)


def test_an_answer_that_never_comes_ends_by_its_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ApiUnreachable, match="no answer in time"):
            Client([url], timeout=(1, 0.2)).call("health", {})


@contextmanager
def dripping(beginning: bytes, drop: bytes) -> Iterator[str]:
    """Serve an answer that never ends, a few bytes at a time; yield the base URL."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(beginning)
            while not ended.wait(0.02):
                connection.sendall(drop)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{", b" "),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{", b" "),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"x"),
        (b"", b"H"),
    ],
)
def test_an_answer_that_drips_ends_by_the_calls_deadline(beginning: bytes, drop: bytes) -> None:
    with dripping(beginning, drop) as url:
        with pytest.raises(ApiUnreachable, match="no answer in time"):
            Client([url], timeout=(5, 30), call_seconds=0.3).call("health", {})


def test_one_url_that_drips_leaves_time_for_the_next() -> None:
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"") as url:
        with api(200, b'{"ok": 1}') as good:
            client = Client([url, good], timeout=(5, 30), call_seconds=0.3)
            assert client.call("health", {}) == {"ok": 1}


def test_an_answer_is_bounded_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 1000)
    with api(200, b'{"a": "' + b"x" * 1000 + b'"}') as url:
        with pytest.raises(ApiUnreachable, match="larger than 1000 bytes"):
            Client([url]).call("health", {})


def test_prior_art_08_no_secret_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), api(403, b"") as url:
        with pytest.raises(ApiRefused):
            Client([url]).call("agent_ping_checkin", {"machine": {"secret": "s3cret-s3cret"}})
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("url", ["ftp://x", "turku.example.com", "-o"])
def test_a_url_that_is_not_http_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https://"):
        Client([url])


def test_what_the_api_says_cannot_drive_a_terminal() -> None:
    with api(400, json.dumps("\x1b[31m red").encode() + b"\x1b[0m\n") as url:
        with pytest.raises(ApiInvalid) as caught:
            Client([url]).call("health", {})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_api_says_of_why_it_cannot_do_it_yet_is_passed_on(status: int) -> None:
    with api(status, b"Not announced yet.", {"Content-Type": "text/plain; charset=utf-8"}) as url:
        with pytest.raises(ApiUnreachable, match=r"try again later: Not announced yet\."):
            Client([closed_url(), url]).call("update_config", {})
    with api(503, b"<html>no backend</html>", {"Content-Type": "text/html"}) as url:
        with pytest.raises(ApiUnreachable, match="HTTP status 503"):
            Client([url]).call("update_config", {})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_no_secret_elsewhere(status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.2)
        there = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/v1/health"
        with api(status, b"", {"Location": there}) as url, pytest.raises(ApiUnreachable):
            Client([url]).call("health", {"machine": {"secret": "s"}})
        with pytest.raises(TimeoutError):
            elsewhere.accept()

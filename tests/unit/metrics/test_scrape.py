"""One scrape over a real connection."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from turku_core.errors import TurkuError
from turku_core.metrics import scrape


def asked(raw: bytes, make_text: Callable[[], str] = lambda: "turku_a 1\n") -> tuple[bytes, int]:
    """Return all bytes of the answer to raw bytes, and the exit code."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.sendall(raw)
        ours.shutdown(socket.SHUT_WR)
        code = scrape.answer(theirs, make_text)
        theirs.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as file:
            return file.read(), code


def test_an_http_client_gets_the_metrics() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                scrape.answer(connection, lambda: 'turku_a{name="ä"} 1\n')

        thread = threading.Thread(target=serve)
        thread.start()
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
            client.request("GET", "/metrics", headers={"Accept": "text/plain;version=0.0.4"})
            response = client.getresponse()
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert response.read().decode() == 'turku_a{name="ä"} 1\n'
        thread.join()


def test_a_query_changes_nothing() -> None:
    answer, code = asked(b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert code == 0


def test_head_has_the_length_and_no_body() -> None:
    answer, _ = asked(b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert b"\r\nContent-Length: 10\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed\r\n"),
    ],
)
def test_anything_else_is_refused_in_words(raw: bytes, status: bytes) -> None:
    def never() -> str:
        raise AssertionError("nobody asked for the metrics")

    answer, code = asked(raw, never)
    assert answer.startswith(status)
    assert b"\r\nAllow: GET, HEAD\r\n" in answer
    assert code == 0


@pytest.mark.parametrize(
    "raw",
    [b"", b"GET /metrics HTTP/1.1\r\n", b"\x16\x03\x01\r\n\r\n", b"GET /metrics\r\n\r\n",
     b"GET /metrics SPDY/3\r\n\r\n", b"A" * 20_000],
)  # fmt: skip
def test_what_is_no_request_gets_no_answer(raw: bytes) -> None:
    assert asked(raw) == (b"", 0)


def test_one_who_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        assert scrape.answer(theirs, lambda: "") == 0


def test_one_who_goes_away_does_no_harm() -> None:
    ours, theirs = socket.socketpair()
    with closing(theirs):
        ours.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        ours.close()
        assert scrape.answer(theirs, lambda: "x" * 1_000_000) == 0


def test_an_error_is_for_the_log_and_not_for_the_one_who_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> str:
        raise TurkuError("The database at secret-host can't be reached.")

    with caplog.at_level(logging.ERROR):
        answer, code = asked(b"GET /metrics HTTP/1.1\r\n\r\n", fail)
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"secret-host" not in answer
    assert "secret-host" in caplog.text
    assert "Traceback" not in caplog.text
    assert code == 1


def test_an_error_that_nobody_foresaw_is_in_the_log_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        answer, _ = asked(b"GET /metrics HTTP/1.1\r\n\r\n", lambda: str(1 / 0))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "ZeroDivisionError" in caplog.text

"""What an agent sends at the beginning of a session."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.storage.session_request import (
    RequestNotValid,
    parse_request,
    read_request,
)

LOGIN = {"username": "turku-1", "password": "a-password"}
MACHINE = "11111111-1111-4111-8111-111111111111"


def feed(*pieces: bytes, pause: float = 0.0) -> int:
    """Return the reading end of a pipe into which the pieces come one by one."""
    reading, writing = os.pipe()

    def write() -> None:
        try:
            for piece in pieces:
                os.write(writing, piece)
                time.sleep(pause)
        except BrokenPipeError:
            pass
        finally:
            os.close(writing)

    threading.Thread(target=write, daemon=True).start()
    return reading


def read(*pieces: bytes, pause: float = 0.0, **bounds: Any) -> bytes:
    """Read a request that comes in pieces."""
    descriptor = feed(*pieces, pause=pause)
    try:
        return read_request(descriptor, **bounds)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"{}\n.\n"],
        [b"{", b"}\n", b".", b"\n"],
        [b"{}\n.\nand what comes later"],
        [b"{}\n.\r\n"],
    ],
)
def test_a_request_ends_with_a_line_of_one_dot(pieces: list[bytes]) -> None:
    assert read(*pieces, pause=0.01) == b"{}\n"


def test_a_request_without_end_is_not_waited_for_for_ever() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"{}\n")
    with pytest.raises(RequestNotValid, match=r"not complete after 0 seconds"):
        read_request(reading, seconds=0.1)
    os.close(reading)
    os.close(writing)


def test_a_request_that_drips_is_not_waited_for_for_ever() -> None:
    with pytest.raises(RequestNotValid, match="not complete"):
        read(*[b"x"] * 100, pause=0.02, seconds=0.3)


def test_a_request_that_never_ends_is_not_read_into_memory() -> None:
    with pytest.raises(RequestNotValid, match="longer than 1000 bytes"):
        read(b"x" * 65536, bytes_max=1000)


def test_many_lines_cost_no_more_than_their_length() -> None:
    began = time.process_time()
    with pytest.raises(RequestNotValid, match="broke off"):
        read(*[b"\n" * 65536] * 15)
    assert time.process_time() - began < 5


def test_a_request_that_breaks_off_is_refused() -> None:
    with pytest.raises(RequestNotValid, match="broke off"):
        read(b'{"action": "checkin"}\n')


def test_a_session_that_ended_is_not_waited_for() -> None:
    reading, writing = os.pipe()
    with pytest.raises(RequestNotValid, match="ended"):
        read_request(reading, lambda: True)
    os.close(reading)
    os.close(writing)


def parse(**values: Any) -> Any:
    """Parse a request with these values."""
    return parse_request(json.dumps(values).encode())


def test_v1_is_understood_with_what_it_does_not_know_ignored() -> None:
    request = parse(
        verbose=True, action="checkin", port=50000, sources={"docs": {**LOGIN, "x": 1}}, y={}
    )
    assert (request.action, request.port, request.events) == ("checkin", 50000, False)
    assert request.sources["docs"].username == "turku-1"
    assert "a-password" not in repr(request)


def test_an_unattended_restore_is_understood() -> None:
    wish = {
        "machine": MACHINE, "source": "docs", "snapshot": "2026-05-31T12:00:00+00:00",
        "paths": ["a/b", "/srv/x", "\udcff"], "dry_run": True, "checksum": True,
    }  # fmt: skip
    request = parse(action="restore", port=1, sources={"turku-restore": LOGIN}, restore=wish)
    assert request.restore.machine == MACHINE
    assert request.restore.paths == ("a/b", "/srv/x", "\udcff")
    assert request.restore.dry_run and request.restore.checksum


def test_bytes_that_are_not_utf_8_are_kept() -> None:
    raw = b'{"action":"restore","port":1,"restore":{"source":"docs","paths":["caf\xe9"]}}'
    wish = parse_request(raw).restore
    assert wish is not None
    assert wish.paths[0].encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_a_list_needs_no_port() -> None:
    assert parse(action="list").port is None


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "action"),
        ({"action": "shell", "port": 1}, "action"),
        ({"action": "checkin"}, "port"),
        ({"action": "checkin", "port": 0}, "port"),
        ({"action": "checkin", "port": "22"}, "port"),
        ({"action": "checkin", "port": True}, "port"),
        ({"action": "checkin", "port": 1, "sources": []}, "sources"),
        ({"action": "restore", "port": 1, "restore": {"source": "../x"}}, "restore.source"),
        ({"action": "restore", "port": 1, "restore": {"source": "x", "machine": "x"}}, "machine"),
        (
            {"action": "restore", "port": 1, "restore": {"source": "x", "snapshot": "../x"}},
            "snapshot",
        ),
        (
            {"action": "restore", "port": 1, "restore": {"source": "x", "paths": ["a/../../b"]}},
            "paths",
        ),
        ({"action": "restore", "port": 1, "restore": {"source": "x", "paths": ["a\nb"]}}, "paths"),
    ],
)
def test_a_field_that_is_not_valid_is_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestNotValid, match=field):
        parse(**values)


def test_prior_art_35_one_bad_source_does_not_stop_the_others() -> None:
    sources = {
        "good": LOGIN, "../x": LOGIN, "-e": LOGIN, "nologin": {}, "list": [],
        "user": {**LOGIN, "username": "a:b"}, "password": {**LOGIN, "password": "a\nb"},
    }  # fmt: skip
    request = parse(action="checkin", port=1, sources=sources)
    assert list(request.sources) == ["good"]
    assert len(request.problems) == 6


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_sentence(data: bytes) -> None:
    try:
        parse_request(data)
    except RequestNotValid as error:
        assert str(error).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {"action": st.sampled_from(["checkin", "restore", "list"]) | JSON},
        optional={"port": JSON, "sources": JSON, "restore": JSON, "events": JSON, "verbose": JSON},
    )
)
def test_any_json_is_a_request_or_a_sentence(values: dict[str, Any]) -> None:
    try:
        parse_request(json.dumps(values).encode())
    except RequestNotValid as error:
        assert "Traceback" not in str(error)

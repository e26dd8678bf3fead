"""What a session says, and to whom it stops saying it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from turku_core.storage.lifeline import Lifeline
from turku_core.storage.voice import Voice


def spoken(events: bool) -> list[str]:
    """Return what is said of a few things."""
    reading, writing = os.pipe()
    voice = Voice(writing, lambda reason: pytest.fail(reason), events=events)
    voice.message("hello\x1b[31m")
    voice.progress("docs", 5, 50.0)
    voice.progress("docs", 6, 60.0)
    voice.source("docs", "partial", "café \udcff")
    voice.change(">f+++++++++ a")
    voice.result(ok=True, message="done", files=2, count=3)
    voice.snapshots([])
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        return pipe.read().splitlines()


def test_events_are_one_json_object_a_line() -> None:
    events = [json.loads(line) for line in spoken(events=True)]
    assert [each["event"] for each in events] == [
        "message", "progress", "source", "change", "result", "snapshots",
    ]  # fmt: skip
    assert events[1] == {"event": "progress", "source": "docs", "bytes": 5, "percent": 50.0}
    assert events[2]["message"] == "café \udcff"
    assert events[4] == {
        "event": "result", "ok": True, "message": "done", "files": 2, "bytes": 3,
    }  # fmt: skip


def test_others_get_lines_that_drive_no_terminal() -> None:
    assert spoken(events=False) == [
        "hello?[31m",
        "docs: partial. café ?",
        ">f+++++++++ a",
        "done",
        "There are no snapshots.",
    ]


def test_prior_art_23_a_listener_who_reads_nothing_is_not_waited_for_for_ever() -> None:
    reading, writing = os.pipe()
    gone: list[str] = []
    voice = Voice(writing, gone.append, write_seconds=0.2)
    began = time.monotonic()
    voice.message("x" * 1_000_000)
    voice.message("nobody hears")
    assert time.monotonic() - began < 10
    assert gone == ["The agent doesn't read what the session says."]
    os.close(reading)
    os.close(writing)


def test_a_listener_who_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone: list[str] = []
    voice = Voice(writing, gone.append)
    voice.message("x")
    voice.message("y")
    os.close(writing)
    assert gone == ["The agent's SSH connection ended."]


def test_a_lifeline_notices_that_the_other_side_is_gone() -> None:
    reading, writing = os.pipe()
    lifeline = Lifeline(writing)
    with lifeline.watch():
        assert not lifeline.cancelled()
        os.close(reading)
        deadline = time.monotonic() + 10
        while not lifeline.cancelled():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    os.close(writing)
    assert lifeline.reason == "The agent's SSH connection ended."


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_lifeline_hears_signals_and_gives_their_handlers_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reading, writing = os.pipe()
    lifeline = Lifeline(writing)
    with lifeline.watch():
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while not lifeline.cancelled():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    os.close(reading)
    os.close(writing)
    assert number.name in lifeline.reason
    assert signal.getsignal(number) is before
    assert threading.active_count() < 20


def test_a_lifeline_ends_at_once_with_the_session() -> None:
    reading, writing = os.pipe()
    began = time.monotonic()
    for _ in range(20):
        with Lifeline(writing).watch():
            pass
    assert time.monotonic() - began < 5
    os.close(reading)
    os.close(writing)

"""Ending all that a user runs, so that nothing holds a volume that goes."""

from __future__ import annotations

import subprocess
import time

import pytest

from storage_service import end_processes_of

pytestmark = pytest.mark.needs_root
NOBODYS = 61234
"""A user id that nobody has."""


def test_processes_end_by_themselves_when_they_are_asked() -> None:
    sleeper = subprocess.Popen(["sleep", "60"], user=NOBODYS)
    ours = subprocess.Popen(["sleep", "60"])
    try:
        end_processes_of(NOBODYS, seconds_max=30)
        assert sleeper.wait(5) == -15
        assert ours.poll() is None, "other users' processes are left alone"
    finally:
        for process in (sleeper, ours):
            process.kill()
            process.wait()


def test_a_process_that_does_not_listen_is_killed_after_a_while() -> None:
    stubborn = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done"],
        user=NOBODYS, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"ready\n"
        began = time.monotonic()
        end_processes_of(NOBODYS, seconds_max=0.5)
        assert stubborn.wait(5) == -9
        assert time.monotonic() - began < 10
    finally:
        stubborn.kill()
        stubborn.wait()


def test_nothing_to_end_takes_no_time() -> None:
    began = time.monotonic()
    end_processes_of(NOBODYS)
    assert time.monotonic() - began < 5

"""Lines from descriptors, locks, and the folders of sessions."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from turku_core.agent import processes
from turku_core.agent.locks import held
from turku_core.agent.processes import (
    Interrupted,
    LineReader,
    ProgramMissing,
    Stop,
    Waiter,
    printable,
    start,
)
from turku_core.agent.session import session_folder, sweep_sessions


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    yield made
    made.close()


def reader_of(content: bytes) -> tuple[LineReader, int]:
    read, write = os.pipe()
    os.write(write, content)
    return LineReader(os.fdopen(read, "rb", buffering=0)), write


def test_lines_come_whole_and_the_last_one_at_the_end() -> None:
    reader, write = reader_of(b"one\r\ntw")
    assert reader.read() == ["one"]
    assert reader.read() == []
    os.write(write, b"o\nthree")
    assert reader.read() == ["two"]
    os.close(write)
    assert reader.read() == ["three"]
    assert reader.ended


def test_bytes_that_arent_utf_8_survive() -> None:
    reader, write = reader_of(b"\xff\n")
    assert os.fsencode(reader.read()[0]) == b"\xff"
    os.close(write)


def test_a_line_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LINE_BYTES_MAX", 100)
    reader, write = reader_of(b"x" * 150)
    assert reader.read() == ["x" * 150]
    os.write(write, b"y\n")
    assert reader.read() == ["y"]
    os.close(write)


def test_waiting_ends_when_the_agent_is_to_stop(stop: Stop) -> None:
    waiter = Waiter(stop)
    assert waiter.wait(0) == []
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    with pytest.raises(Interrupted):
        waiter.wait(20)
    waiter.close()
    timer.join()
    assert stop.is_set()


def test_a_program_that_isnt_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissing, match="no-such-program"):
        start(["no-such-program"], folder=tmp_path, environment={"PATH": "/usr/bin:/bin"})


def test_text_from_elsewhere_cant_drive_a_terminal() -> None:
    assert printable("a\x1b[31mb\nc\udcff") == "a?[31mb?c?"
    assert printable("x" * 600) == "x" * 500 + "..."


def test_prior_art_28_a_lock_is_one_for_all_who_wait_for_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holders: list[int] = []
    most = []

    def work() -> None:
        for _ in range(50):
            with held(path):
                holders.append(1)
                most.append(len(holders))
                holders.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert path.exists()


def test_a_lock_that_is_held_isnt_waited_for_when_that_is_not_wanted(tmp_path: Path) -> None:
    with held(tmp_path / "lock") as first, held(tmp_path / "lock", wait=False) as second:
        assert (first, second) == (True, False)
    with held(tmp_path / "lock", wait=False) as third:
        assert third


def test_prior_art_20_abandoned_folders_are_swept_and_those_in_use_are_not(
    tmp_path: Path,
) -> None:
    assert sweep_sessions(tmp_path) == 0
    with session_folder(tmp_path) as used:
        abandoned = tmp_path / "sessions/0123456789abcdef"
        abandoned.mkdir()
        (abandoned / "secrets-1").write_text("user:password")
        assert sweep_sessions(tmp_path) == 1
        assert used.is_dir()
        assert used.stat().st_mode & 0o777 == 0o700
        assert not abandoned.exists()
    assert not used.exists()
    assert sweep_sessions(tmp_path) == 0

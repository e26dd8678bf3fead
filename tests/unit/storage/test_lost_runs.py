"""Runs whose sessions were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from turku_core.storage.lost_runs import LostRun, lost, noted

MACHINE = "11111111-1111-4111-8111-111111111111"
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)

SESSION = """
import sys, time
from datetime import datetime, timezone
from pathlib import Path
from turku_core.storage.lost_runs import noted

began = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
with noted(Path(sys.argv[1]), sys.argv[2], "docs", began):
    print("pulling", flush=True)
    time.sleep(60)
"""


def test_a_run_that_goes_on_or_has_ended_is_not_lost(tmp_path: Path) -> None:
    assert list(lost(tmp_path / "runs")) == []
    with noted(tmp_path / "runs", MACHINE, "docs", NOON):
        assert list(lost(tmp_path / "runs")) == []
    with pytest.raises(OSError, match="full"), noted(tmp_path / "runs", MACHINE, "docs", NOON):
        raise OSError("full")
    assert list(lost(tmp_path / "runs")) == []


def test_a_run_whose_session_is_killed_is_lost_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SESSION, str(tmp_path), MACHINE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "pulling\n"
        assert list(lost(tmp_path)) == []
        session.send_signal(signal.SIGKILL)
    assert list(lost(tmp_path)) == [LostRun(MACHINE, "docs", NOON)]
    assert list(lost(tmp_path)) == []


def test_a_note_stays_until_its_run_has_been_dealt_with(tmp_path: Path) -> None:
    (tmp_path / f"{MACHINE}_docs").write_text(
        f'{{"machine": "{MACHINE}", "source": "docs", "began": 1700000000.0}}'
    )
    with pytest.raises(OSError, match="full"):
        for _ in lost(tmp_path):
            raise OSError("full")
    assert [run.source for run in lost(tmp_path)] == ["docs"]


def test_a_broken_note_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("{")
    assert list(lost(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []

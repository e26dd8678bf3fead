"""The worker's durable queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from turku_core.storage.queue import ATTEMPTS_MAX, Job, Queue

NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
MACHINE = "11111111-1111-4111-8111-111111111111"


def job(source: str = "docs", minutes: int = 0) -> Job:
    """Return a job queued some minutes after noon."""
    return Job(MACHINE, source, "20261122T120000Z", NOW + timedelta(minutes=minutes))


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """An empty queue."""
    return Queue(tmp_path / "queue")


def test_jobs_are_taken_oldest_first_and_are_gone_when_done(queue: Queue) -> None:
    queue.add(job("second", 1))
    queue.add(job("first", 0))
    taken = []
    for _ in range(2):
        with queue.claim(NOW) as claim:
            assert claim is not None
            taken.append(claim.job.source)
            claim.done()
    assert taken == ["first", "second"]
    with queue.claim(NOW) as claim:
        assert claim is None


def test_a_job_that_is_taken_is_nobody_elses(queue: Queue) -> None:
    queue.add(job())
    with queue.claim(NOW) as mine:
        assert mine is not None
        with queue.claim(NOW) as theirs:
            assert theirs is None
    with queue.claim(NOW) as again:
        assert again is not None


def test_a_failed_job_waits_five_minutes_to_an_hour_and_lets_others_pass(queue: Queue) -> None:
    queue.add(job("failing"))
    queue.add(job("fine", 1))
    with queue.claim(NOW) as claim:
        assert claim is not None
        claim.put_back(claim.job.failed("no room", NOW))
    with queue.claim(NOW) as claim:
        assert claim is not None and claim.job.source == "fine"
        claim.done()
    with queue.claim(NOW + timedelta(minutes=4)) as claim:
        assert claim is None
    with queue.claim(NOW + timedelta(minutes=5)) as claim:
        assert claim is not None
        assert (claim.job.attempts, claim.job.error) == (1, "no room")


def test_the_pauses_double_up_to_an_hour() -> None:
    failing, pauses = job(), []
    for _ in range(ATTEMPTS_MAX):
        failing = failing.failed("x", NOW)
        assert failing.not_before is not None
        pauses.append((failing.not_before - NOW) // timedelta(minutes=1))
    assert pauses == [5, 10, 20, 40] + [60] * 8


def test_a_clock_that_was_set_back_holds_no_job_for_longer_than_its_pause() -> None:
    failed = job().failed("x", NOW)
    assert not failed.due(NOW)
    assert failed.due(NOW - timedelta(days=400))


def test_prior_art_25_a_broken_job_stops_no_other(queue: Queue, tmp_path: Path) -> None:
    queue.add(job())
    for number, content in enumerate([b"", b"{", b"[]", b'{"machine": "../x"}', b"\xff"]):
        (tmp_path / f"queue/00000000T00000{number}-x.json").write_bytes(content)
    with queue.claim(NOW) as claim:
        assert claim is not None
        assert claim.job == job()
    assert len(list((tmp_path / "queue").glob("*.broken"))) == 5


def test_prior_art_26_a_half_written_job_is_none(queue: Queue, tmp_path: Path) -> None:
    queue.add(job())
    (tmp_path / "queue/.20261122.json.0123456789abcdef.tmp").write_text('{"machine":')
    assert queue.jobs() == [job()]


def test_prior_art_28_a_job_done_while_another_looks_at_it_is_not_done_twice(
    queue: Queue, tmp_path: Path
) -> None:
    queue.add(job())
    [path] = (tmp_path / "queue").glob("*.json")
    with queue.claim(NOW) as claim:
        assert claim is not None
        # Whoever has the file open already now waits for a lock on something that is gone.
        descriptor = os.open(path, os.O_RDONLY)
        claim.done()
    os.close(descriptor)
    with queue.claim(NOW) as again:
        assert again is None


def test_a_killed_worker_leaves_its_job_for_the_next(queue: Queue, tmp_path: Path) -> None:
    queue.add(job())
    script = (
        "import sys, time; from datetime import datetime, timezone; from pathlib import Path\n"
        "from turku_core.storage.queue import Queue\n"
        "with Queue(Path(sys.argv[1])).claim(datetime.now(timezone.utc)) as claim:\n"
        "    print(claim.job.source, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "queue")], stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"docs\n"
        with queue.claim(NOW) as claim:
            assert claim is None
        killed.send_signal(signal.SIGKILL)
    with queue.claim(NOW) as claim:
        assert claim is not None

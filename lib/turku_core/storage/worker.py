"""The worker: what goes on in the background of a storage unit, in one process.

It makes the snapshots of what sessions have frozen, sends the reports, keeps the list of machines
fresh, expires and verifies. Each of these is a loop in a thread of its own: what goes wrong in one,
or with one machine in it, never stops another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from turku_core import fields
from turku_core.configuration import remove_left_overs, write_durably
from turku_core.errors import DONE, FAILED, TRY_AGAIN_LATER, TryAgainLater, TurkuError
from turku_core.protocol.client import ApiRefused, Client
from turku_core.protocol.messages import BackupResult, RunningSession, SnapshotState, SourceUpdate
from turku_core.storage import expiry, lost_runs, slots, verification
from turku_core.storage.catalogue import Catalogue, NoSuchSnapshot
from turku_core.storage.commits import do_job, hold_state, recover_jobs
from turku_core.storage.lifeline import kill_children
from turku_core.storage.queue import Queue
from turku_core.storage.records import Record
from turku_core.storage.registration import (
    Known,
    link_machine,
    read_known,
    update_config,
)
from turku_core.storage.reports import Report, Spool, summary_text
from turku_core.storage.settings import Settings
from turku_core.storage.snapshots import Environment
from turku_core.storage.source_folder import SourceBusy, SourceFolder
from turku_core.storage.verification import Step

logger = logging.getLogger(__name__)

QUEUE_SECONDS = 1.0
REPORT_SECONDS = 1.0
REPORT_RETRY_SECONDS = 15.0
CONFIG_SECONDS = 20.0
RECOVER_SECONDS = 600.0
EXPIRY_SECONDS = 3600.0
VERIFY_SECONDS = 10.0
VERIFY_IDLE_SECONDS = 600.0
VERIFY_PLAN_SECONDS = 600.0
VERIFY_PUT_OFF_SECONDS = 3600.0
STOP_SECONDS = 2.0
KILL_SECONDS = 2.0
API_SECONDS = (10.0, 60.0)
LOST_RUN = "The storage unit went down in the middle of the run, or its session was killed."


class WorkerRuns(TryAgainLater):
    """Another worker of this storage unit is at work."""


@dataclass
class LoopState:
    """How a loop fares. Times are epoch seconds.

    Attributes:
        ended_at: When its last round ended, well or not.
        failed_at: When a round last failed.
        failing_since: When the first round failed of those that have failed since one went well;
            None when the last one went well.
        error: What the last round failed with; empty when it went well.
    """

    ended_at: float | None = None
    failed_at: float | None = None
    failing_since: float | None = None
    error: str = ""


def read_loops(path: Path) -> dict[str, LoopState]:
    """Return how the worker's loops fared when last stored; a broken file tells nothing."""
    try:
        stored = fields.mapping(json.loads(path.read_bytes()), "worker's state")
        return {
            name: _loop_state(fields.mapping(values, name))
            for name, values in fields.optional(stored, "loops", fields.mapping, {}).items()
        }
    except (OSError, ValueError):
        return {}


def _loop_state(values: Mapping[str, Any]) -> LoopState:
    return LoopState(
        fields.optional(values, "ended_at", fields.number, None),
        fields.optional(values, "failed_at", fields.number, None),
        fields.optional(values, "failing_since", fields.number, None),
        fields.optional(values, "error", fields.long_text, ""),
    )


@dataclass
class WorkerState:
    """What an operator may want to know of the worker; stored as JSON."""

    path: Path
    clock: Callable[[], datetime]
    loops: dict[str, LoopState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stored_at = 0.0
        self.loops = read_loops(self.path)

    def ended(self, name: str, error: str = "") -> None:
        """Note that a round of a loop has ended, well or with an error."""
        now = self.clock().timestamp()
        with self._lock:
            former = self.loops.get(name, LoopState())
            self.loops[name] = LoopState(
                ended_at=now,
                failed_at=now if error else former.failed_at,
                failing_since=(former.failing_since or now) if error else None,
                error=summary_text(error),
            )
            if error != former.error or time.monotonic() - self._stored_at > 5:
                self._store()

    def error(self, name: str) -> str:
        """Return with which error a loop's last round ended; no text when it went well."""
        return self.loops.get(name, LoopState()).error

    def store(self) -> None:
        """Store the state now."""
        with self._lock:
            self._store()

    def _store(self) -> None:
        self._stored_at = time.monotonic()
        loops = {name: vars(state) for name, state in sorted(self.loops.items())}
        write_durably(self.path, json.dumps({"pid": os.getpid(), "loops": loops}, indent=1))


class Worker:
    """The loops of one storage unit.

    Args:
        settings: With an identity.
        catalogue: What lies on the volumes.
        clock: Returns the time now, aware.
    """

    def __init__(
        self, settings: Settings, catalogue: Catalogue, clock: Callable[[], datetime]
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._environment = Environment(settings.paths.state)
        self._clock = clock
        self._queue = Queue(settings.paths.queue)
        self._spool = Spool(settings.paths.reports)
        self._stop = threading.Event()
        self._state = WorkerState(settings.paths.worker_state, clock)
        self._known = Known()
        self._refused = False
        self._is_only_late = True
        self._put_off: dict[tuple[str, str, str], float] = {}
        self._to_verify: deque[Step] = deque()
        self._planned_at = -math.inf

    # What each loop does in one round. A round returns the seconds until the next.

    def commit_round(self) -> float:
        """Do one job of the queue."""
        with self._queue.claim(self._clock()) as claim:
            if claim is None:
                return QUEUE_SECONDS
            record = do_job(
                claim, self._catalogue, self._environment, self._spool, self._clock,
                self._stop.is_set,
            )  # fmt: skip
        if record is not None:
            machine = self._known.machines.get(record.machine)
            if machine is not None:
                link_machine(self._catalogue, record.machine, machine)
        return 0.0

    def recover_round(self) -> float:
        """Queue the frozen states that have no job, and sweep up after what was killed."""
        for folder in self._settings.paths.written_to:
            remove_left_overs(folder)
        count = recover_jobs(self._catalogue, self._queue, self._clock())
        if count:
            logger.warning("%d frozen states had no job and are queued again.", count)
        return RECOVER_SECONDS

    def report_round(self, client: Client) -> float:
        """Send the reports. While the API refuses the unit itself, they wait."""
        self._report_lost_runs()
        if self._refused or not self._spool.waiting():
            return REPORT_SECONDS
        flushed = self._spool.flush(client, self._settings.login, self._clock, self._stop.is_set)
        if flushed.error:
            raise TryAgainLater(flushed.error)
        return REPORT_SECONDS

    def _report_lost_runs(self) -> None:
        """Report the runs whose sessions were killed, but for those that a commit tells of."""
        frozen = {(job.machine, job.source) for job in self._queue.jobs()}
        for run in lost_runs.lost(self._settings.paths.runs):
            if (run.machine, run.source) in frozen:
                continue
            logger.error("machine %s source %s: %s", run.machine, run.source, LOST_RUN)
            now = self._clock()
            result = BackupResult(
                success=False,
                time_begin=run.began.timestamp(),
                time_end=now.timestamp(),
                summary=LOST_RUN,
            )
            self._spool.add(Report(run.machine, {run.source: SourceUpdate(result)}), now)

    def config_round(self, client: Client) -> float:
        """Tell the API of the unit, and put its list of machines into effect."""
        try:
            self._known = update_config(
                self._settings, client, self._catalogue, self._known, self.running()
            )
        except ApiRefused:
            self._refused = True
            raise
        self._refused = False
        return CONFIG_SECONDS

    def running(self) -> list[RunningSession]:
        """Return what is being pulled or waits for its commit: their leases go on."""
        jobs = [RunningSession(job.machine, (job.source,)) for job in self._queue.jobs()]
        return [*slots.running(self._settings.paths.slots), *jobs]

    def expiry_round(self) -> float:
        """Expire and remove what the policies no longer want, on all volumes."""
        report = expiry.run(
            self._catalogue,
            self._environment,
            self._clock(),
            floor=self._settings.expiry_floor,
            grace=self._settings.expiry_grace,
            default_retention=self._settings.default_retention,
            tell=lambda change: self._spool.add(expiry_report(change), self._clock()),
        )
        # Of a volume that isn't there `usage` tells by itself, and no longer than it is so.
        gone = set(self._catalogue.volumes.problems())
        problems = [problem for problem in report.problems if problem not in gone]
        if problems:
            raise TurkuError(" ".join(problems))
        return EXPIRY_SECONDS

    def verify_round(self) -> float:
        """Prove the snapshot that is due first. Raises TurkuError when that can't be done."""
        step = self._next_to_verify()
        if step is None:
            return VERIFY_IDLE_SECONDS
        record = step.record
        # Until it has been checked it isn't planned again: it must not keep the others out.
        self._put_off[_key(record)] = time.monotonic() + VERIFY_PUT_OFF_SECONDS
        try:
            verdict = verification.verify(
                self._catalogue, step.folder, record, self._environment, self._clock(),
                depth=step.depth,
                # What fails while this worker ends may have been ended with it.
                interrupted=lambda: self._stop.wait(STOP_SECONDS),
            )  # fmt: skip
        except (SourceBusy, NoSuchSnapshot):
            return VERIFY_SECONDS
        self._spool.add(verification_report(verdict.record), self._clock())
        if verdict.damaged or verdict.failed:
            what = "is damaged" if verdict.failed is None else "could not be proven"
            raise TurkuError(
                f"Snapshot {record.id} of source {record.source} of machine {record.machine} "
                f"{what}: {verdict.failed or verdict.damaged}"
            )
        del self._put_off[_key(record)]
        return VERIFY_SECONDS

    def _next_to_verify(self) -> Step | None:
        """Return what is due first; all records are read to know it, so not each time."""
        if time.monotonic() >= self._planned_at + VERIFY_PLAN_SECONDS or not self._to_verify:
            records = self._catalogue.listing().records
            steps = verification.plan(records, self._clock(), self._settings.cycle)
            self._to_verify = deque(steps)
            self._planned_at = time.monotonic()
        while self._to_verify:
            step = self._to_verify.popleft()
            if not self._is_put_off(step.record):
                return step
        return None

    def _is_put_off(self, record: Record) -> bool:
        return self._put_off.get(_key(record), 0.0) > time.monotonic()

    # Running them.

    def run(self) -> int:
        """Run until a signal asks to stop; return the exit code."""
        with _signals(self._stop) as asked, worker_lock(self._settings.paths.worker_lock):
            self._round("recover", self.recover_round)
            threads = [
                threading.Thread(target=self._loop, args=each, name=each[0], daemon=True)
                for each in self._loops()
            ]
            for thread in threads:
                thread.start()
            asked.wait()
            self._end(threads)
        return DONE

    def _loops(self) -> list[tuple[str, Callable[[], float], float]]:
        """Return the loops: a name, a round, and the seconds to wait after one that failed."""
        config, reports = (self._settings.make_client(API_SECONDS) for _ in range(2))
        commits = [
            (f"commit {number}", self.commit_round, 5.0)
            for number in range(1, self._settings.commits_at_once + 1)
        ]
        return [
            *commits,
            ("recover", self.recover_round, RECOVER_SECONDS),
            ("reports", lambda: self.report_round(reports), REPORT_RETRY_SECONDS),
            ("config", lambda: self.config_round(config), CONFIG_SECONDS),
            ("expiry", self.expiry_round, EXPIRY_SECONDS),
            ("verification", self.verify_round, 60.0),
        ]

    def _loop(self, name: str, body: Callable[[], float], retry_seconds: float) -> None:
        while not self._stop.is_set():
            pause = self._round(name, body)
            self._stop.wait(retry_seconds if pause is None else pause)

    def _round(self, name: str, body: Callable[[], float]) -> float | None:
        """Do one round and note how it ended; None when it failed."""
        try:
            pause = body()
        except Exception as error:
            if self._stop.is_set():
                return None
            known = isinstance(error, (TurkuError, OSError))
            words = str(error) if known else repr(error)
            # The same again and again (the API is down) is said once; `usage` shows it all along.
            again = self._state.error(name) == words
            level = logging.DEBUG if again else logging.ERROR
            logger.log(level, "%s: %s", name, words, exc_info=None if known else error)
            self._note(name, words)
            self._is_only_late &= isinstance(error, TryAgainLater)
            return None
        self._note(name, "")
        return pause

    def _note(self, name: str, error: str) -> None:
        try:
            self._state.ended(name, error)
        except OSError as problem:
            logger.error("The worker's state can't be stored: %s", problem)

    def _end(self, threads: list[threading.Thread]) -> None:
        """Let the loops end; what they still run after a moment is ended, and begun again later."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            deadline = time.monotonic() + seconds
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                break
            kill_children(number)
        with contextlib.suppress(OSError):
            self._state.store()

    def run_once(self) -> int:
        """Do everything that is due now, and return the exit code.

        It is 75 when nothing is wrong but that the API can't be reached, and 1 also when a volume
        isn't there.
        """
        with _signals(self._stop), worker_lock(self._settings.paths.worker_lock):
            client = self._settings.make_client(API_SECONDS)
            self._known = read_known(self._settings.paths.known_machines)
            done = [
                self._round("config", lambda: self.config_round(client)),
                self._round("recover", self.recover_round),
                self._drain(),
                self._round_if_due("expiry", self.expiry_round, EXPIRY_SECONDS),
                self._round_if_due("verification", self.verify_round, 0.0),
                self._round("reports", lambda: self.report_round(client)),
            ]
            self._state.store()
        if any(job.error for job in self._queue.jobs()) or self._catalogue.volumes.problems():
            return FAILED
        if None not in done:
            return DONE
        return TRY_AGAIN_LATER if self._is_only_late else FAILED

    def _drain(self) -> float | None:
        pause: float | None = 0.0
        while pause == 0.0 and not self._stop.is_set():
            pause = self._round("commit 1", self.commit_round)
        return pause

    def _round_if_due(self, name: str, body: Callable[[], float], seconds: float) -> float | None:
        ended_at = self._state.loops.get(name, LoopState()).ended_at
        now = self._clock().timestamp()
        if self._stop.is_set() or (ended_at is not None and 0 <= now - ended_at < seconds):
            return 0.0
        return self._round(name, body)


def _key(record: Record) -> tuple[str, str, str]:
    return record.machine, record.source, record.id


def expiry_report(change: expiry.Change) -> Report:
    """Return what the API is to be told of one thing that expiry did."""
    record = change.record
    state = _state(record, change.state)
    return Report(record.machine, {record.source: SourceUpdate(None, (state,))})


def verification_report(record: Record) -> Report:
    """Return what the API is to be told of a snapshot that was verified."""
    return Report(record.machine, {record.source: SourceUpdate(None, (_state_of(record),))})


def release_report(folder: SourceFolder, records: Sequence[Record]) -> Report:
    """Return what the API is to be told when an operator has released a source's hold.

    The state of its newest snapshot is told along: an API that knows of no holds takes that alone.
    """
    update = SourceUpdate(None, tuple(map(_state_of, records[-1:])), hold_state(None))
    return Report(folder.machine, {folder.source: update})


def _state_of(record: Record) -> SnapshotState:
    state = "committed" if record.expired_at is None else "expired"
    return _state(record, state if record.damaged is None else "damaged")


def _state(record: Record, state: str) -> SnapshotState:
    """Return all that the API knows of a snapshot: what isn't said again is forgotten there."""
    return SnapshotState(
        record.id,
        state,
        proven_at=None if record.proven_at is None else record.proven_at.timestamp(),
        error=summary_text(record.damaged or record.unproven or "") or None,
    )


@contextlib.contextmanager
def worker_lock(path: Path) -> Iterator[None]:
    """Be the unit's only worker while the context lasts. The file is never removed.

    Raises:
        WorkerRuns: Another is.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkerRuns(
                "Another turku-storage-worker of this storage unit is at work; it does everything."
            ) from error
        yield
    finally:
        os.close(descriptor)


class _Asked:
    """Waits for a signal. Not on the event: a handler that sets it while this thread has its lock
    in hand would wait for itself.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self) -> None:
        """Return when a signal has come."""
        select.select([self._descriptor], [], [])


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[_Asked]:
    """Let SIGTERM, SIGINT and SIGHUP ask for a stop while the context lasts (main thread only)."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = {each: signal.signal(each, on_signal) for each in numbers}
    # The interpreter writes a byte for each signal, also one that comes just before the wait.
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield _Asked(read)
    finally:
        signal.set_wakeup_fd(former)
        for each, handler in previous.items():
            signal.signal(each, handler)
        os.close(read)
        os.close(write)

"""Commits: the worker's jobs, from a frozen state to a snapshot that the API knows of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from turku_core.errors import TurkuError
from turku_core.protocol.messages import BackupResult, HoldState, SourceUpdate
from turku_core.storage import holds, trouble
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.holds import Hold
from turku_core.storage.queue import ATTEMPTS_MAX, Claim, Job, Queue
from turku_core.storage.records import Record
from turku_core.storage.reports import Report, Spool, summary_text
from turku_core.storage.snapshots import Environment, FrozenStateLost, commit, get_mode
from turku_core.storage.source_folder import SourceBusy, SourceFolder

logger = logging.getLogger(__name__)

_BUSY_PAUSE = timedelta(seconds=15)


class NoFolder(TurkuError):
    """The source of a job isn't on any mounted volume."""


def do_job(
    claim: Claim,
    catalogue: Catalogue,
    environment: Environment,
    spool: Spool,
    clock: Callable[[], datetime],
    stopping: Callable[[], bool] = lambda: False,
) -> Record | None:
    """Commit what a job names and report it; keep the job for another try when that fails.

    Everything may be done twice: the snapshot, which `commit` then finds made, and the report,
    which the API takes again.

    Returns:
        The record of the snapshot, or None when there is none (yet).
    """
    job = claim.job
    try:
        record, hold = _commit(job, catalogue, environment)
    except SourceBusy:
        claim.put_back(replace(job, not_before=clock() + _BUSY_PAUSE))
        return None
    except FrozenStateLost as error:
        _report_failure(job, error.pending.record.taken_at, str(error), spool, clock())
        claim.done()
        return None
    except Exception as error:
        if stopping():
            # What failed was killed by the stop itself: the job is begun again next time.
            return None
        _fail(claim, error, catalogue, environment, spool, clock())
        return None
    if record is not None:
        spool.add(make_report(record, hold), clock())
    claim.done()
    return record


def _commit(
    job: Job, catalogue: Catalogue, environment: Environment
) -> tuple[Record | None, Hold | None]:
    folder = _find(job, catalogue)
    pending = folder.pending()
    record = None
    if pending is not None and pending.record.id == job.snapshot:
        with trouble.noticed(environment.state_folder, folder.volume.name):
            record = commit(catalogue, folder, environment)
    if record is None:
        # Made before a crash that came between the snapshot and its report. What was frozen
        # since has a job of its own.
        records, _ = catalogue.records(folder)
        record = next((each for each in records if each.id == job.snapshot), None)
    return record, holds.find([folder])


def _find(job: Job, catalogue: Catalogue) -> SourceFolder:
    folders = catalogue.folders(job.machine, job.source)
    if not folders:
        problems = " ".join(catalogue.volumes.problems())
        raise NoFolder(
            f"The source {job.source} of machine {job.machine} is on no mounted volume. {problems}"
        )
    return next((each for each in folders if each.pending() is not None), folders[0])


def make_report(record: Record, hold: Hold | None) -> Report:
    """Return the report of a committed snapshot; it says as well whether its source is held."""
    result = BackupResult(
        success=True,
        time_begin=record.taken_at.timestamp(),
        time_end=record.time_end.timestamp(),
        snapshot=record.id,
        summary=summary_text(record.summary),
        partial=record.partial,
        bytes_stored=record.bytes_stored,
        bytes_total=record.bytes_total,
        files_total=record.files_total,
    )
    update = SourceUpdate(result, hold=hold_state(hold))
    return Report(record.machine, {record.source: update})


def hold_state(hold: Hold | None) -> HoldState:
    """Return what the API is told of a source's hold, or of that there is none."""
    if hold is None:
        return HoldState(held=False)
    return HoldState(
        held=True,
        since=hold.since.timestamp(),
        snapshot=hold.snapshot or None,
        reason=hold.reason,
        share=hold.share,
    )


def _fail(
    claim: Claim,
    error: Exception,
    catalogue: Catalogue,
    environment: Environment,
    spool: Spool,
    now: datetime,
) -> None:
    """Put a failed job back for another try or, after the last, give its frozen state up."""
    words = str(error) if isinstance(error, (TurkuError, OSError)) else repr(error)
    job = claim.job.failed(summary_text(words), now)
    unexpected = not isinstance(error, (TurkuError, OSError))
    if job.attempts < ATTEMPTS_MAX:
        logger.error(
            "machine %s source %s: snapshot %s could not be made (try %d of %d): %s",
            job.machine, job.source, job.snapshot, job.attempts, ATTEMPTS_MAX, words,
            exc_info=error if unexpected else None,
        )  # fmt: skip
        claim.put_back(job)
        return
    taken_at = job.queued_at
    try:
        taken_at = _release(_find(job, catalogue), environment) or taken_at
    except (TurkuError, OSError) as release_error:
        logger.error(
            "machine %s source %s: its mirror could not be released: %s",
            job.machine, job.source, release_error,
        )  # fmt: skip
        claim.put_back(job)
        return
    message = f"Given up after {job.attempts} tries: {words}"
    logger.error("machine %s source %s: %s", job.machine, job.source, message)
    _report_failure(job, taken_at, message, spool, now)
    claim.done()


def _release(folder: SourceFolder, environment: Environment) -> datetime | None:
    """Give up a frozen state, so that the next session may pull; return when it was taken."""
    with folder.lock(wait_seconds=5):
        pending = folder.pending()
        if pending is None:
            return None
        get_mode(pending.record.mode, environment).discard(folder, pending)
        folder.clear_pending()
        return pending.record.taken_at


def _report_failure(job: Job, began: datetime, message: str, spool: Spool, now: datetime) -> None:
    result = BackupResult(
        success=False,
        time_begin=began.timestamp(),
        time_end=now.timestamp(),
        summary=summary_text(message),
    )
    spool.add(Report(job.machine, {job.source: SourceUpdate(result)}), now)


def recover_jobs(catalogue: Catalogue, queue: Queue, now: datetime) -> int:
    """Queue a job for every frozen state that has none; return how many.

    A session may have been killed between the two, and a queue may be lost.
    """
    queued = {(job.machine, job.source) for job in queue.jobs()}
    count = 0
    for folder in catalogue.pending():
        pending = folder.pending()
        if pending is not None and (folder.machine, folder.source) not in queued:
            queue.add(Job(folder.machine, folder.source, pending.record.id, queued_at=now))
            count += 1
    return count

"""The worker's queue: jobs as files, which outlive any crash.

A job is claimed by a lock on its file (flock(2)), so a claim ends with the process that holds it,
however that ends, and the job is done again. A job is therefore something that may be done twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from turku_core import fields
from turku_core.checked_json import dumps, read_json
from turku_core.configuration import ensure_private_folder, sync_folder, write_durably

logger = logging.getLogger(__name__)

ATTEMPTS_MAX = 12
"""With the pauses below, a job is given up after about eight hours."""

_PAUSE_FIRST = timedelta(minutes=5)
_PAUSE_MAX = timedelta(hours=1)


@dataclass(frozen=True)
class Job:
    """The commit of one source's frozen state.

    Attributes:
        machine, source: Whose state it is; everything else lies with the state itself.
        snapshot: The id that the snapshot will have.
        queued_at: When the job was made.
        attempts: How often it has failed.
        not_before: When it may be tried next.
        error: Why it failed last.
    """

    machine: str
    source: str
    snapshot: str
    queued_at: datetime
    attempts: int = 0
    not_before: datetime | None = None
    error: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the job as it is stored."""
        return {
            "machine": self.machine,
            "source": self.source,
            "snapshot": self.snapshot,
            "queued_at": self.queued_at.isoformat(),
            "attempts": self.attempts,
            "not_before": None if self.not_before is None else self.not_before.isoformat(),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, value: object) -> Job:
        """Check and return a stored job. Raises FieldError."""
        values = fields.mapping(value, "job")
        not_before = values.get("not_before")
        return cls(
            machine=fields.uuid(fields.required(values, "machine"), "machine"),
            source=fields.name(fields.required(values, "source"), "source"),
            snapshot=fields.snapshot_id(fields.required(values, "snapshot"), "snapshot"),
            queued_at=_time(fields.required(values, "queued_at"), "queued_at"),
            attempts=fields.optional(values, "attempts", fields.integer, 0),
            not_before=None if not_before is None else _time(not_before, "not_before"),
            error=fields.optional(values, "error", fields.long_text, ""),
        )

    def failed(self, error: str, now: datetime) -> Job:
        """Return the job as it is to be tried again: after 5 minutes, doubling up to an hour."""
        pause = min(_PAUSE_FIRST * 2 ** min(self.attempts, 10), _PAUSE_MAX)
        return replace(self, attempts=self.attempts + 1, not_before=now + pause, error=error)

    def due(self, now: datetime) -> bool:
        """Say whether the job may be tried now. A clock set back never holds it for longer."""
        if self.not_before is None:
            return True
        return now >= self.not_before or self.not_before - now > _PAUSE_MAX


def _time(value: object, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(fields.text(value, where))
    except ValueError as error:
        raise fields.FieldError(where, "must be a time in ISO 8601") from error
    if moment.tzinfo is None:
        raise fields.FieldError(where, "must be a time with its zone")
    return moment


class Claim:
    """A job that this process has taken and nobody else can."""

    def __init__(self, path: Path, job: Job) -> None:
        self._path = path
        self.job = job

    def done(self) -> None:
        """Take the job off the queue for good."""
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)

    def put_back(self, job: Job) -> None:
        """Store the job anew, for another try."""
        _write(self._path, job)


class Queue:
    """The jobs in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, job: Job) -> None:
        """Store a job durably.

        A second one for the same source does no harm: it finds nothing left to commit. Leaving it
        out because the first is there would, when that is being finished at this moment.
        """
        ensure_private_folder(self._folder)
        stamp = job.queued_at.strftime("%Y%m%dT%H%M%S%f")
        _write(self._folder / f"{stamp}-{secrets.token_hex(4)}.json", job)

    def jobs(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        found = []
        for path in self._paths():
            with contextlib.suppress(FileNotFoundError):
                job = _read(path)
                if job is not None:
                    found.append(job)
        return found

    @contextlib.contextmanager
    def claim(self, now: datetime) -> Iterator[Claim | None]:
        """Take the oldest job that is due and free, for as long as the context lasts; or None.

        A job that is neither done nor put back when the context ends is free again.
        """
        for path in self._paths():
            with _locked(path) as is_ours:
                job = _read(path) if is_ours else None
                if job is not None and job.due(now):
                    yield Claim(path, job)
                    return
        yield None

    def _paths(self) -> list[Path]:
        try:
            return sorted(
                path
                for path in self._folder.iterdir()
                if path.suffix == ".json" and not path.name.startswith(".")
            )
        except FileNotFoundError:
            return []


def _write(path: Path, job: Job) -> None:
    write_durably(path, dumps(job.to_json()))


def _read(path: Path) -> Job | None:
    """Read a job; one that can't be read is set aside, so that it never stops the others.

    Nothing is lost with it: a frozen state whose job is gone gets a new one when the worker
    begins (`Catalogue.pending`).
    """
    try:
        return Job.from_json(read_json(path))
    except ValueError as error:
        aside = path.with_suffix(".broken")
        logger.error("The job %s is broken (%s) and is set aside as %s.", path, error, aside)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to lock the file, and say whether it is ours and still the one of this name.

    The lock is not waited for. A job that was stored anew or done in the meantime is another
    file, or none: a lock on the old one means nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(descriptor), path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        yield mine
    finally:
        os.close(descriptor)

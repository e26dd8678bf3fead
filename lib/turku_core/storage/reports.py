"""Reports to the API: kept in a spool until the API has them, so that none is ever lost.

The API takes the same report twice without harm, so a report that it may or may not have got is
sent again. Reports of one source arrive in the order in which they were made.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from turku_core import fields
from turku_core.checked_json import dumps, read_json
from turku_core.configuration import ensure_private_folder, sync_folder, write_durably
from turku_core.protocol.client import ApiInvalid, ApiNotFound, ApiRefused, ApiUnreachable, Client
from turku_core.protocol.messages import SourceUpdate, StorageLogin, source_updates_from_json

logger = logging.getLogger(__name__)

CALL = "storage_ping_source_update"
SUMMARY_CHARACTERS_MAX = 20_000
REFUSED_FOLDER = "refused"
REFUSED_MAX = 1000
"""Refused reports are kept for an operator to read, the newest so many."""


@dataclass(frozen=True)
class Report:
    """What is to be told of some sources of one machine."""

    machine: str
    sources: Mapping[str, SourceUpdate]

    def to_json(self) -> dict[str, object]:
        """Return the report as it is stored and, inside a request, sent."""
        return {
            "uuid": self.machine,
            "sources": {name: update.to_json() for name, update in self.sources.items()},
        }

    @classmethod
    def from_json(cls, value: object) -> Report:
        """Check and return a stored report. Raises FieldError."""
        values = fields.mapping(value, "report")
        return cls(
            fields.uuid(fields.required(values, "uuid"), "uuid"),
            source_updates_from_json(fields.required(values, "sources"), "sources"),
        )


@dataclass(frozen=True)
class Flushed:
    """How a flush ended: reports sent, refused by the API, and left for the next flush."""

    sent: int = 0
    refused: int = 0
    left: int = 0
    error: str = ""


class Spool:
    """The reports in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, report: Report, now: datetime) -> None:
        """Store a report durably; it is sent by the next `flush`."""
        ensure_private_folder(self._folder)
        name = f"{_next_number(self._folder):020d}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json"
        write_durably(self._folder / name, dumps(report.to_json()))

    def waiting(self) -> int:
        """Return how many reports the API doesn't have yet."""
        return len(self._paths())

    def refused(self) -> int:
        """Return how many reports the API has not accepted, and an operator not removed."""
        return len(_numbered(self._folder / REFUSED_FOLDER))

    def flush(
        self,
        client: Client,
        login: StorageLogin,
        clock: Callable[[], datetime],
        stopping: Callable[[], bool] = lambda: False,
    ) -> Flushed:
        """Send what waits, the oldest first, until the API can't be reached.

        A report that the API doesn't accept is set aside with a log line and stops nothing. Only
        one process flushes at a time; another finds nothing to do.
        """
        sent = refused = 0
        with self._alone() as alone:
            if not alone:
                return Flushed(left=self.waiting())
            for path in self._paths():
                if stopping():
                    break
                try:
                    if self._send(path, client, login, clock):
                        sent += 1
                    else:
                        refused += 1
                except ApiUnreachable as error:
                    return Flushed(sent, refused, self.waiting(), str(error))
        return Flushed(sent, refused, self.waiting())

    def _send(
        self, path: Path, client: Client, login: StorageLogin, clock: Callable[[], datetime]
    ) -> bool:
        try:
            report = Report.from_json(read_json(path))
        except ValueError as error:
            self._set_aside(path, f"it is broken: {error}")
            return False
        try:
            client.call(CALL, make_request(report, login, clock()))
        except (ApiInvalid, ApiNotFound, ApiRefused) as error:
            self._set_aside(path, f"machine {report.machine}: {error}")
            return False
        path.unlink()
        sync_folder(self._folder)
        return True

    def _set_aside(self, path: Path, reason: str) -> None:
        folder = self._folder / REFUSED_FOLDER
        ensure_private_folder(folder)
        logger.error("The report %s is set aside in %s: %s", path.name, folder, reason)
        path.rename(folder / path.name)
        for old in sorted(folder.iterdir())[:-REFUSED_MAX]:
            old.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _paths(self) -> list[Path]:
        return _numbered(self._folder)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the spool's lock; its file is never removed."""
        ensure_private_folder(self._folder)
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def make_request(report: Report, login: StorageLogin, now: datetime) -> dict[str, object]:
    """Return the body of the call.

    It says what our clock shows, since the API counts by its own and the report has ours.
    """
    return {
        "storage": {"name": login.name, "secret": login.secret, "time": now.timestamp()},
        "machine": report.to_json(),
    }


def summary_text(message: str) -> str:
    """Return a message as the protocol's `summary` may have it: printable, and not endless."""
    shown = "".join(
        each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in message
    )
    return shown[:SUMMARY_CHARACTERS_MAX]


def _numbered(folder: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix == ".json" and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []


def _next_number(folder: Path) -> int:
    """Return a number after those in the folder.

    Not the clock: reports of one source keep their order when it is set back. Two processes may
    get the same number, but never for the same source, which its lock keeps to one of them.
    """
    paths = _numbered(folder)
    return int(paths[-1].name.split("-", 1)[0]) + 1 if paths else 1

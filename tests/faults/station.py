"""A storage unit's real parts in one process, with what it has reported and what it must give back.

What a session and the worker do is done here step by step, so that a fault can strike at each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.snapshots.support import DAY, MACHINE, START, Unit
from tests.support.trees import Entry, describe_tree, differences
from turku_core.checked_json import read_json
from turku_core.errors import TurkuError
from turku_core.storage import (
    catalogue,
    expiry,
    manifest,
    programs,
    restore,
    source_folder,
    trouble,
    verification,
)
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.commits import do_job, recover_jobs
from turku_core.storage.mirror import Daemon
from turku_core.storage.queue import Job, Queue
from turku_core.storage.records import Record
from turku_core.storage.reports import Report, Spool
from turku_core.storage.snapshots import Environment
from turku_core.storage.volumes import Volume, Volumes
from turku_core.storage.worker import expiry_report

logger = logging.getLogger(__name__)

RETENTION = "last 1 snapshots"
LATER = timedelta(hours=12)
"""After this every pause between two tries is over."""


class Steps:
    """Strikes at one of the steps that leave something on the disk, before or after it.

    Args:
        fatal: Which one, from 1.
        strike: What to do then.
    """

    def __init__(self, fatal: int, strike: Callable[[], object]) -> None:
        self.fatal = fatal
        self.count = 0
        self._strike = strike

    @property
    def has_struck(self) -> bool:
        """Whether there were as many steps."""
        return self.count >= self.fatal

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Count the calls that change something on the disk as two steps each."""
        for module in (catalogue, source_folder, manifest):
            self._watch(patch, module, "write_durably")
        for name in ("run", "sync_file_system", "remove_tree"):
            self._watch(patch, programs, name)
        for name in ("rename", "unlink"):
            self._watch(patch, Path, name)

    def _watch(self, patch: pytest.MonkeyPatch, holder: Any, name: str) -> None:
        function = getattr(holder, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self._step()
            result = function(*arguments, **keywords)
            self._step()
            return result

        patch.setattr(holder, name, watched)

    def _step(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            self._strike()


@dataclass
class Station:
    """A storage unit with one volume.

    Attributes:
        volume: Where it keeps the backups.
        state: Where it keeps everything else.
        trees: What each snapshot must give back, by its id.
    """

    volume: Path
    state: Path
    trees: dict[str, dict[bytes, Entry]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.volume.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        one = Volume("one", self.volume, high_water_pct=101.0)
        self.unit = Unit(
            Catalogue(Volumes([one], self.state), self.state), Environment(self.state), one
        )
        self.queue = Queue(self.state / "queue")
        self.spool = Spool(self.state / "reports")

    def back_up(
        self,
        daemon: Daemon,
        mode: str,
        at: datetime,
        *,
        machine: str = MACHINE,
        source: str = "docs",
    ) -> None:
        """Do what a session does, and then the worker."""
        self.freeze(daemon, mode, at, machine=machine, source=source)
        self.work(at)

    def freeze(
        self,
        daemon: Daemon,
        mode: str,
        at: datetime,
        *,
        machine: str = MACHINE,
        source: str = "docs",
    ) -> None:
        """Do what a session does, which leaves the commit to the worker."""
        with trouble.noticed(self.state, "one"):
            _, received = self.unit.receive(
                daemon, mode, at=at, machine=machine, source=source, retention=RETENTION
            )
            if not received.usable:
                raise TurkuError(received.message)
        self.queue.add(Job(machine, source, id_of(at), queued_at=at))

    def work(self, now: datetime) -> None:
        """Do all jobs that are due, as the worker does."""
        recover_jobs(self.unit.catalogue, self.queue, now)
        while True:
            with self.queue.claim(now) as claim:
                if claim is None:
                    return
                do_job(claim, self.unit.catalogue, self.unit.environment, self.spool, lambda: now)

    def expire(self, now: datetime, *, trust_clock: bool = True) -> expiry.ExpiryReport:
        """Expire, as the worker does; it doesn't take the clock's word for it."""
        return expiry.run(
            self.unit.catalogue,
            self.unit.environment,
            now,
            default_retention=RETENTION,
            trust_clock=trust_clock,
            tell=lambda change: self.spool.add(expiry_report(change), now),
        )

    def verify(self, now: datetime) -> dict[str, str | None]:
        """Verify every snapshot, as the worker does; return what is damaged by its id."""
        verdicts = {}
        for folder, record in self.unit.catalogue.listing().records:
            try:
                verdict = verification.verify(
                    self.unit.catalogue, folder, record, self.unit.environment, now
                )
            except (TurkuError, OSError) as error:
                logger.error("%s", error)  # as a round of the worker does, and goes on
                continue
            if record.machine == MACHINE:
                verdicts[record.id] = verdict.damaged
        return verdicts

    def records(self) -> list[Record]:
        """Return what is listed of the machine, the oldest first."""
        return [record for _, record in self.unit.catalogue.listing(MACHINE).records]

    def restore_of(self, machine: str, snapshot: str, target: Path) -> restore.Restored:
        """Restore a snapshot of any machine to a local folder."""
        chosen = restore.choose_snapshot(self.unit.catalogue, machine, "docs", snapshot)
        return restore.restore_to_folder(chosen, target, self.unit.environment)

    def reported(self) -> set[str]:
        """Return the ids that were reported to the API as committed, and not as removed since."""
        found = set()
        for path in sorted((self.state / "reports").glob("*.json")):
            try:
                report = Report.from_json(read_json(path))
            except ValueError:
                continue  # it was damaged by a test; the API never hears of it
            for update in report.sources.values():
                if update.result is not None and update.result.success:
                    assert update.result.snapshot is not None
                    found.add(update.result.snapshot)
                found -= {each.name for each in update.snapshots if each.state == "removed"}
        return found

    def wrong(self, target: Path) -> list[str]:
        """Restore everything that is listed; return what isn't as it was, a line each."""
        lines = []
        for record in self.records():
            lines += self.wrong_in(record.id, target)
        return lines

    def wrong_in(self, snapshot: str, target: Path) -> list[str]:
        """Restore one snapshot; return what isn't as it was, a line each."""
        shutil.rmtree(target, ignore_errors=True)
        restored = self.unit.restore(snapshot, target)
        lines = [] if restored.ok else [f"{snapshot}: {restored.message}"]
        found = describe_tree(target)
        lines += [f"{snapshot}: {line}" for line in differences(self.trees[snapshot], found)]
        shutil.rmtree(target, ignore_errors=True)
        return lines


def id_of(at: datetime) -> str:
    """Return the id of a snapshot that was taken then."""
    return at.strftime("%Y%m%dT%H%M%SZ")


def day(number: int) -> datetime:
    """Return the time of the backup of a day, from 0."""
    return START + number * DAY


def change_tree(source: Path, dice: random.Random, number: int) -> dict[bytes, Entry]:
    """Make the tree of a day, which shares much with that of the day before; describe it."""
    (source / "folder").mkdir(exist_ok=True)
    for name in ("same", "folder/same too"):
        if not (source / name).exists():
            (source / name).write_bytes(dice.randbytes(30_000))
            os.link(source / name, source / f"{name} linked")
    for old in source.glob("only of day *"):
        old.unlink()
    (source / f"only of day {number}").write_bytes(dice.randbytes(20_000))
    (source / "folder" / "changing").write_bytes(dice.randbytes(50_000 + number))
    link = source / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(f"only of day {number}")
    return describe_tree(source)


@contextlib.contextmanager
def patched() -> Iterator[pytest.MonkeyPatch]:
    """Give a patch that ends with the context."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch

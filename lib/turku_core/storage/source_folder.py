"""Where one source of a machine lies on a volume: its folders, files and locks, in both layouts."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from turku_core import fields
from turku_core.checked_json import dumps, read_json
from turku_core.configuration import ensure_private_folder, sync_folder, write_durably
from turku_core.errors import TryAgainLater
from turku_core.storage import programs
from turku_core.storage.records import Pending, Record, SourceState, from_json, to_json
from turku_core.storage.volumes import Volume

logger = logging.getLogger(__name__)

MIRROR = "mirror"
"""The name under which a bare mirror can be restored."""

MANIFEST_SUFFIX = ".manifest.gz"

_LOCK_PAUSE_SECONDS = 0.1


class SourceBusy(TryAgainLater):
    """Another process is at work on this source."""


class Readable(Enum):
    """What of a source is read during a restore or a check, and must stay as it is."""

    SNAPSHOTS = "snapshots"
    MIRROR = "mirror"


@dataclass(frozen=True)
class SourceFolder:
    """Where one source of a machine lies on a volume, in the new layout or the old one."""

    volume: Volume
    machine: str
    source: str
    old_layout: bool = False

    @property
    def machine_path(self) -> Path:
        """The folder of the machine on this volume."""
        base = self.volume.path if self.old_layout else self.volume.path / "machines"
        return base / self.machine

    @property
    def path(self) -> Path:
        """The folder of the source (in the old layout: of the machine)."""
        return self.machine_path if self.old_layout else self.machine_path / self.source

    @property
    def mirror(self) -> Path:
        """The newest synchronised copy; with link-dest only while a pull goes on."""
        return self.path / (self.source if self.old_layout else MIRROR)

    @property
    def snapshots(self) -> Path:
        """The folder of the records, and of the trees of the tree modes."""
        return self.path / (f"{self.source}.snapshots" if self.old_layout else "snapshots")

    @property
    def repository(self) -> Path:
        """The borg repository of the machine on this volume."""
        return self.machine_path / ".borg"

    def tree(self, snapshot: str) -> Path:
        """The folder of one snapshot's tree, for the tree modes."""
        return self.snapshots / snapshot

    def manifest(self, snapshot: str) -> Path:
        """The checksums of one snapshot's files, taken when it was made."""
        return self.snapshots / f"{snapshot}{MANIFEST_SUFFIX}"

    @property
    def changes(self) -> Path:
        """What is remembered of how much changes between snapshots, and the source's hold."""
        return self._file("changes.json")

    @property
    def pull_log(self) -> Path:
        """What pulls have changed in a mirror since its last snapshot."""
        return self._file("pulled.log")

    @property
    def scratch(self) -> Path:
        """The folder for what lives only as long as a restore or a drill."""
        return self.snapshots if self.old_layout else self.path

    @property
    def label(self) -> str:
        """The machine and the source, for messages."""
        return f"{self.machine} {self.source}"

    def create(self) -> None:
        """Make the folders, private to the storage unit's user."""
        for folder in (self.volume.path / "machines", self.machine_path, self.path, self.snapshots):
            ensure_private_folder(folder)

    def state(self) -> SourceState:
        """Read the state; a missing or broken one is logged and read as empty."""
        try:
            return SourceState(**from_json(SourceState, read_json(self._file("source.json"))))
        except FileNotFoundError:
            return SourceState()
        except (OSError, ValueError) as error:
            logger.error("%s: its state can't be read: %s", self.label, error)
            return SourceState()

    def write_state(self, state: SourceState) -> None:
        """Write the state durably, unless it is there already."""
        if self.state() != state:
            write_durably(self._file("source.json"), dumps(to_json(state)))

    def pending(self) -> Pending | None:
        """Return the commit that waits for the worker, if there is one.

        A file that can't be read says nothing that could be committed: it is set aside.
        """
        file = self._file("pending.json")
        try:
            values = read_json(file)
            record = Record.from_json(fields.mapping(values.get("record"), "record"))
            boot_id = fields.text(values.get("boot_id"), "boot_id")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.error("%s: its pending commit can't be read: %s", self.label, error)
            with suppress(OSError):
                file.rename(file.with_name("pending.json.broken"))
            return None
        return Pending(
            dataclasses.replace(record, machine=self.machine, source=self.source), boot_id
        )

    def write_pending(self, pending: Pending) -> None:
        """Write the pending commit durably."""
        values = {"record": pending.record.to_json(), "boot_id": pending.boot_id}
        write_durably(self._file("pending.json"), dumps(values))

    def clear_pending(self) -> None:
        """Remove the pending commit durably."""
        with suppress(FileNotFoundError):
            self._file("pending.json").unlink()
            sync_folder(self.path)

    @contextmanager
    def lock(self, *, wait_seconds: float = 0.0) -> Iterator[int]:
        """Hold the source's lock; it goes with the process. Raises SourceBusy.

        A session holds it from prepare to freeze, the worker during commit, expiry (of one
        snapshot at a time) and sweeping. Yields the lock's descriptor, for programs that must not
        outlive it.
        """
        busy = f"Source {self.source!r} of machine {self.machine} is at work already; try later."
        with _flocked(self._file("lock"), fcntl.LOCK_EX, wait_seconds, busy) as descriptor:
            yield descriptor

    @contextmanager
    def reading(self, what: Readable) -> Iterator[None]:
        """Hold off removal of snapshots, or changes to the mirror, beside other readers."""
        busy = (
            f"Source {self.source!r} of machine {self.machine}: its {what.value} change; try later."
        )
        with _flocked(self._file(f"reading-{what.value}"), fcntl.LOCK_SH, 60.0, busy):
            yield

    @contextmanager
    def unread(self, what: Readable) -> Iterator[None]:
        """Make sure that nobody restores from there. Raises SourceBusy when somebody does."""
        busy = (
            f"Source {self.source!r} of machine {self.machine} is being restored from; try later."
        )
        with _flocked(self._file(f"reading-{what.value}"), fcntl.LOCK_EX, 0.0, busy):
            yield

    @contextmanager
    def machine_lock(self, *, wait_seconds: float, shared: bool = False) -> Iterator[int]:
        """Hold the lock on the machine's repository on this volume; `shared` is for reading.

        Commits of the machine's sources so take turns. Yields the lock's descriptor.
        """
        busy = f"Machine {self.machine}: its repository is in use; try later."
        file = self.machine_path / ".lock"
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with _flocked(file, kind, wait_seconds, busy) as descriptor:
            yield descriptor

    def new_id(self, taken_at: datetime) -> str:
        """Return the id of a snapshot taken then, with -2, -3... where one is there already."""
        stem = taken_at.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        names = {name.split(".", 1)[0] for name in os.listdir(self.snapshots)}
        pending = self.pending()
        if pending is not None:
            names.add(pending.record.id)
        number = 1
        while (candidate := stem if number == 1 else f"{stem}-{number}") in names:
            number += 1
        return candidate

    def _file(self, name: str) -> Path:
        """Return the place of a file of ours; the old layout has no folder of the source."""
        return self.path / (f".{self.source}.{name}" if self.old_layout else name)


def _opened_lock(path: Path) -> tuple[int, bool]:
    """Open the file of a lock, or make it; say whether it was made.

    On a file system that has turned read-only nothing but restores is left to do: they lock the
    file as it is or, where there is none, its folder.
    """
    is_new = not path.exists()
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), is_new
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    return os.open(path.parent if is_new else path, os.O_RDONLY | os.O_CLOEXEC), False


@contextmanager
def _flocked(path: Path, kind: int, wait_seconds: float, busy: str) -> Iterator[int]:
    """Hold a lock on a file that is made but never removed: others may be waiting on it."""
    descriptor, is_new = _opened_lock(path)
    try:
        if is_new:
            programs.give(path, programs.owner_of(path.parent))
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    raise SourceBusy(busy) from None
            time.sleep(_LOCK_PAUSE_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)

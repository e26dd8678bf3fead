"""The catalogue: what snapshots there are, where they lie, and what is known of each.

A snapshot exists when its record `snapshots/<id>.json` does. Records are written durably, as the
last step of a commit. A record that is broken or lost doesn't make its snapshot invisible: it is
rebuilt from the snapshot's name, reported, and counted by retention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from turku_core.errors import TryAgainLater, TurkuError
from turku_core.storage.volumes import Volume, Volumes


class NoSuchSnapshot(TurkuError):
    """The snapshot (or source, or machine) that was asked for isn't there; says what is."""


class SourceBusy(TryAgainLater):
    """Another process is at work on this source."""


@dataclass(frozen=True)
class Record:
    """What is known of one committed snapshot; the content of `snapshots/<id>.json`.

    `taken_at` is when its session began, `time_end` when the mirror was frozen. `bytes_total` and
    `files_total` describe the tree, `bytes_stored` what the snapshot added to the volume.
    `partial` says that some files could not be read, with `summary` saying which. `damaged` is
    the reason why a verification failed, and None otherwise. `recovered` means that the record
    was lost and rebuilt. `removing` means that removal has begun: it is never listed.
    """

    machine: str
    source: str
    id: str
    taken_at: datetime
    time_end: datetime
    mode: str
    partial: bool = False
    summary: str = ""
    path: str | None = None
    retention: str | None = None
    files_total: int | None = None
    bytes_total: int | None = None
    bytes_stored: int | None = None
    archive: str | None = None
    expired_at: datetime | None = None
    proven_at: datetime | None = None
    checked_at: datetime | None = None
    damaged: str | None = None
    recovered: bool = False
    removing: bool = False

    @property
    def good(self) -> bool:
        """Whole and, as far as is known, undamaged."""
        return not self.partial and self.damaged is None and not self.removing

    def to_json(self) -> dict[str, object]:
        """Return the record as JSON values; times are ISO 8601 in UTC."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Record:
        """Check and return a record. Raises ValueError, which names the field."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pending:
    """A frozen state of a source that isn't committed yet; the content of `pending.json`.

    It is written durably when the mirror is frozen, and removed after the record is written: where
    it exists the commit is begun again after a crash. The fields are those of the Record to be.
    """

    record: Record
    boot_id: str


@dataclass(frozen=True)
class SourceState:
    """What the storage unit last heard of a source; kept in `source.json` in its folder.

    With it expiry and verification work without the API. `mirror_id` is the id of the snapshot
    that `mirror/` still equals, or None once a pull has begun to change it.
    """

    path: str | None = None
    retention: str | None = None
    mode: str | None = None
    last_session_at: datetime | None = None
    mirror_id: str | None = None
    mirror_taken_at: datetime | None = None


@dataclass(frozen=True)
class SourceFolder:
    """Where one source of a machine lies on a volume, in the new layout or the old one."""

    volume: Volume
    machine: str
    source: str
    old_layout: bool = False

    @property
    def path(self) -> Path:
        """The folder of the source (in the old layout: of the machine)."""
        raise NotImplementedError

    @property
    def mirror(self) -> Path:
        """The newest synchronised copy; with link-dest only while a pull goes on."""
        raise NotImplementedError

    @property
    def snapshots(self) -> Path:
        """The folder of the records, and of the trees of the tree modes."""
        raise NotImplementedError

    @property
    def repository(self) -> Path:
        """The borg repository of the machine on this volume."""
        raise NotImplementedError

    def create(self) -> None:
        """Make the folders, private to the storage unit's user."""
        raise NotImplementedError

    def state(self) -> SourceState:
        """Read the state; a missing or broken one is logged and read as empty."""
        raise NotImplementedError

    def write_state(self, state: SourceState) -> None:
        """Write the state durably."""
        raise NotImplementedError

    def pending(self) -> Pending | None:
        """Return the commit that waits for the worker, if there is one."""
        raise NotImplementedError

    @contextmanager
    def lock(self, *, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the source's lock; it goes with the process. Raises SourceBusy.

        A session holds it from prepare to freeze, the worker during commit, expiry (of one
        snapshot at a time) and sweeping.
        """
        raise NotImplementedError
        yield

    def new_id(self, taken_at: datetime) -> str:
        """Return the id of a snapshot taken then, with -2, -3... where one is there already."""
        raise NotImplementedError


@dataclass(frozen=True)
class Listing:
    """Snapshots, oldest first, and a sentence for everything that is wrong with what lies there."""

    records: tuple[tuple[SourceFolder, Record], ...]
    problems: tuple[str, ...]


class Catalogue:
    """All snapshots on all volumes of a storage unit, in both layouts."""

    def __init__(self, volumes: Volumes, state_folder: Path) -> None:
        """Take the volumes; `state_folder` is `var/lib/turku-storage`."""
        self.volumes = volumes
        self.state_folder = state_folder

    def machines(self) -> list[str]:
        """Return the UUIDs of the machines that have folders on mounted volumes, sorted."""
        raise NotImplementedError

    def folders(self, machine: str | None = None, source: str | None = None) -> list[SourceFolder]:
        """Return the folders of all sources, or of one machine's, on mounted volumes."""
        raise NotImplementedError

    def open(self, machine: str, source: str) -> SourceFolder:
        """Return the folder where a source's next backup goes; it is made when there is none.

        A configured volume that isn't mounted and may hold the source is an error (the place is
        remembered in `places.json`), never a reason to start again elsewhere. Raises VolumeError,
        VolumeFull.
        """
        raise NotImplementedError

    def records(self, folder: SourceFolder) -> tuple[list[Record], list[str]]:
        """Return one source's records, oldest first (expired ones too), and problems."""
        raise NotImplementedError

    def listing(self, machine: str | None = None, source: str | None = None) -> Listing:
        """Return all snapshots, of a machine or of one of its sources."""
        raise NotImplementedError

    def write(self, folder: SourceFolder, record: Record) -> None:
        """Write a record durably."""
        raise NotImplementedError

    def pending(self) -> list[SourceFolder]:
        """Return the folders whose commit waits, so that a lost queue can be made again."""
        raise NotImplementedError

    def link(self, machine: str, readable: str | None) -> None:
        """Make the readable link to a machine's folder in `machines/`, or remove it (None).

        A name that isn't a plain file name, is or looks like a UUID, or is another machine's link
        already, gets the UUID's first eight digits appended or is refused with a log line.
        """
        raise NotImplementedError


Progress = Callable[[str, int, float | None], None]

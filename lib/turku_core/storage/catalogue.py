"""The catalogue: what snapshots there are, where they lie, and what is known of each.

A snapshot exists when its record `snapshots/<id>.json` does. Records are written durably, as the
last step of a commit. A record that is broken or lost doesn't make its snapshot invisible: it is
rebuilt from the snapshot's name, reported, and counted by retention.

The old layout (`<volume>/<uuid>/<source>.snapshots/<name>/`, with `<name>.json` in later versions)
is read beside the new one. Its names are local times (`2015-02-20T03:21:18.152575`) or epoch
seconds (`1424392089.43`); a name with `save` in it was kept by an administrator; `latest` is a link
and `working` a half-made tree (get_snapshots_to_delete in the Turku of 2015).
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import os
import re
import time
import uuid as uuid_module
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.configuration import ensure_private_folder, sync_folder, write_durably
from turku_core.errors import TryAgainLater, TurkuError
from turku_core.storage import programs
from turku_core.storage.volumes import Volume, Volumes

logger = logging.getLogger(__name__)

MIRROR = "mirror"
"""The name under which a bare mirror can be restored."""

SNAPSHOT_ID = re.compile(r"(\d{8}T\d{6}Z)(?:-(\d+))?")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LOCK_PAUSE_SECONDS = 0.1
_RECORD_BYTES_MAX = 1024 * 1024


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
    the reason why a verification failed, and None otherwise. `previous_at` is when the snapshot
    before it was taken, which may be gone since: so an absence can be told from a history thinned
    by the policy. `recovered` means that the record was lost and rebuilt. `protected` ones (an
    administrator's, of the old layout) never expire. `removing` means that removal has begun: such
    a record is never listed.
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
    previous_at: datetime | None = None
    expired_at: datetime | None = None
    proven_at: datetime | None = None
    checked_at: datetime | None = None
    damaged: str | None = None
    recovered: bool = False
    protected: bool = False
    removing: bool = False

    @property
    def good(self) -> bool:
        """Whole and, as far as is known, undamaged."""
        return not self.partial and self.damaged is None and not self.removing

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; times are ISO 8601 in UTC."""
        return to_json(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """Check and return a record. Raises ValueError, which names the field."""
        return cls(**from_json(cls, values))


@dataclass(frozen=True)
class Pending:
    """A frozen state of a source that isn't committed yet; the content of `pending.json`.

    It is written durably when the mirror is frozen, and removed after the record is written: where
    it exists the commit is begun again after a crash. `boot_id` tells whether the mirror's data
    may have been lost in a power cut since.
    """

    record: Record
    boot_id: str


@dataclass(frozen=True)
class SourceState:
    """What the storage unit last heard of a source; kept in `source.json` in its folder.

    With it expiry and verification work without the API. `mirror_id` is the id of the snapshot
    that `mirror/` still equals, or None once a pull has begun to change it. `mirror_mode` is the
    mode that pulled into it last. `unsynced_boot_id` is the boot in which a pull wrote to the
    mirror that wasn't synced yet. `compared_at` is when the records were last compared with what
    the repository lists.
    """

    path: str | None = None
    retention: str | None = None
    mode: str | None = None
    last_session_at: datetime | None = None
    mirror_id: str | None = None
    mirror_taken_at: datetime | None = None
    mirror_mode: str | None = None
    unsynced_boot_id: str | None = None
    compared_at: datetime | None = None


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
        """The checksums of one snapshot's files, for the tree modes."""
        return self.snapshots / f"{snapshot}.manifest.gz"

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
            return SourceState(**from_json(SourceState, _read_json(self._file("source.json"))))
        except FileNotFoundError:
            return SourceState()
        except (OSError, ValueError) as error:
            logger.error("%s: its state can't be read: %s", self.label, error)
            return SourceState()

    def write_state(self, state: SourceState) -> None:
        """Write the state durably, unless it is there already."""
        if self.state() != state:
            write_durably(self._file("source.json"), _dumps(to_json(state)))

    def pending(self) -> Pending | None:
        """Return the commit that waits for the worker, if there is one.

        A file that can't be read says nothing that could be committed: it is set aside.
        """
        file = self._file("pending.json")
        try:
            values = _read_json(file)
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
        write_durably(self._file("pending.json"), _dumps(values))

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


class Condition(Enum):
    """What is to be thought of a record: only committed and lost (rebuilt) ones are listed.

    A withdrawn one was the mirror of mode none, which has been pulled to since.
    """

    COMMITTED = "committed"
    LOST = "lost"
    REMOVING = "removing"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Found:
    """A record as it was found on a volume; `problem` is a sentence for the operator."""

    record: Record
    condition: Condition
    problem: str | None = None


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
        return sorted({folder.machine for folder in self.folders()})

    def folders(self, machine: str | None = None, source: str | None = None) -> list[SourceFolder]:
        """Return the folders of all sources, or of one machine's, on mounted volumes."""
        return [
            folder
            for volume in self.volumes.mounted()
            for old_layout in (False, True)
            for folder in _folders_on(volume, old_layout, machine)
            if source is None or folder.source == source
        ]

    def open(self, machine: str, source: str) -> SourceFolder:
        """Return the folder where a source's next backup goes; it is made when there is none.

        The volume of each source is remembered under `places/`: a volume that isn't mounted is an
        error and never a reason to start again elsewhere. Raises VolumeError, VolumeFull.
        """
        machine = fields.uuid(machine, "machine")
        source = fields.name(source, "source")
        remembered = self._places(machine).get("sources", {}).get(source)
        if remembered is not None:
            folder = SourceFolder(self.volumes.get(remembered), machine, source)
        else:
            known = self.folders(machine)
            same = [each for each in known if each.source == source and not each.old_layout]
            volume = (
                same[0].volume if same else self.volumes.choose([each.volume for each in known])
            )
            folder = SourceFolder(volume, machine, source)
            self._remember(machine, source, volume)
        folder.create()
        return folder

    def records(self, folder: SourceFolder) -> tuple[list[Record], list[str]]:
        """Return one source's records, oldest first (expired ones too), and problems."""
        committed = (Condition.COMMITTED, Condition.LOST)
        found = self.scan(folder)
        records = [each.record for each in found if each.condition in committed]
        problems = [each.problem for each in found if each.problem is not None]
        return sorted(records, key=lambda record: (record.taken_at, record.id)), problems

    def scan(self, folder: SourceFolder) -> list[Found]:
        """Return everything that lies in one source's folder, in whatever condition."""
        pending = folder.pending()
        pending_id = pending.record.id if pending is not None else None
        mirror_id = folder.state().mirror_id
        found = [
            _read_record(folder, snapshot, mirror_id)
            for snapshot in sorted(_snapshot_ids(folder, _names(folder.snapshots)))
        ]
        return [
            each
            for each in found
            if each.condition is not Condition.LOST or each.record.id != pending_id
        ]

    def listing(self, machine: str | None = None, source: str | None = None) -> Listing:
        """Return all snapshots, of a machine or of one of its sources."""
        records: list[tuple[SourceFolder, Record]] = []
        problems = list(self.volumes.problems())
        for folder in self.folders(machine, source):
            found, wrong = self.records(folder)
            records += [(folder, record) for record in found]
            problems += wrong
        records.sort(key=lambda each: (each[1].machine, each[1].source, each[1].taken_at))
        return Listing(tuple(records), tuple(problems))

    def write(self, folder: SourceFolder, record: Record) -> None:
        """Write a record durably; what other versions have added to it stays."""
        file = folder.snapshots / f"{record.id}.json"
        others: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            others = _read_json(file)
        write_durably(file, _dumps({**others, **record.to_json()}))

    def forget(self, folder: SourceFolder, snapshot: str) -> None:
        """Remove a record, as the last step of a removal."""
        for file in (folder.manifest(snapshot), folder.snapshots / f"{snapshot}.json"):
            with suppress(FileNotFoundError):
                file.unlink()
        sync_folder(folder.snapshots)

    def pending(self) -> list[SourceFolder]:
        """Return the folders whose commit waits, so that a lost queue can be made again."""
        return [folder for folder in self.folders() if folder.pending() is not None]

    def link(self, machine: str, readable: str | None) -> None:
        """Make the readable link to a machine's folder in `machines/`, or remove it (None).

        The link of a machine whose name changed goes. A name that another machine has already
        gets the UUID's first eight digits appended.
        """
        machine = fields.uuid(machine, "machine")
        links = self.state_folder / "machines"
        places = self._places(machine)
        folders = self.folders(machine)
        target = os.fspath(folders[0].machine_path) if folders else None
        former = places.get("link")
        wanted: str | None = None
        if readable is not None and target is not None:
            ensure_private_folder(links)
            wanted = _free_link(links, file_name(readable), machine, target, former)
        if isinstance(former, str) and former != wanted and (links / former).is_symlink():
            (links / former).unlink()
        if wanted is not None and target is not None:
            _point(links / wanted, target)
        if former != wanted:
            self._write_places(machine, {**places, "link": wanted})

    def _places_file(self, machine: str) -> Path:
        return self.state_folder / "places" / f"{machine}.json"

    def _places(self, machine: str) -> dict[str, Any]:
        file = self._places_file(machine)
        try:
            values = _read_json(file)
            sources = fields.mapping(values.get("sources", {}), "sources")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise TurkuError(
                f"{file} can't be read ({error}), so it isn't known where machine {machine} lies; "
                "restore it, or remove it when every volume is mounted."
            ) from error
        return {**values, "sources": sources}

    def _remember(self, machine: str, source: str, volume: Volume) -> None:
        places = self._places(machine)
        sources = {**places.get("sources", {}), source: volume.name}
        self._write_places(machine, {**places, "sources": sources})

    def _write_places(self, machine: str, places: Mapping[str, Any]) -> None:
        file = self._places_file(machine)
        ensure_private_folder(file.parent)
        write_durably(file, _dumps(places))


def readable_name(environment: str | None, service: str | None, unit: str) -> str:
    """Return the readable name of a machine: `<environment>-<service>-<unit>`."""
    return "-".join(part for part in (environment, service, unit) if part)


def file_name(text: str) -> str:
    """Return a plain file name made of any text: no slash, no leading dot, never a UUID's form."""
    name = re.sub(r"[^A-Za-z0-9_.@+-]", "_", text)[:200].lstrip(".-") or "unnamed"
    return f"unit-{name}" if _UUID.fullmatch(name) else name


def time_of_id(snapshot: str) -> datetime | None:
    """Return the time that is in a snapshot's id, of either layout, or None."""
    found = SNAPSHOT_ID.fullmatch(snapshot)
    if found is not None:
        with suppress(ValueError):
            return datetime.strptime(f"{found[1]}+0000", "%Y%m%dT%H%M%SZ%z")
        return None
    if re.fullmatch(r"\d{9,11}(?:\.\d+)?", snapshot):
        return datetime.fromtimestamp(float(snapshot), timezone.utc)
    for form in ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S"):
        with suppress(ValueError):
            return datetime.strptime(snapshot, form).replace(tzinfo=timezone.utc)
    return None


def _folders_on(volume: Volume, old_layout: bool, machine: str | None) -> Iterator[SourceFolder]:
    base = volume.path if old_layout else volume.path / "machines"
    machines = [machine] if machine is not None else _names(base)
    for name in machines:
        # Only canonical UUIDs: nothing else that lies there is a machine's.
        if not _UUID.fullmatch(name) or name != name.lower():
            continue
        found = set()
        for entry in _names(base / name):
            source = entry
            if old_layout:
                if entry.endswith(".snapshots"):
                    source = entry.removesuffix(".snapshots")
                elif not (base / name / entry).is_dir():
                    continue
            elif not (base / name / entry / "snapshots").is_dir():
                continue
            with suppress(fields.FieldError):
                found.add(fields.name(source, "source"))
        for source in sorted(found):
            yield SourceFolder(volume, name, source, old_layout)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        logger.error("%s can't be read: %s", folder, error.strerror)
        return []


def _snapshot_ids(folder: SourceFolder, names: list[str]) -> set[str]:
    """Return what is a snapshot among the names in its folder: it has a record, or a tree."""
    found: set[str] = set()
    for name in names:
        if name.startswith((".", "_")):
            continue
        path = folder.snapshots / name
        if name.endswith(".json"):
            found.add(name.removesuffix(".json"))
        elif (folder.old_layout or SNAPSHOT_ID.fullmatch(name)) and (
            path.is_dir() and not path.is_symlink()
        ):
            found.add(name)
    found -= {"latest", "working"}
    return found


def _read_record(folder: SourceFolder, snapshot: str, mirror_id: str | None) -> Found:
    """Return a snapshot's record, its condition, and what is wrong with it."""
    try:
        values = _read_json(folder.snapshots / f"{snapshot}.json")
        record = _record_from(folder, snapshot, values)
    except FileNotFoundError:
        rebuilt = rebuilt_record(folder, snapshot)
        if folder.old_layout:
            return Found(rebuilt, Condition.COMMITTED)
        problem = f"{folder.label}: the record of snapshot {snapshot} is missing; it was rebuilt."
        return Found(rebuilt, Condition.LOST, problem)
    except (OSError, ValueError) as error:
        problem = f"{folder.snapshots / snapshot}.json is broken ({error}); it was rebuilt."
        return Found(rebuilt_record(folder, snapshot), Condition.LOST, problem)
    if record.removing:
        return Found(record, Condition.REMOVING)
    if record.mode == "none" and record.id != mirror_id:
        return Found(record, Condition.WITHDRAWN)
    if (
        record.mode in ("link-dest", "btrfs")
        and record.damaged is None
        and not folder.tree(snapshot).is_dir()
    ):
        problem = f"{folder.label}: the files of snapshot {snapshot} are gone."
        record = dataclasses.replace(record, damaged="Its files are gone.")
        return Found(record, Condition.COMMITTED, problem)
    return Found(record, Condition.COMMITTED)


def _record_from(folder: SourceFolder, snapshot: str, values: Mapping[str, Any]) -> Record:
    """Return a record as it was read; where it lies says whose it is."""
    place = {"machine": folder.machine, "source": folder.source, "id": snapshot}
    if not folder.old_layout:
        return Record.from_json({**values, **place})
    rebuilt = rebuilt_record(folder, snapshot).to_json()
    own = {key: value for key, value in values.items() if key in rebuilt and value is not None}
    with suppress(ValueError):
        return Record.from_json({**rebuilt, **own, **place})
    return Record.from_json(rebuilt)


def rebuilt_record(folder: SourceFolder, snapshot: str) -> Record:
    """Return a record made from what lies on the volume, when there is none that can be read.

    It isn't known whether such a snapshot is whole, so it counts as partial; one of the old
    layout never had more to tell.
    """
    taken_at = time_of_id(snapshot)
    tree = folder.tree(snapshot)
    state = folder.state()
    protected = folder.old_layout and (taken_at is None or "save" in snapshot)
    if taken_at is None:
        with suppress(OSError):
            taken_at = datetime.fromtimestamp(tree.stat().st_mtime, timezone.utc)
    mode = (state.mode or "borg") if folder.repository.is_dir() else "link-dest"
    if tree.is_dir():
        # The root of a btrfs subvolume always has this inode (btrfs-subvolume(8)).
        mode = "btrfs" if tree.stat().st_ino == 256 else "link-dest"
    record = Record(
        machine=folder.machine,
        source=folder.source,
        id=snapshot,
        taken_at=taken_at or datetime.fromtimestamp(0, timezone.utc),
        time_end=taken_at or datetime.fromtimestamp(0, timezone.utc),
        mode=mode,
        path=state.path,
        retention=state.retention,
        archive=f"{folder.source}-{snapshot}" if mode == "borg" else None,
        protected=protected,
    )
    if folder.old_layout:
        return record
    return dataclasses.replace(
        record,
        recovered=True,
        partial=True,
        summary="Its record was lost and rebuilt; whether it is whole isn't known.",
    )


def _free_link(links: Path, name: str, machine: str, target: str, former: object) -> str:
    """Return a name that is free, or this machine's own already."""
    for candidate in (name, f"{name}~{machine[:8]}", f"{name}~{machine}"):
        path = links / candidate
        if not os.path.lexists(path):
            return candidate
        if path.is_symlink() and (candidate == former or os.readlink(path) == target):
            return candidate
    raise TurkuError(f"{links}: there is no free name for the link to machine {machine}.")


def _point(link: Path, target: str) -> None:
    """Make a symbolic link point somewhere, in one step."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = link.with_name(f".{uuid_module.uuid4().hex}.tmp")
    temporary.symlink_to(target)
    temporary.rename(link)


@contextmanager
def _flocked(path: Path, kind: int, wait_seconds: float, busy: str) -> Iterator[int]:
    """Hold a lock on a file that is made but never removed: others may be waiting on it."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_RECORD_BYTES_MAX)
    return fields.mapping(json.loads(raw.decode("utf-8")), path.name)


def _dumps(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def to_json(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields as JSON values; times are ISO 8601 in UTC."""
    result = {}
    for each in dataclasses.fields(value):
        item = getattr(value, each.name)
        result[each.name] = (
            item.astimezone(timezone.utc).isoformat() if isinstance(item, datetime) else item
        )
    return result


def _time(value: object, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(fields.text(value, name))
    except ValueError as error:
        raise fields.FieldError(name, f"must be a time, not {fields.shown(value)}") from error
    if moment.tzinfo is None:
        raise fields.FieldError(name, f"must be a time with its zone, not {fields.shown(value)}")
    return moment


def _any_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise fields.FieldError(name, f"must be text, not {fields.shown(value)}")
    return value


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "str": _any_text,
    "bool": fields.boolean,
    "int": fields.integer,
    "float": fields.number,
    "datetime": _time,
}


def from_json(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a dataclass from JSON, by its fields' types. Raises FieldError."""
    result: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        value = values.get(each.name)
        type_name, _, rest = str(each.type).partition(" | ")
        if value is None and rest != "None":
            if each.default is dataclasses.MISSING:
                raise fields.FieldError(each.name, "is missing")
            continue
        result[each.name] = None if value is None else _CHECKS[type_name](value, each.name)
    return result

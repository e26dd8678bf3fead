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
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.checked_json import dumps, read_json
from turku_core.configuration import ensure_private_folder, sync_folder, write_durably
from turku_core.errors import TurkuError
from turku_core.storage.links import file_name, free_link, looks_like_uuid, point
from turku_core.storage.records import SNAPSHOT_ID, Record, time_of_id
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import Volume, Volumes

logger = logging.getLogger(__name__)


class NoSuchSnapshot(TurkuError):
    """The snapshot (or source, or machine) that was asked for isn't there; says what is."""


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

    def volumes_in_use(self) -> set[str]:
        """Return the names of the volumes on which sources have their place, mounted or not.

        Raises:
            TurkuError: A machine's places can't be read.
        """
        machines = _names(self.state_folder / "places")
        return {
            str(volume)
            for name in machines
            if name.endswith(".json")
            for volume in self._places(name.removesuffix(".json")).get("sources", {}).values()
        }

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
            others = read_json(file)
        write_durably(file, dumps({**others, **record.to_json()}))

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
            wanted = free_link(links, file_name(readable), machine, target, former)
        if isinstance(former, str) and former != wanted and (links / former).is_symlink():
            (links / former).unlink()
        if wanted is not None and target is not None:
            point(links / wanted, target)
        if former != wanted:
            self._write_places(machine, {**places, "link": wanted})

    def _places_file(self, machine: str) -> Path:
        return self.state_folder / "places" / f"{machine}.json"

    def _places(self, machine: str) -> dict[str, Any]:
        file = self._places_file(machine)
        try:
            values = read_json(file)
            sources = fields.mapping(values.get("sources", {}), "sources")
        except FileNotFoundError:
            return {}
        except ValueError as error:
            return self._find_places(machine, str(error))
        except OSError as error:
            raise self._unknown_places(machine, str(error)) from error
        return {**values, "sources": sources}

    def _find_places(self, machine: str, problem: str) -> dict[str, Any]:
        """Make a damaged file anew from what lies on the volumes; all must be there for it."""
        if self.volumes.problems():
            raise self._unknown_places(machine, problem)
        found = [each for each in self.folders(machine) if not each.old_layout]
        places = {"sources": {each.source: each.volume.name for each in found}}
        self._write_places(machine, places)
        file = self._places_file(machine)
        logger.error("%s was broken (%s) and is made anew.", file, problem)
        return places

    def _unknown_places(self, machine: str, problem: str) -> TurkuError:
        return TurkuError(
            f"{self._places_file(machine)} can't be read ({problem}), so it isn't known where "
            f"machine {machine} lies; mount every volume, or restore the file."
        )

    def _remember(self, machine: str, source: str, volume: Volume) -> None:
        places = self._places(machine)
        sources = {**places.get("sources", {}), source: volume.name}
        self._write_places(machine, {**places, "sources": sources})

    def _write_places(self, machine: str, places: Mapping[str, Any]) -> None:
        file = self._places_file(machine)
        ensure_private_folder(file.parent)
        write_durably(file, dumps(places))


def _folders_on(volume: Volume, old_layout: bool, machine: str | None) -> Iterator[SourceFolder]:
    base = volume.path if old_layout else volume.path / "machines"
    machines = [machine] if machine is not None else _names(base)
    for name in machines:
        # Only canonical UUIDs: nothing else that lies there is a machine's.
        if not looks_like_uuid(name) or name != name.lower():
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
        values = read_json(folder.snapshots / f"{snapshot}.json")
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
    """Return a record as it was read; where it lies says whose it is.

    Raises ValueError, also for one that is another snapshot's.
    """
    place = {"machine": folder.machine, "source": folder.source, "id": snapshot}
    if not folder.old_layout:
        if values.get("id", snapshot) != snapshot:
            raise ValueError(f"it is that of snapshot {fields.shown(values['id'])}")
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

"""Volumes: the file systems on a storage unit that hold backups.

A volume is known by its identity, not by its path: on first use a marker file with a fresh UUID is
written into it, and the UUID is remembered under the storage unit's own state. Afterwards a missing
or another marker means that the file system isn't mounted (or another one is in its place), which
is an error and never an empty folder to fill.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from turku_core.checked_json import dumps, read_json
from turku_core.configuration import write_durably
from turku_core.errors import TryAgainLater, TurkuError
from turku_core.storage import trouble

logger = logging.getLogger(__name__)

MARKER = ".turku-volume"
MARKER_COPY = ".turku-volume.copy"
"""One damaged file must not put a whole volume out of use."""

_FORGOTTEN = "forgotten"
"""What is known of a volume that wasn't there when the registry was made anew."""

RESERVE = ".turku-reserve"
"""A file that takes up some room until a full volume needs it to expire snapshots."""

RESERVE_INODES = ".turku-reserve.inodes"
"""A folder of empty files that take up some inodes until then."""

_RESERVE_INODES = 64

_MIB = 1024 * 1024
_RESERVE_BYTES = (128 * _MIB, 512 * _MIB)
_PROBE_BYTES = 1 * _MIB
_RESERVE_SHARE = 0.05
_RESERVE_SHARE_MAX = 0.15


class VolumeError(TurkuError):
    """A volume can't be used as it is configured."""


class VolumeNotMounted(VolumeError):
    """The volume's marker isn't where it was: its file system isn't mounted."""


class VolumeFull(TryAgainLater):
    """No volume has room for what was asked."""


@dataclass(frozen=True)
class Volume:
    """A volume as it is configured.

    `high_water_pct` is the share of space (or inodes) in use, in percent, from which the volume
    takes no new machines. `mount_required` refuses a path that isn't itself a mount point, already
    on first use, before there is a marker to compare. `snapshot_mode` is the mode of its sources
    that wish for none; None: the unit's.
    """

    name: str
    path: Path
    accept_new: bool = True
    high_water_pct: float = 80.0
    mount_required: bool = False
    snapshot_mode: str | None = None


@dataclass(frozen=True)
class Space:
    """Space and inodes of a volume's file system, in bytes and counts.

    `available` is what this unprivileged user may still write, and `total` that and what is used:
    as df(1) counts, blocks that are kept for root are neither. `inodes_total` is 0 where the file
    system makes inodes as it needs them.
    """

    total: int
    available: int
    inodes_total: int
    inodes_available: int

    @property
    def used_pct(self) -> float:
        """The fuller of space and inodes, in percent."""
        used = 100.0 * (1 - self.available / self.total) if self.total else 100.0
        if self.inodes_total:
            used = max(used, 100.0 * (1 - self.inodes_available / self.inodes_total))
        return used


class Volumes:
    """The configured volumes of a storage unit, checked each time before they are used."""

    def __init__(self, volumes: Sequence[Volume], state_folder: Path) -> None:
        """Take the configured volumes; `state_folder` is `var/lib/turku-storage`."""
        self.volumes = tuple(volumes)
        self.state_folder = state_folder
        self._gone: set[str] = set()
        self._logged: set[str] = set()

    def get(self, name: str) -> Volume:
        """Return the mounted volume of this name. Raises VolumeError."""
        for volume in self.volumes:
            if volume.name == name:
                self.check(volume)
                return volume
        raise VolumeError(
            f"There is no volume {name!r} in the configuration; there is "
            f"{', '.join(repr(volume.name) for volume in self.volumes) or 'none at all'}."
        )

    def check(self, volume: Volume) -> None:
        """Raise VolumeNotMounted unless the volume is the one that was first used at its path.

        On first use the marker is written and its UUID remembered in `volumes.json`.
        """
        try:
            self._check(volume)
        except VolumeNotMounted:
            if volume.name not in self._gone:
                self._gone.add(volume.name)
                trouble.note(self.state_folder, volume.name)
            raise
        self._gone.discard(volume.name)

    def _check(self, volume: Volume) -> None:
        if not volume.path.is_dir():
            raise VolumeNotMounted(
                f"Volume {volume.name!r}: {volume.path} isn't there; mount the volume, or make the "
                "folder if it is a new one."
            )
        if volume.mount_required and not volume.path.is_mount():
            raise VolumeNotMounted(
                f"Volume {volume.name!r}: nothing is mounted on {volume.path}; mount the volume."
            )
        markers = _read_markers(volume)
        known = self._known().get(volume.name)
        if known is None or (known == _FORGOTTEN and any(markers)):
            self._adopt(volume)
        elif known in markers:
            _mend_markers(volume, markers, known)
        elif not any(markers):
            raise VolumeNotMounted(
                f"Volume {volume.name!r}: {volume.path} has no {MARKER} file, and it had one: the "
                "volume isn't mounted. Mount it; nothing was written to the folder below."
            )
        else:
            other = ", ".join(sorted({each for each in markers if each is not None}))
            raise VolumeNotMounted(
                f"Volume {volume.name!r}: {volume.path} holds another volume ({other}) than "
                f"before ({known}). Mount the right one, or, if it was replaced on purpose, "
                f"remove its line from {self._registry}."
            )

    def mounted(self) -> list[Volume]:
        """Return the volumes that can be used now; what is wrong with another is logged once."""
        usable, problems = self._sorted_out()
        for problem in problems:
            if problem not in self._logged:
                logger.error("%s", problem)
        self._logged = set(problems)
        return usable

    def problems(self) -> list[str]:
        """Return a sentence for every volume that can't be used now."""
        return self._sorted_out()[1]

    def space(self, volume: Volume) -> Space:
        """Return what the volume's file system has. Raises VolumeNotMounted."""
        self.check(volume)
        status = os.statvfs(volume.path)
        return Space(
            total=status.f_frsize * (status.f_blocks - status.f_bfree + status.f_bavail),
            available=status.f_frsize * status.f_bavail,
            inodes_total=status.f_files,
            inodes_available=status.f_favail,
        )

    def over_high_water(self, volume: Volume) -> bool:
        """Say whether the volume is at or over its high-water mark."""
        return self.space(volume).used_pct >= volume.high_water_pct

    def totals_mib(self) -> tuple[float, float]:
        """Return (total, available) MiB over the mounted volumes that accept new, for the API.

        It goes by them where to place new machines, and how full the unit is: a volume that
        accepts nothing new, such as one that is kept for its backups, says nothing of that. Volumes
        that share one file system are counted once.
        """
        spaces = {
            os.stat(volume.path).st_dev: self.space(volume)
            for volume in self.mounted()
            if volume.accept_new
        }
        total = sum(space.total for space in spaces.values())
        available = sum(space.available for space in spaces.values())
        return total / _MIB, available / _MIB

    def high_water_mark(self) -> int | None:
        """Return the mark of the volumes that accept new, in whole percent, for the API.

        The API knows the unit's space as one: marks that differ count by their volumes' sizes.
        None when no volume is there.
        """
        accepting = [volume for volume in self.mounted() if volume.accept_new]
        total = sum(self.space(volume).total for volume in accepting)
        if not total:
            return None
        marked = sum(volume.high_water_pct * self.space(volume).total for volume in accepting)
        return max(1, int(marked / total))

    def choose(self, existing: Collection[Volume] = ()) -> Volume:
        """Choose the volume for a new source of a machine.

        `existing` are the volumes where the machine already has sources: the emptiest of them is
        chosen unless all are over their mark. Else a volume that accepts new machines and is under
        its mark is drawn at random in proportion to its available space. Raises
        VolumeNotMounted, VolumeFull.
        """
        usable, problems = self._sorted_out()
        spaces = {volume.name: self.space(volume) for volume in usable}
        free = [
            volume
            for volume in self.volumes
            if volume.name in spaces and spaces[volume.name].used_pct < volume.high_water_pct
        ]
        homes = [volume for volume in free if volume in existing]
        if homes:
            return min(homes, key=lambda volume: spaces[volume.name].used_pct)
        accepting = [volume for volume in free if volume.accept_new]
        weights = [spaces[volume.name].available for volume in accepting]
        if not any(weights):
            if problems:
                raise VolumeNotMounted(f"No volume takes a new source now. {' '.join(problems)}")
            raise VolumeFull(
                "No volume takes a new source now: each is over its high-water mark or accepts "
                "nothing new. Add a volume, or make room on one."
            )
        return random.SystemRandom().choices(accepting, weights)[0]

    def keep_reserve(self, volume: Volume) -> None:
        """Set some room and some inodes aside, while there is plenty; see `release_reserve`."""
        space = self.space(volume)
        if space.used_pct >= volume.high_water_pct:
            return
        size = _reserve_size(space)
        try:
            if space.available >= 4 * size:
                _set_room_aside(volume.path / RESERVE, size)
            if space.inodes_available >= 4 * _RESERVE_INODES:
                _set_inodes_aside(volume.path / RESERVE_INODES)
        except OSError as error:
            logger.warning("volume %s: no room could be set aside: %s", volume.name, error)

    def release_reserve(self, volume: Volume) -> bool:
        """Give what was set aside to a volume that is all but full; say whether.

        Nothing can be removed from a file system without any room: not even a record can say so,
        and borg needs to write before it can free (check_free_space in borg/repository.py). A quota
        doesn't show in what the file system says, so it is tried.
        """
        space = self.space(volume)
        released = False
        try:
            is_full = space.available < _reserve_size(space) or not _takes_a_file(volume.path)
            if is_full and (volume.path / RESERVE).exists():
                (volume.path / RESERVE).unlink()
                released = True
            few_inodes = bool(space.inodes_total) and space.inodes_available < _RESERVE_INODES
            if (is_full or few_inodes) and (volume.path / RESERVE_INODES).is_dir():
                for file in (volume.path / RESERVE_INODES).iterdir():
                    file.unlink()
                (volume.path / RESERVE_INODES).rmdir()
                released = True
        except OSError as error:
            logger.error("volume %s: what was set aside isn't freed: %s", volume.name, error)
        if released:
            logger.warning(
                "volume %s is full: the room that was set aside is used now", volume.name
            )
        return released

    @property
    def _registry(self) -> Path:
        return self.state_folder / "volumes.json"

    def _sorted_out(self) -> tuple[list[Volume], list[str]]:
        usable: list[Volume] = []
        problems: list[str] = []
        for volume in self.volumes:
            try:
                self.check(volume)
            except VolumeError as error:
                problems.append(str(error))
            else:
                usable.append(volume)
        return usable, problems

    def _known(self) -> dict[str, str]:
        """Return the UUIDs by volume name; what damage has made of a registry is made anew."""
        try:
            values = read_json(self._registry)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise VolumeError(
                f"{self._registry} can't be read ({error}), so no volume can be told from an "
                "unmounted one."
            ) from error
        except ValueError as error:
            return self._register_anew(str(error))
        return {str(name): str(value) for name, value in values.items()}

    def _register_anew(self, problem: str) -> dict[str, str]:
        """Take the volumes that are there by their marks; no other is taken for a new one."""
        known = {
            volume.name: next((each for each in _read_markers(volume) if each), _FORGOTTEN)
            for volume in self.volumes
        }
        self._registry.rename(self._registry.with_suffix(".json.broken"))
        write_durably(self._registry, dumps(known))
        logger.error("%s was broken (%s) and is made anew: %s", self._registry, problem, known)
        return known

    def _adopt(self, volume: Volume) -> None:
        """Mark a volume on its first use, or take the mark that it brings along."""
        with _locked(self.state_folder / "volumes.lock"):
            known = self._known()
            marker = next((each for each in _read_markers(volume) if each), None)
            if marker is None:
                marker = str(uuid.uuid4())
                try:
                    for name in (MARKER, MARKER_COPY):
                        write_durably(volume.path / name, marker + "\n", 0o644)
                except OSError as error:
                    raise VolumeError(
                        f"Volume {volume.name!r}: {volume.path} can't be written to "
                        f"({error.strerror}); give it to the user {_user()}."
                    ) from error
            known[volume.name] = marker
            write_durably(self._registry, dumps(known))
        logger.info(
            "volume %s at %s is used for the first time: %s", volume.name, volume.path, marker
        )


def _set_room_aside(file: Path, size: int) -> None:
    if file.exists():
        return
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with temporary.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
        temporary.rename(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _set_inodes_aside(folder: Path) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700)
    for number in range(_RESERVE_INODES):
        (folder / str(number)).touch()


def _takes_a_file(folder: Path) -> bool:
    """Say whether a small file can be written there; a quota refuses it as a full disk does."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".turku-room-", buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def _reserve_size(space: Space) -> int:
    least, most = _RESERVE_BYTES
    wanted = min(max(least, int(space.total * _RESERVE_SHARE)), most)
    return min(wanted, int(space.total * _RESERVE_SHARE_MAX))


def _user() -> str:
    return f"with uid {os.geteuid()}"


def _read_markers(volume: Volume) -> list[str | None]:
    """Return the UUIDs in the marker and its copy; None for one that is missing or damaged.

    Raises VolumeError when there is no copy, and the one marker is no UUID.
    """
    found: list[str | None] = []
    problems = []
    for name in (MARKER, MARKER_COPY):
        try:
            text = (volume.path / name).read_text("ascii").strip()
            found.append(str(uuid.UUID(text)))
        except FileNotFoundError:
            found.append(None)
        except (OSError, ValueError) as error:
            found.append(None)
            problems.append(f"{volume.path / name} doesn't hold a UUID ({error})")
    if problems and not any(found):
        raise VolumeError(f"Volume {volume.name!r}: {' and '.join(problems)}.")
    return found


def _mend_markers(volume: Volume, markers: Sequence[str | None], known: str) -> None:
    """Write a marker that is missing or damaged anew, if it can be written."""
    for name, marker in zip((MARKER, MARKER_COPY), markers, strict=True):
        if marker != known:
            with suppress(OSError):
                write_durably(volume.path / name, known + "\n", 0o644)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the file is never removed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

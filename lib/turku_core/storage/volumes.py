"""Volumes: the file systems on a storage unit that hold backups.

A volume is known by its identity, not by its path: on first use a marker file with a fresh UUID is
written into it, and the UUID is remembered under the storage unit's own state. Afterwards a missing
or another marker means that the file system isn't mounted (or another one is in its place), which
is an error and never an empty folder to fill.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from turku_core.errors import TryAgainLater, TurkuError

MARKER = ".turku-volume"


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
    on first use, before there is a marker to compare.
    """

    name: str
    path: Path
    accept_new: bool = True
    high_water_pct: float = 80.0
    mount_required: bool = False


@dataclass(frozen=True)
class Space:
    """Space and inodes of a volume's file system, in bytes and counts.

    `available` is what this unprivileged user may still write. `inodes_total` is 0 where the file
    system makes inodes as it needs them.
    """

    total: int
    available: int
    inodes_total: int
    inodes_available: int

    @property
    def used_pct(self) -> float:
        """The fuller of space and inodes, in percent."""
        raise NotImplementedError


class Volumes:
    """The configured volumes of a storage unit, checked each time before they are used."""

    def __init__(self, volumes: Sequence[Volume], state_folder: Path) -> None:
        """Take the configured volumes; `state_folder` is `var/lib/turku-storage`."""
        self.volumes = tuple(volumes)
        self.state_folder = state_folder

    def get(self, name: str) -> Volume:
        """Return the mounted volume of this name. Raises VolumeError."""
        raise NotImplementedError

    def check(self, volume: Volume) -> None:
        """Raise VolumeNotMounted unless the volume is the one that was first used at its path.

        On first use the marker is written and its UUID remembered in `volumes.json`.
        """
        raise NotImplementedError

    def mounted(self) -> list[Volume]:
        """Return the volumes that can be used now; the others are logged as errors."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        """Return a sentence for every volume that can't be used now."""
        raise NotImplementedError

    def space(self, volume: Volume) -> Space:
        """Return what the volume's file system has. Raises VolumeNotMounted."""
        raise NotImplementedError

    def over_high_water(self, volume: Volume) -> bool:
        """Say whether the volume is at or over its high-water mark."""
        raise NotImplementedError

    def totals_mib(self) -> tuple[float, float]:
        """Return (total, available) MiB over all mounted volumes, for the API.

        Available leaves out volumes that accept nothing new. Volumes that share one file system
        are counted once.
        """
        raise NotImplementedError

    def choose(self, existing: Collection[Volume] = ()) -> Volume:
        """Choose the volume for a new source of a machine.

        `existing` are the volumes where the machine already has sources: the emptiest of them is
        chosen unless all are over their mark. Else a volume that accepts new machines and is under
        its mark is drawn at random in proportion to its available space. Raises VolumeFull.
        """
        raise NotImplementedError

"""Which volumes the unit has: of block devices, of a filesystem storage, or a folder.

Decided from what is attached now, what holds backups, and what was configured before. Nothing here
touches anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = "volumes"
DATA = "data"
FOLDER = "folder"
"""The volumes' names; the first two are those of the charm's storages as well."""

HOME = Path("srv/turku-storage")
"""Where the volumes lie, below the root."""


@dataclass(frozen=True)
class Attached:
    """What Juju has attached.

    Attributes:
        block: There is at least one block device.
        data: Where the filesystem storage lies; None: there is none.
        data_is_mount: Something is mounted there.
    """

    block: bool = False
    data: Path | None = None
    data_is_mount: bool = False


@dataclass(frozen=True)
class UnitVolume:
    """A volume of the unit.

    Attributes:
        is_attached: What it lies on is there, as far as Juju says.
        mount_required: It is an error if nothing is mounted on its path.
    """

    name: str
    path: Path
    is_attached: bool = True
    mount_required: bool = True
    accept_new: bool = True


def choose(
    root: Path, attached: Attached, in_use: Collection[str], former: Mapping[str, Any]
) -> tuple[UnitVolume, ...]:
    """Return the unit's volumes.

    A volume that holds backups stays, whatever is detached: its sources fail then, and say so,
    until it is back, and are never begun anew elsewhere. The folder on the root disk takes new
    machines only as long as nothing else was ever attached.

    Args:
        root: What all paths are below.
        attached: What Juju has attached.
        in_use: The names of the volumes on which sources have their place.
        former: The volumes as this charm configured them before, by name.
    """
    home = root / HOME
    volumes = []
    if attached.block or BLOCK in in_use:
        volumes.append(UnitVolume(BLOCK, home / BLOCK, is_attached=attached.block))
    before = former.get(DATA, {})
    if attached.data is not None:
        # Once it was a mount, it stays one: a reboot must not make a folder of it.
        was_mount = before.get("path") == str(attached.data) and bool(before.get("mount_required"))
        mount_required = attached.data_is_mount or was_mount
        volumes.append(UnitVolume(DATA, attached.data, mount_required=mount_required))
    elif DATA in in_use:
        path = Path(before.get("path", home / DATA))
        mount_required = bool(before.get("mount_required", True))
        volumes.append(UnitVolume(DATA, path, False, mount_required))
    if not volumes or FOLDER in in_use:
        accept_new = not volumes
        volumes.append(
            UnitVolume(FOLDER, home / FOLDER, mount_required=False, accept_new=accept_new)
        )
    return tuple(volumes)


def on_root_disk(volumes: Collection[UnitVolume]) -> bool:
    """Say whether new backups go to the root disk."""
    return any(volume.name == FOLDER and volume.accept_new for volume in volumes)


def detached(volumes: Collection[UnitVolume]) -> tuple[str, ...]:
    """Return a sentence for each volume that holds backups and isn't attached."""
    return tuple(
        f"The storage {volume.name} is detached, and the backups on it can't be reached until it "
        f"is attached again (juju attach-storage). Nothing is lost, and nothing is begun anew "
        f"elsewhere."
        for volume in volumes
        if not volume.is_attached
    )


def to_config(
    volume: UnitVolume, high_water_mark: int, btrfs_volume_mode: str | None
) -> dict[str, Any]:
    """Return a volume as it stands in the storage unit's configuration."""
    values: dict[str, Any] = {
        "path": str(volume.path),
        "accept_new": volume.accept_new,
        "accept_new_high_water_pct": high_water_mark,
        "mount_required": volume.mount_required,
    }
    if volume.name == BLOCK and btrfs_volume_mode is not None:
        values["snapshot_mode"] = btrfs_volume_mode
    return values

"""What to do with the block devices, decided from what is there; nothing here touches anything.

The unit's block devices make up one volume group, one logical volume on all of it, and one btrfs,
mounted by its UUID from fstab. `plan` compares that with the facts and returns what can be done
next. Whoever carries the steps out reads the facts again afterwards and asks again, until nothing
is left to do. So it doesn't matter where a former hook was broken off, and each decision that
could lose data is taken on what the device says of itself at that moment:

- a device is taken only when there is no signature on it, so nobody's data;
- a file system is made only on our logical volume, and only when there is no signature on that;
- the volume is in use only while all of its devices are attached. As soon as one isn't, the volume
  is unmounted and let go, whole, and it comes back as it was when all of them are there again.
"""

from __future__ import annotations

from dataclasses import dataclass

VOLUME_GROUP = "turku"
LOGICAL_VOLUME = "backups"
FILESYSTEM = "btrfs"
FILESYSTEM_LABEL = "turku-backups"
LVM_MEMBER = "LVM2_member"
MOUNT_OPTIONS = "noatime,nodev,noexec,nofail,nosuid,user_subvol_rm_allowed"
"""How the volume is mounted.

`user_subvol_rm_allowed` lets the unit's user remove its own snapshots (btrfs(5)). `nofail`: a host
whose disk is gone still boots. Nothing on the volume is ever run, or is a device: what a machine
sent is kept with rsync's --fake-super.
"""


@dataclass(frozen=True)
class Device:
    """A block device that Juju has attached.

    Attributes:
        storage: Juju's name for it, such as ``volumes/0``.
        path: Its real path; None while there is no such device (yet).
        signatures: What it says it holds, by wipefs(8): file systems, partition tables, members.
    """

    storage: str
    path: str | None
    signatures: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhysicalVolume:
    """A device as LVM sees it.

    Attributes:
        path: Its real path; LVM's own word for it when the device is missing.
        group, group_uuid: Its volume group; empty when it is in none.
        free_bytes: How much of it no logical volume has.
        missing: The volume group knows it, and it isn't there.
    """

    path: str
    group: str = ""
    group_uuid: str = ""
    free_bytes: int = 0
    missing: bool = False


@dataclass(frozen=True)
class LogicalVolume:
    """Our logical volume; `path` is its device node, which is there while it is active."""

    path: str
    active: bool


@dataclass(frozen=True)
class Filesystem:
    """What is on the logical volume, by blkid(8)."""

    type: str
    uuid: str


@dataclass(frozen=True)
class Mounted:
    """What is mounted on our mount point.

    Attributes:
        ours: It is our logical volume.
        source: What it is, for people.
        unused_bytes: How much larger the device is than the file system.
    """

    ours: bool
    source: str
    unused_bytes: int = 0


@dataclass(frozen=True)
class FstabLine:
    """The line of fstab(5) for our mount point."""

    device: str
    filesystem: str
    options: str


@dataclass(frozen=True)
class Facts:
    """All that a plan is made from."""

    mount_point: str
    devices: tuple[Device, ...] = ()
    physical_volumes: tuple[PhysicalVolume, ...] = ()
    logical_volume: LogicalVolume | None = None
    filesystem: Filesystem | None = None
    fstab: FstabLine | None = None
    mounted: Mounted | None = None

    @property
    def group(self) -> tuple[PhysicalVolume, ...]:
        """The members of our volume group."""
        return tuple(each for each in self.physical_volumes if each.group == VOLUME_GROUP)


@dataclass(frozen=True)
class CreatePhysicalVolume:
    """Make a device, which holds nothing, one of LVM's."""

    device: str


@dataclass(frozen=True)
class CreateVolumeGroup:
    """Make the volume group on a first device."""

    device: str


@dataclass(frozen=True)
class ExtendVolumeGroup:
    """Take a device into the volume group."""

    device: str


@dataclass(frozen=True)
class CreateLogicalVolume:
    """Make the logical volume, on all of the group."""


@dataclass(frozen=True)
class ExtendLogicalVolume:
    """Let the logical volume have what is free on a device."""

    device: str


@dataclass(frozen=True)
class Activate:
    """Let the logical volume's device appear."""


@dataclass(frozen=True)
class MakeFilesystem:
    """Make the file system on the logical volume, which holds nothing."""

    device: str


@dataclass(frozen=True)
class WriteFstab:
    """Make fstab's line for the mount point this one."""

    line: FstabLine


@dataclass(frozen=True)
class Mount:
    """Mount the volume as fstab says."""


@dataclass(frozen=True)
class GrowFilesystem:
    """Let the mounted file system have all of its device."""


@dataclass(frozen=True)
class Unmount:
    """Unmount the volume."""


@dataclass(frozen=True)
class RemoveFstab:
    """Take the mount point's line out of fstab."""


@dataclass(frozen=True)
class Deactivate:
    """Let the volume group go, so that its devices can be taken away."""


Step = (
    CreatePhysicalVolume
    | CreateVolumeGroup
    | ExtendVolumeGroup
    | CreateLogicalVolume
    | ExtendLogicalVolume
    | Activate
    | MakeFilesystem
    | WriteFstab
    | Mount
    | GrowFilesystem
    | Unmount
    | RemoveFstab
    | Deactivate
)


@dataclass(frozen=True)
class Plan:
    """What to do now, in this order, and what stands in the way.

    Attributes:
        steps: Empty: there is nothing to do, or nothing that can be done.
        waiting: A sentence for each device that Juju has yet to bring.
        problems: A sentence for everything that an operator has to see to.
    """

    steps: tuple[Step, ...] = ()
    waiting: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def plan(facts: Facts) -> Plan:
    """Return what to do next about the block devices."""
    waiting = tuple(
        f"Waiting for the device of {device.storage}."
        for device in facts.devices
        if device.path is None
    )
    if len({member.group_uuid for member in facts.group}) > 1:
        return Plan((), waiting, (_two_groups(facts),))
    if not facts.group and not facts.devices:
        return Plan(_release(facts))
    lost = _lost(facts)
    if lost and waiting:
        # What isn't there may be what is still to come: nothing is let go on a guess.
        return Plan((), waiting)
    if lost:
        return Plan(_release(facts), (), (_incomplete(lost),))
    usable, problems = _usable(facts)
    growing = _grow_group(facts, usable)
    found = Plan(growing) if growing else _use_volume(facts)
    return Plan(found.steps, waiting, (*problems, *found.problems))


def _lost(facts: Facts) -> list[PhysicalVolume]:
    """Return the members of our group that are gone, or that Juju no longer says are ours."""
    attached = {device.path for device in facts.devices}
    return [each for each in facts.group if each.missing or each.path not in attached]


def _usable(facts: Facts) -> tuple[list[Device], tuple[str, ...]]:
    """Return the devices that aren't in our group and may be, and what is wrong with others."""
    known = {volume.path: volume for volume in facts.physical_volumes}
    usable: list[Device] = []
    problems: list[str] = []
    for device in facts.devices:
        volume = known.get(device.path or "")
        if device.path is None or (volume is not None and volume.group == VOLUME_GROUP):
            continue
        if volume is not None and volume.group:
            problems.append(_holds(device, f"a part of the volume group {volume.group}"))
        elif set(device.signatures) - ({LVM_MEMBER} if volume is not None else set()):
            # A physical volume in no group holds nothing: it is one that a hook has begun.
            problems.append(_holds(device, " and ".join(device.signatures)))
        else:
            usable.append(device)
    return usable, tuple(problems)


def _grow_group(facts: Facts, usable: list[Device]) -> tuple[Step, ...]:
    """Return what makes the group, and the logical volume, of all devices that may be used."""
    known = {volume.path for volume in facts.physical_volumes}
    steps: list[Step] = []
    there = bool(facts.group)
    for device in usable:
        assert device.path is not None
        if device.path not in known:
            steps.append(CreatePhysicalVolume(device.path))
        steps.append(
            ExtendVolumeGroup(device.path) if there else CreateVolumeGroup(device.path),
        )
        there = True
    if facts.logical_volume is None:
        return (*steps, CreateLogicalVolume()) if there else ()
    free = [each.path for each in facts.group if each.free_bytes]
    free += [str(device.path) for device in usable]
    return (*steps, *(ExtendLogicalVolume(path) for path in free))


def _use_volume(facts: Facts) -> Plan:
    """Return what lets the logical volume be used, or why it can't be."""
    volume = facts.logical_volume
    if volume is None:
        return Plan()
    if not volume.active:
        return Plan((Activate(),))
    if facts.filesystem is None:
        return Plan((MakeFilesystem(volume.path),))
    if facts.filesystem.type != FILESYSTEM:
        sentence = (
            f"{volume.path} holds {facts.filesystem.type}, not {FILESYSTEM}: it isn't touched. "
            f"See what it is, and move it elsewhere."
        )
        return Plan(problems=(sentence,))
    if facts.mounted is not None and not facts.mounted.ours:
        sentence = (
            f"{facts.mounted.source} is mounted on {facts.mount_point}, where {volume.path} "
            f"belongs: unmount it."
        )
        return Plan(problems=(sentence,))
    steps: list[Step] = []
    line = FstabLine(f"UUID={facts.filesystem.uuid}", FILESYSTEM, MOUNT_OPTIONS)
    if facts.fstab != line:
        steps.append(WriteFstab(line))
    if facts.mounted is None:
        steps.append(Mount())
    elif facts.mounted.unused_bytes:
        steps.append(GrowFilesystem())
    return Plan(tuple(steps))


def _release(facts: Facts) -> tuple[Step, ...]:
    """Return what lets the volume go, as it is."""
    steps: list[Step] = []
    if facts.mounted is not None and facts.mounted.ours:
        steps.append(Unmount())
    if facts.fstab is not None:
        steps.append(RemoveFstab())
    if facts.logical_volume is not None and facts.logical_volume.active:
        steps.append(Deactivate())
    return tuple(steps)


def _holds(device: Device, what: str) -> str:
    return (
        f"{device.storage} ({device.path}) holds {what}: it isn't touched. If nobody needs that, "
        f"run `wipefs --all {device.path}` on the unit's machine; else detach it."
    )


def _incomplete(lost: list[PhysicalVolume]) -> str:
    names = ", ".join(sorted(each.path for each in lost))
    return (
        f"The volume of backups needs all of its devices, and {names} isn't attached any more. "
        f"Nothing is lost: the volume is not mounted until the device is attached again "
        f"(juju attach-storage)."
    )


def _two_groups(facts: Facts) -> str:
    devices = ", ".join(sorted(member.path for member in facts.group))
    return (
        f"The devices {devices} come from different storage units: each has a volume group "
        f"{VOLUME_GROUP} of its own. Detach those of one of them."
    )

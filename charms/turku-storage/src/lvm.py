"""LVM, file systems and mounts: reads the facts that a plan is made from, and carries plans out.

The one module that knows charmhelpers. It is imported where it is needed, and only for what works
wherever the charm runs (charmhelpers 1.2.1, Python 3.10 to 3.13):

- `contrib.storage.linux.lvm` and `.utils` import anything of the standard library alone, and are
  used for all that they can do: making physical volumes, the group and the logical volume,
  extending it, and telling a block device.
- `core.fstab` imports as well, and its `Fstab.Entry` makes the line. Its writing isn't used: it
  changes /etc/fstab in place, so that a power cut leaves half of it, glues a new line to a last one
  that has no end, keeps the old line of a device whose options changed, and can't read a comment
  that isn't ASCII. The file is written anew beside the old one instead, and renamed.
- `core.host` isn't used. Importing it fails on every distribution that isn't Ubuntu or CentOS, and
  (through `core.hookenv`) without distutils; and its `mount` and `umount` throw away what the
  programs said, which an operator needs to read in the status.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from turku_core.configuration import write_durably
from turku_core.errors import TurkuError
from volume_plan import (
    FILESYSTEM_LABEL,
    LOGICAL_VOLUME,
    VOLUME_GROUP,
    Activate,
    CreateLogicalVolume,
    CreatePhysicalVolume,
    CreateVolumeGroup,
    Deactivate,
    Device,
    ExtendLogicalVolume,
    ExtendVolumeGroup,
    Facts,
    Filesystem,
    FstabLine,
    GrowFilesystem,
    LogicalVolume,
    MakeFilesystem,
    Mount,
    Mounted,
    PhysicalVolume,
    Plan,
    RemoveFstab,
    Step,
    Unmount,
    WriteFstab,
    plan,
)

logger = logging.getLogger(__name__)

SECONDS_MAX = 300.0
ROUNDS_MAX = 10
_SYSTEMD = Path("/run/systemd/system")
_NOTHING_FOUND = 2
"""blkid's exit code for a device without any signature."""


class LvmError(TurkuError):
    """A step could not be carried out, or a fact not be found out."""


def ensure(
    mount_point: Path,
    fstab: Path,
    attached: Mapping[str, Path | None],
    before: Callable[[Step], None] = lambda step: None,
) -> Plan:
    """Do all that can be done about the block devices, and return what is left.

    Args:
        mount_point: Where the volume is mounted.
        fstab: The file fstab(5).
        attached: The devices that Juju has attached, by storage; None while it doesn't say where.
        before: Called before each step.

    Returns:
        The last plan, which has no steps, only what stands in the way.

    Raises:
        LvmError: A step failed. What was done stays, and the next call goes on from there.
    """
    former: Plan | None = None
    for _ in range(ROUNDS_MAX):
        found = plan(read_facts(mount_point, fstab, attached))
        if not found.steps:
            return found
        if found == former:
            break
        for step in found.steps:
            logger.info("%s", step)
            before(step)
            carry_out(step, mount_point, fstab)
        former = found
    raise LvmError(
        f"The block devices don't come to what they should be: {type(found.steps[0]).__name__} has "
        f"had no effect. See pvs, vgs and lvs on the unit's machine."
    )


def read_facts(mount_point: Path, fstab: Path, attached: Mapping[str, Path | None]) -> Facts:
    """Return what is there now.

    Raises:
        LvmError: A program failed.
    """
    volumes = _physical_volumes()
    logical = _logical_volume()
    return Facts(
        mount_point=str(mount_point),
        devices=tuple(_device(storage, attached[storage]) for storage in sorted(attached)),
        physical_volumes=volumes,
        logical_volume=logical,
        filesystem=_filesystem(logical.path) if logical is not None and logical.active else None,
        fstab=_fstab_line(fstab, mount_point),
        mounted=_mounted(mount_point, logical),
    )


def _device(storage: str, location: Path | None) -> Device:
    from charmhelpers.contrib.storage.linux.utils import is_block_device

    if location is None or not is_block_device(str(location)):
        return Device(storage, None)
    path = os.path.realpath(location)
    found = json.loads(_run("wipefs", "--no-act", "--json", "--", path) or "{}")
    return Device(storage, path, tuple(each["type"] for each in found.get("signatures", [])))


def _physical_volumes() -> tuple[PhysicalVolume, ...]:
    return tuple(
        PhysicalVolume(
            path=row["pv_name"] if row["pv_missing"] else os.path.realpath(row["pv_name"]),
            group=row["vg_name"],
            group_uuid=row["vg_uuid"],
            free_bytes=int(row["pv_free"]) if row["vg_name"] else 0,
            missing=bool(row["pv_missing"]),
        )
        for row in _report("pv", "pv_name,vg_name,vg_uuid,pv_free,pv_missing")
    )


def _logical_volume() -> LogicalVolume | None:
    for row in _report("lv", "vg_name,lv_name,lv_path,lv_active"):
        if (row["vg_name"], row["lv_name"]) == (VOLUME_GROUP, LOGICAL_VOLUME):
            return LogicalVolume(row["lv_path"], row["lv_active"] == "active")
    return None


def _report(kind: str, columns: str) -> list[dict[str, str]]:
    """Return what ``pvs`` or ``lvs`` reports; nothing where LVM isn't installed."""
    program = f"{kind}s"
    if shutil.which(program) is None:
        return []
    said = _run(
        program, "--reportformat", "json", "--units", "b", "--nosuffix", "--options", columns
    )
    rows: list[dict[str, str]] = json.loads(said)["report"][0][kind]
    return rows


def _filesystem(device: str) -> Filesystem | None:
    said = _run("blkid", "--probe", "--output", "export", device, good=(0, _NOTHING_FOUND))
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if not found:
        return None
    return Filesystem(found.get("TYPE") or found.get("PTTYPE", "unknown"), found.get("UUID", ""))


def _mounted(mount_point: Path, logical: LogicalVolume | None) -> Mounted | None:
    source = None
    for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
        words = line.split(" ")
        # The last one is on top; the kernel writes odd characters as octal numbers.
        if words[1] == _escaped(mount_point):
            source = words[0]
    if source is None:
        return None
    # Without the logical volume, this is what its lost devices have left behind.
    ours = logical is None or os.path.realpath(source) == os.path.realpath(logical.path)
    unused = 0
    if ours and logical is not None and logical.active:
        unused = _unused_bytes(mount_point)
    return Mounted(ours, source, unused)


def _unused_bytes(mount_point: Path) -> int:
    said = _run("btrfs", "device", "usage", "--raw", str(mount_point))
    return sum(int(line.split()[-1]) for line in said.splitlines() if "Device slack:" in line)


def _fstab_line(fstab: Path, mount_point: Path) -> FstabLine | None:
    for line in _fstab_lines(fstab):
        if _is_of(line, mount_point):
            words = line.split()
            return FstabLine(*words[0:1], *words[2:4])
    return None


def _fstab_lines(fstab: Path) -> list[str]:
    try:
        return fstab.read_text("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        return []


def _is_of(line: str, mount_point: Path) -> bool:
    words = line.split()
    return len(words) >= 4 and not words[0].startswith("#") and words[1] == _escaped(mount_point)


def _escaped(path: Path) -> str:
    """Return a path as fstab(5) and /proc/self/mounts write it."""
    text = str(path).replace("\\", "\\134")
    return text.replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")


def write_fstab(fstab: Path, mount_point: Path, line: FstabLine | None) -> None:
    """Make `line` the one for the mount point, in its old place; None takes it out."""
    from charmhelpers.core.fstab import Fstab

    entries = []
    if line is not None:
        entry = Fstab.Entry(line.device, _escaped(mount_point), line.filesystem, line.options)
        entries.append(str(entry))
    lines: list[str] = []
    for each in _fstab_lines(fstab):
        if _is_of(each, mount_point):
            lines += entries
            entries = []
        else:
            lines.append(each)
    text = "".join(f"{each}\n" for each in [*lines, *entries])
    write_durably(fstab, text, 0o644)
    if _SYSTEMD.is_dir():
        # It makes a mount unit of each line, and takes away what an old line had mounted.
        _run("systemctl", "daemon-reload")


def carry_out(step: Step, mount_point: Path, fstab: Path) -> None:
    """Carry one step out.

    Raises:
        LvmError: It failed.
    """
    from charmhelpers.contrib.storage.linux import lvm

    name = f"{VOLUME_GROUP}/{LOGICAL_VOLUME}"
    if isinstance(step, CreatePhysicalVolume):
        _help(lvm.create_lvm_physical_volume, step.device)
    elif isinstance(step, CreateVolumeGroup):
        _help(lvm.create_lvm_volume_group, VOLUME_GROUP, step.device)
    elif isinstance(step, ExtendVolumeGroup):
        # What charmhelpers lacks is run here.
        _run("vgextend", VOLUME_GROUP, step.device)
    elif isinstance(step, CreateLogicalVolume):
        _help(lvm.create_logical_volume, LOGICAL_VOLUME, VOLUME_GROUP)
    elif isinstance(step, ExtendLogicalVolume):
        _help(lvm.extend_logical_volume_by_device, name, step.device)
    elif isinstance(step, Activate):
        _run("vgchange", "--activate", "y", VOLUME_GROUP)
    elif isinstance(step, Deactivate):
        _run("vgchange", "--activate", "n", VOLUME_GROUP)
    elif isinstance(step, MakeFilesystem):
        # Without --force: it looks for itself, once more, that there is nothing.
        _run("mkfs.btrfs", "--quiet", "--label", FILESYSTEM_LABEL, step.device)
    elif isinstance(step, WriteFstab):
        write_fstab(fstab, mount_point, step.line)
    elif isinstance(step, RemoveFstab):
        write_fstab(fstab, mount_point, None)
    elif isinstance(step, Mount):
        mount_point.mkdir(parents=True, exist_ok=True)
        try:
            _run("mount", "--fstab", str(fstab), str(mount_point))
        except LvmError:
            # systemd mounts it too, when a device that was late at boot appears.
            if not mount_point.is_mount():
                raise
    elif isinstance(step, GrowFilesystem):
        _run("btrfs", "filesystem", "resize", "max", str(mount_point))
    elif isinstance(step, Unmount):
        _run("umount", str(mount_point))


def _help(function: Callable[..., Any], *arguments: str) -> None:
    """Call a function of charmhelpers; what its program says goes into the hook's log."""
    try:
        function(*arguments)
    except FileNotFoundError as error:
        raise LvmError(f"{error.filename} isn't installed.") from error
    except subprocess.CalledProcessError as error:
        command = " ".join(error.cmd)
        raise LvmError(
            f"`{command}` failed with exit code {error.returncode}: see juju debug-log."
        ) from error


def _run(program: str, *arguments: str, good: Sequence[int] = (0,)) -> str:
    """Run a program and return what it printed. Raises LvmError with its words."""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_MAX,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise LvmError(f"{program} isn't installed.") from error
    except subprocess.TimeoutExpired as error:
        raise LvmError(f"{program} did not end within {SECONDS_MAX:.0f} seconds.") from error
    if done.returncode not in good:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LvmError(f"{program} {arguments[-1]} failed: {said}")
    return done.stdout

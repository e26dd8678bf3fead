"""Small disks of their own, as files on a loop device, that can be filled, lost or cut off."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN (linux/fs/ext4/ext4.h, linux/fs/xfs/libxfs/xfs_fs.h)."""

_WITHOUT_THE_LOG = 2
"""Neither data nor what the log holds in memory is written: what a power cut does."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """A file system of its own on a loop device.

    Args:
        folder: Where its image and its mount point are made.
        kind: `ext4` or `btrfs`.
        mib: Its size.
        inodes: How many it has; ext4 only.
    """

    def __init__(self, folder: Path, kind: str, mib: int, inodes: int | None = None) -> None:
        self.kind = kind
        self.image, self.place = folder / "image", folder / "disk"
        self._count = 0
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mib * 1024 * 1024)
        options = {"ext4": ["-q", "-m", "0"], "btrfs": ["-q"]}[kind]
        if inodes is not None:
            options += ["-N", str(inodes)]
        _do(f"mkfs.{kind}", *options, self.image)

    def mount(self) -> None:
        """Mount it, which replays its journal."""
        options = {"ext4": "errors=remount-ro", "btrfs": "user_subvol_rm_allowed"}[self.kind]
        _do("mount", "-o", f"loop,{options}", self.image, self.place)

    def unmount(self) -> None:
        """Unmount it, if it is mounted."""
        while self.place.is_mount():
            _do("umount", self.place)

    def unplug(self) -> None:
        """Take it away at once, as seen by who comes later; the empty folder below is there."""
        _do("umount", "--lazy", self.place)

    def cut_power(self) -> None:
        """Drop everything that hasn't reached the disk; nothing is written from now on."""
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
        finally:
            os.close(descriptor)

    def turn_read_only(self) -> None:
        """Let the kernel find an error on it, which makes it read-only (ext4's errors=).

        btrfs can't be told to find one, so a read-only mount covers it: what is opened from now on
        is refused as on a disk with an error.
        """
        if self.kind == "btrfs":
            _do("mount", "--bind", self.place, self.place)
            _do("mount", "-o", "remount,bind,ro", self.place)
            return
        device = subprocess.check_output(["findmnt", "-no", "SOURCE", self.place], text=True)
        name = Path(device.strip()).name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("a test")

    def enable_quota(self) -> None:
        """Count what is used on it; btrfs only."""
        _do("btrfs", "quota", "enable", self.place)

    def limit(self, more: int | None, place: Path | None = None) -> None:
        """Let only so many bytes more be written; None: as many as there is room.

        A limit is a subvolume's: of the one at `place`, else of the disk's own.
        """
        place = place or self.place
        _do("sync", "-f", place)
        limit = "none"
        if more is not None:
            _do("btrfs", "quota", "rescan", "-w", self.place)
            command = ["btrfs", "qgroup", "show", "--raw", "-f", str(place)]
            shown = subprocess.check_output(command, text=True).splitlines()[-1]
            limit = str(int(shown.split()[1]) + more)
        _do("btrfs", "qgroup", "limit", limit, place)

    def repair(self) -> None:
        """Unmount it, have it checked, and mount it again."""
        self.unmount()
        self.renew()
        if self.kind == "ext4":
            checked = subprocess.run(["e2fsck", "-fy", self.image], capture_output=True)
            assert checked.returncode in (0, 1), checked
        self.mount()

    def fill(self, room: int = 0) -> None:
        """Fill it to the last block, but for `room` bytes."""
        with (self.place / "filler").open("ab", buffering=0) as file:
            for size in (64 * 1024 * 1024, 1024 * 1024, 65536, 4096):
                with _UntilFull():
                    while True:
                        end = os.fstat(file.fileno()).st_size
                        os.posix_fallocate(file.fileno(), end, size)
            with _UntilFull():
                while True:
                    file.write(bytes(512))
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size - room))

    def fill_inodes(self, room: int = 0) -> None:
        """Take every inode but `room`."""
        folder = self.place / "fillers"
        folder.mkdir(exist_ok=True)
        with _UntilFull():
            while True:
                os.close(tempfile.mkstemp(dir=folder)[0])
        for path in sorted(folder.iterdir())[:room]:
            path.unlink()

    def clear(self) -> None:
        """Remove what `fill` and `fill_inodes` took."""
        (self.place / "filler").unlink(missing_ok=True)
        shutil.rmtree(self.place / "fillers", ignore_errors=True)

    def keep(self, copy: Path) -> None:
        """Copy what is on the disk now; it must be unmounted, or is as a power cut leaves it."""
        _do("cp", "--sparse=always", "--reflink=never", self.image, copy)

    def bring_back(self, copy: Path) -> None:
        """Make the disk what it was when it was copied; it must be unmounted.

        It is another file each time: where somebody has made a mount namespace meanwhile, the
        former one is in use for as long as that lasts.
        """
        self._count += 1
        former, self.image = self.image, self.image.with_name(f"image-{self._count}")
        _do("cp", "--sparse=always", "--reflink=never", copy, self.image)
        former.unlink()

    def renew(self) -> None:
        """Go on with what is on the disk now, whoever has the former one; see `bring_back`."""
        self.bring_back(self.image)


@contextlib.contextmanager
def made_disk(kind: str = "ext4", mib: int = 64, inodes: int | None = None) -> Iterator[Disk]:
    """Give a mounted disk in memory; it goes at the end, whatever happened."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    outer = Path(tempfile.mkdtemp(prefix="turku-disk-", dir=memory))
    try:
        outer.chmod(0o755)
        disk = Disk(outer, kind, mib, inodes)
        disk.mount()
        try:
            yield disk
        finally:
            disk.unmount()
    finally:
        shutil.rmtree(outer)


class _UntilFull:
    """A context that ends, without an error, when the disk is full."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        return isinstance(error, OSError) and error.errno in _FULL


def _do(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

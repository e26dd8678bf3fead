"""A storage unit's catalogue in a temporary folder, and a machine's rsync daemon on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import turku_core
from turku_core.storage import mirror, restore
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.mirror import Daemon, PullOptions, Received
from turku_core.storage.records import Record
from turku_core.storage.snapshots import Environment, Taken, commit, get_mode, remove
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import Volume, Volumes

MACHINE = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
NOBODY = 65534
PLAIN = PullOptions()
DAY = timedelta(days=1)
START = datetime(2026, 1, 5, 3, 0, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Unit:
    """A storage unit's part that keeps snapshots."""

    catalogue: Catalogue
    environment: Environment
    volume: Volume

    def back_up(
        self,
        daemon: Daemon,
        mode: str,
        *,
        at: datetime = START,
        source: str = "docs",
        options: PullOptions = PLAIN,
        path: str | None = None,
        retention: str = "last 5 days, earliest of month",
    ) -> Record:
        """Do what a session and the worker do, and return the record."""
        folder, received = self.receive(
            daemon, mode, at=at, source=source, options=options, path=path, retention=retention
        )
        assert received.usable, received
        record = commit(self.catalogue, folder, self.environment)
        assert record is not None
        return record

    def receive(
        self,
        daemon: Daemon,
        mode: str,
        *,
        at: datetime = START,
        machine: str = MACHINE,
        source: str = "docs",
        options: PullOptions = PLAIN,
        path: str | None = None,
        retention: str = "last 5 days, earliest of month",
    ) -> tuple[SourceFolder, Received]:
        """Do what a session does: pull and freeze."""
        folder = self.catalogue.open(machine, source)
        maker = get_mode(mode, self.environment)
        with folder.lock() as held:
            target = maker.prepare(folder)
            received = mirror.pull(daemon, target, options, hold=(held,))
            if received.usable:
                taken = Taken(at, at + timedelta(minutes=1), received, path, retention)
                maker.freeze(folder, taken)
        return folder, received

    def restore(self, wanted: str, target: Path, paths: Sequence[str] = ()) -> restore.Restored:
        """Restore to a local folder."""
        chosen = restore.choose_snapshot(self.catalogue, MACHINE, "docs", wanted)
        return restore.restore_to_folder(chosen, target, self.environment, paths=paths)

    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Remove a snapshot for good."""
        with folder.lock():
            remove(self.catalogue, folder, record, self.environment)

    def ids(self) -> list[str]:
        """Return the ids of what is listed, oldest first."""
        return [record.id for _, record in self.catalogue.listing().records]


def make_unit(folder: Path, volume: Path | None = None) -> Unit:
    """Make a storage unit with one volume below `folder`."""
    state = folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    place = volume or folder / "volume"
    place.mkdir(parents=True, exist_ok=True)
    one = Volume("one", place, high_water_pct=101.0)
    catalogue = Catalogue(Volumes([one], state), state)
    return Unit(catalogue, Environment(state), one)


@contextlib.contextmanager
def quick_folder() -> Iterator[Path]:
    """Give a folder in memory, where syncing costs nothing, if it keeps extended attributes."""
    memory: str | None = "/dev/shm"
    try:
        with tempfile.NamedTemporaryFile(dir=memory) as file:
            os.setxattr(file.name, "user.test", b"")
    except OSError:
        memory = None
    with tempfile.TemporaryDirectory(prefix="turku-test-", dir=memory) as name:
        yield Path(name)


def free_port() -> int:
    """Return a TCP port that is free on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


_TEMPLATE = Path(turku_core.__file__).parent / "templates/rsyncd.conf.j2"
_REFUSED = re.findall(r"^refuse options = (.*)$", _TEMPLATE.read_text(), re.MULTILINE)
"""What a machine's daemon refuses of those who write, and of those who read."""


@contextlib.contextmanager
def serve(path: Path, *, writable: bool = False, module: str = "docs") -> Iterator[Daemon]:
    """Serve a folder as a machine does: with a user, a password, and what it refuses."""
    with tempfile.TemporaryDirectory(prefix="turku-rsyncd-") as name:
        private = Path(name)
        port = free_port()
        secrets = private / "secrets"
        secrets.write_text("user:password-of-the-session\n")
        secrets.chmod(0o600)
        configuration = private / "rsyncd.conf"
        # Outside a chroot a writable module would change absolute links (rsyncd.conf(5)).
        identity = "uid = root\ngid = root\nuse chroot = yes\n"
        if os.geteuid() != 0:
            identity = "use chroot = no\n"
        configuration.write_text(
            f"address = 127.0.0.1\nport = {port}\nmunge symlinks = no\n{identity}"
            f"[{module}]\npath = {path}\nread only = {'no' if writable else 'yes'}\n"
            f"list = no\nauth users = user\nsecrets file = {secrets}\n"
            f"refuse options = {_REFUSED[0 if writable else 1]}\n"
        )
        process = subprocess.Popen(
            ["rsync", "--daemon", "--no-detach", f"--config={configuration}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(port)
            yield Daemon(port, module, "user", "password-of-the-session")
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class _CapabilityHeader(ctypes.Structure):
    """See capset(2)."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapabilityData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


@contextlib.contextmanager
def nobodys_folder() -> Iterator[Path]:
    """Give a folder that belongs to nobody, below one that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="turku-test-") as name:
        outer = Path(name)
        outer.chmod(0o755)
        inner = outer / "nobody"
        inner.mkdir()
        os.chown(inner, NOBODY, NOBODY)
        yield inner


@contextlib.contextmanager
def as_nobody(*, reading: bool = True) -> Iterator[None]:
    """Be nobody for a while, and so is every program that is begun.

    Only this process itself may read what it couldn't, since Python's own files may lie in root's
    home; programs have no privileges at all. The real user stays root, to be able to come back.

    Args:
        reading: False for code whose modules have all been imported, to take that right away too.
    """
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        if reading:
            _keep_reading()
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


def _keep_reading() -> None:
    """Take CAP_DAC_READ_SEARCH alone into effect (capabilities(7), capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(0x20080522, 0)
    data = (_CapabilityData * 2)()
    if libc.capget(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    data[0].effective = 1 << 2
    if libc.capset(ctypes.byref(header), data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@contextlib.contextmanager
def btrfs_volume(mib: int = 256) -> Iterator[Path]:
    """Give a btrfs file system on a loop device that belongs to nobody; it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="turku-btrfs-") as name:
        outer = Path(name)
        outer.chmod(0o755)
        image, place = outer / "image", outer / "volume"
        with image.open("wb") as file:
            file.truncate(mib * 1024 * 1024)
        place.mkdir()
        subprocess.run(["mkfs.btrfs", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop,user_subvol_rm_allowed", image, place], check=True)
        try:
            os.chown(place, NOBODY, NOBODY)
            yield place
        finally:
            subprocess.run(["umount", place], check=True)

"""A machine with a kernel of its own, in qemu by software emulation, for what needs block devices.

It is on the same bridge as the others and does what they do, some ten times slower. Commands go
over one SSH connection, which brings the hook tools' socket along.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.model.runner.commands import MachineError, run
from tests.model.runner.machines import SHARED, Machine, install_packages
from tests.model.runner.network import BRIDGE, Network

PROGRAM = "qemu-system-x86_64"
PACKAGES = ("initramfs-tools", "kmod", "linux-image-cloud-amd64", "lvm2", "lz4", "udev")
"""What it has more than a machine that shares the host's kernel."""

DISK_SIZE = "4G"
NEEDLESS = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty.target",
)  # fmt: skip
"""Units that only take time when it boots."""

FILES = {
    # Programs are run there, and on /run they may not be.
    "etc/fstab": f"tmpfs {SHARED} tmpfs mode=0755 0 0\n",
    # The cloud kernel has ext4 built in, but not what its disk hangs on.
    "etc/initramfs-tools/conf.d/model": "MODULES=list\nCOMPRESS=lz4\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\n",
    "etc/ssh/sshd_config.d/10-model.conf": "StreamLocalBindUnlink yes\n",
    "etc/systemd/network/10-host0.link": "[Match]\nDriver=virtio_net\n[Link]\nName=host0\n",
}
"""What is in its image before the packages are put there."""

BOOT_SECONDS, STOP_SECONDS, PLUG_SECONDS = 300.0, 120.0, 60.0
CONNECT_SECONDS = 10


@dataclass(frozen=True)
class KernelImage:
    """What a machine with a kernel of its own boots from: a raw disk to copy, and the kernel."""

    disk: Path
    kernel: Path
    initrd: Path


def ensure_kernel_image(folder: Path, image: Path) -> KernelImage:
    """Return the image for machines with a kernel, built when it is missing or its recipe changed.

    Args:
        folder: Where the machines' image is cached; this one gets a folder beside it.
        image: The root folder of that image, which this one has in it.
    """
    place = folder / "kernel"
    found = KernelImage(place / "disk", place / "vmlinuz", place / "initrd")
    recipe = place / "recipe"
    wanted = (folder / "recipe").read_text() + repr((PACKAGES, DISK_SIZE, NEEDLESS, FILES))
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not recipe.exists() or recipe.read_text() != wanted:
            recipe.unlink(missing_ok=True)
            _build(place / "build", image, found)
            recipe.write_text(wanted)
    return found


def _build(folder: Path, image: Path, made: KernelImage) -> None:
    root = folder / "root"
    if root.is_mount():
        run(["umount", str(root)])  # of a run that was killed
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    layers = f"lowerdir={image},upperdir={folder}/upper,workdir={folder}/work"
    run(["mount", "-t", "overlay", "overlay", "-o", layers, str(root)])
    try:
        for name, text in FILES.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        install_packages(root, PACKAGES)
        run(["chroot", str(root), "systemctl", "mask", *NEEDLESS])
        for link, target in (("vmlinuz", made.kernel), ("initrd.img", made.initrd)):
            shutil.copyfile(root / (root / link).readlink(), target)
        made.disk.unlink(missing_ok=True)
        run(["truncate", f"--size={DISK_SIZE}", str(made.disk)])
        lazy = "lazy_itable_init=1,lazy_journal_init=1"
        run(["mkfs.ext4", "-q", "-E", lazy, "-d", str(root), str(made.disk)])
    finally:
        run(["umount", str(root)])
        shutil.rmtree(folder)


class KernelMachine(Machine):
    """One machine with a kernel of its own.

    Besides what every machine can do, it takes block devices, also while it runs. It has no disks
    with a filesystem made for it.
    """

    def __init__(self, number: int, folder: Path, image: KernelImage, network: Network) -> None:
        super().__init__(number, folder, image.disk, network)
        self._kernel = image
        self._tap = f"tap{number}"
        self._blocks: dict[str, Path] = {}
        self._connection: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot it, and wait until systemd has started what it starts."""
        disk = self.folder / "disk"
        if not disk.exists():
            for name in ("root", "shared"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            run(["cp", "--sparse=always", "--reflink=auto", str(self._kernel.disk), str(disk)])
            run(["mount", "-o", "loop", str(disk), str(self.root)])
            try:
                self._configure()
            finally:
                run(["umount", str(self.root)])
            self.network.run(["ip", "tuntap", "add", "dev", self._tap, "mode", "tap"])
            self.network.run(["ip", "link", "set", self._tap, "master", BRIDGE, "up"])
        self._boot()

    def _configure(self) -> None:
        super()._configure()
        key = self.folder / "key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        keys = self.root / "root/.ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_bytes(key.with_suffix(".pub").read_bytes())
        keys.chmod(0o600)

    def _boot(self) -> None:
        (self.folder / "qmp").unlink(missing_ok=True)
        mac = f"52:54:00:00:00:{self.number:02x}"
        command = [
            *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc,usb=off", "-accel", "tcg,thread=multi,tb-size=256"),
            # A fifth level of page tables, and what guards against the processor, cost much here.
            *("-cpu", "max,la57=off,svm=off", "-smp", "2", "-m", "1024"),
            *("-kernel", str(self._kernel.kernel), "-initrd", str(self._kernel.initrd)),
            *("-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off"),
            *("-drive", f"file={self.folder}/disk,format=raw,if=none,id=root"),
            *("-device", "virtio-blk-pci,drive=root,serial=root"),
            *("-netdev", f"tap,id=net,ifname={self._tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="),
            *("-device", "virtio-rng-pci", "-serial", f"file:{self.folder}/console.log"),
            *("-qmp", f"unix:{self.folder}/qmp,server=on,wait=off"),
        ]
        for name, file in self._blocks.items():
            command += ["-blockdev", json.dumps(_node(name, file))]
            command += ["-device", json.dumps(_device(name))]
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.network.inside(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = "".join(
                    (self.folder / name).read_text(errors="replace")[-2000:]
                    for name in ("qemu.log", "console.log")
                    if (self.folder / name).exists()
                )
                raise MachineError(f"{self.name} doesn't boot: {said}")
            time.sleep(0.5)
        self.put(self.shared, str(SHARED))

    def _is_up(self) -> bool:
        # Not whether everything has been started: systemd waits long for a disk that is missing.
        is_there = self._connection is not None and self._connection.poll() is None
        if not is_there and not self._connect():
            return False
        asked = ["systemctl", "is-active", "multi-user.target"]
        return self.run(asked, check=False).strip() == "active"

    def _connect(self) -> bool:
        """Open the connection that all commands go over, with the hook tools' socket."""
        control = self.folder / "control"
        control.unlink(missing_ok=True)
        tools = f"{SHARED}/socket:{self.shared}/socket"
        self._connection = subprocess.Popen(
            self.network.inside(
                self._ssh("-N", "-M", "-o", "ExitOnForwardFailure=yes", "-R", tools)
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while self._connection.poll() is None and not control.exists():
            if self._process is None or self._process.poll() is not None:
                self._disconnect()
                return False
            time.sleep(0.1)
        return self._connection.poll() is None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.kill()
            self._connection.wait()
        self._connection = None

    def _ssh(self, *options: str) -> list[str]:
        return [
            *("ssh", "-F", "none", "-i", str(self.folder / "key"), "-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "LogLevel=ERROR", "-o", f"ConnectTimeout={CONNECT_SECONDS}"),
            *("-o", f"ControlPath={self.folder}/control", *options, f"root@{self.address}"),
        ]

    @property
    def is_running(self) -> bool:
        """Whether it is up."""
        return super().is_running and self._connection is not None

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command of the host that runs a command on the machine."""
        if self._connection is None:
            raise MachineError(f"{self.name} isn't running")
        # Where the connection has gone there is none to be made in its stead.
        return [*self._ssh("-o", "ProxyCommand=false"), "--", shlex.join(command)]

    def interface(self) -> str:
        """Return the bridge's end of its network."""
        return self._tap

    def put(self, folder: Path, target: str) -> None:
        """Copy a folder of the host to the machine, over what is there."""
        # Packed, since to decrypt it takes the machine longer than to unpack it.
        packed = subprocess.run(
            ["tar", "-cz", "--warning=no-file-ignored", f"--directory={folder}", "."],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        ).stdout
        script = f"mkdir -p {target} && tar -xz --directory={target}"
        self.run(["sh", "-c", script], given=packed)

    def attach_disk(self, target: str, size: str) -> None:
        """Raise MachineError: there are no such disks here."""
        raise MachineError("a machine with a kernel of its own has block devices only")

    def attach_block(self, name: str, size: str) -> str:
        """Give it a block device and return its path; it is there again after each boot.

        Args:
            name: One that was detached comes back with what is on it.
            size: Of a new one, as truncate(1) reads it.
        """
        path = f"/dev/disk/by-id/virtio-{_serial(name)}"
        if name in self._blocks:
            return path
        file = self.folder / f"block-{_serial(name)}"
        if not file.exists():
            run(["truncate", f"--size={size}", str(file)])
        if self._process is not None:
            with _Monitor(self.folder / "qmp") as monitor:
                monitor.execute("blockdev-add", _node(name, file))
                monitor.execute("device_add", _device(name))
            self.run(["udevadm", "wait", f"--timeout={PLUG_SECONDS:.0f}", path])
        self._blocks[name] = file
        return path

    def detach_block(self, name: str) -> None:
        """Take a block device away, in good order or not; what is on it is kept."""
        if self._process is not None:
            with _Monitor(self.folder / "qmp") as monitor:
                monitor.execute("device_del", {"id": _serial(name)})
                monitor.wait_for("DEVICE_DELETED", "device", _serial(name))
                monitor.execute("blockdev-del", {"node-name": f"node-{_serial(name)}"})
        del self._blocks[name]

    def stop(self, *, kill: bool = False) -> None:
        """Power it off, or pull its plug."""
        if self._process is None:
            return
        if self._connection is not None and not kill:
            with contextlib.suppress(MachineError):
                self.run(["systemctl", "poweroff"], check=False, seconds_max=STOP_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._disconnect()
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """Pull its plug; its folder and its network go with the model's."""
        self.stop(kill=True)


class _Monitor:
    """qemu's side of a machine: the QEMU Machine Protocol over a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PLUG_SECONDS)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._lines.readline()  # its greeting
        self.execute("qmp_capabilities", {})

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, Any]) -> None:
        """Have it do something. Raises MachineError when it doesn't."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "return" not in (answer := self._read()):
            if "error" in answer:
                raise MachineError(f"qemu: {command}: {answer['error']['desc']}")
            self._events.append(answer)

    def wait_for(self, event: str, key: str, value: str) -> None:
        """Wait until it says that something has happened to something."""
        while True:
            told = self._events.pop(0) if self._events else self._read()
            if told.get("event") == event and told["data"].get(key) == value:
                return

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise MachineError("qemu doesn't answer") from error
        if not line:
            raise MachineError("qemu has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _serial(name: str) -> str:
    return name.replace("/", "-")


def _node(name: str, file: Path) -> dict[str, Any]:
    return {
        "driver": "raw",
        "node-name": f"node-{_serial(name)}",
        "file": {"driver": "file", "filename": str(file)},
    }


def _device(name: str) -> dict[str, Any]:
    serial = _serial(name)
    return {
        "driver": "virtio-blk-pci",
        "drive": f"node-{serial}",
        "id": serial,
        "serial": serial,
    }

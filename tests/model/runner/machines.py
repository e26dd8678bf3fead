"""Machines that boot systemd: overlays on one image, in `systemd-nspawn`, on a bridge of their own.

How, and why each option: see README.md. Everything is made below one folder and undone by `close`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.model.runner.commands import MachineError, run
from tests.model.runner.network import BRIDGE, Network

PACKAGES = (
    "acl", "attr", "borgbackup", "btrfs-progs", "ca-certificates", "curl", "dbus", "iproute2",
    "iputils-ping", "netcat-openbsd", "openssh-client", "openssh-server", "procps", "python3",
    "rsync", "sudo", "systemd", "systemd-sysv",
)  # fmt: skip
"""What every machine has from the beginning; without them hooks would need the archive."""

SERVICES = ("postgresql",)
"""Packages whose services are installed and not started."""

BOOT_SECONDS = 60.0
STOP_SECONDS = 20.0
SHARED = Path("/run/model")
"""Where a machine finds the runner's socket and the hook tools."""


def ensure_image(
    folder: Path,
    packages: Sequence[str] = PACKAGES,
    services: Sequence[str] = SERVICES,
    suite: str = "bookworm",
) -> Path:
    """Return the root folder of the image, built when it is missing or its recipe changed.

    Args:
        packages: What every machine has.
        services: Packages with services that a charm starts when it wants them.
    """
    root, recipe = folder / "root", folder / "recipe"
    wanted = f"{suite} {' '.join(sorted(packages))} | {' '.join(sorted(services))}\n"
    folder.mkdir(parents=True, exist_ok=True)
    with folder.joinpath("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not recipe.exists() or recipe.read_text() != wanted:
            recipe.unlink(missing_ok=True)
            if root.exists():
                shutil.rmtree(root)
            _build_image(root, packages, services, suite)
            recipe.write_text(wanted)
    return root


def _build_image(root: Path, packages: Sequence[str], services: Sequence[str], suite: str) -> None:
    include = f"--include={','.join(sorted(packages))}"
    run(["debootstrap", "--variant=minbase", include, suite, str(root)])
    install_packages(root, services)
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()  # each machine makes its own
    (root / "etc/machine-id").write_text("")
    enter = ["env", "LC_ALL=C.UTF-8", "chroot", str(root)]
    run([*enter, "systemctl", "enable", "systemd-networkd", "ssh"])
    run([*enter, "systemctl", "disable", *sorted(services)])


def install_packages(root: Path, packages: Sequence[str]) -> None:
    """Install packages of the distribution in a root folder; nothing of them is started."""
    policy, resolver = root / "usr/sbin/policy-rc.d", root / "etc/resolv.conf"
    policy.write_text("#!/bin/sh\nexit 101\n")  # "start nothing" (invoke-rc.d(8))
    policy.chmod(0o755)
    shutil.copyfile("/etc/resolv.conf", resolver)
    enter = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "chroot", str(root)]
    run([*enter, "apt-get", "update", "-qq"])
    run([*enter, "apt-get", "install", "-qq", "--no-install-recommends", *sorted(packages)])
    run([*enter, "apt-get", "clean"])
    policy.unlink()
    resolver.unlink()


class Machine:
    """One machine."""

    def __init__(self, number: int, folder: Path, image: Path, network: Network) -> None:
        self.number = number
        self.name = f"machine-{number}"
        self.folder = folder
        self.image = image
        self.network = network
        self.address = f"{network.prefix}.{number + 10}"
        self.shared = folder / "shared"
        self.root = folder / "root"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader: int | None = None
        self._unique = uuid.uuid4().hex[:8]
        self.disks: dict[str, str] = {}

    def start(self) -> None:
        """Boot it, and wait until systemd has started what it starts."""
        for name in ("upper", "work", "root", "shared"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not self.root.is_mount():
            layers = (
                f"lowerdir={self.image},upperdir={self.folder}/upper,workdir={self.folder}/work"
                # What the host would lose without power is lost with the test; nothing waits for
                # the disk (kernel documentation, overlayfs, "Volatile mount").
                ",volatile"
            )
            run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)])
            self._configure()
        self._boot()

    def _configure(self) -> None:
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "systemd/network").mkdir(parents=True, exist_ok=True)
        (etc / "systemd/network/10-host0.network").write_text(
            f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\n"
            f"Gateway={self.network.prefix}.1\nIPv6AcceptRA=no\n"
        )
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)])

    def _boot(self) -> None:
        for target, device in self.disks.items():
            run(["mount", device, f"{self.root}{target}"])
        groups = self._make_groups()
        nspawn = [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot"),
            *("--register=no", "--keep-unit", f"--machine=m{self.number}-{self._unique}"),
            *(f"--network-bridge={BRIDGE}", "--resolv-conf=off"),
            *("--link-journal=no", f"--bind={self.shared}:{SHARED}", "--console=pipe"),
        ]
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        with (self.folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", f'{enter}exec "$@"', "sh", *self.network.inside(nspawn)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "console.log").read_text(errors="replace")[-2000:]
                raise MachineError(f"{self.name} doesn't boot: {said}")
            time.sleep(0.1)

    def _is_up(self) -> bool:
        self._leader = self._find_leader()
        if self._leader is None:
            return False
        try:
            state = self.run(["systemctl", "is-system-running"], check=False).strip()
        except MachineError:
            return False
        return state in ("running", "degraded")

    def _find_leader(self) -> int | None:
        """Return the process of the host that is PID 1 on the machine."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            found = children.read_text().split()
        except OSError:
            return None
        return int(found[0]) if found else None

    def _make_groups(self) -> list[Path]:
        """Make a control group for it in each hierarchy of the host that systemd wants one in."""
        name = f"turku-model-{self._unique}-{self.number}"
        groups = []
        for hierarchy in ("systemd", "unified", "memory", "pids"):
            top = Path("/sys/fs/cgroup", hierarchy)
            if top.is_dir():
                (top / name).mkdir(exist_ok=True)
                groups.append(top / name)
        return groups

    @property
    def is_running(self) -> bool:
        """Whether it is up."""
        return self._process is not None and self._process.poll() is None

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command of the host that runs a command on the machine."""
        if self._leader is None:
            raise MachineError(f"{self.name} isn't running")
        return ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", *command]

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: str = "/",
        given: bytes | None = None,
        check: bool = True,
        seconds_max: float = 600.0,
    ) -> str:
        """Run a command on the machine as root and return what it printed, errors included.

        Raises:
            MachineError: It failed (unless `check` is false), or took too long.
        """
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            **(environment or {}),
        }
        inside = [
            *("env", "-i", f"--chdir={folder}"),
            *(f"{key}={value}" for key, value in variables.items()),
            *command,
        ]
        try:
            done = subprocess.run(
                self.command(inside),
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds_max,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.name}: {' '.join(command)} took too long") from error
        printed = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            raise MachineError(
                f"{self.name}: {' '.join(command)} ended with {done.returncode}: {printed[-4000:]}"
            )
        return printed

    def put(self, folder: Path, target: str) -> None:
        """Copy a folder of the host to the machine, over what is there."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = ["cp", "--archive", "--remove-destination", "--no-target-directory"]
        run([*copy, str(folder), str(place)])

    def disconnect(self) -> None:
        """Take its end of the bridge down."""
        self.network.run(["ip", "link", "set", self.interface(), "down"])

    def connect(self) -> None:
        """Bring it up again."""
        self.network.run(["ip", "link", "set", self.interface(), "up"])

    def interface(self) -> str:
        """Return the bridge's end of its network pair, by the index that the machine knows it by.

        Raises:
            MachineError: The machine isn't up.
        """
        index = int(self.run(["cat", "/sys/class/net/host0/iflink"]))
        for link in json.loads(self.network.run(["ip", "-json", "link"])):
            if link["ifindex"] == index:
                return str(link["ifname"])
        raise MachineError(f"{self.name} has no network")

    def attach_disk(self, target: str, size: str) -> None:
        """Mount a new disk (ext4) on the running machine; it is there again after each boot.

        Args:
            target: An absolute path on the machine.
            size: Such as ``400M`` or ``20G``, as truncate(1) reads it.
        """
        image = self.folder / f"disk-{uuid.uuid4().hex[:8]}"
        run(["truncate", f"--size={size}", str(image)])
        run(["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1", str(image)])
        device = run(["losetup", "--find", "--show", str(image)]).strip()
        self.disks[target] = device
        # The machine has no loop devices; a node in the folder it shares with the host is one.
        node = self.shared / Path(device).name
        node.unlink(missing_ok=True)
        status = os.stat(device)
        os.mknod(node, 0o600 | stat.S_IFBLK, status.st_rdev)
        self.run(["mkdir", "-p", target])
        assert self._leader is not None
        enter = ["nsenter", "-t", str(self._leader), "-m"]
        run([*enter, "mount", str(SHARED / node.name), target])

    def detach_disk(self, target: str) -> None:
        """Take a disk away, with what is on it."""
        device = self.disks.pop(target)
        assert self._leader is not None
        run(["nsenter", "-t", str(self._leader), "-m", "umount", target])
        if Path(f"{self.root}{target}").is_mount():
            run(["umount", f"{self.root}{target}"])
        run(["losetup", "--detach", device])

    def attach_block(self, name: str, size: str) -> str:
        """Raise MachineError: this needs a machine with a kernel of its own."""
        raise MachineError("block storage needs a machine with a kernel of its own")

    def detach_block(self, name: str) -> None:
        """Raise MachineError: this needs a machine with a kernel of its own."""
        raise MachineError("block storage needs a machine with a kernel of its own")

    def reboot(self) -> None:
        """Shut it down in good order and boot it again."""
        self.stop()
        self._boot()

    def stop(self, *, kill: bool = False) -> None:
        """Power it off, or pull its plug."""
        if self._process is None:
            return
        if self._leader is not None and self.is_running and not kill:
            # systemd as a container's PID 1: SIGRTMIN+4 is poweroff (systemd(1), Signals).
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGRTMIN + 4)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        if self._process.poll() is None and self._leader is not None:
            # With its PID 1 every process of the machine ends, and then nspawn; without nspawn
            # they would live on.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process, self._leader = None, None
        self._remove_groups()
        for target in self.disks:
            if Path(f"{self.root}{target}").is_mount():
                run(["umount", f"{self.root}{target}"])

    def _remove_groups(self) -> None:
        for group in self._make_groups():
            for path in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()

    def close(self) -> None:
        """Pull its plug, and let go of all but its folder."""
        self.stop(kill=True)
        for device in self.disks.values():
            run(["losetup", "--detach", device])
        if self.root.is_mount():
            run(["umount", str(self.root)])

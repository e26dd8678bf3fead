"""Machines that boot systemd: overlays on one image, in `systemd-nspawn`, on a bridge of their own.

How, and why each option: see README.md. Everything is made below one folder and undone by `close`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "acl", "attr", "borgbackup", "btrfs-progs", "ca-certificates", "curl", "dbus", "iproute2",
    "iputils-ping", "netcat-openbsd", "openssh-client", "openssh-server", "procps", "python3",
    "rsync", "sudo", "systemd", "systemd-sysv",
)  # fmt: skip
"""What every machine has from the beginning; without them hooks would need the archive."""

BOOT_SECONDS = 60.0
STOP_SECONDS = 20.0
SHARED = Path("/run/model")
"""Where a machine finds the runner's socket and the hook tools."""


class MachineError(Exception):
    """A machine could not be made, or a command on it failed."""


def run(command: Sequence[str], **options: object) -> str:
    """Run a command of the host and return what it printed. Raises MachineError."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def ensure_image(folder: Path, packages: Sequence[str] = PACKAGES, suite: str = "bookworm") -> Path:
    """Return the root folder of the image, built when it is missing or its packages changed."""
    root, recipe = folder / "root", folder / "recipe"
    wanted = f"{suite} {' '.join(sorted(packages))}\n"
    if recipe.exists() and recipe.read_text() == wanted:
        return root
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    run(
        [
            *("debootstrap", "--variant=minbase", f"--include={','.join(sorted(packages))}"),
            *(suite, str(root)),
        ]
    )
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()  # each machine makes its own
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    for unit in ("systemd-networkd", "ssh"):
        run(["chroot", str(root), "systemctl", "enable", unit])
    recipe.write_text(wanted)
    return root


@dataclass(frozen=True)
class Network:
    """The bridge of a run, and its subnet.

    Attributes:
        prefix: The first three bytes of the IPv4 subnet (/24).
    """

    bridge: str
    prefix: str

    @property
    def subnet(self) -> str:
        """The subnet."""
        return f"{self.prefix}.0/24"

    def open(self) -> None:
        """Make the bridge; the host has its first address."""
        run(["ip", "link", "add", self.bridge, "type", "bridge"])
        run(["ip", "address", "add", f"{self.prefix}.1/24", "dev", self.bridge])
        run(["ip", "link", "set", self.bridge, "up"])

    def close(self) -> None:
        """Remove the bridge."""
        with contextlib.suppress(MachineError):
            run(["ip", "link", "delete", self.bridge])


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

    def start(self) -> None:
        """Boot it, and wait until systemd has started what it starts."""
        for name in ("upper", "work", "root", "shared"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not self.root.is_mount():
            layers = (
                f"lowerdir={self.image},upperdir={self.folder}/upper,workdir={self.folder}/work"
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
            f"Gateway={self.network.prefix}.1\n"
        )
        run(["ssh-keygen", "-A", "-f", str(self.root)])

    def _boot(self) -> None:
        groups = self._make_groups()
        nspawn = [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot"),
            *("--register=no", "--keep-unit", f"--machine=m{self.number}-{self._unique}"),
            *(f"--network-bridge={self.network.bridge}", "--resolv-conf=off"),
            *("--link-journal=no", f"--bind={self.shared}:{SHARED}", "--console=pipe"),
        ]
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        with (self.folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", f'{enter}exec "$@"', "sh", *nspawn],
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

    def disconnect(self) -> None:
        """Take its end of the bridge down."""
        run(["ip", "link", "set", self._interface(), "down"])

    def connect(self) -> None:
        """Bring it up again."""
        run(["ip", "link", "set", self._interface(), "up"])

    def _interface(self) -> str:
        """Return the host's end of its network pair, by the index that the machine knows it by."""
        index = self.run(["cat", "/sys/class/net/host0/iflink"]).strip()
        for path in Path("/sys/class/net").iterdir():
            if (path / "ifindex").read_text().strip() == index:
                return path.name
        raise MachineError(f"{self.name} has no network")

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

    def _remove_groups(self) -> None:
        for group in self._make_groups():
            for path in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()

    def close(self) -> None:
        """Stop it and remove everything of it."""
        self.stop()
        if self.root.is_mount():
            run(["umount", str(self.root)])
        shutil.rmtree(self.folder, ignore_errors=True)

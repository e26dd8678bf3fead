"""A private sshd of the distribution's, with a port, host key and configuration of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "127.0.0.1"
_START_SECONDS = 20.0
_TRIES = 5


@dataclass(frozen=True)
class Sshd:
    """A running sshd, and how a client reaches it."""

    folder: Path
    port: int
    user: str
    authorized_keys: Path
    process: subprocess.Popen[bytes]

    @property
    def host_key(self) -> str:
        """The public host key, as one line."""
        return (self.folder / "host_key.pub").read_text().strip()

    @property
    def log(self) -> str:
        """What sshd has said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def client_command(self, key: Path, options: Sequence[str] = ()) -> list[str]:
        """Return an ssh command with this key, up to the host; the remote command follows."""
        known_hosts = self.folder / "known_hosts"
        known_hosts.write_text(f"[{ADDRESS}]:{self.port} {self.host_key}\n")
        return [
            "ssh", "-F", "/dev/null", "-T",
            "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
            "-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}",
            "-o", "ExitOnForwardFailure=yes", "-i", str(key), "-p", str(self.port),
            *options, "-l", self.user, ADDRESS,
        ]  # fmt: skip

    def make_key(self, name: str) -> Path:
        """Make a key pair in sshd's folder and return the private key's path."""
        key = self.folder / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key)], check=True
        )
        return key


def free_port() -> int:
    """Return a TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_sshd(
    match_block: str = "", *, user: str | None = None, authorized_keys: Path | None = None
) -> Iterator[Sshd]:
    """Run an sshd while the context lasts.

    Args:
        match_block: Text at the end of its configuration, such as our drop-in.
        user: Who logs in; whoever runs this by default.
        authorized_keys: The file of keys; one in its own folder by default.
    """
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "sshd isn't installed: install openssh-server"
    if os.geteuid() == 0:
        # Where root's sshd keeps its unprivileged child.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="turku-sshd-"))
    folder.chmod(0o755)
    keys = authorized_keys or folder / "authorized_keys"
    name = user or pwd.getpwuid(os.geteuid()).pw_name
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")],
            check=True,
        )
        sshd = _start(program, folder, keys, name, match_block)
        try:
            yield sshd
        finally:
            sshd.process.terminate()
            sshd.process.wait()
    finally:
        shutil.rmtree(folder)


def _start(program: str, folder: Path, keys: Path, user: str, match_block: str) -> Sshd:
    for _ in range(_TRIES):
        port = free_port()
        configuration = folder / "sshd_config"
        # One address family: where another test's sshd has a port of 127.0.0.1, a forward of ours
        # would take the same number on ::1 alone, and the stand-ins only know 127.0.0.1.
        configuration.write_text(
            f"AddressFamily inet\nListenAddress {ADDRESS}\nPort {port}\n"
            f"HostKey {folder / 'host_key'}\nPidFile none\n"
            f"AuthorizedKeysFile {keys}\nStrictModes no\nUsePAM no\nMaxStartups 100\n{match_block}"
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-D", "-e", "-f", str(configuration)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if _listens(process, folder / "log"):
            return Sshd(folder, port, user, keys, process)
        process.kill()
        process.wait()
    raise AssertionError((folder / "log").read_text())


def _listens(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until this very sshd listens: another's may have taken the port in the meantime."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if "Server listening on" in log.read_text(errors="replace"):
            return True
        time.sleep(0.02)
    return False

"""The SSH connection to a storage unit, with a reverse tunnel to the session's rsync daemon.

The options are those of ssh(1) and ssh_config(5), OpenSSH 8.9 (Ubuntu 22.04) and later. OpenSSH
says ``Allocated port N for remote forward to ...`` on standard error when the other side's sshd
has picked the port.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turku_core.agent.processes import printable
from turku_core.agent.rsync_daemon import SOCKET_NAME
from turku_core.protocol.messages import StorageAddress

REMOTE_COMMAND = "turku-ping-remote"
KNOWN_HOSTS_NAME = "known_hosts"
KEY_NAME = "ssh_key"

CONNECT_SECONDS = 30
ALIVE_SECONDS = 15
ALIVE_COUNT = 4
ALLOCATION_SECONDS = 90.0
"""From the start of ssh to the allocated port: connecting, the keys, and a slow forced command."""

_AES_FIRST = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
_CPUINFO_BYTES = 16384

_ALLOCATED = re.compile(r"Allocated port (?P<port>[0-9]{1,5}) for remote forward to ")


@dataclass(frozen=True)
class Trouble:
    """A way in which ssh fails, and what to do about it."""

    pattern: str
    sentence: str


# ssh's own words (OpenSSH 8.9 to 10); what each means was tried against a real sshd.
_TROUBLES = (
    Trouble(
        "REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known",
        "its host key is not one that the API announced: someone may be in between, or the unit "
        "was installed anew and must register its keys again (turku-storage-update-config there)",
    ),
    Trouble(
        "Permission denied",
        "it refuses this machine's SSH key: it may not have fetched the machine list yet, which it "
        "does every few minutes; if it stays so, run turku-storage-update-config there",
    ),
    Trouble(
        "Could not resolve hostname",
        "its name can't be resolved: check the DNS here and ssh_ping_host there",
    ),
    Trouble(
        "Connection refused",
        "nothing listens on that port: check sshd there, ssh_ping_port, and the firewalls",
    ),
    Trouble(
        "Connection timed out|Operation timed out|No route to host|Network is unreachable",
        "it can't be reached: check the network and the firewalls between here and there",
    ),
    Trouble(
        "remote port forwarding failed|administratively prohibited",
        "it refuses the remote forward: its sshd needs AllowTcpForwarding remote and the "
        "authorized_keys lines that turku-storage-update-config writes",
    ),
    Trouble(
        "UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "this machine's private SSH key is readable by others: chmod 600 it",
    ),
    Trouble(
        "Timeout, server .* not responding|Connection reset|Broken pipe|Connection closed",
        "the connection broke off; the next check-in tries again",
    ),
)


def has_aes_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether the processor has instructions for AES, as the kernel lists them (proc(5))."""
    try:
        with cpuinfo.open("rb") as file:
            # The first processor's part; all are of one kind.
            beginning = file.read(_CPUINFO_BYTES)
    except OSError:
        return False
    return re.search(rb"^(?:flags|Features)\s*:.* aes(?: |$)", beginning, re.MULTILINE) is not None


def make_ssh_command(address: StorageAddress, *, forward: bool, has_aes: bool = False) -> list[str]:
    """Return the ssh command of a session.

    It runs in the session's folder, where `known_hosts_text` stands in `KNOWN_HOSTS_NAME` and the
    machine's key in `KEY_NAME`: so no path of ours is ever parsed by ssh, which would expand ``%``
    and split at blanks.

    Args:
        address: The storage unit, checked by `StorageAddress.from_json`.
        forward: Whether to open the tunnel; the other side's sshd picks its port.
        has_aes: Whether AES-GCM is wished for first. With a processor's instructions for it, it
            takes half the time of ssh's own first choice (tried: 1 GiB in 1.4 s instead of 2.8 s);
            the storage unit may still refuse it.
    """
    options = {
        "BatchMode": "yes",
        "ClearAllForwardings": "no" if forward else "yes",
        "ConnectTimeout": CONNECT_SECONDS,
        "ConnectionAttempts": 1,
        "ControlMaster": "no",
        "ControlPath": "none",
        "ExitOnForwardFailure": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "IdentityFile": KEY_NAME,
        "LogLevel": "INFO",
        "PasswordAuthentication": "no",
        "PermitLocalCommand": "no",
        "PreferredAuthentications": "publickey",
        "RequestTTY": "no",
        "ServerAliveCountMax": ALIVE_COUNT,
        "ServerAliveInterval": ALIVE_SECONDS,
        "StrictHostKeyChecking": "yes",
        "TCPKeepAlive": "yes",
        "UpdateHostKeys": "no",
        "UserKnownHostsFile": KNOWN_HOSTS_NAME,
        "VerifyHostKeyDNS": "no",
    }
    if has_aes:
        options["Ciphers"] = _AES_FIRST
    command = ["ssh", "-F", "/dev/null"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    if forward:
        # The working folder is the session's; a socket's full path could be too long.
        command += ["-R", f"0:/proc/self/cwd/{SOCKET_NAME}"]
    command += ["-p", str(address.ssh_ping_port), "-l", address.ssh_ping_user]
    return [*command, "--", address.ssh_ping_host, REMOTE_COMMAND]


def known_hosts_text(address: StorageAddress) -> str:
    """Return a known_hosts file with exactly the announced keys (sshd(8), SSH_KNOWN_HOSTS)."""
    host, port = address.ssh_ping_host, address.ssh_ping_port
    name = host if port == 22 else f"[{host}]:{port}"
    return "".join(f"{name} {key.line}\n" for key in address.ssh_ping_host_keys)


def allocated_port(line: str) -> int | None:
    """Return the port that a line of ssh's standard error tells, or None."""
    found = _ALLOCATED.match(line)
    port = int(found["port"]) if found else 0
    return port if 0 < port < 65536 else None


def explain(address: StorageAddress, lines: Sequence[str]) -> str:
    """Return a sentence that says why ssh didn't get through, from what it printed."""
    place = f"{address.name} ({address.ssh_ping_host}, port {address.ssh_ping_port})"
    for trouble in _TROUBLES:
        if any(re.search(trouble.pattern, line) for line in lines):
            return f"No session with storage unit {place}: {trouble.sentence}."
    said = printable(lines[-1]) if lines else "ssh ended without a word"
    return f"No session with storage unit {place}: {said}."


def link_key(folder: Path, key: Path) -> None:
    """Make the machine's key reachable under `KEY_NAME` in the session's folder."""
    (folder / KEY_NAME).symlink_to(key.absolute())

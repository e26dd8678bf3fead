"""Which loopback ports are this user's tunnels: what the kernel says of listening sockets."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from turku_core.errors import TurkuError

_LISTEN = "0A"
"""TCP_LISTEN of the kernel's include/net/tcp_states.h, as /proc/net/tcp shows it."""


class NotATunnel(TurkuError):
    """The port that an agent named is not the end of a tunnel of its own."""


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket: its address, its port and the user who made it."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    uid: int


def parse_table(lines: Iterable[str], *, little_endian: bool = True) -> Iterator[Listener]:
    """Yield the listening sockets of ``/proc/net/tcp`` or ``/proc/net/tcp6`` (proc_net_tcp(5)).

    An address is 32-bit words in hexadecimal, each in the byte order of the host. A line of
    another form is passed over.
    """
    for line in lines:
        columns = line.split()
        if len(columns) < 8 or columns[3] != _LISTEN:
            continue
        address, _, port = columns[1].partition(":")
        try:
            yield Listener(_address(address, little_endian), int(port, 16), int(columns[7]))
        except ValueError:
            continue


def _address(text: str, little_endian: bool) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    raw = bytes.fromhex(text)
    if len(raw) not in (4, 16):
        raise ValueError("not an IPv4 or IPv6 address")
    if little_endian:
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return ipaddress.ip_address(raw)


def find_tunnel(listeners: Iterable[Listener], port: int, uid: int) -> str:
    """Return the loopback address on which user `uid` listens at `port`, as in a URL.

    An agent may only name what its own session's sshd opened, which runs as this user: never a
    service of this host, be it on loopback or elsewhere.

    Raises:
        NotATunnel: There is none, or another user's.
    """
    found = [each for each in listeners if each.port == port and each.address.is_loopback]
    own = [each.address for each in found if each.uid == uid]
    if not own:
        raise NotATunnel(
            f"Port {port} is not a tunnel of this session: "
            + ("it belongs to someone else." if found else "nothing listens there (ssh -R).")
        )
    # sshd takes a port that is free on ::1, and 127.0.0.1 only if nobody has that port there. Who
    # has may be a service that runs as the same user.
    address = max(own, key=lambda address: address.version)
    return f"[{address}]" if address.version == 6 else str(address)


def read_listeners(folder: Path = Path("/proc/self/net")) -> list[Listener]:
    """Return all listening TCP sockets of this host (of this network namespace)."""
    found: list[Listener] = []
    for name in ("tcp", "tcp6"):
        try:
            with (folder / name).open(encoding="ascii") as table:
                found += parse_table(table, little_endian=sys.byteorder == "little")
        except FileNotFoundError:
            # A kernel without IPv6.
            continue
    return found

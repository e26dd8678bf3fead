"""A network namespace of a test's own, in which whatever is said over loopback can be disturbed.

The thread that enters it starts everything in there: the parts of a local Turku, their programs,
and sockets of its own. The host's network is not touched, and nothing of the namespace is left
when its last process has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
"""linux/sched.h"""

_LIBC = ctypes.CDLL(None, use_errno=True)
_TABLE = "inet faults"


def run(*command: str, text: str = "") -> str:
    """Run a program of the system's to its end and return what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Wire:
    """The loopback interface of the namespace."""

    def rules(self, *rules: str, objects: str = "") -> None:
        """Put rules of nft(8) where packets arrive, in the place of those before."""
        lines = "\n".join(rules)
        text = f"table {_TABLE}\ndelete table {_TABLE}\ntable {_TABLE} {{\n{objects}\n"
        text += f"chain arriving {{\ntype filter hook input priority 0\n{lines}\n}}\n}}\n"
        run("nft", "-f", "-", text=text)

    def heal(self) -> None:
        """Let everything through again, at full speed."""
        self.rules()
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True)

    def count(self, port: int) -> None:
        """Begin to count what goes to a port and comes from it."""
        self._both(port, "counter name passed", objects="counter passed { }")

    def counted(self) -> int:
        """Return how many bytes have been counted."""
        words = run("nft", "list", "counter", *_TABLE.split(), "passed").split()
        return int(words[words.index("bytes") + 1])

    def cut_after(self, port: int, count: int) -> None:
        """Reset connections once so many bytes went to and fro, as a firewall may."""
        objects = f"quota through {{ over {count} bytes }}"
        self._both(port, 'quota name "through" reject with tcp reset', objects=objects)

    def stall_after(self, port: int, count: int, ways: str = "both") -> None:
        """Let nothing through any more after so many bytes, without a word.

        Args:
            port: The server's.
            count: Of bytes, both ways together.
            ways: ``both``, ``to`` the server, or ``from`` it; with one of them the connection is
                half open: one side hears the other, and isn't heard.
        """
        objects = f"quota through {{ over {count} bytes }}"
        rules = [
            f'tcp {end} {port} quota name "through" {verdict}'
            for end, verdict in (
                ("dport", "drop" if ways in ("both", "to") else ""),
                ("sport", "drop" if ways in ("both", "from") else ""),
            )
        ]
        self.rules(*rules, objects=objects)

    def lose(self, percent: int, ports: Sequence[int]) -> None:
        """Lose so much of what goes to some ports and comes from them, by chance."""
        which = "{ " + ", ".join(map(str, ports)) + " }"
        chance = f"numgen random mod 100 < {percent} drop"
        self.rules(f"tcp dport {which} {chance}", f"tcp sport {which} {chance}")

    def slow(self, rate: str) -> None:
        """Let everything through at a rate of tc(8), such as ``100kbit``."""
        shape = ["tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
        run("tc", "qdisc", "add", "dev", "lo", "root", *shape)

    def silence(self, port: int, protocol: str) -> None:
        """Drop whatever goes to a port."""
        self.rules(f"{protocol} dport {port} drop")

    def _both(self, port: int, what: str, *, objects: str) -> None:
        self.rules(f"tcp dport {port} {what}", f"tcp sport {port} {what}", objects=objects)


@contextlib.contextmanager
def own_network() -> Iterator[Wire]:
    """Be in a network namespace of one's own while the context lasts (root only)."""
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            # As a wire has it, and not the 64 KiB of loopback.
            run("ip", "link", "set", "lo", "up", "mtu", "1500")
            yield Wire()
        finally:
            _call("setns", outside, _CLONE_NEWNET)
    finally:
        os.close(outside)


def _call(name: str, *arguments: int) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


NAME = "turku.test"
_QUESTION_ENDS = b"\0\0\1\0\1"
"""The end of a name, type A, class IN (RFC 1035)."""


@dataclass
class Names:
    """How a name server is to answer.

    Attributes:
        asked: How many questions have come since this was set to zero.
        answered: How many of them it answers, before it is silent; without end if None.
    """

    asked: int = 0
    answered: int | None = None

    def go_away_after(self, count: int) -> None:
        """Answer so many more questions, and none after them."""
        self.asked, self.answered = 0, count

    def come_back(self) -> None:
        """Answer every question again, and count anew."""
        self.asked, self.answered = 0, None


@contextlib.contextmanager
def name_server() -> Iterator[Names]:
    """Answer on this namespace's port 53 that every name is 127.0.0.1."""
    ended = threading.Event()
    names = Names()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        server.settimeout(0.2)
        thread = threading.Thread(target=_answer_names, args=(server, names, ended))
        thread.start()
        try:
            yield names
        finally:
            ended.set()
            thread.join()


def _answer_names(server: socket.socket, names: Names, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            query, asker = server.recvfrom(512)
        except TimeoutError:
            continue
        names.asked += 1
        if names.answered is not None and names.asked > names.answered:
            continue
        end = query.find(_QUESTION_ENDS)
        is_address = end > 0
        question = query[12 : end + len(_QUESTION_ENDS)] if is_address else query[12:]
        header = query[:2] + struct.pack(">5H", 0x8180, 1, int(is_address), 0, 0)
        answer = b"\xc0\x0c" + struct.pack(">HHIH4B", 1, 1, 0, 4, 127, 0, 0, 1)
        server.sendto(header + question + (answer if is_address else b""), asker)


def with_name_server(folder: Path, command: list[str]) -> list[str]:
    """Return a command, changed to ask that name server for names, and no other source.

    The files that say so are put over the host's in a mount namespace of the command's own.
    """
    resolver, switch = folder / "resolv.conf", folder / "nsswitch.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    switch.write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
    places = {resolver: "/etc/resolv.conf", switch: "/etc/nsswitch.conf"}
    mounts = " && ".join(
        f"mount --bind '{own}' '{os.path.realpath(place)}'" for own, place in places.items()
    )
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]

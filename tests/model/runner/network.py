"""The bridge between a run's machines, in a network namespace that nothing else is in.

It can let only some connections through and count what was tried, cut machines off, and slow them
down, with nftables' bridge family and tc(8).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.model.runner.commands import MachineError, run

NAMESPACES = Path("/run/netns")
BRIDGE = "br0"

# A connection is judged by its first packet. Packets that open none pass in both directions of what
# is allowed, whenever it was opened. ARP passes, and what kernels say of themselves is dropped
# without a note: of IPv6 neighbours and groups, of IPv4 groups (IGMPv3, RFC 3376).
_ONLY = """
table bridge only {{
    set allowed {{ type ipv4_addr . ipv4_addr . inet_service; {elements} }}
    set passed {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; \
size 65535; flags dynamic; }}
    set dropped {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; \
size 65535; flags dynamic; }}
    set dropped6 {{ type ipv6_addr . ipv6_addr . inet_proto . inet_service; \
size 65535; flags dynamic; }}
    chain judge {{
        meta protocol arp accept
        tcp flags & (syn | ack) == syn ip saddr . ip daddr . tcp dport @allowed \
add @passed {{ ip saddr . ip daddr . meta l4proto . tcp dport counter }} accept
        tcp flags & (syn | ack) != syn ip saddr . ip daddr . tcp dport @allowed accept
        tcp flags & (syn | ack) != syn ip daddr . ip saddr . tcp sport @allowed accept
        ip daddr 224.0.0.22 ip protocol igmp drop
        meta protocol ip meta l4proto {{ tcp, udp }} \
add @dropped {{ ip saddr . ip daddr . meta l4proto . th dport counter }} drop
        meta protocol ip add @dropped {{ ip saddr . ip daddr . meta l4proto . 0 counter }} drop
        meta protocol ip6 meta l4proto {{ tcp, udp }} \
add @dropped6 {{ ip6 saddr . ip6 daddr . meta l4proto . th dport counter }} drop
        drop
    }}
    chain from_machines {{ type filter hook prerouting priority filter; jump judge; }}
    chain from_host {{ type filter hook output priority filter; jump judge; }}
}}
"""
_CUT = """
table bridge cut {{
    set addresses {{ type ipv4_addr; elements = {{ {elements} }} }}
    chain judge {{
        ip saddr @addresses drop
        ip daddr @addresses drop
        arp saddr ip @addresses drop
        arp daddr ip @addresses drop
    }}
    chain from_machines {{ type filter hook prerouting priority filter - 10; jump judge; }}
    chain from_host {{ type filter hook output priority filter - 10; jump judge; }}
}}
"""

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_BURST, _LATENCY = "16kb", "200ms"


@dataclass(frozen=True, order=True)
class Flow:
    """Who speaks to whom: for TCP, the side that opens the connection is the source.

    Attributes:
        port: The destination's; 0 for a protocol without ports.
    """

    source: str
    destination: str
    port: int
    protocol: str = "tcp"


@dataclass(frozen=True)
class Traffic:
    """How many packets of each flow a filter has seen.

    Attributes:
        passed: Packets that opened an allowed connection.
        dropped: All packets of what isn't allowed.
    """

    passed: dict[Flow, int]
    dropped: dict[Flow, int]


@dataclass(frozen=True)
class Network:
    """The network of a run: a namespace with a bridge, and the machines' subnet.

    Two runs may use the same subnet at once, and what is left of one that was killed goes with its
    namespace.

    Attributes:
        name: The namespace's name.
        prefix: The first three bytes of the IPv4 subnet (/24). The bridge has its address 1.
    """

    name: str
    prefix: str

    @property
    def subnet(self) -> str:
        """The subnet."""
        return f"{self.prefix}.0/24"

    @property
    def own_address(self) -> str:
        """The bridge's own address: who speaks from the namespace speaks from it."""
        return f"{self.prefix}.1"

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command in the namespace."""
        return ["nsenter", f"--net={NAMESPACES / self.name}", *command]

    def run(self, command: Sequence[str]) -> str:
        """Run a command in the namespace and return what it printed. Raises MachineError."""
        return run(self.inside(command))

    def open(self) -> None:
        """Make the namespace and the bridge."""
        run(["ip", "netns", "add", self.name])
        self.run(["ip", "link", "set", "lo", "up"])
        self.run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        self.run(["ip", "address", "add", f"{self.own_address}/24", "dev", BRIDGE])
        self.run(["ip", "link", "set", BRIDGE, "up"])

    def close(self) -> None:
        """Remove them."""
        with contextlib.suppress(MachineError):
            run(["ip", "netns", "delete", self.name])

    def allow_only(self, flows: Iterable[Flow]) -> None:
        """From now on drop everything except these TCP connections, and count from nothing.

        Packets of a connection that was opened before pass if it is allowed.
        """
        members = [f"{flow.source} . {flow.destination} . {flow.port}" for flow in flows]
        elements = f"elements = {{ {', '.join(members)} }};" if members else ""
        self._set_table("only", _ONLY.format(elements=elements))

    def allow_all(self) -> None:
        """Take back `allow_only`."""
        self._set_table("only", "")

    def traffic(self) -> Traffic:
        """Return what `allow_only` has seen since it was called. Raises MachineError."""
        dropped = self._counted("dropped") | self._counted("dropped6")
        return Traffic(self._counted("passed"), dropped)

    def _counted(self, name: str) -> dict[Flow, int]:
        answer = json.loads(self.run(["nft", "-jnn", "list", "set", "bridge", "only", name]))
        found = next(each["set"] for each in answer["nftables"] if "set" in each)
        counts = {}
        for element in found.get("elem", []):
            source, destination, protocol, port = element["elem"]["val"]["concat"]
            known = _PROTOCOLS.get(protocol, str(protocol))
            counts[Flow(source, destination, port, known)] = element["elem"]["counter"]["packets"]
        return counts

    def cut_off(self, addresses: Iterable[str]) -> None:
        """Let nothing to or from these addresses pass any more, without a word to anyone."""
        self._set_table("cut", _CUT.format(elements=", ".join(addresses)))

    def mend(self) -> None:
        """Take back `cut_off`."""
        self._set_table("cut", "")

    def _set_table(self, name: str, text: str) -> None:
        # "add" before "delete": to delete what isn't there is an error (nft(8)).
        script = f"add table bridge {name}\ndelete table bridge {name}\n{text}"
        run(self.inside(["nft", "--file", "-"]), given=script)

    def slow_down(self, interface: str, rate: str) -> None:
        """Let a machine receive no faster than this.

        Args:
            interface: The bridge's end of the machine's pair, see `Machine.interface`.
            rate: Such as ``4mbit``, as tc(8) reads it.
        """
        shape = ["tbf", "rate", rate, "burst", _BURST, "latency", _LATENCY]
        self.run(["tc", "qdisc", "replace", "dev", interface, "root", *shape])

    def speed_up(self, interface: str) -> None:
        """Take back `slow_down`."""
        self.run(["tc", "qdisc", "delete", "dev", interface, "root"])

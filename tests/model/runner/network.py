"""The bridge between a run's machines, in a network namespace that nothing else is in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.model.runner.commands import MachineError, run

NAMESPACES = Path("/run/netns")
BRIDGE = "br0"


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
        self.run(["ip", "address", "add", f"{self.prefix}.1/24", "dev", BRIDGE])
        self.run(["ip", "link", "set", BRIDGE, "up"])

    def close(self) -> None:
        """Remove them."""
        with contextlib.suppress(MachineError):
            run(["ip", "netns", "delete", self.name])

"""Juju's hook tools for running a packed charm's ``dispatch`` without Juju.

They answer as for a unit that was just deployed, alone and related to nothing, and note how they
were called. What they lack (relation data, secrets, ordering) the tests with `ops.testing` and the
tests on real machines have.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

_EMPTY_LISTS = ("relation-ids", "relation-list", "storage-list", "secret-ids", "opened-ports")
_SILENT = (
    "juju-log", "status-set", "application-version-set", "open-port", "close-port", "state-set",
    "relation-set", "action-log", "action-set", "action-fail",
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """An unpacked charm, and a folder of hook tools that answer for it."""

    charm_dir: Path
    tools: Path

    @classmethod
    def make(cls, charm_dir: Path, tools: Path) -> Unit:
        """Write the tools."""
        options = yaml.safe_load((charm_dir / "config.yaml").read_text("utf-8"))["options"]
        config = {
            name: option["default"] for name, option in options.items() if "default" in option
        }
        tools.mkdir()
        unit = cls(charm_dir, tools)
        unit._tool("config-get", config)
        unit._tool("is-leader", False)
        unit._tool("status-get", {"status": "unknown", "message": ""})
        unit._tool("state-get", {})
        unit._tool("network-get", {})
        unit._tool("action-get", {})
        for name in _EMPTY_LISTS:
            unit._tool(name, [])
        for name in _SILENT:
            unit._tool(name, None)
        return unit

    def _tool(self, name: str, answer: object) -> None:
        said = "" if answer is None else json.dumps(answer)
        path = self.tools / name
        path.write_text(
            f"#!/bin/sh\nprintf '%s\\0' \"{name} $*\" >>'{self.tools}/calls'\necho '{said}'\n"
        )
        path.chmod(0o755)

    def dispatch(self, what: str, python: str) -> subprocess.CompletedProcess[str]:
        """Run the charm for a hook or an action, with a certain ``python3`` first on the path.

        Args:
            what: ``hooks/NAME`` or ``actions/NAME``.
            python: The Python.
        """
        name = self.charm_dir.name
        kind, _, event = what.partition("/")
        (self.tools / "python3").unlink(missing_ok=True)
        (self.tools / "python3").symlink_to(python)
        environment = {
            "CHARM_DIR": str(self.charm_dir),
            "JUJU_CHARM_DIR": str(self.charm_dir),
            "JUJU_DISPATCH_PATH": what,
            "JUJU_HOOK_NAME": event,
            "JUJU_MODEL_NAME": "test",
            "JUJU_MODEL_UUID": "6f0b6b9a-5a3c-4f0c-8a53-0f4f6c1c9d10",
            "JUJU_UNIT_NAME": f"{name}/0",
            "JUJU_VERSION": "3.6.9",
            "JUJU_CONTEXT_ID": f"{name}/0-{what}",
            "LANG": "C.UTF-8",
            "PATH": f"{self.tools}:{os.environ['PATH']}",
        }
        if kind == "actions":
            environment |= {"JUJU_ACTION_NAME": event, "JUJU_ACTION_UUID": "1"}
        return subprocess.run(
            [str(self.charm_dir / "dispatch")],
            env=environment,
            cwd=self.charm_dir,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def calls(self, tool: str) -> list[str]:
        """Return the arguments of each call of a tool so far."""
        calls = (self.tools / "calls").read_text("utf-8").split("\0")
        return [call.partition(" ")[2] for call in calls if call.partition(" ")[0] == tool]

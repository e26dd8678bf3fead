"""Juju's hook tools for running a packed charm's ``dispatch`` without Juju.

They answer as for a unit that was just deployed, alone and related to nothing, and note how they
were called. What they lack (relation data, secrets, ordering) the tests with `ops.testing` and the
tests on real machines have.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

_ANSWERS: dict[str, object] = {
    "action-get": {},
    "is-leader": False,
    "network-get": {},
    "opened-ports": [],
    "relation-ids": [],
    "relation-list": [],
    "secret-ids": [],
    "state-get": {},
    "status-get": {"status": "unknown", "message": ""},
    "storage-list": [],
}
_SILENT = (
    "action-fail", "action-log", "action-set", "application-version-set", "close-port", "juju-log",
    "open-port", "relation-set", "state-set", "status-set",
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """An unpacked charm, and a folder of hook tools that answer for it."""

    charm_dir: Path
    tools: Path

    @classmethod
    def make(cls, charm_dir: Path, tools: Path, python: str, answers: Mapping[str, object]) -> Unit:
        """Write the tools.

        Args:
            charm_dir: The unpacked charm.
            tools: A folder for the tools, which isn't there yet.
            python: What is ``python3`` for the charm.
            answers: What tools answer other than they do for a unit that has nothing.
        """
        options = yaml.safe_load((charm_dir / "config.yaml").read_text("utf-8"))["options"]
        config = {
            name: option["default"] for name, option in options.items() if "default" in option
        }
        tools.mkdir()
        (tools / "python3").symlink_to(python)
        unit = cls(charm_dir, tools)
        for name, answer in {**_ANSWERS, "config-get": config, **answers}.items():
            unit._tool(name, f"echo '{json.dumps(answer)}'")
        for name in _SILENT:
            unit._tool(name, "")
        return unit

    def _tool(self, name: str, does: str) -> None:
        path = self.tools / name
        noted = f"printf '%s\\0' \"{name} $*\" >>'{self.tools}/calls'"
        path.write_text(f"#!/bin/sh\n{noted}\n{does}\n")
        path.chmod(0o755)

    def environment(self, what: str) -> dict[str, str]:
        """Return what Juju sets for ``hooks/NAME`` or ``actions/NAME``."""
        name = self.charm_dir.name
        kind, _, event = what.partition("/")
        action = {"JUJU_ACTION_NAME": event, "JUJU_ACTION_UUID": "1"} if kind == "actions" else {}
        return {
            **action,
            "CHARM_DIR": str(self.charm_dir),
            "JUJU_CHARM_DIR": str(self.charm_dir),
            "JUJU_DISPATCH_PATH": what,
            "JUJU_HOOK_NAME": event,
            "JUJU_MODEL_NAME": "test",
            "JUJU_MODEL_UUID": "6f0b6b9a-5a3c-4f0c-8a53-0f4f6c1c9d10",
            "JUJU_UNIT_NAME": f"{name}/0",
            "JUJU_VERSION": "3.6.9",
            "JUJU_CONTEXT_ID": f"{name}/0-{event}",
            "LANG": "C.UTF-8",
            "PATH": f"{self.tools}:{os.environ['PATH']}",
        }

    def command(self, what: str) -> list[str]:
        """Return the command that runs the charm for a hook or an action, as Juju would."""
        settings = [f"{name}={value}" for name, value in self.environment(what).items()]
        return ["env", "--ignore-environment", *settings, str(self.charm_dir / "dispatch")]

    def dispatch(self, what: str) -> subprocess.CompletedProcess[str]:
        """Run the charm for a hook or an action, on this host."""
        return subprocess.run(
            self.command(what),
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

    def errors(self) -> list[str]:
        """Return what the charm logged as an error."""
        return [call for call in self.calls("juju-log") if "--log-level ERROR" in call]

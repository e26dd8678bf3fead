"""A Juju model as its own command line shows it, for the tests on a real controller."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

POLL_SECONDS = 5.0


class OpsTest(Protocol):
    """What is used of pytest-operator's fixture of this name."""

    async def juju(self, *words: str) -> tuple[int, str, str]:
        """Run juju in the tests' model: its exit code, and what it printed."""


def why_there_is_no_controller() -> str | None:
    """Return why tests on Juju can't run here, or None when they can."""
    juju = shutil.which("juju")
    if juju is None:
        return "There is no Juju here: install its client and bootstrap a controller."
    done = subprocess.run(
        [juju, "controllers", "--format=json"], capture_output=True, text=True, timeout=120
    )
    try:
        current = json.loads(done.stdout).get("current-controller")
    except ValueError:
        current = None
    if done.returncode != 0 or not current:
        return "Juju has no controller here: bootstrap one (juju bootstrap)."
    return None


@dataclass(frozen=True)
class Model:
    """The model that the tests work in."""

    ops_test: OpsTest

    async def juju(self, *words: str) -> str:
        """Run juju, and return what it printed; fails when it does."""
        code, printed, errors = await self.ops_test.juju(*words)
        assert code == 0, f"juju {' '.join(words)}: {errors or printed}"
        return printed

    async def status(self) -> dict[str, Any]:
        """Return the applications as ``juju status`` says them."""
        applications: dict[str, Any] = json.loads(await self.juju("status", "--format=json"))
        return dict(applications["applications"])

    async def wait(
        self, what: str, holds: Callable[[dict[str, Any]], bool], minutes: float
    ) -> dict[str, Any]:
        """Wait until something holds of the applications, and return them."""
        deadline = time.monotonic() + minutes * 60
        while True:
            applications = await self.status()
            if holds(applications):
                return applications
            assert time.monotonic() < deadline, (
                f"{what}: not within {minutes} minutes\n{await self.juju('status')}"
            )
            await asyncio.sleep(POLL_SECONDS)

    async def wait_until_active(self, *names: str, minutes: float = 30) -> None:
        """Wait until these applications are active, with every unit of theirs."""
        await self.wait(
            f"{', '.join(names)} active",
            lambda applications: all(is_active(applications, name) for name in names),
            minutes,
        )

    async def run(self, unit: str, action: str, *parameters: str) -> Any:
        """Run an action, and return its result for programs; fails when it does."""
        printed = await self.juju("run", unit, action, *parameters, "--format=json", "--wait=30m")
        outcome = json.loads(printed)[unit]
        assert outcome["status"] == "completed", outcome
        return json.loads(outcome["results"]["json"])

    async def execute(self, unit: str, command: str) -> str:
        """Run a shell command on a unit's machine as root, and return what it printed."""
        return await self.juju("ssh", unit, "sudo", "sh", "-c", f"'{command}'")


def units_of(applications: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an application's units; a subordinate's are those beside its principals'."""
    own = applications.get(name, {}).get("units") or {}
    beside = [
        (subordinate, state)
        for application in applications.values()
        for unit in (application.get("units") or {}).values()
        for subordinate, state in (unit.get("subordinates") or {}).items()
    ]
    return {**own, **{unit: state for unit, state in beside if unit.partition("/")[0] == name}}


def is_active(applications: dict[str, Any], name: str) -> bool:
    """Say whether an application has units and all of them are active and idle."""
    units = units_of(applications, name).values()
    return bool(units) and all(
        unit["workload-status"]["current"] == "active" and unit["juju-status"]["current"] == "idle"
        for unit in units
    )

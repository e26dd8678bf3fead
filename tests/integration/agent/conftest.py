"""A machine with an agent between a stand-in API and a stand-in storage unit; see stand_ins.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.agent.stand_ins import AgentMachine, StandInUnit, running, snapshot
from tests.support.stand_in_api import StandInApi, running_api


@pytest.fixture
def api() -> Iterator[StandInApi]:
    with running_api() as stand_in:
        yield stand_in


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[StandInUnit]:
    with running(StandInUnit(tmp_path / "unit")) as stand_in:
        yield stand_in


@pytest.fixture
def machine(tmp_path: Path, api: StandInApi, unit: StandInUnit) -> AgentMachine:
    """A machine that is registered and has no source yet."""
    agent = AgentMachine(tmp_path / "machine", api, unit)
    agent.register()
    return agent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree to back up."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("alpha")
    (folder / "sub/b").write_text("beta")
    (folder / "link").symlink_to("/etc/hostname")
    return folder


@pytest.fixture
def restorer(machine: AgentMachine, unit: StandInUnit, tree: Path) -> AgentMachine:
    """A machine with two snapshots of its source on the unit."""
    machine.add_source("docs", tree)
    for identity, content in (("20261101T000000Z", "first"), ("20261102T000000Z", "second")):
        folder = unit.folder / "snapshots" / identity
        (folder / "sub").mkdir(parents=True)
        (folder / "a").write_text(content)
        (folder / "sub/b").write_text(content)
        (folder / "link").symlink_to("/etc/hostname")
    snapshots = [
        snapshot(machine.uuid, "20261101T000000Z", "2026-11-01T00:00:00+00:00"),
        snapshot(machine.uuid, "20261102T000000Z", "2026-11-02T00:00:00+00:00", state="expired"),
    ]
    unit.behave(snapshots=snapshots)
    return machine

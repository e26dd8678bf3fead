"""Agent units on one machine: the real charm and its real programs, below a root of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agent_unit import AgentUnit, Host, use_stand_in_host


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine's root."""
    root = tmp_path / "machine"
    root.mkdir()
    return root


@pytest.fixture(autouse=True)
def on_host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """What the charm asks of apt and systemd, which tests can't have."""
    return use_stand_in_host(monkeypatch)


@pytest.fixture
def agent(machine: Path) -> AgentUnit:
    """The unit turku-agent/0 beside web/0, before its first hook."""
    return AgentUnit(machine)

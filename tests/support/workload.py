"""The workload in charm tests, where no packed charm is: this environment's own programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from turku_charm.workload import Workload
from turku_core import __version__


def use_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every `Workload` be installed already, with the programs beside ``sys.executable``.

    The programs are real, and work below the workload's root. Laying versions down is tested with
    packed charms.
    """
    folder = Path(sys.executable).parent
    monkeypatch.setattr(Workload, "bin", property(lambda self: folder))
    monkeypatch.setattr(Workload, "is_installed", lambda self: True)
    monkeypatch.setattr(Workload, "version", lambda self: __version__)
    monkeypatch.setattr(Workload, "install", lambda self: False)
    monkeypatch.setattr(Workload, "upgrade", lambda self, start: False)
    monkeypatch.setattr(Workload, "remove", lambda self: None)

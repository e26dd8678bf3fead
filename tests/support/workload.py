"""The workload in charm tests, where no packed charm is: this environment's own programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.quick_programs import BIN
from turku_charm.workload import Workload
from turku_core import __version__


def use_this_environment(monkeypatch: pytest.MonkeyPatch, programs: Path = BIN) -> None:
    """Let every `Workload` be installed already.

    The programs are real, and work below the workload's root. Laying versions down is tested with
    packed charms.

    Args:
        monkeypatch: Puts back how it was.
        programs: The folder of the programs, or of `quick_programs`.
    """
    monkeypatch.setattr(Workload, "bin", property(lambda self: programs))
    monkeypatch.setattr(Workload, "is_installed", lambda self: True)
    monkeypatch.setattr(Workload, "version", lambda self: __version__)
    monkeypatch.setattr(Workload, "install", lambda self: False)
    monkeypatch.setattr(Workload, "upgrade", lambda self, start: False)
    monkeypatch.setattr(Workload, "remove", lambda self: None)

"""What the tests of the API's charm begin with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.api_unit import Api, Systemd, first_state, stand_in_for_systemd


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """Nothing of this machine's services is touched."""
    return stand_in_for_systemd(monkeypatch)


@pytest.fixture
def api(tmp_path: Path, systemd: Systemd) -> Api:
    """A leader on which no hook has run yet."""
    return Api(tmp_path, systemd, state=first_state())


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """A leader that serves from SQLite; started once, and then copied for each test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        systemd = stand_in_for_systemd(monkeypatch)
        api = Api(tmp_path_factory.mktemp("started"), systemd, state=first_state())
        api.start_up()
        return api


@pytest.fixture
def serving(started: Api, tmp_path: Path, systemd: Systemd) -> Api:
    """A leader that serves from SQLite."""
    shutil.copytree(started.root, tmp_path, dirs_exist_ok=True, symlinks=True)
    systemd.running |= started.systemd.running
    return Api(tmp_path, systemd, state=started.state)

"""The tests on a real Juju controller; without one they are skipped, and say so.

They have an environment of their own (``tox -e juju``), because pytest-operator needs an older
pytest than the rest. So this folder imports nothing of the rest but ``tests.support.juju``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.juju import Model, OpsTest, why_there_is_no_controller

TREE = Path(__file__).resolve().parent.parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers of pytest-operator's plugins, which only their own environment has."""
    config.addinivalue_line("markers", "abort_on_fail: the tests after this one need it")
    config.addinivalue_line("markers", "asyncio: the test is a coroutine")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip everything here when there is no controller: pytest-operator itself would fail."""
    reason = why_there_is_no_controller()
    if reason is not None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def model(ops_test: OpsTest) -> Model:
    """Return the model that pytest-operator made for these tests."""
    return Model(ops_test)


@pytest.fixture(scope="module")
def bundle() -> Path:
    """Pack the charms that the small bundle names, and return its path."""
    subprocess.run([sys.executable, "-m", "tools.pack_charms"], check=True, cwd=TREE)
    return TREE / "bundles/turku.yaml"

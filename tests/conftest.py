"""What holds for every test: those that need root say so."""

from __future__ import annotations

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test marked `needs_root`, with a clear word, when it isn't run as root."""
    if item.get_closest_marker("needs_root") and os.geteuid() != 0:
        pytest.fail(
            "This test needs root: run it as root, or `make test` with sudo.", pytrace=False
        )

"""What holds for every test: those that need root say so, and chance is the same for everyone."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code. In CI the examples are always
# the same, so that a change is judged by what it changes; at home they are new ones each time.
settings.register_profile("turku", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("turku")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test marked `needs_root`, with a clear word, when it isn't run as root."""
    if item.get_closest_marker("needs_root") and os.geteuid() != 0:
        pytest.fail(
            "This test needs root: run it as root, or `make test` with sudo.", pytrace=False
        )

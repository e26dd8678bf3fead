"""What the packing tests share: each charm is packed once in a run."""

from __future__ import annotations

import os

import pytest

from tests.support.packed import Packing


@pytest.fixture(scope="session")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    """Return what charms are packed from, and where those that are packed already lie."""
    base = tmp_path_factory.getbasetemp()
    # With several workers each has a folder of its own below the run's.
    return Packing.of_run(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)

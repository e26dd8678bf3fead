"""A whole Turku for a module's tests: API, sshd, storage unit and worker, all of them real."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from turku_core.local.turku import LocalTurku


@pytest.fixture(scope="module")
def turku() -> Iterator[LocalTurku]:
    folder = Path(tempfile.mkdtemp(prefix="turku-e2e-"))
    try:
        with LocalTurku(folder / "t") as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def unit_name() -> str:
    """A machine's name that no other test has."""
    return f"unit-{uuid.uuid4().hex[:8]}"

"""The machines' image, built once and kept between runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.model.runner.machines import ensure_image

PROGRAMS = ("debootstrap", "systemd-nspawn", "nsenter", "ip")


@pytest.fixture(scope="session")
def image() -> Path:
    """The root folder that machines are overlays on; TURKU_MODEL_CACHE names another place."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        what = f"these programs: {', '.join(missing)}" if missing else "root"
        pytest.fail(f"The model test needs {what}.", pytrace=False)
    cache = Path(os.environ.get("TURKU_MODEL_CACHE", "/var/cache/turku-model"))
    return ensure_image(cache)

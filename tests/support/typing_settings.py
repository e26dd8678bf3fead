"""Django's settings for the type checker, which must read them but not write below ``/``."""

from __future__ import annotations

import os
from pathlib import Path

# The type checker ends without running exit handlers: its own cache is where this can stay.
os.environ.setdefault("TURKU_API_ROOT", str(Path(".mypy_cache/turku-api").absolute()))

from turku_core.api.settings import *  # noqa: F403  (Django reads settings from one module)

"""The three charms' classes, loaded from their folders as Juju would run them.

Each charm has a ``charm.py`` of its own, so it is loaded under a name that says whose it is. Their
other modules have names of their own and are found on the path (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

CHARMS = Path(__file__).resolve().parent.parent.parent / "charms"


def load_charm(name: str) -> ModuleType:
    """Return the module ``charms/NAME/src/charm.py``; loaded once."""
    alias = f"{name.replace('-', '_')}_charm"
    if alias not in sys.modules:
        path = CHARMS / name / "src/charm.py"
        spec = importlib.util.spec_from_file_location(alias, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[alias]
            raise
    return sys.modules[alias]

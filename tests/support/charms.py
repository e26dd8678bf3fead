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


def charm_folder(name: str, parent: Path) -> Path:
    """Make a charm's folder for `ops.testing`, with a link to the real sources, and return it.

    What `ops.testing` writes into a charm's folder must not be written into ours, where a test
    that runs at the same time would find it.
    """
    folder = parent / "charm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "src").exists():
        (folder / "src").symlink_to(CHARMS / name / "src")
    return folder

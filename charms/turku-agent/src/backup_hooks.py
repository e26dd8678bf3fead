"""The `backup` interface's scripts as hooks of a source, through small programs of our own.

The interface and the agent differ: a script may be missing on this machine, which must not cost the
rest of its backup, and scripts around a restore expect that the files are put back in their place
(``run-after-restore`` imports them), which is only so in a restore in place that went well.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from turku_charm.api_relation import write_if_changed

_HEAD = """\
#!/bin/sh
# {key} of the relation backup. The charm turku-agent wrote this, and will write it again.
script={script}
"""

_IN_PLACE_ONLY = """\
if [ "$TURKU_PATH" != {path} ]; then
    echo "not run: $script is for what is restored in its place, and this goes to $TURKU_PATH"
    exit 0
fi
"""

_AFTER_SUCCESS_ONLY = """\
if [ "$TURKU_OUTCOME" != success ]; then
    echo "not run: $script is for a restore that went well"
    exit 0
fi
"""

_TAIL = """\
if [ ! -f "$script" ] || [ ! -x "$script" ]; then
    echo "not run: there is no program $script on this machine"
    exit 0
fi
exec "$script"
"""


def make_hook(key: str, script: str, path: str) -> str:
    """Return the text of the program that runs a script of the interface.

    Args:
        key: The interface's key, such as ``run-before-backup``.
        script: The script's absolute path.
        path: The source's path.
    """
    parts = [_HEAD.format(key=key, script=shlex.quote(script))]
    if key.endswith("-restore"):
        parts.append(_IN_PLACE_ONLY.format(path=shlex.quote(path)))
    if key == "run-after-restore":
        parts.append(_AFTER_SUCCESS_ONLY)
    return "".join([*parts, _TAIL])


def write_hooks(folder: Path, texts: Mapping[str, str]) -> None:
    """Make `folder` hold exactly these programs, by their names; none: it goes away."""
    for path in folder.glob("*"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        write_if_changed(folder / name, text, 0o755)
    if not texts and folder.is_dir():
        folder.rmdir()

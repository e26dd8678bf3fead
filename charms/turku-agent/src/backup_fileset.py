"""The `backup` interface's fileset as one source: a folder, and what of it is wanted.

Pure: what there is on the machine is handed in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_PATTERN_CHARACTERS = re.compile(r"[\\*?\[]")
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Tree:
    """A source's path, and the rsync filter rules that leave out what isn't wanted of it.

    Attributes:
        path: The folder; absolute.
        filter: In the order in which they count; none: all of it is wanted.
    """

    path: str
    filter: tuple[str, ...] = ()


def tree_of(paths: Sequence[str], is_folder: Callable[[str], bool | None]) -> Tree:
    """Return the tree that holds exactly these paths, and all below those that are folders.

    A single folder is its own tree. For anything else, the tree begins at the deepest folder that
    all of the paths lie in, and rules lead the way to each: the folder ``/srv/a`` and the file
    ``/srv/b/c`` make ``/srv`` with ``+ /a/***``, ``+ /b/``, ``+ /b/c`` and ``- *``.

    Args:
        paths: Absolute, at least one, with no symbolic link on the way to them: rsync follows none.
        is_folder: Says whether a path is a folder; None when it isn't there (yet): it is taken as
            whatever it will be.
    """
    wanted = _without_nested([PurePosixPath(_normal(path)) for path in paths])
    if len(wanted) == 1 and (is_folder(str(wanted[0])) or wanted[0] == PurePosixPath("/")):
        return Tree(str(wanted[0]))
    top = PurePosixPath(os.path.commonpath([path.parent for path in wanted]))
    rules: dict[str, None] = {}
    for path in wanted:
        inside = path.relative_to(top)
        for parent in reversed(inside.parents[:-1]):
            rules[f"+ {_escaped(f'/{parent}/')}"] = None
        kind = is_folder(str(path))
        if kind is not True:
            rules[f"+ {_escaped(f'/{inside}')}"] = None
        if kind is not False:
            rules[f"+ {_escaped(f'/{inside}', wild=True)}/***"] = None
    return Tree(str(top), (*rules, "- *"))


def _normal(path: str) -> str:
    # POSIX lets two slashes at the beginning mean something of their own; Linux doesn't.
    return os.path.normpath("/" + path.lstrip("/"))


def _without_nested(paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Return the paths, sorted, without those that lie in another of them."""
    distinct = sorted(set(paths))
    return [path for path in distinct if not any(other in path.parents for other in distinct)]


def _escaped(text: str, *, wild: bool = False) -> str:
    """Return a path as a pattern that matches it alone.

    rsync(1), PATTERN MATCHING RULES: a backslash escapes a wildcard, and is a plain character in a
    pattern that has no wildcard at all.

    Args:
        text: The path.
        wild: Whether a wildcard is going to be added.
    """
    if wild or _WILDCARDS.search(text):
        return _PATTERN_CHARACTERS.sub(r"\\\g<0>", text)
    return text

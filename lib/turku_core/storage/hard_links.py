"""Hard links: which names of a tree are one file, on the machine as here.

rsync makes the links that a machine has, and leaves others alone (rsync(1), --hard-links). So a
file that a machine has set apart from another one would stay linked to it here, and each would get
the other's owner and mode.
"""

from __future__ import annotations

import os
import re
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from turku_core.storage import programs

_ESCAPED = re.compile(rb"\\#([0-7]{3})")
_ARROW = b" => "


def unescaped(name: bytes) -> bytes:
    """Return a name as it is from what rsync prints for it."""
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), name)


def keep_one_name(folder: Path) -> None:
    """Remove all names but one of each file in a mirror.

    rsync links the others again, if the machine still has them so, without sending anything.
    """
    for names in _linked(folder):
        for name in names[1:]:
            os.unlink(name)


def separate(folder: Path, links: Collection[bytes]) -> None:
    """Set names apart that are one file only because they were one in a former tree.

    Args:
        folder: A fresh tree.
        links: As rsync told them while it made the tree: `name => other name`.
    """
    top = len(os.fsencode(folder)) + 1
    for names in _linked(folder):
        groups = _groups([name[top:] for name in names], links)
        for group in groups[1:]:
            _set_apart(folder, group)


def _groups(names: list[bytes], links: Collection[bytes]) -> list[list[bytes]]:
    """Return which of the names belong together."""
    groups: dict[bytes, list[bytes]] = {name: [name] for name in names}
    present = frozenset(names)
    for name in names:
        for other in present - {name}:
            if name + _ARROW + other in links and groups[name] is not groups[other]:
                groups[other] += groups[name]
                for each in groups[name]:
                    groups[each] = groups[other]
    return list({id(group): group for group in groups.values()}.values())


def _set_apart(folder: Path, names: list[bytes]) -> None:
    """Give these names a file of their own, which is the same."""
    first, *others = [os.path.join(os.fsencode(folder), name) for name in names]
    aside = os.path.join(
        os.fsencode(folder.parent), f".separated.{secrets.token_hex(8)}.tmp".encode()
    )
    copied = programs.run(["cp", "--archive", "--reflink=auto", "--", first, aside])
    if copied.code != 0:
        raise OSError(copied.last_words)
    _replace(aside, first)
    for name in others:
        os.link(first, aside)
        _replace(aside, name)


def _replace(new: bytes, old: bytes) -> None:
    """Rename a file over another, in a folder that keeps its time."""
    place = os.path.dirname(old)
    status = os.stat(place)
    os.rename(new, old)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))


def _linked(folder: Path) -> Iterator[list[bytes]]:
    """Give the names of each file of a tree that has more than one in it."""
    found: dict[int, list[bytes]] = defaultdict(list)
    for place, _, _ in os.walk(os.fsencode(folder)):
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1:
                        found[status.st_ino].append(entry.path)
    yield from (names for names in found.values() if len(names) > 1)

"""Comparing two trees: every byte, and all the metadata that a backup has to bring back."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """What one file, folder or link of a tree is."""

    kind: str
    mode: int
    owner: tuple[int, int]
    modified_ns: int
    size: int | None
    content: str | None
    link_target: bytes | None
    device: tuple[int, int] | None
    attributes: tuple[tuple[str, bytes], ...]
    linked_with: bytes | None
    """The first name, in order, of the same file; None when this is its only name."""


Tree = Mapping[bytes, Entry]


def describe_tree(top: Path) -> dict[bytes, Entry]:
    """Read a whole tree: every file's bytes (as SHA-256) and metadata, by path below `top`.

    The top folder itself is ``.``. Access and change times are not compared: reading a file
    changes the one, and nothing can set the other.

    Raises:
        OSError: Something can't be read.
    """
    tree: dict[bytes, Entry] = {}
    first_names: dict[tuple[int, int], bytes] = {}
    for name, path, status in _walk(os.fsencode(top)):
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first_names.setdefault((status.st_dev, status.st_ino), name)
        linked_with = first_names.get((status.st_dev, status.st_ino))
        tree[name] = _describe(path, status, linked_with)
    return tree


def _walk(top: bytes) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    yield b".", top, os.lstat(top)
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        for name in sorted(os.listdir(os.path.join(top, folder))):
            relative = os.path.join(folder, name)
            path = os.path.join(top, relative)
            status = os.lstat(path)
            yield relative, path, status
            if stat.S_ISDIR(status.st_mode):
                waiting.append(relative)


def _describe(path: bytes, status: os.stat_result, linked_with: bytes | None) -> Entry:
    mode = status.st_mode
    is_file, is_link = stat.S_ISREG(mode), stat.S_ISLNK(mode)
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Entry(
        kind=stat.filemode(mode)[0],
        mode=stat.S_IMODE(mode),
        owner=(status.st_uid, status.st_gid),
        modified_ns=status.st_mtime_ns,
        size=status.st_size if is_file else None,
        content=_hash(path) if is_file else None,
        link_target=os.readlink(path) if is_link else None,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else None,
        attributes=_attributes(path),
        linked_with=linked_with,
    )


def _hash(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _attributes(path: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return the extended attributes, with the ACLs that are among them (xattr(7))."""
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:
        # The file system has none.
        return ()
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def differences(expected: Tree, found: Tree) -> list[str]:
    """Return a line for everything that isn't the same, in the order of the paths."""
    lines = []
    for name in sorted({*expected, *found}):
        shown = os.fsdecode(name).encode("utf-8", "backslashreplace").decode()
        one, other = expected.get(name), found.get(name)
        if other is None:
            lines.append(f"{shown}: is missing")
        elif one is None:
            lines.append(f"{shown}: should not be there")
        else:
            changed = [
                field.name.replace("_", " ")
                for field in fields(Entry)
                if getattr(one, field.name) != getattr(other, field.name)
            ]
            if changed:
                lines.append(f"{shown}: differs in {', '.join(changed)}")
    return lines


def size_of(tree: Tree) -> tuple[int, int]:
    """Return how many entries a tree has, and the bytes in its files, hard links counted once."""
    return len(tree), sum(
        entry.size or 0 for name, entry in tree.items() if entry.linked_with in (None, name)
    )

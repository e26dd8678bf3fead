"""Manifests: the checksums of a snapshot's files, made at the commit, compared when it is proven.

The first line tells the version, and whether they were taken later than at the commit, which proves
only that nothing has changed since. Each other line is a JSON list: the path (surrogateescape'd),
the digest of the content, the digest of the extended attributes (where fake-super keeps owners,
modes and ACLs), size, time of modification in ns, inode number.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from turku_core.configuration import write_durably

_VERSION = "turku manifest 1"
_TAKEN_LATER = "turku manifest 1, taken later"
_BLOCK = 1024 * 1024
_DIGEST_BYTES = 16
_REPORTED_MAX = 5


@dataclass(frozen=True, slots=True)
class Line:
    """What is known of one file or folder of a tree; `content` is empty for a folder."""

    content: str
    attributes: str
    size: int
    mtime_ns: int
    inode: int


Manifest = dict[str, Line]


def make(
    tree: Path, former: Mapping[str, Line] | None = None, *, without_unreadable: bool = False
) -> Manifest:
    """Return the manifest of a tree.

    A file that is the same inode, size and time as in `former` (of the snapshot before, which
    still exists) isn't read again. Raises OSError for what can't be read, unless it is to be left
    out.
    """
    former = former or {}
    manifest: Manifest = {}
    for path, entry_path, status in _walk(tree):
        known = former.get(path)
        same = (
            known is not None
            and known.inode == status.st_ino
            and known.size == status.st_size
            and known.mtime_ns == status.st_mtime_ns
        )
        content = ""
        try:
            if stat.S_ISREG(status.st_mode):
                content = known.content if same and known is not None else digest(entry_path)
            attributes = _attributes(entry_path)
        except OSError:
            if not without_unreadable:
                raise
            continue
        manifest[path] = Line(
            content,
            attributes,
            status.st_size if content else 0,
            status.st_mtime_ns,
            status.st_ino,
        )
    return manifest


def compare(tree: Path, manifest: Mapping[str, Line]) -> str | None:
    """Read a whole tree and return how it differs from its manifest, or None."""
    found = make(tree)
    wrong = [f"{path!a} is missing" for path in manifest.keys() - found.keys()]
    wrong += [f"{path!a} was not there" for path in found.keys() - manifest.keys()]
    for path in manifest.keys() & found.keys():
        then, now = manifest[path], found[path]
        if then.content != now.content or then.size != now.size:
            wrong.append(f"the content of {path!a} has changed")
        elif then.attributes != now.attributes or then.mtime_ns != now.mtime_ns:
            wrong.append(f"the attributes of {path!a} have changed")
    if not wrong:
        return None
    shown = "; ".join(sorted(wrong)[:_REPORTED_MAX])
    more = len(wrong) - _REPORTED_MAX
    return f"{shown}; and {more} more." if more > 0 else f"{shown}."


def write(path: Path, manifest: Mapping[str, Line], *, later: bool = False) -> None:
    """Write a manifest durably; `later` says that it isn't that of the commit."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(f"{_TAKEN_LATER if later else _VERSION}\n".encode())
        for name, line in manifest.items():
            values = [
                name,
                line.content,
                line.attributes,
                line.size,
                line.mtime_ns,
                line.inode,
            ]
            file.write(json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n")
    write_durably(path, buffer.getvalue())


def read(path: Path) -> Manifest | None:
    """Return a manifest, or None where there is none or a broken one."""
    try:
        with gzip.open(path, "rb") as file:
            if file.readline().decode("utf-8").rstrip() not in (_VERSION, _TAKEN_LATER):
                return None
            manifest: Manifest = {}
            for raw in file:
                name, content, attributes, size, mtime_ns, inode = json.loads(raw)
                attributes = sys.intern(str(attributes))
                manifest[str(name)] = Line(
                    str(content), attributes, int(size), int(mtime_ns), int(inode)
                )
            return manifest
    except (OSError, EOFError, ValueError, TypeError, zlib.error):
        return None


def was_taken_later(path: Path) -> bool:
    """Say whether a manifest was made later than its snapshot, from what was there then."""
    try:
        with gzip.open(path, "rb") as file:
            return file.readline(len(_TAKEN_LATER) + 1).rstrip() == _TAKEN_LATER.encode()
    except (OSError, EOFError, zlib.error):
        return False


def _walk(tree: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """Give every entry below a tree: relative path, path, status. Never follows a link."""
    root = os.fspath(tree)
    yield ".", root, os.lstat(root)
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in sorted(entries, key=lambda each: os.fsencode(each.name)):
                path = os.path.join(below, entry.name)
                yield path, entry.path, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)


def digest(path: str) -> str:
    """Return the digest of a file's content. Raises OSError, also for a link."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while block := os.read(descriptor, _BLOCK):
            digest.update(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def digest_of(content: bytes) -> str:
    """Return the digest of a content that is at hand."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def _attributes(path: str) -> str:
    """Return a digest of the extended attributes that this user sees (those of `user.`)."""
    names = sorted(
        name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")
    )
    if not names:
        return ""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in names:
        value = os.getxattr(path, name, follow_symlinks=False)
        digest.update(f"{len(name)} {len(value)} ".encode() + os.fsencode(name) + value)
    return sys.intern(digest.hexdigest())

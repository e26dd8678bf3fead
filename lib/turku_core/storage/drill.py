"""Restore drills: files of a snapshot are restored from what is stored, and compared.

They are compared with the checksums that were taken when the snapshot was made. The restore goes
the same way as one that an operator asks for, to a scratch folder on the snapshot's own volume.
"""

from __future__ import annotations

import os
import random
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from turku_core.storage import manifest, programs
from turku_core.storage.manifest import Manifest
from turku_core.storage.mirror import STATUS
from turku_core.storage.records import Record
from turku_core.storage.restore import restore_tree
from turku_core.storage.snapshots import Mode, SnapshotError
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import Space

SAMPLE_FILES = 20

_GIB = 1024**3
_RESERVE_SHARE = 0.05
_COPIES = 2
"""An archive is extracted first, and then restored from there."""

_PATHS_MAX = 2000
_PATHS_BYTES_MAX = 256 * 1024
"""How many paths go to one program; each of them may be named again for each folder above it."""

_NAMED_MAX = 5


class NoRoom(SnapshotError):
    """There isn't enough free space on the volume for a drill."""


def room_for_drills(space: Space) -> int:
    """Return how many bytes a drill may restore at a time on a volume: backups come first."""
    reserve = min(int(space.total * _RESERVE_SHARE), _GIB)
    return max(0, space.available - reserve) // _COPIES


def choose_sample(
    known: Manifest, room: int, count: int = SAMPLE_FILES, chance: random.Random | None = None
) -> list[str]:
    """Return up to `count` files of a snapshot, drawn at random, that fit into the room together.

    Raises NoRoom when there are files and none fits.
    """
    files = [path for path, line in known.items() if line.content]
    chosen: list[str] = []
    for path in (chance or random).sample(files, len(files)):
        if known[path].size <= room:
            chosen.append(path)
            room -= known[path].size
        if len(chosen) == count:
            break
    if files and not chosen:
        smallest = min(known[path].size for path in files)
        raise NoRoom(
            f"There is room for {room} bytes in a restore drill, and the smallest file has "
            f"{smallest}: free some space."
        )
    return chosen


def parts_of(known: Manifest, room: int) -> Iterator[list[str]]:
    """Give all files of a snapshot, as many at a time as fit into the room.

    No paths mean the whole tree at once. Raises NoRoom for a file that alone is too large.
    """
    files = {path: line.size for path, line in known.items() if line.content}
    if sum(files.values()) <= room:
        yield []
        return
    part: list[str] = []
    size = length = 0
    for path, bytes_of_file in files.items():
        if bytes_of_file > room:
            raise NoRoom(
                f"There is room for {room} bytes in a restore drill, and {path!a} has "
                f"{bytes_of_file}: free some space."
            )
        added = len(os.fsencode(path)) * (1 + path.count("/"))
        if part and (
            size + bytes_of_file > room
            or length + added > _PATHS_BYTES_MAX
            or len(part) == _PATHS_MAX
        ):
            yield part
            part, size, length = [], 0, 0
        part.append(path)
        size += bytes_of_file
        length += added
    yield part


def drill(
    folder: SourceFolder, record: Record, mode: Mode, known: Manifest, paths: Sequence[str]
) -> list[str]:
    """Restore paths of a snapshot (none: all of it) and return what came back wrong.

    The caller keeps the snapshot from being removed. Raises SnapshotError, SourceBusy, OSError when
    the restore could not be made, which proves nothing either way.
    """
    place = Path(tempfile.mkdtemp(prefix=".restore-", dir=folder.scratch))
    try:
        wanted = paths or [path for path in known if path != "."]
        with mode.open_for_restore(folder, record, paths) as tree:
            missing = [path for path in wanted if not os.path.lexists(tree / path)]
            if missing:
                return missing
            kinds = {path: _kind(tree / path) for path in wanted}
            restored = restore_tree(tree, place / "restored", paths)
        if not restored.ok:
            raise SnapshotError(f"{folder.label}: the restore drill failed: {restored.message}")
        # Some files let not even their owner read them, which is us unless we are root.
        programs.open_to_owner(place / "restored")
        return _wrong(place / "restored", known, kinds)
    finally:
        programs.remove_tree(place)


def words(wrong: Sequence[str]) -> str:
    """Return what is said of a snapshot of which some files came back wrong."""
    names = ", ".join(ascii(path) for path in sorted(wrong)[:_NAMED_MAX])
    more = f" and {len(wrong) - _NAMED_MAX} more" if len(wrong) > _NAMED_MAX else ""
    return f"A restore drill didn't bring back as they were backed up: {names}{more}."


def _kind(path: Path) -> int:
    """Return which kind of file is to come back: in a snapshot most kinds are plain files."""
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        try:
            mode = int(os.getxattr(path, STATUS).split()[0], 8)
        except (OSError, ValueError, IndexError):
            return stat.S_IFREG
    return stat.S_IFMT(mode)


def _wrong(place: Path, known: Manifest, kinds: Mapping[str, int]) -> list[str]:
    return [
        path
        for path, kind in kinds.items()
        if not _is_restored(place / path, kind, known[path].content)
    ]


def _is_restored(path: Path, kind: int, content: str) -> bool:
    """Say whether a file is what it should be.

    In the snapshot a symbolic link is a file that holds its target. Devices and sockets aren't made
    by everyone who may restore.
    """
    if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
        return True
    try:
        found = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    if found != kind:
        return False
    if kind == stat.S_IFREG:
        return manifest.digest(os.fspath(path)) == content
    # The old layout has links that are links, whose targets have no checksum.
    return kind == stat.S_IFDIR or content in (
        "",
        manifest.digest_of(os.fsencode(os.readlink(path))),
    )

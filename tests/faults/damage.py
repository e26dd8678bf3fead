"""What lies on a storage unit, and the ways in which it may be damaged."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from turku_core.storage.snapshots.btrfs import is_btrfs, is_subvolume

KINDS = {
    "record": r"volume/machines/{machine}/docs/snapshots/[^/]+\.json",
    "checksums": r"volume/machines/{machine}/docs/snapshots/[^/]+\.manifest\.gz",
    "file of a tree": r"volume/machines/{machine}/docs/snapshots/[^/]+/.+",
    "file of the mirror": r"volume/machines/{machine}/docs/mirror/.+",
    "state of a source": r"volume/machines/{machine}/docs/source\.json",
    "segment of borg": r"volume/machines/{machine}/\.borg/data/.+",
    "index of borg": r"volume/machines/{machine}/\.borg/index\.\d+",
    "hints of borg": r"volume/machines/{machine}/\.borg/hints\.\d+",
    "integrity of borg": r"volume/machines/{machine}/\.borg/integrity\.\d+",
    "config of borg": r"volume/machines/{machine}/\.borg/config",
    "cache of borg": r"state/borg/.+",
    "mark of the volume": r"volume/\.turku-volume",
    "registry of volumes": r"state/volumes\.json",
    "places of a machine": r"state/places/{machine}\.json",
    "clock": r"state/clock\.json",
    "history of changes": r"volume/machines/{machine}/docs/changes\.json",
    "frozen state": r"volume/machines/{machine}/docs/pending\.json",
    "job of the queue": r"state/queue/[^/]+\.json",
    "report to the API": r"state/reports/[^/]+\.json",
}
"""What lies on a storage unit, by the path below the folder of both its parts."""


def flip(path: Path, dice: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    write_in_place(path, bytes(content))


def truncate(path: Path, dice: random.Random) -> None:
    """Cut the end off."""
    content = path.read_bytes()
    write_in_place(path, content[: dice.randrange(len(content))])


def delete(path: Path, dice: random.Random) -> None:
    """Remove it."""
    with writable(path):
        path.unlink()


def write_in_place(path: Path, content: bytes) -> None:
    """Change the content alone: time, owner and links stay, as when a disk forgets."""
    status = path.stat()
    with writable(path):
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Let a file of a read-only snapshot of btrfs be changed, and no other snapshot's."""
    tree = next((each for each in path.parents if each.parent.name == "snapshots"), None)
    if tree is None or not (is_btrfs(tree) and is_subvolume(tree)):
        yield
        return
    for value in ("false", "true"):
        subprocess.run(["btrfs", "property", "set", "-ts", tree, "ro", value], check=True)
        if value == "false":
            yield


WAYS: Mapping[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": flip,
    "cut short": truncate,
    "deleted": delete,
}

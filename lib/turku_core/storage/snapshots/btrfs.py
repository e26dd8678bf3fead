"""Mode btrfs: the mirror is a subvolume, and a snapshot a read-only snapshot of it.

Works for an unprivileged user on a volume mounted with `user_subvol_rm_allowed` (btrfs(5)): the
read-only property is taken away first, since only then the owner may delete (btrfs-subvolume(8)).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from turku_core.storage import manifest, programs
from turku_core.storage.mirror import Target
from turku_core.storage.records import Pending, Record
from turku_core.storage.snapshots import SnapshotError
from turku_core.storage.snapshots.trees import TreeMode
from turku_core.storage.source_folder import Readable, SourceFolder

_SUBVOLUME_ROOT_INODE = 256


class Btrfs(TreeMode):
    """Read-only subvolume snapshots, in constant time."""

    name = "btrfs"

    def _prepare(self, folder: SourceFolder, distrust: bool) -> Target:
        if folder.mirror.is_dir() and not is_subvolume(folder.mirror):
            # The source had another mode before.
            programs.remove_tree(folder.mirror)
        if not folder.mirror.is_dir():
            _btrfs(["subvolume", "create", os.fspath(folder.mirror)])
            folder.mirror.chmod(0o700)
        return Target(folder.mirror, checksum=distrust)

    def _freeze(self, folder: SourceFolder, pending: Pending) -> None:
        tree = self._tree(folder, pending.record)
        if not tree.is_dir():
            _btrfs(["subvolume", "snapshot", "-r", os.fspath(folder.mirror), os.fspath(tree)])

    def survived_power_cut(self, folder: SourceFolder, pending: Pending) -> bool:
        """Say yes if the snapshot is there: it was written with all its data, or not at all."""
        return self._tree(folder, pending.record).is_dir()

    def discard(self, folder: SourceFolder, pending: Pending) -> None:
        """Leave the mirror to the next pull, which compares it by checksum."""

    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Delete the subvolume, in one step."""
        tree = self._tree(folder, record)
        if tree.is_dir():
            _btrfs(["property", "set", "-ts", os.fspath(tree), "ro", "false"])
            _btrfs(["subvolume", "delete", os.fspath(tree)])

    def check_mirror(self, folder: SourceFolder, record: Record) -> str | None:
        """Compare a mirror that is restored from with the checksums of its snapshot."""
        with folder.reading(Readable.MIRROR):
            known = manifest.read(folder.manifest(record.id))
            if folder.state().mirror_id != record.id or known is None:
                return None
            return manifest.compare(folder.mirror, known)

    def tidy(self, folder: SourceFolder) -> None:
        """Do nothing: a deleted subvolume's room is freed by the kernel."""

    def _tree(self, folder: SourceFolder, record: Record) -> Path:
        return folder.tree(record.id)


def is_subvolume(path: Path) -> bool:
    """Say whether a folder is the root of a btrfs subvolume."""
    return path.stat().st_ino == _SUBVOLUME_ROOT_INODE


def is_btrfs(path: Path) -> bool:
    """Say whether a path lies on a btrfs file system."""
    try:
        found = programs.run(["stat", "--file-system", "--format=%T", "--", os.fspath(path)])
    except programs.ProgramMissing:
        return False
    return found.code == 0 and found.stdout.strip() == b"btrfs"


def _btrfs(arguments: Sequence[str]) -> None:
    """Run btrfs; paths are the storage unit's own and absolute. Raises SnapshotError."""
    done = programs.run(["btrfs", *arguments])
    if done.code != 0:
        hint = ""
        if arguments[:2] == ["subvolume", "delete"]:
            hint = " Mount the volume with the option user_subvol_rm_allowed."
        raise SnapshotError(
            f"btrfs {arguments[0]} {arguments[1]} {arguments[-1]} failed: {done.last_words}.{hint}"
        )

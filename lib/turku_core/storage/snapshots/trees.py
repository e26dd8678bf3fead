"""What link-dest and btrfs have in common: a snapshot is a plain tree in `snapshots/<id>/`."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from turku_core.storage import changes, manifest
from turku_core.storage.records import Pending, Record, time_of_id
from turku_core.storage.snapshots import Mode, SnapshotError
from turku_core.storage.source_folder import SourceFolder


class TreeMode(Mode):
    """A mode whose snapshots are trees of their own."""

    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Make sure the tree is set apart, and write its checksums."""
        self._freeze(folder, pending)
        record = pending.record
        tree = self._tree(folder, record)
        former = newest_manifest(folder, before=record.id)
        listed = manifest.make(tree, former)
        manifest.write(folder.manifest(record.id), listed)
        record = replace(record, files_total=record.files_total or len(listed))
        if former is None:
            return record
        changed = changes.compare_manifests(former, listed)
        return replace(record, files_changed=changed.files, files_before=changed.of)

    def list(self, folder: SourceFolder) -> Sequence[str]:
        """Return the ids of the trees."""
        try:
            names = os.listdir(folder.snapshots)
        except FileNotFoundError:
            return []
        return sorted(
            name
            for name in names
            if time_of_id(name) is not None and (folder.snapshots / name).is_dir()
        )

    @contextmanager
    def open_for_restore(
        self,
        folder: SourceFolder,
        record: Record,
        paths: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Path]:
        """Give the tree itself."""
        with folder.reading(self.reads):
            tree = self._tree(folder, record)
            if not tree.is_dir():
                raise SnapshotError(
                    f"{folder.label}: the files of snapshot {record.id} are gone; choose another."
                )
            yield tree

    def verify(self, folder: SourceFolder, record: Record) -> str | None:
        """Compare the tree with the checksums taken at the commit, or take them now.

        A tree of the old layout, or one whose record was lost, has none: it is read whole, and
        from then on it has.
        """
        tree = self._tree(folder, record)
        try:
            if not tree.is_dir():
                return "Its files are gone."
            known = manifest.read(folder.manifest(record.id))
            if known is None:
                manifest.write(folder.manifest(record.id), manifest.make(tree))
                return None
            return manifest.compare(tree, known)
        except OSError as error:
            return f"It can't be read: {error}."

    def sample(self, folder: SourceFolder, record: Record, count: int) -> dict[str, str]:
        """Draw files from the tree at random."""
        return sample_of_tree(self._tree(folder, record), count)

    def survived_power_cut(self, folder: SourceFolder, pending: Pending) -> bool:
        """Say no: nothing was synced since it was frozen."""
        return False

    @abstractmethod
    def _tree(self, folder: SourceFolder, record: Record) -> Path:
        """Return where the snapshot's tree is."""


def newest_manifest(folder: SourceFolder, before: str) -> manifest.Manifest | None:
    """Return the manifest of the newest tree before one, whose inodes are still its own."""
    ids = [
        name
        for name in os.listdir(folder.snapshots)
        if time_of_id(name) is not None and name < before and folder.manifest(name).is_file()
    ]
    return manifest.read(folder.manifest(max(ids))) if ids else None


def sample_of_tree(tree: Path, count: int) -> dict[str, str]:
    """Return up to `count` files of a tree, drawn at random, with their SHA-256."""
    chosen: list[str] = []
    seen = 0
    for folder, _, files in os.walk(tree):
        for name in files:
            path = os.path.join(folder, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            seen += 1
            if len(chosen) < count:
                chosen.append(path)
            elif (place := random.randrange(seen)) < count:
                chosen[place] = path
    return {os.path.relpath(path, tree): digest_of_file(path) for path in chosen}


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1024 * 1024):
            digest.update(block)
    return digest.hexdigest()

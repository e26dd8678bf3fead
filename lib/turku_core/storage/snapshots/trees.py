"""What link-dest and btrfs have in common: a snapshot is a plain tree in `snapshots/<id>/`."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from turku_core.storage import changes, manifest
from turku_core.storage.records import Pending, Record, time_of_id
from turku_core.storage.snapshots import Mode, SnapshotError
from turku_core.storage.source_folder import MANIFEST_SUFFIX, SourceFolder

CHECKSUMS_GONE = "The file of its checksums is gone, so that it can't be proven."


class TreeMode(Mode):
    """A mode whose snapshots are trees of their own."""

    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Make sure the tree is set apart, and write its checksums."""
        self._freeze(folder, pending)
        record = pending.record
        former, listed = write_manifest(folder, record, self._tree(folder, record))
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
            return compare_with_manifest(folder, record, tree)
        except OSError as error:
            return f"It can't be read: {error}."

    def survived_power_cut(self, folder: SourceFolder, pending: Pending) -> bool:
        """Say no: nothing was synced since it was frozen."""
        return False

    @abstractmethod
    def _tree(self, folder: SourceFolder, record: Record) -> Path:
        """Return where the snapshot's tree is."""


def write_manifest(
    folder: SourceFolder, record: Record, tree: Path, *, without_unreadable: bool = False
) -> tuple[manifest.Manifest | None, manifest.Manifest]:
    """Write the checksums of a new snapshot's tree; return those before, if any, and these.

    What hasn't changed since the snapshot before isn't read again. Whether there are hard links
    is noted for the next pull. Raises OSError.
    """
    former = newest_manifest(folder, before=record.id)
    listed = manifest.make(tree, former, without_unreadable=without_unreadable)
    manifest.write(folder.manifest(record.id), listed)
    inodes = [line.inode for line in listed.values() if line.content]
    has_hard_links = len(set(inodes)) < len(inodes)
    folder.write_state(replace(folder.state(), has_hard_links=has_hard_links))
    return former, listed


def compare_with_manifest(folder: SourceFolder, record: Record, tree: Path) -> str | None:
    """Compare a tree with its checksums; return how it differs, or None. Raises OSError.

    Only where there never were any, or with the record they were lost, they are taken from what is
    there now, which shows from then on whether it changes, and doesn't prove it.
    """
    known = manifest.read(folder.manifest(record.id))
    if known is not None:
        return manifest.compare(tree, known)
    lost = lost_checksums(folder, record)
    if lost is not None:
        return lost
    if not (folder.old_layout or record.recovered):
        return CHECKSUMS_GONE
    manifest.write(folder.manifest(record.id), manifest.make(tree), later=True)
    return None


def lost_checksums(folder: SourceFolder, record: Record) -> str | None:
    """Say what has become of a snapshot's checksums, if it had any that can't be read now."""
    if folder.manifest(record.id).exists():
        return "The file of its checksums is broken, so that it can't be proven."
    return CHECKSUMS_GONE if record.checksummed else None


def newest_manifest(folder: SourceFolder, before: str) -> manifest.Manifest | None:
    """Return the manifest of the newest snapshot before one.

    What has kept its inode since, in that snapshot's tree or in the mirror, hasn't changed.
    """
    ids = [
        name
        for each in os.listdir(folder.snapshots)
        if (name := each.removesuffix(MANIFEST_SUFFIX)) != each
        and time_of_id(name) is not None
        and name < before
    ]
    return manifest.read(folder.manifest(max(ids))) if ids else None

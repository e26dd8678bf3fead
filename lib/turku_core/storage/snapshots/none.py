"""Mode none: the mirror alone. Its one snapshot is withdrawn when the next pull begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from turku_core.storage import programs
from turku_core.storage.records import Pending, Record
from turku_core.storage.snapshots import SnapshotError
from turku_core.storage.snapshots.trees import compare_with_manifest, write_manifest
from turku_core.storage.snapshots.waiting import WaitingMirrorMode
from turku_core.storage.source_folder import Readable, SourceFolder


class Nothing(WaitingMirrorMode):
    """The mirror and nothing else."""

    name = "none"
    reads = Readable.MIRROR

    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Write the mirror's checksums."""
        _, listed = write_manifest(folder, pending.record, folder.mirror)
        record = self._with_changes(folder, pending.record)
        return replace(record, files_total=record.files_total or len(listed))

    def list(self, folder: SourceFolder) -> Sequence[str]:
        """Return the id of the mirror, when it equals a snapshot."""
        mirror_id = folder.state().mirror_id
        return [mirror_id] if mirror_id is not None else []

    @contextmanager
    def open_for_restore(
        self,
        folder: SourceFolder,
        record: Record,
        paths: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Path]:
        """Give the mirror, if it is still what it was."""
        with folder.reading(self.reads):
            self._check(folder, record)
            yield folder.mirror

    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Remove the mirror."""
        if folder.state().mirror_id == record.id:
            programs.remove_tree(folder.mirror)

    def verify(self, folder: SourceFolder, record: Record) -> str | None:
        """Compare the mirror with the checksums taken at the commit."""
        self._check(folder, record)
        try:
            return compare_with_manifest(folder, record, folder.mirror)
        except OSError as error:
            return f"It can't be read: {error}."

    def tidy(self, folder: SourceFolder) -> None:
        """Do nothing: there is only the mirror."""

    def _check(self, folder: SourceFolder, record: Record) -> None:
        if folder.state().mirror_id != record.id:
            raise SnapshotError(
                f"{folder.label}: {record.id} is withdrawn, because its mirror has been pulled to "
                "since; restore the snapshot named mirror instead."
            )

"""What the modes share whose mirror waits, unchanged, from the freeze until the commit."""

from __future__ import annotations

import os
from dataclasses import replace

from turku_core.configuration import ensure_private_folder
from turku_core.storage import changes
from turku_core.storage.mirror import Target
from turku_core.storage.records import Pending, Record
from turku_core.storage.snapshots import Mode
from turku_core.storage.source_folder import SourceFolder


class WaitingMirrorMode(Mode):
    """A mode whose frozen state is the mirror itself."""

    def _prepare(self, folder: SourceFolder, distrust: bool) -> Target:
        ensure_private_folder(folder.mirror)
        if not os.listdir(folder.mirror):
            # All is new; what is logged would only be long.
            folder.pull_log.unlink(missing_ok=True)
            return Target(folder.mirror, checksum=distrust)
        mark = changes.begin_log(folder.pull_log)
        return Target(folder.mirror, checksum=distrust, log=folder.pull_log, log_mark=mark)

    def _freeze(self, folder: SourceFolder, pending: Pending) -> None:
        """Do nothing: the pending commit keeps the mirror from changing."""

    def survived_power_cut(self, folder: SourceFolder, pending: Pending) -> bool:
        """Say no: nothing was synced since it was frozen."""
        return False

    def discard(self, folder: SourceFolder, pending: Pending) -> None:
        """Leave the mirror to the next pull, which compares it by checksum."""

    def _with_changes(self, folder: SourceFolder, record: Record) -> Record:
        """Return the record with what the pulls since the snapshot before have changed."""
        if record.entries is None:
            return record
        changed = changes.read_log(folder.pull_log, record.entries)
        if changed is None:
            return record
        return replace(record, files_changed=changed.files, files_before=changed.of)

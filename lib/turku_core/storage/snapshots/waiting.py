"""What the modes share whose mirror waits, unchanged, from the freeze until the commit."""

from __future__ import annotations

from turku_core.configuration import ensure_private_folder
from turku_core.storage.mirror import Target
from turku_core.storage.records import Pending
from turku_core.storage.snapshots import Mode
from turku_core.storage.source_folder import SourceFolder


class WaitingMirrorMode(Mode):
    """A mode whose frozen state is the mirror itself."""

    def _prepare(self, folder: SourceFolder, distrust: bool) -> Target:
        ensure_private_folder(folder.mirror)
        return Target(folder.mirror, checksum=distrust)

    def _freeze(self, folder: SourceFolder, pending: Pending) -> None:
        """Do nothing: the pending commit keeps the mirror from changing."""

    def survived_power_cut(self, folder: SourceFolder, pending: Pending) -> bool:
        """Say no: nothing was synced since it was frozen."""
        return False

    def discard(self, folder: SourceFolder, pending: Pending) -> None:
        """Leave the mirror to the next pull, which compares it by checksum."""

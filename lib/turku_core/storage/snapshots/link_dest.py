"""Mode link-dest: trees that share the inodes of files that haven't changed.

A pull always goes into a fresh, empty mirror, and rsync links unchanged files to the newest
snapshot. It never writes into a tree that shares inodes with a snapshot: a changed time or
attribute would change in every snapshot. What a broken-off pull brought is set aside and linked
to by the next one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from turku_core.configuration import ensure_private_folder
from turku_core.storage import programs
from turku_core.storage.mirror import Target
from turku_core.storage.records import Pending, Record
from turku_core.storage.snapshots.trees import TreeMode
from turku_core.storage.source_folder import SourceFolder

_BROKEN_OFF = re.compile(r"mirror\.broken-off-(\d+)")
_BROKEN_OFF_MAX = 3


class LinkDest(TreeMode):
    """Hard-link trees, on any file system with extended attributes."""

    name = "link-dest"
    keeps_mirror = False

    def _prepare(self, folder: SourceFolder, distrust: bool) -> Target:
        if distrust:
            # Files that were renamed into place but never reached the disk look whole.
            programs.remove_tree(folder.mirror)
            _remove_broken_off(folder)
        elif folder.mirror.is_dir():
            _set_aside(folder)
        ensure_private_folder(folder.mirror)
        newest = self.list(folder)[-1:]
        links = [folder.tree(each) for each in newest]
        links += [folder.path / name for name in reversed(_broken_off(folder))]
        return Target(folder.mirror, tuple(links))

    def _freeze(self, folder: SourceFolder, pending: Pending) -> None:
        tree = self._tree(folder, pending.record)
        if not tree.is_dir():
            folder.mirror.rename(tree)

    def discard(self, folder: SourceFolder, pending: Pending) -> None:
        """Remove the tree: what is in it may never have reached the disk."""
        self.remove(folder, pending.record)
        programs.remove_tree(folder.mirror)

    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Move the tree out of sight, then remove it."""
        hidden = folder.snapshots / f".removing-{record.id}"
        programs.remove_tree(hidden)
        tree = self._tree(folder, record)
        if tree.is_dir():
            tree.rename(hidden)
            programs.remove_tree(hidden)

    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Make the snapshot; what broken-off pulls had left is all in it."""
        record = super().commit(folder, pending)
        _remove_broken_off(folder)
        return record

    def tidy(self, folder: SourceFolder) -> None:
        """Do nothing: removed files give back their room at once."""

    def _tree(self, folder: SourceFolder, record: Record) -> Path:
        return folder.tree(record.id)


def _broken_off(folder: SourceFolder) -> list[str]:
    """Return the names of the set-aside mirrors, oldest first."""
    found = [match for name in os.listdir(folder.path) if (match := _BROKEN_OFF.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def _set_aside(folder: SourceFolder) -> None:
    """Keep what a broken-off pull brought; of many such only the newest few."""
    if not any(os.scandir(folder.mirror)):
        return
    names = _broken_off(folder)
    last = _BROKEN_OFF.fullmatch(names[-1]) if names else None
    number = int(last[1]) + 1 if last is not None else 1
    folder.mirror.rename(folder.path / f"mirror.broken-off-{number}")
    for name in _broken_off(folder)[:-_BROKEN_OFF_MAX]:
        programs.remove_tree(folder.path / name)


def _remove_broken_off(folder: SourceFolder) -> None:
    for name in _broken_off(folder):
        programs.remove_tree(folder.path / name)

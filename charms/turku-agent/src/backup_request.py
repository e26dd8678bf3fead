"""The `backup` interface on one machine: its leader's wish as a source of this very unit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_machine import Stated
from agent_sources import Place
from backup_fileset import Tree, tree_of
from backup_hooks import make_hook
from turku_core.fields import NAME_CHARACTERS_MAX, FieldError
from turku_core.relations import BackupRequest

BEFORE = "run-before-backup"


@dataclass(frozen=True)
class Asked:
    """What a principal's `backup` relation amounts to.

    Attributes:
        place: Its source, if it comes to one.
        hooks: The text of each program that the source's hooks name; None: leave them as they are.
    """

    place: Place
    hooks: Mapping[str, str] | None = field(default=None)


def read_request(
    key: str, principal: str, databag: Mapping[str, str], hooks: Path, former: Stated | None
) -> Asked:
    """Read what the principal's leader asks, as this machine can do it.

    Args:
        key: The place's key.
        principal: This unit's principal, such as ``postgresql/3``.
        databag: The principal's application databag.
        hooks: The folder of the hooks' programs.
        former: What the place came to before.
    """
    label = f"relation backup of {principal.partition('/')[0]}"
    try:
        request = BackupRequest.from_databag(databag)
    except FieldError as error:
        return Asked(Place(key, label, None, problems=(f"{label}: {error}.",)))
    if request is None:
        return Asked(Place(key, label, None))
    here = _Here(
        principal,
        [own_path(path, principal) for path in request.fileset],
        {name: own_path(path, principal) for name, path in request.scripts.items()},
    )
    problems = tuple(f"{label}: {problem}" for problem in here.problems())
    remarks = tuple(f"{label}: {remark}" for remark in here.remarks())
    if not here.wanted:
        return Asked(Place(key, label, None, {}, problems, remarks))
    name = source_name(principal)
    before = former.sources.get(name) if former is not None else None
    tree = here.tree(None if before is None else str(before["path"]))
    source: dict[str, Any] = {
        "path": tree.path,
        "comment": f"Asked for by {principal.partition('/')[0]} over the relation backup",
    }
    if tree.filter:
        source["filter"] = list(tree.filter)
    for script in here.scripts:
        source[script.replace("-", "_")] = str(hooks / script)
    texts = {each: make_hook(each, path, tree.path) for each, path in here.scripts.items()}
    return Asked(Place(key, label, {name: source}, {}, problems, remarks), texts)


@dataclass(frozen=True)
class _Here:
    """What is asked for, by the names that it has on this machine.

    Attributes:
        principal: The principal's unit.
        fileset: The paths.
        scripts: The programs, by the interface's keys.
    """

    principal: str
    fileset: Sequence[str]
    scripts: Mapping[str, str]

    @property
    def makes_files(self) -> bool:
        """Whether a script runs before a backup, which may well make what is to be backed up."""
        return BEFORE in self.scripts and _is_program(self.scripts[BEFORE])

    @property
    def missing(self) -> list[str]:
        """The paths that aren't there."""
        return [path for path in self.fileset if not os.path.lexists(path)]

    @property
    def wanted(self) -> list[str]:
        """The paths that are backed up: those that are there, and those that may come."""
        missing = () if self.makes_files else self.missing
        return [path for path in self.fileset if path not in missing]

    def problems(self) -> Iterator[str]:
        """Say what somebody has to mend."""
        for name, path in self.scripts.items():
            if not _is_program(path):
                yield f"{name}: there is no program {path} on {self.principal}, so it is left out."
        if self.missing and not self.makes_files:
            yield f"fileset: {_listed(self.missing)} not there on {self.principal}."

    def remarks(self) -> Iterator[str]:
        """Say what may be as it should be."""
        if self.missing and self.makes_files:
            yield f"fileset: {_listed(self.missing)} not there yet on {self.principal}."

    def tree(self, former: str | None) -> Tree:
        """Return what is wanted as a tree.

        It doesn't depend on whether a script's files are there at the moment, so that it stays the
        same before, during and after a backup.

        Args:
            former: The path of the tree that it was before.
        """
        paths = self.wanted
        if len(paths) == 1 and (os.path.isdir(paths[0]) or os.path.normpath(paths[0]) == former):
            # As it was asked for, also when it is a link to a folder: rsync's daemon follows that.
            return tree_of(paths, lambda path: True)
        return tree_of([os.path.realpath(path) for path in paths], self._is_folder)

    def _is_folder(self, path: str) -> bool | None:
        if os.path.isdir(path):
            return True
        return None if self.makes_files else False


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def own_path(path: str, principal: str) -> str:
    """Return a path as it is on this unit.

    The leader names its own paths, and some hold its unit's name: ``/srv/unit-app-0/data`` is
    ``/srv/unit-app-3/data`` on ``app/3``.
    """
    application, _, number = principal.rpartition("/")
    return re.sub(
        rf"(?<=/)unit-{re.escape(application)}-[0-9]+(?=/|$)", f"unit-{application}-{number}", path
    )


def source_name(principal: str) -> str:
    """Return the name of a principal's source: the unit's, such as ``postgresql-0``."""
    return principal.replace("/", "-")[-NAME_CHARACTERS_MAX:].lstrip("-")


def _listed(paths: list[str]) -> str:
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return f"{shown} {'is' if len(paths) == 1 else 'are'}"

"""The `backup` interface on one machine: its leader's wish as a source of this very unit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def read_request(key: str, principal: str, databag: Mapping[str, str], hooks: Path) -> Asked:
    """Read what the principal's leader asks, as this machine can do it.

    Args:
        key: The place's key.
        principal: This unit's principal, such as ``postgresql/3``.
        databag: The principal's application databag.
        hooks: The folder of the hooks' programs.
    """
    label = f"relation backup of {principal.partition('/')[0]}"
    try:
        request = BackupRequest.from_databag(databag)
    except FieldError as error:
        return Asked(Place(key, label, None, problems=(f"{label}: {error}.",)))
    if request is None:
        return Asked(Place(key, label, None))
    return _as_source(request, key, label, principal, hooks)


def _as_source(request: BackupRequest, key: str, label: str, principal: str, hooks: Path) -> Asked:
    fileset = [own_path(path, principal) for path in request.fileset]
    scripts = {name: own_path(path, principal) for name, path in request.scripts.items()}
    there = [path for path in fileset if os.path.lexists(path)]
    missing = [path for path in fileset if path not in there]
    makes_files = BEFORE in scripts and _is_program(scripts[BEFORE])
    problems = [
        f"{label}: {name}: there is no program {path} on {principal}, so it is left out."
        for name, path in scripts.items()
        if not _is_program(path)
    ]
    remarks = []
    if missing and makes_files:
        remarks.append(f"{label}: fileset: {_listed(missing)} not there yet on {principal}.")
    elif missing:
        problems.append(f"{label}: fileset: {_listed(missing)} not there on {principal}.")
    wanted = fileset if makes_files else there
    if not wanted:
        return Asked(Place(key, label, None, problems=tuple(problems)))
    tree = _tree(wanted)
    source: dict[str, Any] = {
        "path": tree.path,
        "comment": f"Asked for by {principal.partition('/')[0]} over the relation backup",
    }
    if tree.filter:
        source["filter"] = list(tree.filter)
    for name in scripts:
        source[name.replace("-", "_")] = str(hooks / name)
    place = Place(key, label, {source_name(principal): source}, {}, tuple(problems), tuple(remarks))
    return Asked(place, {name: make_hook(name, path, tree.path) for name, path in scripts.items()})


def _tree(paths: list[str]) -> Tree:
    if len(paths) == 1 and os.path.isdir(paths[0]):
        # As it was asked for, also when it is a link to a folder: rsync's daemon follows that one.
        return tree_of(paths, lambda path: True)
    return tree_of([os.path.realpath(path) for path in paths], _is_folder)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_folder(path: str) -> bool | None:
    return os.path.isdir(path) if os.path.lexists(path) else None


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

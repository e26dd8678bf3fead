"""A fileset of the charm's `backup` relation: rsync takes exactly what was asked for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backup_fileset import tree_of
from turku_core import fields

NASTY = [
    "a",
    "b c",
    "[x]",
    "*",
    "?",
    "a\\b",
    "[",
    "]",
    "a*b\\",
    "- a",
    "+ /x",
    "#c",
    "!",
    "é",
    "**",
]

names = st.sampled_from(NASTY)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def make(top: Path, files: Sequence[str]) -> None:
    """Make files below `top`; a file that is in the way of a folder is left out."""
    for name in files:
        path = top / name
        if any(parent.is_file() for parent in path.parents) or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def files_in(folder: Path) -> set[str]:
    """Return the files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(paths, min_size=1, max_size=8), asked=st.lists(paths, min_size=1, max_size=4))
def test_rsync_takes_exactly_what_was_asked_for(
    tmp_path: Path, files: list[str], asked: list[str]
) -> None:
    number = len(list(tmp_path.iterdir()))
    top, copy, rules = (tmp_path / f"{number}-{kind}" for kind in ("data", "copy", "rules"))
    top.mkdir()
    make(top, files)
    there = [str(top / path) for path in asked if (top / path).exists()]
    if not there:
        return
    tree = tree_of(there, os.path.isdir)
    for rule in tree.filter:
        assert fields.filter_rule(rule, "filter") == rule
    # As the storage unit gives them, and as the agent's own daemon reads them.
    rules.write_text("".join(f"{rule}\n" for rule in tree.filter))
    wanted = {
        os.path.relpath(path, tree.path)
        for asked_for in there
        for path in (
            [asked_for]
            if os.path.isfile(asked_for)
            else [str(path) for path in Path(asked_for).rglob("*") if path.is_file()]
        )
    }
    for given_as in ([f"--filter={rule}" for rule in tree.filter], [f"--filter=merge {rules}"]):
        copy.mkdir()
        subprocess.run(["rsync", "-a", *given_as, f"{tree.path}/", f"{copy}/"], check=True)
        assert files_in(copy) == wanted
        subprocess.run(["rm", "-r", str(copy)], check=True)

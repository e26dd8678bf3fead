"""A fileset as one source: a folder, and what of it is wanted.

`tests/integration/agent/test_fileset.py` has rsync say whether the rules mean that.
"""

from __future__ import annotations

import pytest

from backup_fileset import Tree, tree_of
from turku_core.protocol.messages import SourceSettings


@pytest.mark.parametrize(
    ("paths", "folders", "expected"),
    [
        (["/srv/data"], {"/srv/data"}, Tree("/srv/data")),
        (["/srv/data/"], {"/srv/data"}, Tree("/srv/data")),
        (["//srv//data"], {"/srv/data"}, Tree("/srv/data")),
        (["/"], set(), Tree("/")),
        (["/srv/dump.sql"], set(), Tree("/srv", ("+ /dump.sql", "- *"))),
        (
            ["/srv/b/c", "/srv/a"],
            {"/srv/a"},
            Tree("/srv", ("+ /a/***", "+ /b/", "+ /b/c", "- *")),
        ),
        (["/srv/a", "/srv/a/b"], {"/srv/a", "/srv/a/b"}, Tree("/srv/a")),
        (
            ["/etc/x", "/var/y"], set(),
            Tree("/", ("+ /etc/", "+ /etc/x", "+ /var/", "+ /var/y", "- *")),
        ),
        (["/a", "/a"], set(), Tree("/", ("+ /a", "- *"))),
        # A plain backslash stays as it is, unless a wildcard makes it an escape.
        (["/s/a\\b"], set(), Tree("/s", ("+ /a\\b", "- *"))),
        (["/s/a\\b*"], set(), Tree("/s", ("+ /a\\\\b\\*", "- *"))),
    ],
)  # fmt: skip
def test_a_fileset_is_the_deepest_folder_with_rules(
    paths: list[str], folders: set[str], expected: Tree
) -> None:
    assert tree_of(paths, lambda path: path in folders) == expected


def test_what_is_not_there_yet_is_taken_as_whatever_it_will_be() -> None:
    assert tree_of(["/srv/dump"], lambda _: None) == Tree("/srv", ("+ /dump", "+ /dump/***", "- *"))


def test_a_large_fileset_fits_into_a_source() -> None:
    tree = tree_of([f"/srv/data-{number}" for number in range(990)], lambda _: False)
    source = SourceSettings.from_json({"path": tree.path, "filter": list(tree.filter)}, "s")
    assert len(source.filter) == 991

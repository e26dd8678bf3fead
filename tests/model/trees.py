"""Trees of every kind of file on machines: made, described and compared there, by Python alone.

What such a tree holds, and what is compared of each file, is written in `tests/support/trees.py`.
That file runs on the machine as it stands, since both sides of a comparison must be read there: on
this host the machine's file system is seen through others.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect

from tests.model.runner.machines import Machine
from tests.support import trees
from tests.support.trees import Entry

Tree = dict[bytes, Entry]
"""Every file by its path below the tree's folder; `b"."` is the folder itself."""

_MAKE = """
make_odd_tree(Path(sys.argv[1]), as_root=True)
"""

_DESCRIBE = """
import dataclasses
found = describe_tree(Path(sys.argv[1]))
print(ascii({path: dataclasses.astuple(entry) for path, entry in found.items()}))
"""


def make_tree(machine: Machine, path: str) -> None:
    """Make a folder with a file of every kind in it."""
    _run(machine, _MAKE, path)


def describe(machine: Machine, path: str) -> Tree:
    """Return all that there is to say of a tree, read on its machine."""
    found = ast.literal_eval(_run(machine, _DESCRIBE, path))
    return {name: Entry(*values) for name, values in found.items()}


def below(tree: Tree, path: bytes) -> Tree:
    """Return what there is of one path, with the folders that lead to it.

    The top is left out: of it nothing comes back with a single path.
    """
    steps = path.split(b"/")
    parents = {b"/".join(steps[:end]) for end in range(1, len(steps))}
    chosen = {
        name: entry
        for name, entry in tree.items()
        if name in parents or name == path or name.startswith(path + b"/")
    }
    for name, entry in chosen.items():
        names = tuple(each for each in entry.hard_links if each in chosen)
        hard_links = names if len(names) > 1 else ()
        chosen[name] = dataclasses.replace(entry, hard_links=hard_links)
    return chosen


def _run(machine: Machine, program: str, path: str) -> str:
    text = f"{inspect.getsource(trees)}\nimport sys\n{program}"
    return machine.run(["python3", "-", path], given=text.encode())

"""Charms packed for this host, so that they can be unpacked and run as Juju would.

They are packed for the distribution's own Python (``/usr/bin/python3``), as on a machine that Juju
deploys to, whichever Python runs the tests.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.charm_packages import MACHINES, TREE
from tools.pack_charms import Build, file_name

CHARMS = ("turku-agent", "turku-api", "turku-storage")
PYTHON = "/usr/bin/python3"


def build_for_this_host() -> Build:
    """Return a build that runs here. Its base is one that all charms are for."""
    said = subprocess.run(
        [PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        check=True,
        capture_output=True,
        text=True,
    )
    arch = next(name for name, says in MACHINES.items() if says == platform.machine())
    return Build("ubuntu@24.04", said.stdout.strip(), arch)


@dataclass(frozen=True)
class Packing:
    """A copy of the tree to pack from, which nobody changes while a test run packs.

    Attributes:
        tree: The copy.
        folder: Where the packed charms are.
    """

    tree: Path
    folder: Path

    @classmethod
    def of_run(cls, shared: Path) -> Packing:
        """Return the one of a test run, made by whoever asks first among its processes.

        Args:
            shared: A folder that all processes of this test run know.
        """
        tree = shared / "tree-to-pack"
        with _locked(shared / "tree-to-pack.lock"):
            if not tree.exists():
                copy_tree(TREE, tree)
        return cls(tree, shared)

    def pack(self, charm: str, build: Build, into: Path) -> Path:
        """Pack a charm of the copy."""
        target = (build.base, build.python, build.arch)
        command = [sys.executable, "-c", _PACK, charm, *target, str(into)]
        subprocess.run(command, check=True, cwd=self.tree)
        return into / file_name(charm, build)

    def packed(self, charm: str) -> Path:
        """Return a charm packed for this host; packed once in a test run."""
        with _locked(self.folder / f"{charm}.lock"):
            build = build_for_this_host()
            path = self.folder / file_name(charm, build)
            return path if path.exists() else self.pack(charm, build, self.folder)


_PACK = """
import sys
from pathlib import Path
from tools.pack_charms import Build, pack
pack(sys.argv[1], Build(*sys.argv[2:5]), Path(sys.argv[5]))
"""


def copy_tree(source: Path, target: Path) -> None:
    """Copy what charms are packed from."""
    for name in ("charms", "lib", "tools", "requirements"):
        shutil.copytree(
            source / name,
            target / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(source / "LICENSE", target / "LICENSE")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(file: Path, folder: Path) -> Path:
    """Unpack a charm with its modes, as Juju does, and return the folder."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, folder))
            path.chmod(entry.external_attr >> 16 & 0o777)
    return folder

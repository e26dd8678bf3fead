"""Pack the charms with Python and pip alone: the same .charm files as ``charmcraft pack`` makes.

    python -m tools.pack_charms [--base ubuntu@24.04] [--arch amd64] [--into build] [CHARM...]

``charmcraft.yaml`` is the one source of what a charm is. The same tree gives the same file, byte
by byte: entries are sorted, and no time, user or path of the machine gets into it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.charm_packages import MACHINES, TREE, Target, install

BASES = {"ubuntu@22.04": "3.10", "ubuntu@24.04": "3.12", "debian@12": "3.11"}
"""The bases and their Pythons. The last is for trying charms on a Debian without Juju."""

DISPATCH = TREE / "tools/dispatch.sh"
"""What Juju runs; charmcraft 4.5 writes the very same."""

METADATA_KEYS = (
    "name", "summary", "description", "assumes", "subordinate",
    "requires", "provides", "peers", "storage",
)  # fmt: skip
"""The parts of ``charmcraft.yaml`` that go into ``metadata.yaml`` under their own names."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every entry: the earliest that a zip file can hold."""


@dataclass(frozen=True)
class Build:
    """What charms are packed for: a base such as ``ubuntu@24.04``, its Python, an architecture."""

    base: str
    python: str
    arch: str

    @classmethod
    def of(cls, base: str, arch: str) -> Build:
        """Return the build for a base of `BASES`."""
        return cls(base, BASES[base], arch)


def charms() -> list[str]:
    """Return the names of the charms that there are."""
    return sorted(path.parent.name for path in TREE.glob("charms/*/charmcraft.yaml"))


def read_project(charm: str) -> dict[str, Any]:
    """Return a charm's ``charmcraft.yaml``."""
    text = (TREE / "charms" / charm / "charmcraft.yaml").read_text("utf-8")
    project: dict[str, Any] = yaml.safe_load(text)
    return project


def file_name(charm: str, build: Build) -> str:
    """Return what charmcraft calls the file: the name, and the platform with ``-`` for ``:``."""
    return f"{charm}_{build.base}-{build.arch}.charm"


def is_offered(project: dict[str, Any], build: Build) -> bool:
    """Say whether a charm is for this base and architecture; any may be tried on a Debian."""
    platform = f"{build.base}:{build.arch}"
    return platform in project["platforms"] or build.base.startswith("debian@")


def metadata(project: dict[str, Any]) -> dict[str, Any]:
    """Return what goes into ``metadata.yaml``."""
    found = {key: project[key] for key in METADATA_KEYS if key in project}
    return {**found, "display-name": project["title"]}


def manifest(build: Build) -> dict[str, Any]:
    """Return what goes into ``manifest.yaml``, without which Juju refuses the charm."""
    name, _, channel = build.base.partition("@")
    return {"bases": [{"name": name, "channel": channel, "architectures": [build.arch]}]}


def generated(project: dict[str, Any], build: Build) -> dict[str, bytes]:
    """Return the files that come from ``charmcraft.yaml`` and the target, by name."""
    contents = {
        "metadata.yaml": metadata(project),
        "manifest.yaml": manifest(build),
        "config.yaml": project.get("config"),
        "actions.yaml": project.get("actions"),
    }
    return {
        name: yaml.safe_dump(content, sort_keys=True).encode()
        for name, content in contents.items()
        if content
    } | {"dispatch": DISPATCH.read_bytes()}


def pack(charm: str, build: Build, into: Path) -> Path:
    """Pack one charm and return the path of its file.

    Args:
        charm: Its name, such as ``turku-agent``.
        build: What it is for.
        into: The folder to put the file in.
    """
    into.mkdir(parents=True, exist_ok=True)
    path = into / file_name(charm, build)
    files = generated(read_project(charm), build)
    executable = {"dispatch", "src/charm.py"}
    source = TREE / "charms" / charm / "src"
    for file in _files(source):
        files[f"src/{file.relative_to(source)}"] = file.read_bytes()
    with tempfile.TemporaryDirectory(prefix="turku-charm-") as name:
        venv = Path(name, "venv")
        install(charm, venv, Target(build.python, build.arch))
        for file in _files(venv):
            inside = f"venv/{file.relative_to(venv)}"
            files[inside] = file.read_bytes()
            if file.stat().st_mode & 0o100:
                executable.add(inside)
    temporary = path.with_suffix(".new")
    write_zip(temporary, files, executable)
    temporary.replace(path)
    return path


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    ]


def write_zip(path: Path, files: dict[str, bytes], executable: set[str]) -> None:
    """Write files into a zip file that depends on nothing but them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, which the mode is of
            entry.external_attr = (0o100755 if name in executable else 0o100644) << 16
            archive.writestr(entry, files[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pack_charms",
        description="Pack the charms with Python and pip alone.",
    )
    parser.add_argument("charm", metavar="CHARM", nargs="*", help="such as turku-agent")
    parser.add_argument("--base", choices=sorted(BASES), default="ubuntu@24.04")
    parser.add_argument("--arch", choices=sorted(MACHINES), default="amd64")
    parser.add_argument("--into", type=Path, default=TREE / "build", help="default: build/")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.charm) - set(charms()))
    if unknown:
        parser.error(f"there is no charm {', '.join(unknown)}; there are {', '.join(charms())}")
    build = Build.of(given.base, given.arch)
    for charm in given.charm or charms():
        if not is_offered(read_project(charm), build):
            print(f"{charm} is not for {build.base}", flush=True)
            continue
        path = pack(charm, build, given.into)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size / 2**20
        print(f"{path}  {size:.0f} MiB  sha256:{digest}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

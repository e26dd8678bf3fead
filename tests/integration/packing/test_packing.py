"""Packing the charms: what is in a .charm, that it is the same every time, and as charmcraft's."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.packed import CHARMS, PYTHON, Packing, build_for_this_host, copy_tree
from tools.charm_packages import SOURCE_ONLY, TREE, Target, read_lock
from tools.pack_charms import BASES, Build, file_name

CHARMCRAFT = TREE / ".venv/charmcraft/bin/charmcraft"


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return the mode and the content of each file in a .charm."""
    with zipfile.ZipFile(path) as archive:
        return {
            entry.filename: (entry.external_attr >> 16 & 0o777, archive.read(entry))
            for entry in archive.infolist()
        }


def packages(names: set[str]) -> set[str]:
    """Return the packages with their versions among the names of a charm's files."""
    pattern = r"venv/lib/[^/]+/site-packages/([^/]+)\.dist-info/"
    return {match[1] for name in names if (match := re.match(pattern, name))}


@pytest.mark.parametrize("charm", CHARMS)
def test_a_charm_holds_what_juju_needs_and_nothing_of_the_machine_that_packed_it(
    charm: str, packing: Packing
) -> None:
    build = build_for_this_host()
    files = contents(packing.packed(charm))
    assert {"metadata.yaml", "manifest.yaml", "dispatch", "config.yaml", "actions.yaml"} <= set(
        files
    )
    assert files["dispatch"][0] == 0o755
    assert {mode for mode, _ in files.values()} <= {0o644, 0o755}
    manifest = yaml.safe_load(files["manifest.yaml"][1])
    assert manifest == {
        "bases": [{"name": "ubuntu", "channel": "24.04", "architectures": [build.arch]}]
    }
    site_packages = f"venv/lib/python{build.python}/site-packages"
    assert f"{site_packages}/turku_core/__init__.py" in files
    assert f"{site_packages}/turku_charm/workload.py" in files
    assert f"{site_packages}/turku_core-1.0.0.dist-info/licenses/LICENSE" in files
    assert any(name.startswith(f"{site_packages}/ops/") for name in files)
    assert [name for name in files if name.endswith((".pyc", "direct_url.json"))] == []
    assert [name for name in files if re.fullmatch(rf"{site_packages}/[^/]+/RECORD", name)] == []
    here = [os.fsencode(path) for path in (TREE, packing.tree, Path.home() / ".pyenv")]
    assert [name for name, (_, content) in files.items() if any(p in content for p in here)] == []


@pytest.mark.parametrize("charm", CHARMS)
def test_a_charm_carries_exactly_what_its_lock_file_pins(charm: str, packing: Packing) -> None:
    from packaging.markers import Marker

    target = Target(build_for_this_host().python, build_for_this_host().arch)
    pinned = {
        f"{pin.name.replace('-', '_')}-{pin.version}"
        for pin in read_lock(TREE / "charms" / charm / "requirements.txt")
        if not pin.marker or Marker(pin.marker).evaluate(target.markers())
    }
    found = {name.lower() for name in packages(set(contents(packing.packed(charm))))}
    assert found - pinned == {"turku_core-1.0.0"}
    assert {name.replace(".", "_") for name in pinned} - {
        name.replace(".", "_") for name in found
    } == set()


def test_two_builds_are_the_same_bytes_whatever_the_hour_and_the_folder(
    packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    before = os.umask(0o077)
    try:
        again = packing.pack("turku-storage", build_for_this_host(), tmp_path / "again")
    finally:
        os.umask(before)
    assert digest(again) == digest(packing.packed("turku-storage"))


def test_another_architecture_and_python_get_their_own_binaries(
    packing: Packing, tmp_path: Path
) -> None:
    files = contents(packing.pack("turku-agent", Build.of("ubuntu@22.04", "arm64"), tmp_path))
    binaries = {name: content for name, (_, content) in files.items() if name.endswith(".so")}
    assert binaries
    for name, content in binaries.items():
        assert content[:4] == b"\x7fELF"
        assert content[18:20] == b"\xb7\x00", f"{name} isn't for aarch64"
        assert "cpython-310-aarch64" in name or ".abi3." in name
    # What only this Python needs is judged by it, not by the one that packs.
    assert {"exceptiongroup", "tomli"}.isdisjoint(packages(set(files)))
    assert any(package.startswith("cronsim-2.7") for package in packages(set(files)))


def test_the_names_and_the_bases_are_those_that_the_charms_say() -> None:
    assert file_name("turku-api", Build.of("ubuntu@24.04", "amd64")) == (
        "turku-api_ubuntu@24.04-amd64.charm"
    )
    for charm in CHARMS:
        project = yaml.safe_load((TREE / f"charms/{charm}/charmcraft.yaml").read_text("utf-8"))
        assert project["name"] == charm
        for platform in project["platforms"]:
            base, _, arch = platform.partition(":")
            assert base in BASES
            assert arch in ("amd64", "arm64")
    agent = yaml.safe_load((TREE / "charms/turku-agent/charmcraft.yaml").read_text("utf-8"))
    assert {name.partition(":")[0] for name in agent["platforms"]} == {
        "ubuntu@22.04", "ubuntu@24.04",
    }  # fmt: skip


def test_what_is_said_to_be_published_as_source_alone_is_pinned_by_a_charm() -> None:
    pinned = {
        pin.name for path in TREE.glob("charms/*/requirements.txt") for pin in read_lock(path)
    }
    assert pinned >= SOURCE_ONLY


OS_RELEASE = """\
NAME="Ubuntu"
ID=ubuntu
ID_LIKE=debian
VERSION_ID="24.04"
VERSION_CODENAME=noble
PRETTY_NAME="Ubuntu 24.04 LTS"
"""

PACK = """\
set -e
# Only this shell and what it starts see this.
mount --bind "$1" "$(realpath /etc/os-release)"
cd "$2"
exec "$3" pack --destructive-mode --platform "$4"
"""


def pack_with_charmcraft(packing: Packing, charm: str, folder: Path) -> Path:
    """Pack a charm with charmcraft in a copy of the tree; return the file.

    charmcraft packs only for the base that it runs on, so it is told that this is Ubuntu 24.04. The
    Python is the distribution's, whichever it is.
    """
    assert CHARMCRAFT.exists(), "There is no charmcraft: `make charmcraft` installs it."
    tree = folder / "tree"
    copy_tree(packing.tree, tree)
    os_release = folder / "os-release"
    os_release.write_text(OS_RELEASE)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(PYTHON)
    build = build_for_this_host()
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", PACK, "pack", os_release, tree / "charms" / charm,
         CHARMCRAFT, f"{build.base}:{build.arch}"],
        env={**os.environ, "HOME": str(folder), "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return tree / "charms" / charm / file_name(charm, build)


@pytest.mark.needs_root
@pytest.mark.parametrize("charm", CHARMS)
def test_charmcraft_itself_packs_the_very_same(
    charm: str, packing: Packing, tmp_path: Path
) -> None:
    ours = contents(packing.packed(charm))
    theirs = contents(pack_with_charmcraft(packing, charm, tmp_path))
    # Its pip runs in the very environment that it fills, and may leave bytecode of what it imports.
    theirs = {name: each for name, each in theirs.items() if not name.endswith(".pyc")}
    assert set(ours) == set(theirs)
    assert packages(set(ours)) == packages(set(theirs))
    generated = {"metadata.yaml", "config.yaml", "actions.yaml", "manifest.yaml"}
    assert [name for name in ours if name not in generated and ours[name] != theirs[name]] == []

    def read(files: dict[str, tuple[int, bytes]], name: str) -> Any:
        return yaml.safe_load(files[name][1])

    for name in generated - {"manifest.yaml"}:
        assert read(ours, name) == read(theirs, name), name
    # charmcraft's manifest says besides when it was packed, by which charmcraft, and how it reads.
    assert read(ours, "manifest.yaml")["bases"] == read(theirs, "manifest.yaml")["bases"]

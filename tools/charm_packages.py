"""Put a charm's pinned Python packages, and turku_core, where its ``dispatch`` looks for them.

    python -m tools.charm_packages CHARM FOLDER [--python 3.12] [--arch amd64]

Both ways to pack a charm call this: `make charms`, and `charmcraft pack` on a build machine whose
own Python runs it. So it needs nothing but that Python and pip. Which packages is said by the
charm's ``requirements.txt``, by hash; wheels that aren't published are built with what
``requirements/build.txt`` pins. The outcome depends on these files and the target alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent

SOURCE_ONLY = frozenset({"charmhelpers"})
"""Packages that are published as source alone. They are pure Python."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The names of architectures: as Juju and Debian say, and as Python says."""

GLIBC_MINOR_MAX = 35
GLIBC_MINOR_MIN = 17
"""Wheels may need a glibc as new as 2.35, of the oldest base (Ubuntu 22.04)."""

_OF_THE_INSTALLER = ("RECORD", "REQUESTED", "INSTALLER", "direct_url.json")
"""Files of a ``*.dist-info`` that say how and from where it was installed, not what it is."""


@dataclass(frozen=True)
class Target:
    """What the packages are for: a Python such as ``3.12``, and an architecture such as amd64."""

    python: str
    arch: str

    def markers(self) -> dict[str, str]:
        """Return what environment markers of requirements are to be judged by (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": MACHINES[self.arch],
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def pip_options(self) -> tuple[str, ...]:
        """Return pip's options for wheels that fit."""
        machine = MACHINES[self.arch]
        tags = [
            f"manylinux_2_{minor}_{machine}"
            for minor in range(GLIBC_MINOR_MAX, GLIBC_MINOR_MIN - 1, -1)
        ]
        platforms = [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{machine}")]
        return ("--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}",
                *platforms)  # fmt: skip


@dataclass(frozen=True)
class Pin:
    """One package of a lock file: its name, version, marker (or "") and hashes."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def line(self) -> str:
        """Return it as a line for pip, without the marker."""
        return " ".join((f"{self.name}=={self.version}", *self.hashes)) + "\n"


def read_lock(path: Path) -> Iterator[Pin]:
    """Read a lock file as ``uv pip compile --generate-hashes`` writes it."""
    joined = path.read_text("utf-8").replace("\\\n", " ")
    for line in joined.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        hashes = tuple(word for word in words if word.startswith("--hash="))
        what = " ".join(word for word in words if not word.startswith("--hash="))
        pin, _, marker = what.partition(";")
        name, _, version = pin.strip().partition("==")
        yield Pin(name, version, marker.strip(), hashes)


def install(charm: str, venv: Path, target: Target) -> None:
    """Make ``venv`` hold the packages of a charm, in the layout of a virtual environment.

    Args:
        charm: Its name, such as ``turku-agent``.
        venv: A folder that isn't there yet.
        target: What they are for.
    """
    site_packages = venv / "lib" / f"python{target.python}" / "site-packages"
    site_packages.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="turku-packages-") as name:
        work = Path(name)
        tools = _build_tools(work)
        lock = read_lock(TREE / "charms" / charm / "requirements.txt")
        pins = list(_for_target(lock, target, tools))
        published = [pin for pin in pins if pin.name not in SOURCE_ONLY]
        _pip("install", "--target", site_packages, "--no-compile", *target.pip_options(),
             *_required(work / "published.txt", published))  # fmt: skip
        own = [pin for pin in pins if pin.name in SOURCE_ONLY]
        _pip("install", "--target", site_packages, "--no-compile", "--no-index", "--no-deps",
             "--upgrade", *_wheels(own, work, tools))  # fmt: skip
    _strip(site_packages)
    # With this file the python that dispatch links into venv/bin finds the packages.
    (venv / "pyvenv.cfg").write_text(
        "home = /usr/bin\n"
        "include-system-site-packages = false\n"
        f"version = {target.python}\n"
    )  # fmt: skip


def _build_tools(work: Path) -> Path:
    """Install what builds wheels into a folder of its own, for the Python that runs this."""
    folder = work / "build"
    _pip("install", "--target", folder, "--no-deps", "--only-binary=:all:", "--require-hashes",
         "--requirement", TREE / "requirements/build.txt")  # fmt: skip
    return folder


def _for_target(pins: Iterator[Pin], target: Target, tools: Path) -> Iterator[Pin]:
    """Return the pins whose markers hold: pip itself judges them by the Python that runs it."""
    sys.path.insert(0, str(tools))
    from packaging.markers import Marker

    sys.path.remove(str(tools))
    for pin in pins:
        if not pin.marker or Marker(pin.marker).evaluate(target.markers()):
            yield pin


def _required(path: Path, pins: Sequence[Pin]) -> tuple[str, ...]:
    path.write_text("".join(pin.line() for pin in pins), "utf-8")
    return ("--no-deps", "--require-hashes", "--requirement", str(path))


def _wheels(pins: Sequence[Pin], work: Path, tools: Path) -> list[Path]:
    """Build wheels of turku_core and of packages that have none, and return them."""
    folder = work / "wheels"
    folder.mkdir()
    _build(TREE / "lib", "hatchling.build", tools, folder)
    for pin in pins:
        _build(_unpacked(work, tools, pin), "setuptools.build_meta", tools, folder)
    return sorted(folder.iterdir())


def _unpacked(work: Path, tools: Path, pin: Pin) -> Path:
    """Fetch a package's source and return the folder that it was unpacked into."""
    folder = work / pin.name
    _pip("download", "--dest", folder, "--no-binary=:all:", "--no-build-isolation",
         *_required(work / f"{pin.name}.txt", [pin]), environment={"PYTHONPATH": str(tools)},
    )  # fmt: skip
    [archive] = folder.iterdir()
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


_BUILD = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2]).build_wheel(sys.argv[3])
"""


def _build(source: Path, backend: str, tools: Path, wheels: Path) -> None:
    """Build a wheel by the hook of PEP 517, with `tools` and the standard library alone.

    pip would let everything take part that happens to be installed beside it.
    """
    command = (sys.executable, "-I", "-S", "-c", _BUILD, tools, backend, wheels)
    done = subprocess.run(
        command, check=False, cwd=source, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        sys.exit(f"The wheel of {source} could not be built:\n{done.stderr}")


def _pip(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    settings = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    subprocess.run(command, check=True, env={**os.environ, **settings, **(environment or {})})


def _strip(site_packages: Path) -> None:
    """Take out what depends on where and how the packages were installed."""
    shutil.rmtree(site_packages / "bin", ignore_errors=True)
    for path in sorted(site_packages.rglob("__pycache__")):
        shutil.rmtree(path)
    for info in site_packages.glob("*.dist-info"):
        for name in _OF_THE_INSTALLER:
            (info / name).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.charm_packages",
        description="Put a charm's pinned Python packages where its dispatch looks for them.",
    )
    parser.add_argument("charm", metavar="CHARM", help="such as turku-agent")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the venv folder to make")
    parser.add_argument(
        "--python",
        default="{}.{}".format(*sys.version_info),
        help="for this Python (default: the one that runs)",
    )
    here = next(name for name, says in MACHINES.items() if says == platform.machine())
    parser.add_argument("--arch", choices=sorted(MACHINES), default=here)
    given = parser.parse_args(arguments)
    install(given.charm, given.folder.absolute(), Target(given.python, given.arch))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

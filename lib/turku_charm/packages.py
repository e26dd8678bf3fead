"""The Python packages that a charm carries, and laying them down as a version of the workload."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from turku_core.configuration import write_durably
from turku_core.errors import TurkuError

DISTRIBUTION = "turku-core"
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_LIBRARY = Path("lib", _PYTHON, "site-packages")
_COMPLETE = "complete"
"""The file of this name is written last: a version without it was broken off half-made."""

_HASH_DIGITS = 12
_SECONDS_MAX = 600.0
_TRIAL_SECONDS_MAX = 60.0


class WorkloadError(TurkuError):
    """The workload could not be installed, or did not start."""


@dataclass(frozen=True)
class Packages:
    """What lies in a charm's ``venv/lib/pythonX.Y/site-packages``.

    Attributes:
        folder: That folder.
        role: Whose programs are wanted: ``api``, ``agent`` or ``storage``.
    """

    folder: Path
    role: str

    @classmethod
    def of_charm(cls, charm_dir: Path, role: str) -> Packages:
        """Find the packages of an unpacked charm.

        Raises:
            WorkloadError: It carries none for the Python that runs here.
        """
        folder = charm_dir / "venv" / _LIBRARY
        if not folder.is_dir():
            raise WorkloadError(
                f"The charm carries no packages for {_PYTHON} ({folder} isn't there): deploy the "
                "build for this machine's base."
            )
        return cls(folder, role)

    def identity(self) -> str:
        """Return turku-core's version and a hash of all content, such as ``1.0.0-5f2c81d09a3e``."""
        digest = hashlib.sha256(_PYTHON.encode())
        for path in sorted(_files(self.folder)):
            content = path.read_bytes()
            name = os.fsencode(path.relative_to(self.folder))
            digest.update(b"%d %s %d " % (len(name), name, len(content)))
            digest.update(content)
        return f"{self._distribution().version}-{digest.hexdigest()[:_HASH_DIGITS]}"

    def scripts(self) -> dict[str, tuple[str, str]]:
        """Return the role's programs: for each name, its module and the function in it."""
        return {
            entry.name: (entry.module, entry.attr)
            for entry in self._distribution().entry_points
            if entry.group == "console_scripts"
            and entry.module.startswith(f"turku_core.{self.role}.")
        }

    def _distribution(self) -> importlib.metadata.Distribution:
        for found in importlib.metadata.distributions(name=DISTRIBUTION, path=[str(self.folder)]):
            return found
        raise WorkloadError(f"The charm doesn't carry {DISTRIBUTION}: {self.folder} lacks it.")


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(where, name) for name in names)


def is_complete(version: Path) -> bool:
    """Say whether a version was laid down to the end."""
    return (version / _COMPLETE).is_file()


def lay_down(packages: Packages, version: Path) -> None:
    """Make a version's folder, try its programs, and only then call it complete.

    What was broken off before is made anew; what can't be made takes no room. Nothing outside the
    folder changes.

    Raises:
        WorkloadError: There is no room, or a program of it doesn't even start.
    """
    if is_complete(version):
        return
    try:
        remove(version)
        _make(packages, version)
        for name in packages.scripts():
            _try_out(version / "bin" / name)
        # All of it is on the disk before the file that says so.
        _run("sync", "--file-system", str(version))
        write_durably(version / _COMPLETE, "", 0o644)
    except (OSError, WorkloadError) as error:
        shutil.rmtree(version, ignore_errors=True)
        if isinstance(error, OSError):
            raise WorkloadError(f"{version} could not be made: {_why(error)}.") from error
        raise


def _why(error: OSError) -> str:
    """Return an error's own words; copying a tree collects one for each file."""
    if isinstance(error, shutil.Error):
        (_, _, why), *_ = error.args[0]
        return str(why)
    return error.strerror or str(error)


def remove(version: Path) -> None:
    """Take a version away; from the first moment on it isn't complete any more."""
    (version / _COMPLETE).unlink(missing_ok=True)
    if version.exists():
        shutil.rmtree(version)


def _make(packages: Packages, version: Path) -> None:
    _make_environment(version)
    library = version / _LIBRARY
    shutil.copytree(
        packages.folder,
        library,
        copy_function=_copy,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for folder, _, _ in os.walk(version):
        os.chmod(folder, 0o755)
    for name, (module, function) in packages.scripts().items():
        script = version / "bin" / name
        script.write_text(make_script(version / "bin/python", module, function), "utf-8")
        script.chmod(0o755)
    # A program that starts every five minutes isn't compiled each time. Some packages carry files
    # for Pythons that aren't this one; whether ours compile, their trial shows.
    _run(
        str(version / "bin/python"),
        "-I",
        "-m",
        "compileall",
        "-qq",
        "-j0",
        str(library),
        may_fail=True,
    )


def _make_environment(version: Path) -> None:
    """Make a virtual environment: all that PEP 405 asks for is a link and a file.

    The distribution may have packed the module that makes them apart from Python.
    """
    # Not sys.executable itself: that is a link in the charm's folder, which comes and goes.
    python = os.path.realpath(sys.executable)
    (version / "bin").mkdir(parents=True)
    (version / "bin/python").symlink_to(python)
    settings = version / "pyvenv.cfg"
    settings.write_text(
        f"home = {os.path.dirname(python)}\ninclude-system-site-packages = false\n", "utf-8"
    )
    settings.chmod(0o644)


def make_script(python: Path, module: str, function: str) -> str:
    """Return a console script.

    ``-I``: it lives in its own version's packages alone, whatever ``PYTHONPATH`` a hook has.
    """
    return (
        f"#!{python} -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
    )


def _copy(source: str, target: str) -> str:
    """Copy a file so that every user may read it, however Juju unpacked the charm."""
    shutil.copy2(source, target)
    os.chmod(target, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)
    return target


def _try_out(script: Path) -> None:
    _run(str(script), "--help", seconds_max=_TRIAL_SECONDS_MAX)


def _run(*command: str, seconds_max: float = _SECONDS_MAX, may_fail: bool = False) -> None:
    """Run a program; raise WorkloadError when it fails, unless it may."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=seconds_max,
            check=False,
            cwd="/",
            umask=0o022,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkloadError(f"{command[0]} did not end in {seconds_max:.0f} seconds.") from error
    if done.returncode != 0 and not may_fail:
        said = " ".join(done.stderr.split()[-40:]) or f"exit code {done.returncode}"
        raise WorkloadError(f"{' '.join(command)} failed: {said}")

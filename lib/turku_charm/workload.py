"""The workload of a charm: Turku's own programs under ``/opt``, in versions that switch at once.

``/opt/turku-ROLE/versions/`` holds the versions, each self-contained, and the link ``current``
names the one in use. A version is laid down beside the others and tried before the link moves, and
the link moves in one step: whenever a hook is broken off, some whole version is in use, and the
next hook goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from turku_charm.packages import Packages, WorkloadError, is_complete, lay_down
from turku_charm.packages import remove as remove_version
from turku_charm.programs import Programs
from turku_core.configuration import sync_folder, write_durably
from turku_core.errors import TurkuError

__all__ = ["Workload", "WorkloadError"]

RETRY_AFTER = timedelta(hours=1)
"""A version that did not start is left alone this long: trying it stops the one that works."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class _Failure:
    """A version that did not start: which, why, and when (ISO 8601, UTC)."""

    version: str
    why: str
    at: str


@dataclass(frozen=True)
class _State:
    """What is known besides the link.

    Attributes:
        started: The version that last started, as far as is known. When that isn't the current
            one, the current one has yet to show that it starts.
        before: The version to go back to.
        failed: The version that we went back from.
    """

    started: str | None = None
    before: str | None = None
    failed: _Failure | None = None


@dataclass(frozen=True)
class Workload:
    """The programs of one role on this machine.

    Attributes:
        role: ``api``, ``agent`` or ``storage``.
        charm_dir: The unpacked charm, whose packages are what is to be installed.
        root: What all paths are below; ``/`` on a real machine.
        now: The clock.
    """

    role: str
    charm_dir: Path
    root: Path = Path("/")
    now: Callable[[], datetime] = _utc_now

    @property
    def folder(self) -> Path:
        """Where everything of the workload's programs lies: ``/opt/turku-ROLE``."""
        return self.root / "opt" / f"turku-{self.role}"

    @property
    def bin(self) -> Path:
        """The folder of the current version's programs; the path stays when versions change."""
        return self.folder / "current" / "bin"

    def is_installed(self) -> bool:
        """Say whether a whole version is in use."""
        return self._current() is not None

    def version(self) -> str | None:
        """Return turku-core's version in use, such as ``1.0.0``; None when there is none."""
        current = self._current()
        return None if current is None else current.rpartition("-")[0]

    def programs(self, user: str | None = None) -> Programs:
        """Return the current version's programs, to be run as a Unix user (None: as we are)."""
        return Programs(self.bin, self.root, user)

    def install(self) -> bool:
        """Lay the charm's version down and switch to it, without starting anything.

        Returns:
            Whether anything changed; False when it is the current one already.

        Raises:
            WorkloadError: It can't be laid down, its programs don't run, or it is the one that
                `upgrade` went back from. What was in use stays in use.
        """
        packages = Packages.of_charm(self.charm_dir, self.role)
        wanted = packages.identity()
        state = self._state()
        if state.failed is not None and state.failed.version == wanted:
            raise WorkloadError(self._words(state.failed))
        current = self._current()
        if current == wanted:
            return False
        with self._writing():
            self._versions.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, self._versions):
                folder.chmod(0o755)
        self._prune()
        lay_down(packages, self._versions / wanted)
        self._save(replace(state, before=state.started or current, failed=None))
        self._switch(wanted)
        self._prune()
        return True

    def upgrade(self, start: Callable[[], None]) -> bool:
        """Install the charm's version and start it; go back to the one before if it won't.

        Args:
            start: (Re)starts the services and makes sure that they run; raises TurkuError when
                they don't. It is called only when the current version has yet to show that it
                starts, so calling this again changes nothing.

        Returns:
            Whether anything changed.

        Raises:
            WorkloadError: It can't be installed, or did not start: then the version before is in
                use again, and this one is tried again an hour later.
            TurkuError: It did not start, and there is no version before; as `start` raised it.
        """
        failed = self._state().failed
        if failed is not None and self._is_wanted(failed):
            self._go_back(failed, start)
            if self.now() < datetime.fromisoformat(failed.at) + RETRY_AFTER:
                raise WorkloadError(self._words(failed))
            self._save(replace(self._state(), failed=None))
        self.install()
        state, current = self._state(), self._current()
        if current is None or state.started == current:
            return False
        try:
            start()
        except TurkuError as error:
            if state.before in (None, current) or not self._is_whole(state.before):
                raise
            failed = _Failure(current, str(error), self.now().isoformat())
            self._save(replace(state, started=None, failed=failed))
            self._go_back(failed, start)
            raise WorkloadError(self._words(failed)) from error
        self._save(replace(state, started=current))
        self._prune()
        return True

    def remove(self) -> None:
        """Take every version away; what they wrote elsewhere stays."""
        self._link.unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _versions(self) -> Path:
        return self.folder / "versions"

    @property
    def _link(self) -> Path:
        return self.folder / "current"

    def _current(self) -> str | None:
        try:
            name = Path(os.readlink(self._link)).name
        except OSError:
            return None
        return name if self._is_whole(name) else None

    def _is_whole(self, version: str | None) -> bool:
        return version is not None and is_complete(self._versions / version)

    def _is_wanted(self, failed: _Failure) -> bool:
        return Packages.of_charm(self.charm_dir, self.role).identity() == failed.version

    def _switch(self, version: str) -> None:
        """Make a version the current one, in one step."""
        new = self.folder / ".current"
        with self._writing():
            new.unlink(missing_ok=True)
            new.symlink_to(Path("versions", version))
            new.replace(self._link)
            sync_folder(self.folder)

    def _go_back(self, failed: _Failure, start: Callable[[], None]) -> None:
        """Let the version before run again; as often as it takes, if we were broken off."""
        state = self._state()
        if self._current() == failed.version and state.before is not None:
            self._switch(state.before)
        current = self._current()
        if state.started == current:
            return
        try:
            start()
        except TurkuError as error:
            raise WorkloadError(
                f"{self._words(failed)} Nor does that one start any more: {error}"
            ) from error
        self._save(replace(state, started=current))

    def _words(self, failed: _Failure) -> str:
        return (
            f"turku-{self.role} {failed.version} did not start, so the version before is in use "
            f"again: {failed.why}"
        )

    def _prune(self) -> None:
        """Remove the versions that nobody goes back to and no process runs from."""
        state = self._state()
        wanted = {self._current(), state.started, state.before}
        running = _command_lines()
        for version in self._versions.iterdir():
            in_use = any(os.fsencode(f"{version}/") in line for line in running)
            if version.name not in wanted and not in_use:
                remove_version(version)

    def _state(self) -> _State:
        try:
            values = json.loads((self.folder / "state.json").read_text("utf-8"))
            failed = values.pop("failed")
            return _State(**values, failed=None if failed is None else _Failure(**failed))
        except FileNotFoundError:
            return _State()

    def _save(self, state: _State) -> None:
        text = json.dumps(asdict(state), indent=2) + "\n"
        with self._writing():
            write_durably(self.folder / "state.json", text, 0o644)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkloadError(f"{self.folder} can't be written: {error.strerror}.") from error


def _command_lines() -> list[bytes]:
    """Return every process's command line: a session of an older version may run for days."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue  # it ended meanwhile
    return found

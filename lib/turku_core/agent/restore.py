"""Restoring a snapshot unattended: into a folder, or in place."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.agent.backup import progress_words
from turku_core.agent.hooks import run_hook
from turku_core.agent.identity import Identity, load_identity
from turku_core.agent.processes import Stop, printable
from turku_core.agent.rsync_daemon import (
    MODULE_PATH_BYTES_MAX,
    RESTORE_MODULE,
    make_module,
    unmunge_links,
    uses_chroot,
)
from turku_core.agent.session import ComeBackLater, Event, SessionPlan, run_session, sweep_sessions
from turku_core.agent.settings import Locations, Settings, load_settings
from turku_core.agent.snapshots import (
    FormerMachine,
    Restorable,
    Snapshot,
    choose,
    list_snapshots,
    restorable,
)
from turku_core.agent.sources import LocalSource, load_sources
from turku_core.commandline import set_log_level
from turku_core.configuration import ensure_folder, ensure_private_folder
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.fields import FieldError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import StorageAddress

logger = logging.getLogger(__name__)

_SHOWN_CHANGES_MAX = 100_000
_SHOWN_CHARACTERS_MAX = 32 * 1024 * 1024
_WORDS_KEPT = 10


class RestoreFailed(TurkuError):
    """The restore didn't come to its end; what arrived is left where it is."""


@dataclass(frozen=True)
class RestoringAgent:
    """What every restore needs to know: who this machine is, and what it may restore."""

    locations: Locations
    settings: Settings
    identity: Identity
    offer: Restorable

    @classmethod
    def load(cls, root: Path) -> RestoringAgent:
        """Read the configuration, and ask the API what may be restored.

        Raises:
            TurkuError: One of them isn't there or isn't valid.
        """
        locations = Locations(root)
        settings = load_settings(locations)
        set_log_level(settings.log_level)
        identity = load_identity(locations)
        ensure_private_folder(locations.run)
        sweep_sessions(locations.run)
        client = Client(settings.api_urls, settings.api_ca_certificate)
        return cls(locations, settings, identity, restorable(client, identity))

    def former(self, name: str | None) -> FormerMachine | None:
        """Return the machine to restore instead of this one; None is this one."""
        if name is None or name == self.identity.uuid:
            return None
        return self.offer.machine(name)

    def uuid_of(self, former: FormerMachine | None) -> str:
        """Return whose snapshots are meant."""
        return former.uuid if former else self.identity.uuid

    def snapshots(self, storages: Sequence[StorageAddress], stop: Stop) -> list[Snapshot]:
        """List what there is on storage units."""
        return list_snapshots(storages, locations=self.locations, identity=self.identity, stop=stop)

    def names(self) -> dict[str, str]:
        """Return the readable name of every machine that snapshots can be of."""
        former = {each.uuid: each.unit_name for each in self.offer.former.values()}
        return {**former, self.identity.uuid: self.settings.unit_name}


@dataclass(frozen=True)
class Wish:
    """What is to be restored, in the words of whoever wants it.

    Attributes:
        machine: Whose snapshot, by UUID or name; None is this machine.
        snapshot: An id, ``latest``, or an ISO 8601 time.
        paths: What of the source; empty is all of it.
        target: The folder to restore into; None is one of its own in the restore folder.
    """

    source: str
    machine: str | None = None
    snapshot: str = "latest"
    paths: tuple[str, ...] = ()
    target: Path | None = None
    in_place: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Task:
    """One restore of one snapshot.

    Attributes:
        folder: Where the files go.
        paths: What to restore, relative to the source; empty is all of it.
        hooks_of: The machine's own source whose hooks run around it, if any.
    """

    snapshot: Snapshot
    folder: Path
    paths: Sequence[str]
    in_place: bool
    dry_run: bool
    hooks_of: LocalSource | None


@dataclass
class Report:
    """What came of a restore."""

    files: int | None = None
    bytes: int | None = None
    message: str = ""
    ok: bool | None = None
    changes: list[str] = field(default_factory=list)


def find_task(agent: RestoringAgent, wish: Wish, stop: Stop) -> Task:
    """Find out what a wish means here; nothing is written yet.

    Raises:
        NoSuchSnapshot: There is none like that.
        TurkuError: The wish can't be fulfilled, or no storage unit answers.
    """
    former = agent.former(wish.machine)
    own = load_sources(agent.locations.sources).sources.get(wish.source)
    if wish.in_place and own is None:
        raise ConfigurationError(
            f"Source {printable(wish.source)} isn't configured here, so there is no place to "
            "restore it to: use --target DIR."
        )
    paths = _paths_inside(wish, former, own)
    snapshot = choose(
        agent.snapshots(agent.offer.storages_of(former), stop),
        agent.uuid_of(former),
        wish.source,
        wish.snapshot,
        zone_of=datetime.now(timezone.utc).astimezone(),
    )
    has_hooks = not wish.dry_run and (former is None or wish.in_place)
    return Task(
        snapshot=snapshot,
        folder=_folder(agent, wish, snapshot, former, own),
        paths=paths,
        in_place=wish.in_place,
        dry_run=wish.dry_run,
        hooks_of=own if has_hooks else None,
    )


def carry_out(
    agent: RestoringAgent, task: Task, stop: Stop, on_progress: Callable[[str], None]
) -> Report:
    """Restore, with the hooks around it: the one after runs whatever happens.

    Raises:
        ComeBackLater: The storage unit has no time for it now.
        RestoreFailed: It didn't come to its end.
        TurkuError: It didn't begin.
    """
    if not task.dry_run:
        make_restore_folder(task.folder, agent.settings.restore_path.absolute())
    outcome = "failed"
    try:
        if task.hooks_of is not None:
            _run_hook(task.hooks_of, "run_before_restore", task.folder, stop)
        report = _restore(agent, task, stop, on_progress)
        outcome = "success"
    finally:
        if task.hooks_of is not None:
            _run_after(task.hooks_of, task.folder, outcome)
    return report


def _folder(
    agent: RestoringAgent,
    wish: Wish,
    snapshot: Snapshot,
    former: FormerMachine | None,
    own: LocalSource | None,
) -> Path:
    """Return where the files go.

    In the restore folder each snapshot has a folder of its own, so that no restore mixes with
    another and a repeated one goes on where it broke off.
    """
    if wish.in_place:
        assert own is not None
        return own.path
    if wish.target is not None:
        return wish.target.absolute()
    machine = [former.uuid] if former else []
    return agent.settings.restore_path.absolute().joinpath(*machine, snapshot.source, snapshot.id)


def require_own_folders(folder: Path, top: Path) -> None:
    """See that nothing on the way from `top` down to `folder` leads elsewhere.

    What was restored below `top` before is a stranger's: a symbolic link among it, or a folder
    that others may write to, must not decide where the next restore goes.

    Raises:
        ConfigurationError: Something does; or `folder` isn't below `top`.
    """
    try:
        steps = folder.relative_to(top).parts
    except ValueError:
        steps = ()
    if not steps or ".." in steps:
        raise ConfigurationError(f"{printable(str(folder))} isn't inside the restore folder {top}.")
    place = top
    for number, step in enumerate(steps, start=1):
        place = place / step
        try:
            found = place.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigurationError(f"{place} can't be looked at: {error.strerror}.") from error
        is_last = number == len(steps)
        is_own = found.st_uid == os.geteuid() and not found.st_mode & 0o022
        # The last one may have got its owner by the restore that this one goes on with.
        if not stat.S_ISDIR(found.st_mode) or not (is_own or is_last):
            raise ConfigurationError(
                f"{printable(str(place))} was restored there and may lead elsewhere: choose "
                "another folder with --target DIR, or move it away."
            )


def make_restore_folder(folder: Path, top: Path) -> None:
    """Make the folder that files are restored into, as far as it isn't there.

    Args:
        folder: Where files are restored.
        top: The restore folder. It is its owner's alone: what a storage unit sends may be a
            program that takes on root's rights.

    Raises:
        TurkuError: It can't be made, or its path is too long for rsync's daemon.
    """
    if len(os.fsencode(folder)) > MODULE_PATH_BYTES_MAX:
        raise ConfigurationError(
            f"The path of {printable(str(folder))} is longer than the {MODULE_PATH_BYTES_MAX} "
            "bytes that rsync's daemon takes: use a shorter --target."
        )
    try:
        if top in (folder, *folder.parents):
            ensure_private_folder(top)
        ensure_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigurationError(
            f"{folder} can't be restored into: something that isn't a folder is in the way."
        ) from None
    except OSError as error:
        raise RestoreFailed(f"The folder {folder} can't be made: {error.strerror}.") from error


def _paths_inside(wish: Wish, former: FormerMachine | None, own: LocalSource | None) -> list[str]:
    """Return the wanted paths relative to the source; absolute ones below its path are cut."""
    known = former.sources.get(wish.source) if former else own.settings if own else None
    return [_path_inside(path, known.path if known else "/") for path in wish.paths]


def _path_inside(path: str, top: str) -> str:
    inside = path
    if path.startswith("/"):
        prefix = top.rstrip("/") + "/"
        if not f"{path}/".startswith(prefix):
            raise ConfigurationError(
                f"{printable(path)} is not inside the source's path {top}: name it as it "
                "lies in the source."
            )
        inside = path[len(prefix) :]
    inside = inside.strip("/") or "."
    if ".." in inside.split("/") or not all(c.isprintable() or c > "\x7f" for c in inside):
        raise ConfigurationError(f"{printable(path)} is not a plain path inside the source.")
    return inside


def _restore(
    agent: RestoringAgent, task: Task, stop: Stop, on_progress: Callable[[str], None]
) -> Report:
    if task.dry_run and not task.folder.exists():
        # rsync wants something to compare with.
        with tempfile.TemporaryDirectory(dir=agent.locations.run) as empty:
            return _hold(agent, task, Path(empty), stop, on_progress)
    try:
        return _hold(agent, task, task.folder, stop, on_progress)
    finally:
        if not task.dry_run:
            finish_links(task.folder)


def _make_plan(agent: RestoringAgent, task: Task, module_folder: Path) -> SessionPlan:
    snapshot = task.snapshot
    wish: dict[str, Any] = {
        "machine": None if snapshot.machine == agent.identity.uuid else snapshot.machine,
        "source": snapshot.source,
        "snapshot": snapshot.id,
        "paths": list(task.paths),
        "dry_run": task.dry_run,
        # In place a file with the right size and time may still hold the wrong bytes.
        "checksum": task.in_place,
    }
    module = make_module(RESTORE_MODULE, module_folder, writable=True)
    return SessionPlan(snapshot.storage, "restore", [module], {"restore": wish})


def finish_links(folder: Path) -> None:
    """Give symbolic links that were restored without a chroot their real targets back."""
    if not uses_chroot():
        unmunge_links(folder)


def _run_hook(source: LocalSource, key: str, folder: Path, stop: Stop, **outcome: str) -> None:
    program = getattr(source.hooks, key)
    if program is not None:
        run_hook(
            program,
            source=source.name,
            path=folder,
            timeout=source.hooks.timeout,
            stop=stop,
            **outcome,
        )


def _run_after(source: LocalSource, folder: Path, outcome: str) -> None:
    never = Stop()
    try:
        _run_hook(source, "run_after_restore", folder, never, outcome=outcome)
    except TurkuError as error:
        logger.warning("source %s: %s", source.name, error)
    finally:
        never.close()


def _hold(
    agent: RestoringAgent,
    task: Task,
    module_folder: Path,
    stop: Stop,
    on_progress: Callable[[str], None],
) -> Report:
    plan = _make_plan(agent, task, module_folder)
    report = Report()
    said: list[str] = []

    room = _SHOWN_CHARACTERS_MAX

    def on_event(event: Event) -> None:
        nonlocal room
        kind = event["event"]
        if kind == "progress":
            on_progress(f"restored {progress_words(event)}")
        elif kind == "result":
            _take_result(event, report)
        elif kind == "change" and len(report.changes) < _SHOWN_CHANGES_MAX and room > 0:
            change = str(event.get("message", ""))
            room -= len(change)
            report.changes.append(change)
        elif kind == "message":
            said[:] = [*said, printable(str(event.get("message", "")))][-_WORDS_KEPT:]
            logger.info("storage unit %s: %s", plan.storage.name, said[-1])

    try:
        run_session(
            plan,
            key=agent.identity.ssh_key,
            run_folder=agent.locations.run,
            stop=stop,
            on_event=on_event,
        )
    except TurkuError as error:
        words = report.message or " ".join(said)
        kind = ComeBackLater if isinstance(error, ComeBackLater) else RestoreFailed
        raise kind(f"{error} It says: {words}" if words else str(error)) from error
    if report.ok is None:
        raise RestoreFailed(
            f"Storage unit {plan.storage.name} didn't say how the restore ended: it may be an "
            "older one that only restores by hand; use turku-agent-ping --restore."
        )
    if not report.ok:
        raise RestoreFailed(f"The restore failed: {report.message or 'no reason was given'}")
    return report


def _take_result(event: Event, report: Report) -> None:
    report.ok = event.get("ok") is True
    message = event.get("message")
    report.message = printable(message) if isinstance(message, str) else ""
    report.files, report.bytes = _amount(event, "files"), _amount(event, "bytes")


def _amount(event: Event, key: str) -> int | None:
    """Return what the storage unit counted; one that is no count is none."""
    try:
        return fields.optional(event, key, fields.integer, None)
    except FieldError:
        return None

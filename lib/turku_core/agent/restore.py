"""Restoring: into a folder or in place, unattended or with an administrator of the storage unit."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from turku_core.agent.backup import progress_words
from turku_core.agent.hooks import run_hook
from turku_core.agent.identity import Identity, load_identity
from turku_core.agent.processes import Interrupted, Stop, printable
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
from turku_core.commandline import (
    Progress,
    human_size,
    human_time,
    print_json,
    print_table,
)
from turku_core.configuration import ensure_private_folder
from turku_core.errors import DONE, ConfigurationError, TurkuError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import StorageAddress

logger = logging.getLogger(__name__)

_SHOWN_CHANGES_MAX = 100_000
_WORDS_KEPT = 10


class RestoreFailed(TurkuError):
    """The restore didn't come to its end; what arrived is left where it is."""


@dataclass(frozen=True)
class _Agent:
    """What every restoring command needs."""

    locations: Locations
    settings: Settings
    identity: Identity
    offer: Restorable

    @classmethod
    def load(cls, root: Path) -> _Agent:
        locations = Locations(root)
        settings = load_settings(locations)
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

    def snapshots(self, storages: Sequence[StorageAddress], stop: Stop) -> list[Snapshot]:
        """List what there is on storage units."""
        return list_snapshots(storages, locations=self.locations, identity=self.identity, stop=stop)

    def names(self) -> dict[str, str]:
        """Return the readable name of every machine that snapshots can be of."""
        former = {each.uuid: each.unit_name for each in self.offer.former.values()}
        return {**former, self.identity.uuid: self.settings.unit_name}


def list_command(arguments: argparse.Namespace) -> int:
    """Run ``turku-agent-ping --list``."""
    agent = _Agent.load(arguments.root)
    former = agent.former(arguments.machine)
    storages = agent.offer.storages_of(former) if arguments.machine else agent.offer.all_storages()
    stop = Stop()
    try:
        snapshots = agent.snapshots(storages, stop)
    finally:
        stop.close()
    shown = [
        each
        for each in snapshots
        if arguments.sources in ([], [each.source])
        and (arguments.machine is None or each.machine == _uuid_of(agent, former))
    ]
    if arguments.json:
        print_json({"snapshots": [each.to_json() for each in shown]})
    else:
        _print_snapshots(shown, agent)
    return DONE


def _uuid_of(agent: _Agent, former: FormerMachine | None) -> str:
    return former.uuid if former else agent.identity.uuid


def _print_snapshots(snapshots: Sequence[Snapshot], agent: _Agent) -> None:
    if not snapshots:
        print("There are no snapshots yet.")
        return
    names = agent.names()
    print_table(
        ("machine", "source", "snapshot", "taken at", "state", "size", "storage unit", "proven"),
        [
            (
                names.get(each.machine, each.machine),
                each.source,
                each.id,
                human_time(each.taken_at),
                _state(each),
                human_size(each.bytes),
                each.storage.name,
                human_time(each.proven_at),
            )
            for each in snapshots
        ],
    )


def _state(snapshot: Snapshot) -> str:
    remarks = [
        *(["partial"] if snapshot.partial else []),
        *(["damaged"] if snapshot.damaged is not None else []),
    ]
    return ", ".join([snapshot.state, *remarks])


def restore_command(arguments: argparse.Namespace) -> int:
    """Run ``turku-agent-ping --restore``."""
    agent = _Agent.load(arguments.root)
    stop = Stop()
    try:
        if not arguments.sources:
            return _wait_for_administrator(agent, arguments.target, stop)
        return _restore_source(agent, arguments, stop)
    finally:
        stop.close()


@dataclass(frozen=True)
class _Task:
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


def _restore_source(agent: _Agent, arguments: argparse.Namespace, stop: Stop) -> int:
    former = agent.former(arguments.machine)
    own = load_sources(agent.locations.sources).sources.get(arguments.sources[0])
    if arguments.in_place and own is None:
        raise ConfigurationError(
            f"Source {printable(arguments.sources[0])} isn't configured here, so there is no place "
            "to restore it to: use --target DIR."
        )
    paths = _paths_inside(arguments, former, own)
    snapshot = choose(
        agent.snapshots(agent.offer.storages_of(former), stop),
        _uuid_of(agent, former),
        arguments.sources[0],
        arguments.snapshot,
        zone_of=datetime.now(timezone.utc).astimezone(),
    )
    has_hooks = not arguments.dry_run and (former is None or arguments.in_place)
    task = _Task(
        snapshot=snapshot,
        folder=_folder(agent, arguments, snapshot, former, own),
        paths=paths,
        in_place=arguments.in_place,
        dry_run=arguments.dry_run,
        hooks_of=own if has_hooks else None,
    )
    if not task.dry_run:
        _make_folder(task.folder)
    _print_report(_with_hooks(agent, task, stop), task, as_json=arguments.json)
    return DONE


def _folder(
    agent: _Agent,
    arguments: argparse.Namespace,
    snapshot: Snapshot,
    former: FormerMachine | None,
    own: LocalSource | None,
) -> Path:
    """Return where the files go.

    In the restore folder each snapshot has a folder of its own, so that no restore mixes with
    another and a repeated one goes on where it broke off.
    """
    if arguments.in_place:
        assert own is not None
        return own.path
    if arguments.target is not None:
        target: Path = arguments.target.absolute()
        return target
    machine = [former.uuid] if former else []
    return agent.settings.restore_path.joinpath(*machine, snapshot.source, snapshot.id)


def _make_folder(folder: Path) -> None:
    if len(os.fsencode(folder)) > MODULE_PATH_BYTES_MAX:
        raise ConfigurationError(
            f"The path of {printable(str(folder))} is longer than the {MODULE_PATH_BYTES_MAX} "
            "bytes that rsync's daemon takes: use a shorter --target."
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigurationError(
            f"{folder} can't be restored into: something that isn't a folder is in the way."
        ) from None
    except OSError as error:
        raise RestoreFailed(f"The folder {folder} can't be made: {error.strerror}.") from error


def _paths_inside(
    arguments: argparse.Namespace, former: FormerMachine | None, own: LocalSource | None
) -> list[str]:
    """Return the wanted paths relative to the source; absolute ones below its path are cut."""
    known = former.sources.get(arguments.sources[0]) if former else own.settings if own else None
    return [_path_inside(path, known.path if known else "/") for path in arguments.paths]


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


@dataclass
class _Report:
    """What came of a restore."""

    files: int | None = None
    bytes: int | None = None
    message: str = ""
    ok: bool | None = None
    changes: list[str] = field(default_factory=list)


def _with_hooks(agent: _Agent, task: _Task, stop: Stop) -> _Report:
    """Restore, with the hooks around it: the one after runs whatever happens."""
    outcome = "failed"
    try:
        if task.hooks_of is not None:
            _run_hook(task.hooks_of, "run_before_restore", task.folder, stop)
        report = _restore(agent, task, stop)
        outcome = "success"
    finally:
        if task.hooks_of is not None:
            _run_after(task.hooks_of, task.folder, outcome)
    return report


def _restore(agent: _Agent, task: _Task, stop: Stop) -> _Report:
    if task.dry_run and not task.folder.exists():
        # rsync wants something to compare with.
        with tempfile.TemporaryDirectory(dir=agent.locations.run) as empty:
            return _hold(agent, task, Path(empty), stop)
    try:
        return _hold(agent, task, task.folder, stop)
    finally:
        if not task.dry_run:
            _finish_links(task.folder)


def _make_plan(agent: _Agent, task: _Task, module_folder: Path) -> SessionPlan:
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


def _finish_links(folder: Path) -> None:
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


def _hold(agent: _Agent, task: _Task, module_folder: Path, stop: Stop) -> _Report:
    plan = _make_plan(agent, task, module_folder)
    report = _Report()
    progress = Progress()
    said: list[str] = []

    def on_event(event: Event) -> None:
        kind = event["event"]
        if kind == "progress":
            progress.show(f"restored {progress_words(event)}")
        elif kind == "result":
            _take_result(event, report)
        elif kind == "change" and len(report.changes) < _SHOWN_CHANGES_MAX:
            report.changes.append(str(event.get("message", "")))
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
    finally:
        progress.clear()
    if report.ok is None:
        raise RestoreFailed(
            f"Storage unit {plan.storage.name} didn't say how the restore ended: it may be an "
            "older one that only restores by hand; use turku-agent-ping --restore."
        )
    if not report.ok:
        raise RestoreFailed(f"The restore failed: {report.message or 'no reason was given'}")
    return report


def _take_result(event: Event, report: _Report) -> None:
    report.ok = event.get("ok") is True
    message = event.get("message")
    report.message = printable(message) if isinstance(message, str) else ""
    files, count = event.get("files"), event.get("bytes")
    report.files = files if isinstance(files, int) else None
    report.bytes = count if isinstance(count, int) else None


def _print_report(report: _Report, task: _Task, *, as_json: bool) -> None:
    snapshot = task.snapshot
    if as_json:
        print_json(
            {
                "source": snapshot.source,
                "machine": snapshot.machine,
                "snapshot": snapshot.id,
                "target": str(task.folder),
                "in_place": task.in_place,
                "dry_run": task.dry_run,
                "files": report.files,
                "bytes": report.bytes,
                "changes": report.changes,
                "message": report.message,
            }
        )
        return
    for change in report.changes:
        print(printable(change, 4096))
    amount = f": {report.files} files, {human_size(report.bytes)}" if report.files else ""
    what = "would be restored" if task.dry_run else "is restored"
    print(
        f"Snapshot {snapshot.id} of source {snapshot.source} {what} in "
        f"{printable(str(task.folder))}{amount}."
    )


def _wait_for_administrator(agent: _Agent, target: Path | None, stop: Stop) -> int:
    """Open the restore folder on every storage unit and wait, until the user or the network ends.

    Each unit prints a ready-made rsync line for its administrator.
    """
    folder = target.absolute() if target else agent.settings.restore_path
    storages = agent.offer.storages_of(None)
    if not storages:
        raise TurkuError(
            "The API names no storage unit for this machine: it has no source there yet."
        )
    _make_folder(folder)
    print(
        f"The folder {folder} is open for restoring; files that are there may be replaced.\n"
        "Press Ctrl-C when the administrator of the storage unit is done.",
        flush=True,
    )
    ended: queue.Queue[TurkuError | None] = queue.Queue()
    threads = [
        threading.Thread(target=_serve, args=(agent, storage, folder, stop, ended))
        for storage in storages
    ]
    failure: TurkuError | None = None
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            failure = ended.get() or failure
    except KeyboardInterrupt:
        logger.info("the user is done")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        _finish_links(folder)
    if failure is not None:
        raise failure
    return DONE


def _serve(
    agent: _Agent,
    storage: StorageAddress,
    folder: Path,
    stop: Stop,
    ended: queue.Queue[TurkuError | None],
) -> None:
    def on_event(event: Event) -> None:
        said = event.get("message")
        if event["event"] in ("message", "module") and isinstance(said, str):
            print(f"{storage.name}: {printable(said, 4096)}", flush=True)

    try:
        run_session(
            SessionPlan(
                storage,
                "restore",
                [make_module(RESTORE_MODULE, folder, writable=True)],
                patience=None,
            ),
            key=agent.identity.ssh_key,
            run_folder=agent.locations.run,
            stop=stop,
            on_event=on_event,
        )
    except Interrupted:
        ended.put(None)
    except TurkuError as error:
        ended.put(error)
    else:
        ended.put(None)

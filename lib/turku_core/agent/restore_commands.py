"""The restoring commands of ``turku-agent-ping``: ``--list`` and ``--restore``."""

from __future__ import annotations

import argparse
import logging
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

from turku_core.agent.processes import Interrupted, Stop, printable
from turku_core.agent.restore import (
    Report,
    RestoringAgent,
    Task,
    Wish,
    carry_out,
    find_task,
    finish_links,
    make_restore_folder,
    require_own_folders,
)
from turku_core.agent.rsync_daemon import RESTORE_MODULE, make_module
from turku_core.agent.session import Event, SessionPlan, run_session
from turku_core.agent.snapshots import Snapshot
from turku_core.commandline import Progress, human_size, human_time, print_json, print_table
from turku_core.configuration import ensure_private_folder
from turku_core.errors import DONE, TurkuError
from turku_core.protocol.messages import StorageAddress

logger = logging.getLogger(__name__)


def list_command(arguments: argparse.Namespace) -> int:
    """Run ``turku-agent-ping --list``."""
    agent = RestoringAgent.load(arguments.root)
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
        and (arguments.machine is None or each.machine == agent.uuid_of(former))
    ]
    if arguments.json:
        print_json({"snapshots": [each.to_json() for each in shown]})
    else:
        _print_snapshots(shown, agent)
    return DONE


def _print_snapshots(snapshots: Sequence[Snapshot], agent: RestoringAgent) -> None:
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
    agent = RestoringAgent.load(arguments.root)
    stop = Stop()
    try:
        if not arguments.sources:
            return _wait_for_administrator(agent, arguments.target, stop)
        return _restore_source(agent, _wish(arguments), stop, as_json=arguments.json)
    finally:
        stop.close()


def _wish(arguments: argparse.Namespace) -> Wish:
    return Wish(
        source=arguments.sources[0],
        machine=arguments.machine,
        snapshot=arguments.snapshot,
        paths=tuple(arguments.paths),
        target=arguments.target,
        in_place=arguments.in_place,
        dry_run=arguments.dry_run,
    )


def _restore_source(agent: RestoringAgent, wish: Wish, stop: Stop, *, as_json: bool) -> int:
    task = find_task(agent, wish, stop)
    if not wish.in_place and wish.target is None:
        require_own_folders(task.folder, agent.settings.restore_path.absolute())
    progress = Progress()
    try:
        report = carry_out(agent, task, stop, progress.show)
    finally:
        progress.clear()
    _print_report(report, task, as_json=as_json)
    return DONE


def _print_report(report: Report, task: Task, *, as_json: bool) -> None:
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


def _wait_for_administrator(agent: RestoringAgent, target: Path | None, stop: Stop) -> int:
    """Open the restore folder on every storage unit and wait, until the user or the network ends.

    Each unit prints a ready-made rsync line for its administrator.
    """
    top = agent.settings.restore_path.absolute()
    folder = target.absolute() if target else top
    storages = agent.offer.storages_of(None)
    if not storages:
        raise TurkuError(
            "The API names no storage unit for this machine: it has no source there yet."
        )
    make_restore_folder(folder, top)
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
        finish_links(folder)
        if folder == top:
            # With the files came the mode of the folder that they lay in.
            ensure_private_folder(top)
    if failure is not None:
        raise failure
    return DONE


def _serve(
    agent: RestoringAgent,
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

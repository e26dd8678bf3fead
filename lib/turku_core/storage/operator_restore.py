"""An operator's restore: to a folder of the storage unit, or to an agent that waits for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from turku_core.commandline import Progress, human_size, print_json
from turku_core.errors import DONE, FAILED
from turku_core.storage.listeners import find_tunnel, read_listeners
from turku_core.storage.machine_names import find_machine
from turku_core.storage.mirror import Daemon
from turku_core.storage.ping import make_catalogue
from turku_core.storage.privileges import Owner, acting_as
from turku_core.storage.restore import (
    Chosen,
    Restored,
    choose_snapshot,
    open_snapshot,
    push,
    restore_to_folder,
)
from turku_core.storage.session_request import RESTORE_MODULE
from turku_core.storage.settings import Settings
from turku_core.storage.snapshots import Environment

OnProgress = Callable[[int, "float | None"], None]


@dataclass(frozen=True)
class RestoreOrder:
    """What an operator wants restored, and where to: a folder, or a waiting agent's port."""

    machine: str
    source: str
    snapshot: str
    paths: tuple[str, ...]
    target: Path | None
    port: int | None
    username: str | None
    into_filled_folder: bool
    dry_run: bool = False
    checksum: bool = False


def restore(
    settings: Settings, owner: Owner, order: RestoreOrder, password: str | None, *, as_json: bool
) -> int:
    """Restore as ordered; return the exit code.

    As root, everything on the volumes is done as the unit's user, and only the target folder is
    written as root, so that the files there get their owners.
    """
    progress = Progress()
    with acting_as(owner):
        catalogue = make_catalogue(settings)
        machine = find_machine(settings.paths, order.machine)
        chosen = choose_snapshot(catalogue, machine, order.source, order.snapshot)

    def on_progress(count: int, percent: float | None) -> None:
        share = "" if percent is None else f", {percent:.0f} %"
        progress.show(f"{human_size(count)}{share}")

    try:
        if order.target is not None:
            restored = _restore_to_folder(settings, owner, order, chosen, on_progress)
        else:
            restored = _restore_to_port(settings, owner, order, chosen, password or "", on_progress)
    finally:
        progress.clear()
    if as_json:
        where = None if order.target is None else str(order.target)
        named = {"machine": machine, "source": order.source, "snapshot": chosen.id}
        print_json({**named, "target": where, "dry_run": order.dry_run, **asdict(restored)})
    else:
        for change in restored.changes:
            print("".join(each if each.isprintable() else "?" for each in change))
        words = "Would restore" if order.dry_run else "Restored"
        size = human_size(restored.bytes)
        print(f"{words} {restored.files} files ({size}) of snapshot {chosen.id}.")
        if restored.message:
            print(restored.message)
    return DONE if restored.ok else FAILED


def _restore_to_folder(
    settings: Settings, owner: Owner, order: RestoreOrder, chosen: Chosen, on_progress: OnProgress
) -> Restored:
    @contextlib.contextmanager
    def open_as_owner(
        chosen: Chosen, environment: Environment, paths: Sequence[str] = ()
    ) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            with acting_as(owner):
                opened = open_snapshot(chosen, environment, paths)
                tree = opened.__enter__()

            def close() -> None:
                with acting_as(owner):
                    opened.__exit__(None, None, None)

            stack.callback(close)
            yield tree

    assert order.target is not None
    return restore_to_folder(
        chosen,
        order.target,
        Environment(settings.paths.state),
        paths=order.paths,
        dry_run=order.dry_run,
        checksum=order.checksum,
        into_filled_folder=order.into_filled_folder,
        on_progress=on_progress,
        open_tree=open_as_owner,
    )


def _restore_to_port(
    settings: Settings,
    owner: Owner,
    order: RestoreOrder,
    chosen: Chosen,
    password: str,
    on_progress: OnProgress,
) -> Restored:
    assert order.port is not None
    with acting_as(owner):
        daemon = Daemon(
            port=order.port,
            module=RESTORE_MODULE,
            username=order.username or "",
            password=password,
            host=find_tunnel(read_listeners(), order.port, os.geteuid()),
        )
        return push(
            chosen,
            daemon,
            Environment(settings.paths.state),
            paths=order.paths,
            dry_run=order.dry_run,
            checksum=order.checksum,
            on_progress=on_progress,
        )

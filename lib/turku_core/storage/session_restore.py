"""A session's other half: listing snapshots, and restoring them to the machine over its tunnel."""

from __future__ import annotations

import logging
import os
import select
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from turku_core.errors import DONE, FAILED, ConfigurationError, TurkuError
from turku_core.protocol.client import ApiUnreachable
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.mirror import Daemon
from turku_core.storage.privileges import find_owner
from turku_core.storage.records import Record
from turku_core.storage.registration import AnswerNotValid
from turku_core.storage.restore import Extent, Manner, choose_snapshot, make_push_command, push
from turku_core.storage.session import Permission, Session, ask_api
from turku_core.storage.session_request import RESTORE_MODULE, Login, Request, RestoreWish
from turku_core.storage.slots import RESTORE, hold_slot
from turku_core.storage.source_folder import SourceFolder

logger = logging.getLogger(__name__)


class SessionRefused(TurkuError):
    """The session can't go on as it was asked for."""


def ask_for_restore(session: Session) -> Permission:
    """Ask the API whose snapshots the machine may see; without the API, its own.

    A lost API, or one that makes no sense, must not keep a machine from its data: its key was let
    in, and its own snapshots need nobody's word. Another machine's do, in this very session.
    """
    try:
        return ask_api(session)
    except (ApiUnreachable, AnswerNotValid, ConfigurationError) as error:
        logger.warning(
            "machine %s: the API can't be reached; its own snapshots only: %s",
            session.machine, error,
        )  # fmt: skip
        session.voice.message(
            "The API can't be reached: only this machine's own snapshots are available now."
        )
        return Permission({}, {}, {})


def may_restore(session: Session, permission: Permission, machine: str) -> bool:
    """Say whether the session's machine may see the snapshots of `machine` now."""
    if machine == session.machine:
        return True
    former = permission.restore_from.get(machine)
    if former is None:
        return False
    try:
        until = datetime.fromisoformat(former.until.replace("Z", "+00:00"))
    except ValueError:
        logger.error("machine %s: the grant for %s has no valid end.", session.machine, machine)
        return False
    return until.tzinfo is not None and session.clock() < until


def restore_login(request: Request) -> Login | None:
    """Return the login of the writable module.

    Ours name the module itself; older agents give every source the same login.
    """
    if RESTORE_MODULE in request.sources:
        return request.sources[RESTORE_MODULE]
    return next(iter(request.sources.values()), None)


def list_snapshots(session: Session) -> int:
    """Say which snapshots the machine may restore; return the exit code."""
    permission = ask_for_restore(session)
    machines = [session.machine, *permission.restore_from]
    found = [
        describe(record, session)
        for machine in machines
        if may_restore(session, permission, machine)
        for _, record in session.catalogue.listing(machine).records
    ]
    session.voice.snapshots(found)
    return DONE


def describe(record: Record, session: Session) -> dict[str, Any]:
    """Return what an agent is told of a snapshot."""
    grace = session.settings.expiry_grace
    gone = None if record.expired_at is None else record.expired_at + grace
    return {
        "machine": record.machine,
        "source": record.source,
        "id": record.id,
        "taken_at": record.taken_at.isoformat(),
        "state": "committed" if record.expired_at is None else "expired",
        "partial": record.partial,
        "mode": record.mode,
        "bytes": record.bytes_total,
        "files": record.files_total,
        "expires_for_good_at": _iso(gone),
        "proven_at": _iso(record.proven_at),
        "damaged": record.damaged,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def restore(session: Session) -> int:
    """Restore what the agent wishes, or wait for an administrator; return the exit code.

    Restores have slots of their own, so that backups never keep one waiting.

    Raises:
        SlotsFull: As many restores as there are slots are at work.
    """
    login = restore_login(session.request)
    wish = session.request.restore
    permission = ask_for_restore(session)
    slots = session.settings.slots
    with hold_slot(session.settings.paths.slots, slots, session.machine, (), RESTORE):
        if wish is None:
            return wait_for_administrator(session, login)
        return restore_wish(session, permission, wish, login)


def restore_wish(
    session: Session, permission: Permission, wish: RestoreWish, login: Login | None
) -> int:
    """Restore at once, unattended; return the exit code.

    Raises:
        SessionRefused: The machine may not have it, or offers nowhere to put it.
        NoSuchSnapshot, RestoreError, NotATunnel: It can't be done.
    """
    machine = wish.machine or session.machine
    if not may_restore(session, permission, machine):
        raise SessionRefused(
            f"This machine may not restore snapshots of machine {machine}: an administrator can "
            f"allow it for a while (turku-api allow-restore)."
        )
    if login is None:
        raise SessionRefused(f"The request has no login for the module {RESTORE_MODULE}.")
    chosen = choose_snapshot(session.catalogue, machine, wish.source, wish.snapshot)
    logger.info(
        "machine %s source %s: restore of snapshot %s of machine %s%s begins",
        session.machine, wish.source, chosen.id, machine, " (dry run)" if wish.dry_run else "",
    )  # fmt: skip
    restored = push(
        chosen,
        session.daemon(RESTORE_MODULE, login),
        session.environment,
        paths=wish.paths,
        dry_run=wish.dry_run,
        checksum=wish.checksum,
        on_progress=lambda count, percent: session.voice.progress(wish.source, count, percent),
        on_change=session.voice.change if wish.dry_run else None,
        cancelled=session.lifeline.cancelled,
    )
    logger.info(
        "machine %s source %s: restore of snapshot %s ended: %s",
        session.machine, wish.source, chosen.id, restored.message,
    )  # fmt: skip
    session.voice.result(
        ok=restored.ok, message=restored.message, files=restored.files, count=restored.bytes
    )
    return DONE if restored.ok else FAILED


def wait_for_administrator(session: Session, login: Login | None) -> int:
    """Say how an administrator restores over this session's tunnel, and wait until it is closed.

    Raises:
        NotATunnel: The port isn't a tunnel of this session.
    """
    if login is None:
        raise SessionRefused(f"The request has no login for the module {RESTORE_MODULE}.")
    daemon = session.daemon(RESTORE_MODULE, login)
    for line in make_instructions(session, daemon):
        session.voice.message(line)
    logger.info("machine %s: waits for a restore on port %s", session.machine, daemon.port)
    wait_for_close(0, session.lifeline.cancelled)
    return DONE


def make_instructions(session: Session, daemon: Daemon) -> list[str]:
    """Return the lines that tell an administrator what to type on the storage unit.

    The password is good for this session only, and is the agent's own: nobody else reads this.
    """
    root = session.settings.paths.root
    command = [
        "turku-storage",
        *([] if root == Path("/") else ["--root", str(root)]),
        "restore",
        "--to-port", str(daemon.port),
        "--username", daemon.username,
        session.machine,
    ]  # fmt: skip
    password = f"RSYNC_PASSWORD={shlex.quote(daemon.password)}"
    user = find_owner(session.settings.paths).name
    lines = [f"This machine waits for a restore. On the storage unit, as {user}:"]
    for folder in session.catalogue.folders(session.machine):
        lines.append(f"  {password} {shlex.join([*command, folder.source])}")
        tree = newest_tree(session.catalogue, folder)
        if tree is not None:
            rsync = make_push_command(tree, daemon, Manner(), Extent.ALL)
            lines.append(f"  {password} {shlex.join(rsync)}")
    if len(lines) == 1:
        lines.append("  (There is no backup of it here.)")
    return [*lines, "The session ends when the agent does (Ctrl-C)."]


def newest_tree(catalogue: Catalogue, folder: SourceFolder) -> Path | None:
    """Return the folder with a source's newest committed state, where it lies in one (not borg)."""
    if folder.state().mirror_id is not None and folder.mirror.is_dir():
        return folder.mirror
    records, _ = catalogue.records(folder)
    trees = (folder.tree(record.id) for record in reversed(records))
    return next((tree for tree in trees if tree.is_dir()), None)


def wait_for_close(descriptor: int, cancelled: Callable[[], bool]) -> None:
    """Wait until the other side closes its end of `descriptor`, or the session is over."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while not cancelled():
        if poller.poll(500) and not os.read(descriptor, 65536):
            return

"""Restore: a snapshot, or single paths of it, back to a machine or to a local folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from pathlib import Path

from turku_core import fields
from turku_core.errors import TurkuError
from turku_core.storage import programs
from turku_core.storage.catalogue import Catalogue, NoSuchSnapshot
from turku_core.storage.mirror import (
    ACL,
    CONNECT_SECONDS,
    IO_SECONDS,
    NANOSECONDS,
    NO_DELAY,
    STATUS,
    Daemon,
    Outcome,
    Output,
    classify,
    make_list,
)
from turku_core.storage.records import Record
from turku_core.storage.snapshots import Environment, get_mode
from turku_core.storage.source_folder import MIRROR, Readable, SourceFolder

_HERE = "sh -c 'shift; exec \"$@\"' sh"
"""A remote shell, `--rsh`, that drops the host's name and runs the rest right here."""

_NAMED_MAX = 20
_CHANGES_MAX = 10_000
_CHANGE = re.compile(r"[<>ch.*][fdLDS+.a-z ?]")


class RestoreError(TurkuError):
    """A restore could not be done; says what, where and what to do."""


@dataclass(frozen=True)
class Chosen:
    """The snapshot that a restore takes; `record` is None for the bare mirror."""

    folder: SourceFolder
    record: Record | None
    id: str


@dataclass(frozen=True)
class Restored:
    """How a restore ended. `changes` are rsync's itemised lines of a dry run."""

    ok: bool
    message: str
    files: int
    bytes: int
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manner:
    """How a restore goes about it.

    `dry_run` changes nothing and tells what would be changed; `checksum` reads every file to find
    those that differ; `itemise` tells each change.
    """

    dry_run: bool = False
    checksum: bool = False
    itemise: bool = False
    progress: bool = False


class Extent(Enum):
    """What of a snapshot one rsync restores; chosen paths come from its standard input."""

    ALL = "all"
    CHOSEN = "chosen paths, with all that is below them"
    ALONE = "chosen paths alone"


def choose_snapshot(catalogue: Catalogue, machine: str, source: str, wanted: str) -> Chosen:
    """Find a snapshot by id, `latest`, `mirror`, or a time.

    A time (ISO 8601; UTC unless it says otherwise) means the newest snapshot at or before it.
    Expired ones are found too, except as `latest`. Raises NoSuchSnapshot, which lists what there
    is.
    """
    folders = catalogue.folders(machine, source)
    if not folders:
        raise _no_such_source(catalogue, machine, source)
    if wanted == MIRROR:
        for folder in folders:
            if folder.mirror.is_dir():
                return Chosen(folder, None, MIRROR)
    known = catalogue.listing(machine, source).records
    return _chosen(known, wanted) or _none_such(known, machine, source, wanted)


def _chosen(known: Sequence[tuple[SourceFolder, Record]], wanted: str) -> Chosen | None:
    found = [(folder, record) for folder, record in known if record.id == wanted]
    if wanted == "latest":
        found = [each for each in known if each[1].expired_at is None]
        found = [each for each in found if each[1].damaged is None] or found
    elif not found and (moment := _moment(wanted)) is not None:
        found = [(folder, record) for folder, record in known if record.taken_at <= moment]
    if not found:
        return None
    folder, record = max(found, key=lambda each: each[1].taken_at)
    return Chosen(folder, record, record.id)


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _none_such(
    known: Sequence[tuple[SourceFolder, Record]], machine: str, source: str, wanted: str
) -> Chosen:
    names = [record.id for _, record in reversed(known)]
    shown = ", ".join(names[:_NAMED_MAX]) or "none at all"
    more = f" and {len(names) - _NAMED_MAX} older ones" if len(names) > _NAMED_MAX else ""
    raise NoSuchSnapshot(
        f"Source {source!r} of machine {machine} has no snapshot {fields.shown(wanted)}; "
        f"there is {shown}{more}. Give an id, a time such as 2026-05-31T12:00, or latest."
    )


def _no_such_source(catalogue: Catalogue, machine: str, source: str) -> NoSuchSnapshot:
    sources = sorted({folder.source for folder in catalogue.folders(machine)})
    if not sources:
        return NoSuchSnapshot(f"Machine {machine} has no snapshots on this storage unit.")
    return NoSuchSnapshot(
        f"Machine {machine} has no source {fields.shown(source)} on this storage unit; there is "
        f"{', '.join(sources)}."
    )


@contextmanager
def open_snapshot(
    chosen: Chosen,
    environment: Environment,
    paths: Sequence[str] = (),
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Path]:
    """Give the tree to restore from: the mirror itself where it still equals the snapshot.

    `paths` are relative. Raises SourceBusy when the bare mirror is wanted while a pull changes it,
    and programs.Cancelled when `cancelled` says so while an archive is extracted.
    """
    folder, record = chosen.folder, chosen.record
    if record is None:
        with folder.lock(), folder.reading(Readable.MIRROR):
            yield folder.mirror
        return
    with folder.reading(Readable.MIRROR):
        if folder.mirror.is_dir() and folder.state().mirror_id == record.id:
            yield folder.mirror
            return
    mode = get_mode(record.mode, environment)
    with mode.open_for_restore(folder, record, paths, cancelled) as tree:
        yield tree


def make_push_command(tree: Path, daemon: Daemon, manner: Manner, extent: Extent) -> list[str]:
    """Return the rsync command of a restore to a machine.

    Metadata is read from fake-super's attributes on this side only. Newer files are replaced like
    others. Chosen paths are each ended by a NUL byte.
    """
    return [
        *_make_command(manner, extent),
        "--fake-super",
        f"--timeout={IO_SECONDS}",
        f"--contimeout={CONNECT_SECONDS}",
        NO_DELAY,
        "--",
        f"{tree}/",
        daemon.url,
    ]


def make_local_command(tree: Path, target: Path, manner: Manner, extent: Extent) -> list[str]:
    """Return the rsync command of a restore to a local folder.

    Metadata is read from fake-super's attributes by the sending half alone; the receiving half
    makes real owners and devices as root, and else what its user may. To be told apart, the halves
    speak through a "remote shell" that stays on this host: `--remote-option` on a plain local copy
    makes rsync 3.2.7 write to a folder whose name it takes from anywhere in its memory.
    """
    return [
        *_make_command(manner, extent),
        "--fake-super",
        # Between hosts rsync would look for parts of a file that are there already.
        "--whole-file",
        f"--rsh={_HERE}",
        # Paths go through the pipe as they are, not through a shell's hands.
        "--protect-args",
        "--",
        f"{tree}/",
        f"localhost:{target}/",
    ]


def _make_command(manner: Manner, extent: Extent) -> list[str]:
    command = [
        "rsync",
        "--archive",
        "--hard-links",
        "--acls",
        "--xattrs",
        "--sparse",
        "--numeric-ids",
        NANOSECONDS,
        "--no-human-readable",
        f"--info=stats2{',progress2' if manner.progress else ''}",
    ]
    if manner.dry_run:
        command.append("--dry-run")
    if manner.checksum:
        command.append("--checksum")
    if manner.itemise:
        command += ["--out-format=%i %n%L", "--8-bit-output"]
    if extent is Extent.CHOSEN:
        # With incremental recursion as well, rsync 3.5.0 loses count of its own file list
        # as soon as one of the paths is in a folder (tried: 60 samples of 60, and none without).
        command += ["--recursive", "--no-inc-recursive"]
    if extent is not Extent.ALL:
        command += ["--files-from=-", "--from0"]
    return command


def push(
    chosen: Chosen,
    daemon: Daemon,
    environment: Environment,
    *,
    paths: Sequence[str] = (),
    dry_run: bool = False,
    checksum: bool = False,
    on_progress: Callable[[int, float | None], None] | None = None,
    on_change: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Restored:
    """Restore to a machine through the writable module of its daemon.

    `paths` are relative to the source's folder (or absolute below its path), surrogateescape'd
    where they aren't UTF-8; none means everything. Files that differ are replaced, newer ones too.
    Nothing is deleted. Raises NoSuchSnapshot for a path that isn't in the snapshot.
    """
    wanted = wanted_paths(chosen, paths)
    manner = Manner(
        dry_run=dry_run,
        checksum=checksum,
        itemise=dry_run or on_change is not None,
        progress=on_progress is not None,
    )
    try:
        with open_snapshot(chosen, environment, wanted, cancelled) as tree:
            _check_paths(chosen, tree, wanted)
            return _restore(
                tree,
                wanted,
                manner,
                partial(make_push_command, tree, daemon),
                env={"RSYNC_PASSWORD": daemon.password},
                on_progress=on_progress,
                on_change=on_change,
                cancelled=cancelled,
            )
    except programs.Cancelled:
        return Restored(False, "The session ended before everything was restored.", 0, 0)


def restore_to_folder(
    chosen: Chosen,
    target: Path,
    environment: Environment,
    *,
    paths: Sequence[str] = (),
    dry_run: bool = False,
    checksum: bool = False,
    into_filled_folder: bool = False,
    on_progress: Callable[[int, float | None], None] | None = None,
    on_change: Callable[[str], None] | None = None,
    open_tree: Callable[
        [Chosen, Environment, Sequence[str]], AbstractContextManager[Path]
    ] = open_snapshot,
) -> Restored:
    """Restore to a local folder, which is made.

    As root with real owners, modes, ACLs and devices; as another user as much as the kernel
    allows, and `message` says what isn't. Raises RestoreError for a folder that isn't empty unless
    `into_filled_folder`, and NoSuchSnapshot for a path that isn't in the snapshot. `open_tree` is
    for a caller that is root and opens the snapshot as the unit's user.
    """
    wanted = wanted_paths(chosen, paths)
    manner = Manner(
        dry_run=dry_run,
        checksum=checksum,
        itemise=dry_run or on_change is not None,
        progress=on_progress is not None,
    )
    _make_target(target, into_filled_folder=into_filled_folder, dry_run=manner.dry_run)
    with open_tree(chosen, environment, wanted) as tree:
        _check_paths(chosen, tree, wanted)
        restored = _restore(
            tree,
            wanted,
            manner,
            partial(make_local_command, tree, target),
            on_progress=on_progress,
            on_change=on_change,
        )
    if os.geteuid() == 0 or not restored.ok:
        return restored
    hint = "Owners, devices and privileged attributes are restored by root only."
    return replace(restored, message=f"{restored.message} {hint}".strip())


def restore_tree(tree: Path, target: Path, paths: Sequence[str] = ()) -> Restored:
    """Restore from a tree that is open already to a local folder, which is made."""
    target.mkdir(parents=True, exist_ok=True)
    return _restore(tree, paths, Manner(), partial(make_local_command, tree, target))


def wanted_paths(chosen: Chosen, paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths relative to the source's folder; none means everything. Raises FieldError."""
    root = chosen.record.path if chosen.record is not None else chosen.folder.state().path
    wanted = []
    for path in paths:
        below = path
        if root is not None and path.startswith("/"):
            base = root.rstrip("/")
            if path.rstrip("/") == base:
                below = "."
            elif path.startswith(f"{base}/"):
                below = path[len(base) + 1 :]
        relative = os.path.normpath(fields.relative_path(below, "path"))
        if relative == ".":
            return ()
        wanted.append(relative)
    return tuple(wanted)


def _check_paths(chosen: Chosen, tree: Path, wanted: Sequence[str]) -> None:
    missing = [path for path in wanted if not _is_in(tree, path)]
    if missing:
        names = ", ".join(fields.shown(path) for path in missing[:_NAMED_MAX])
        record = chosen.record
        root = record.path if record is not None else chosen.folder.state().path
        raise NoSuchSnapshot(
            f"Snapshot {chosen.id} of source {chosen.folder.source!r} has no {names}; give paths "
            f"as they are below {root or 'the top folder of the source'}."
        )


def _is_in(tree: Path, path: str) -> bool:
    """Say whether a path is in a tree, by real folders alone.

    Trees of the old layout hold real links, and one that a machine made must not lead its restore
    out of its snapshot.
    """
    *folders, _ = path.split("/")
    place = tree
    for name in folders:
        place = place / name
        if place.is_symlink() or not place.is_dir():
            return False
    return os.path.lexists(tree / path)


def _make_target(target: Path, *, into_filled_folder: bool, dry_run: bool) -> None:
    try:
        if target.is_dir():
            if not into_filled_folder and any(os.scandir(target)):
                raise RestoreError(
                    f"{target} isn't empty; choose another folder, or say that it may be filled."
                )
        elif not dry_run:
            target.mkdir(parents=True)
    except OSError as error:
        raise RestoreError(f"{target} can't be used for the restore: {error.strerror}.") from error


def _restore(
    tree: Path,
    wanted: Sequence[str],
    manner: Manner,
    make_command: Callable[[Manner, Extent], list[str]],
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Callable[[int, float | None], None] | None = None,
    on_change: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Restored:
    """Restore paths of a tree (none: all of it) by the command that is made for it."""
    output = Output(on_progress)
    changes = _Changes(on_change) if manner.itemise else None

    def feed(block: bytes) -> None:
        output.feed(block)
        if changes is not None:
            changes.feed(block)

    run = partial(programs.run, env=dict(env or {}), cancelled=cancelled)
    command = make_command(manner, Extent.CHOSEN if wanted else Extent.ALL)
    names = [path.encode("utf-8", "surrogateescape") for path in wanted]
    finished = run(command, stdin=make_list(names), on_stdout=feed)
    outcome, message = classify(finished.code, finished.stderr.splitlines(), in_a_restore=True)
    again = () if manner.dry_run else dict.fromkeys(_sticky_folders(os.fsencode(tree), names))
    if again and outcome in (Outcome.RECEIVED, Outcome.PARTIAL):
        finished = run(make_command(Manner(), Extent.ALONE), stdin=make_list(again))
        second = classify(finished.code, finished.stderr.splitlines(), in_a_restore=True)
        outcome, message = second if outcome is Outcome.RECEIVED else (outcome, message)
    counted = output.statistics()
    if outcome is Outcome.PARTIAL:
        message = f"Not everything could be restored. {message.partition('. ')[2] or message}"
    return Restored(
        outcome is Outcome.RECEIVED,
        message,
        counted.files_transferred or 0,
        counted.bytes_transferred or 0,
        tuple(changes.lines) if changes is not None else (),
    )


def _sticky_folders(tree: bytes, wanted: Sequence[bytes]) -> Iterator[bytes]:
    """Yield which folders of what was restored have the sticky bit and an ACL.

    Where rsync makes such a folder, it leaves the owning group no rights: as long as the bit isn't
    set it lets nobody in, and what it set then stays below the mask. A second time it sets them
    (tried with 3.5.0).
    """
    for path in wanted or [b"."]:
        parts = path.split(b"/")
        yield from filter(
            partial(_is_sticky_with_acl, tree),
            (b"/".join(parts[:count]) for count in range(1, len(parts))),
        )
        if os.path.islink(os.path.join(tree, path)):
            continue
        for folder, _, _ in os.walk(os.path.join(tree, path)):
            name = os.path.relpath(folder, tree)
            if _is_sticky_with_acl(tree, name):
                yield name


def _is_sticky_with_acl(tree: bytes, name: bytes) -> bool:
    path = os.path.join(tree, name)
    try:
        os.getxattr(path, ACL)
    except OSError:
        return False
    try:
        mode = int(os.getxattr(path, STATUS).split()[0], 8)
    except (OSError, ValueError, IndexError):
        mode = os.lstat(path).st_mode
    return bool(mode & stat.S_ISVTX)


class _Changes:
    """rsync's itemised lines out of its output."""

    def __init__(self, on_change: Callable[[str], None] | None) -> None:
        self.lines: list[str] = []
        self._on_change = on_change
        self._rest = b""

    def feed(self, block: bytes) -> None:
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()
        for raw in lines:
            line = raw.rpartition(b"\r")[2].decode("utf-8", "surrogateescape")
            if not _CHANGE.match(line) or " " not in line:
                continue
            if len(self.lines) < _CHANGES_MAX:
                self.lines.append(line)
            if self._on_change is not None:
                self._on_change(line)

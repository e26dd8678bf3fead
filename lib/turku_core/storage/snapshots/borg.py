"""Mode borg: a deduplicated archive per snapshot, in one repository per machine (borg(1), 1.2).

The mirror waits while its archive is made. Extended attributes are archived, since fake-super keeps
owners and modes in them. A machine's sources share the repository and so take turns.
"""

from __future__ import annotations

import configparser
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any

from turku_core.configuration import ensure_private_folder, write_durably
from turku_core.errors import TurkuError
from turku_core.storage import manifest, programs
from turku_core.storage.records import SNAPSHOT_ID, Pending, Record
from turku_core.storage.snapshots import SnapshotError
from turku_core.storage.snapshots.trees import lost_checksums, write_manifest
from turku_core.storage.snapshots.waiting import WaitingMirrorMode
from turku_core.storage.source_folder import MIRROR, Readable, SourceFolder

logger = logging.getLogger(__name__)

_READER_LOCK_SECONDS = 600
_WRITER_LOCK_SECONDS = 6 * 3600
"""A long restore from the repository holds a commit up, and doesn't make it fail."""

_SEGMENT_BYTES = str(64 * 1024 * 1024)
"""borg wants room for one more segment before it removes anything; by default they are of 500 MiB.
"""

_WARNING = 1
_NAMED_MAX = 5

_FOUND, _REPAIRED = "found", "repaired"
"""How far the repair of a damaged repository is."""

_REPLACED = "all-zero"
"""What borg says of files that it can't give back whole since a repair (borg/archive.py)."""

_BORG_TIME_END_NS = (2**31 - 1 - 2 * 86400) * 10**9
"""Later times borg takes for this one, as if this host could have no others."""

_SECURITY = ".config/borg/security"
_OUTSIDE = ("No space left", "Insufficient free space", "Disk quota", "Read-only", "the lock")
"""Words of failures for which a repository can't be blamed."""
_REPORTED_MAX = 600

_IN_THE_CACHE = "/borg/cache.py"
"""Where a traceback passes through that fails at borg's cache."""

_RAISED = re.compile(r"^Traceback \(.*\):\n(?:[ \t].*\n)+(\S.*)", re.MULTILINE)
"""What an exception says, below its traceback."""


class Borg(WaitingMirrorMode):
    """Deduplicated archives."""

    name = "borg"

    def commit(self, folder: SourceFolder, pending: Pending) -> Record:
        """Make the archive, unless a commit before a crash has made it.

        What is stored is proven later against checksums that borg has no hand in. What can't be
        read has none: borg then warns.
        """
        write_manifest(folder, pending.record, folder.mirror, without_unreadable=True)
        record = replace(pending.record, archive=archive_name(folder, pending.record.id))
        with self._writing(folder) as held:
            self._make_repository(folder, held)
            command = make_create_command(folder.repository, record)
            made = self._run(folder, command, cwd=folder.path, held=held)
            if made.code > _WARNING and "already exists" in made.stderr:
                command = ["borg", "info", "--json", *_common(), _archive(folder, record)]
                made = self._checked(folder, command, held=held)
                statistics = _archive_statistics(json.loads(made.stdout)["archives"][0])
            else:
                if made.code > _WARNING and not any(each in made.stderr for each in _OUTSIDE):
                    _note_damage(folder, _FOUND)
                _check(folder, made)
                statistics = _archive_statistics(json.loads(made.stdout)["archive"])
            if _noted_damage(folder) == _REPAIRED:
                # What is there again now is put back into the archives that had lost it.
                self._checked(folder, make_repair_command(folder.repository), held=held)
                _damage_file(folder).unlink()
        if made.code == _WARNING:
            summary = f"{record.summary}\nborg: {_words(made)}".strip()
            record = replace(record, partial=True, summary=summary)
        return self._with_changes(folder, replace(record, **statistics))

    def list(self, folder: SourceFolder) -> Sequence[str]:
        """Return the ids of this source's archives; those of broken-off commits aren't any."""
        if not folder.repository.is_dir():
            return []
        command = ["borg", "list", "--short", *_common(), os.fspath(folder.repository)]
        with _reading(folder) as held:
            listed = self._checked(folder, command, held=held)
        stem = re.escape(folder.source)
        pattern = re.compile(rf"{stem}-({SNAPSHOT_ID.pattern})")
        names = listed.stdout.decode("utf-8", "surrogateescape").splitlines()
        return sorted(found[1] for name in names if (found := pattern.fullmatch(name)))

    @contextmanager
    def open_for_restore(
        self,
        folder: SourceFolder,
        record: Record,
        paths: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Path]:
        """Extract the archive beside the mirror, or as much of it as is wanted."""
        with folder.reading(self.reads):
            place, is_read_only = self._make_place(folder)
            programs.give(place, programs.owner_of(folder.machine_path))
            try:
                command = make_extract_command(
                    folder.repository, record, paths, may_lock=not is_read_only
                )
                with _reading(folder) as held:
                    extracted = self._run(
                        folder, command, cwd=place, held=held, cancelled=cancelled
                    )
                _check(folder, extracted, may_warn=bool(paths))
                _set_times_that_borg_lacks(
                    place / MIRROR, manifest.read(folder.manifest(record.id))
                )
                yield place / MIRROR
            finally:
                programs.remove_tree(place)

    def _make_place(self, folder: SourceFolder) -> tuple[Path, bool]:
        """Make a folder to extract to; say whether the volume is read-only, so that it's elsewhere.

        That is when its disk fails, and when restores are wanted.
        """
        try:
            return Path(tempfile.mkdtemp(prefix=".restore-", dir=folder.scratch)), False
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        return Path(tempfile.mkdtemp(prefix="turku-restore-", dir="/var/tmp")), True

    def remove(self, folder: SourceFolder, record: Record) -> None:
        """Delete the archive; its room is freed by `tidy`."""
        if not folder.repository.is_dir():
            return
        command = ["borg", "delete", *_common(_WRITER_LOCK_SECONDS), _archive(folder, record)]
        with self._writing(folder) as held:
            deleted = self._run(folder, command, held=held)
        if "does not exist" not in deleted.stderr:
            _check(folder, deleted)

    def tidy(self, folder: SourceFolder) -> None:
        """Delete checkpoints of broken-off commits of this source, and free unused room."""
        with self._writing(folder) as held:
            stem = re.escape(folder.source)
            pattern = re.compile(rf"{stem}-{SNAPSHOT_ID.pattern}\.checkpoint(?:\.\d+)?")
            command = ["borg", "list", "--short", "--consider-checkpoints", *_common()]
            listed = self._checked(folder, [*command, os.fspath(folder.repository)], held=held)
            names = listed.stdout.decode("utf-8", "surrogateescape").splitlines()
            for name in names:
                if pattern.fullmatch(name):
                    command = [
                        "borg",
                        "delete",
                        *_common(_WRITER_LOCK_SECONDS),
                        f"{folder.repository}::{name}",
                    ]
                    self._checked(folder, command, held=held)
            command = [
                "borg",
                "compact",
                *_common(_WRITER_LOCK_SECONDS),
                os.fspath(folder.repository),
            ]
            self._checked(folder, command, held=held)

    def verify(self, folder: SourceFolder, record: Record) -> str | None:
        """Let borg check the archive, then read every byte of it against its ids."""
        commands = [
            make_check_command(folder.repository, record),
            ["borg", "extract", "--dry-run", *_common(), _archive(folder, record)],
        ]
        if not folder.repository.is_dir():
            return "The machine's repository is gone."
        for command in commands:
            with _reading(folder) as held:
                checked = self._run(folder, command, held=held)
            if checked.code < 0 or "Failed to create/acquire the lock" in checked.stderr:
                raise SnapshotError(f"{folder.label}: borg could not check: {_words(checked)}")
            if checked.code != 0 or _REPLACED in checked.stderr:
                if _REPLACED not in checked.stderr:  # else that was done, and this is what is left
                    self._repair_soon(folder)
                return f"borg {command[1]}: {_words(checked)}"
        if manifest.read(folder.manifest(record.id)) is None:
            lost = lost_checksums(folder, record)
            if lost is not None:
                return lost
            # An archive of an earlier release, or one whose record was lost.
            with self.open_for_restore(folder, record) as tree:
                manifest.write(folder.manifest(record.id), manifest.make(tree), later=True)
        return None

    def _repair_soon(self, folder: SourceFolder) -> None:
        """Repair the repository now, so that it serves the other snapshots; or before a commit."""
        _note_damage(folder, _FOUND)
        try:
            with self._writing(folder):
                pass
        except (TurkuError, OSError) as error:
            logger.error("%s: its repository isn't repaired yet: %s", folder.label, error)

    def check_mirror(self, folder: SourceFolder, record: Record) -> str | None:
        """Compare the files of a mirror that is restored from with their digests in the archive."""
        command = ["borg", "list", "--json-lines", "--format={sha256}", *_common()]
        with folder.reading(Readable.MIRROR):
            if folder.state().mirror_id != record.id:
                return None
            with _reading(folder) as held:
                command.append(_archive(folder, record))
                listed = self._checked(folder, command, held=held)
            items = [json.loads(line) for line in listed.stdout.splitlines()]
            wrong = [
                item["path"]
                for item in items
                if item["mode"].startswith("-")
                and not _has_digest(folder.path / item["path"], item["sha256"])
            ]
        names = ", ".join(ascii(path) for path in sorted(wrong)[:_NAMED_MAX])
        return f"{len(wrong)} of its files differ from the archive's: {names}." if wrong else None

    @contextmanager
    def _writing(self, folder: SourceFolder) -> Iterator[int]:
        """Be the only one at work on the repository.

        So locks of borg's own that a killed borg has left can be told from living ones. borg does
        that too, but takes a zombie, or another process of the same number, for a living borg.
        """
        with folder.machine_lock(wait_seconds=_WRITER_LOCK_SECONDS) as held:
            if _is_locked_by_the_dead(folder.repository):
                command = ["borg", "break-lock", os.fspath(folder.repository)]
                self._checked(folder, command, held=held)
            if folder.repository.is_dir():
                _mend_configuration(folder)
                self._remove_half_written(folder)
                if _noted_damage(folder) == _FOUND:
                    self._repair(folder, held)
            yield held

    def _remove_half_written(self, folder: SourceFolder) -> None:
        """Remove what a borg that was killed was about to make a lock, or a file of its own, of."""
        base = self.environment.state_folder / "borg"
        own = [base / each / _repository_id(folder) for each in (".cache/borg", _SECURITY)]
        for place in (folder.repository, *own):
            for path in place.glob("*.tmp"):
                if not path.is_dir():
                    path.unlink(missing_ok=True)
                elif not any(_is_living_borg(pid) for _, pid in _owners(path)):
                    programs.remove_tree(path)

    def _repair(self, folder: SourceFolder, held: int) -> None:
        """Let borg take out of a repository what is damaged, so that it is archived again.

        borg would go on to take a damaged chunk for one that it has. The archives keep a note of
        what they have lost, and get it back when it comes again. borg's cache may be what is
        damaged, and knows of chunks that are gone: it is made anew.
        """
        logger.error("%s: its machine's repository is damaged and is repaired", folder.label)
        self._remove_caches(folder)
        self._checked(folder, make_repair_command(folder.repository), held=held)
        _note_damage(folder, _REPAIRED)

    def _remove_caches(self, folder: SourceFolder) -> None:
        """Remove what borg keeps of a repository outside of it; it makes it anew."""
        for cache in (self.environment.state_folder / "borg").glob(
            f"**/borg/**/{_repository_id(folder)}"
        ):
            programs.remove_tree(cache)

    def _make_repository(self, folder: SourceFolder, held: int) -> None:
        """Make the machine's repository; one that a crash left half made is made again."""
        if folder.repository.is_dir():
            return
        half_made = folder.repository.with_name(".borg.new")
        programs.remove_tree(half_made)
        command = ["borg", "init", "--encryption", "none", *_common(), os.fspath(half_made)]
        self._checked(folder, command, held=held)
        command = ["borg", "config", os.fspath(half_made), "max_segment_size", _SEGMENT_BYTES]
        self._checked(folder, command, held=held)
        half_made.rename(folder.repository)

    def _run(
        self,
        folder: SourceFolder,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        held: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> programs.Finished:
        """Run borg; once more if it fails at its cache.

        What a power cut has left of that makes every borg end in a traceback, also one that reads.
        """
        run = partial(self._run_once, folder, command, cwd=cwd, held=held, cancelled=cancelled)
        done = run()
        is_outside = any(each in done.stderr for each in _OUTSIDE)
        if done.code > _WARNING and _IN_THE_CACHE in done.stderr and not is_outside:
            logger.warning("%s: borg's cache is made anew: %s", folder.label, _words(done))
            self._remove_caches(folder)
            done = run()
        return done

    def _run_once(
        self,
        folder: SourceFolder,
        command: Sequence[str],
        *,
        cwd: Path | None,
        held: int | None,
        cancelled: Callable[[], bool] | None,
    ) -> programs.Finished:
        base = self.environment.state_folder / "borg"
        owner = programs.owner_of(folder.machine_path)
        if ensure_private_folder(base):
            programs.give(base, owner)
        return programs.run(
            command,
            env=make_environment(base, folder.source),
            cwd=cwd,
            hold=() if held is None else (held,),
            nice=True,
            identity=owner,
            cancelled=cancelled,
        )

    def _checked(
        self, folder: SourceFolder, command: Sequence[str], *, held: int | None = None
    ) -> programs.Finished:
        done = self._run(folder, command, held=held)
        _check(folder, done)
        return done


def _set_times_that_borg_lacks(tree: Path, known: manifest.Manifest | None) -> None:
    """Set times before 1970 and after 2038, which borg changes (borg/helpers/parseformat.py)."""
    for path, line in (known or {}).items():
        if not 0 <= line.mtime_ns < _BORG_TIME_END_NS:
            with suppress(FileNotFoundError):
                os.utime(tree / path, ns=(0, line.mtime_ns), follow_symlinks=False)


def _reading(folder: SourceFolder) -> AbstractContextManager[int]:
    return folder.machine_lock(wait_seconds=_READER_LOCK_SECONDS, shared=True)


def _is_locked_by_the_dead(repository: Path) -> bool:
    """Say whether there are locks in a repository, all of borgs on this host that aren't any more.

    Shared ones are listed as [host, pid, thread] in a file (borg/locking.py).
    """
    owners = _owners(repository / "lock.exclusive")
    with suppress(OSError, ValueError):
        roster = json.loads((repository / "lock.roster").read_text("utf-8"))
        owners += [(str(host), int(pid)) for each in roster.values() for host, pid, _ in each]
    return bool(owners) and all(
        host == _host_id() and not _is_living_borg(pid) for host, pid in owners
    )


def _owners(lock: Path) -> list[tuple[str, int]]:
    """Return the host and process of who has an exclusive lock.

    It is a folder with a file named `<host>.<pid>-<thread>` in it (borg/locking.py).
    """
    owners = []
    with suppress(OSError):
        for name in os.listdir(lock):
            host, _, process = name.rpartition(".")
            pid = process.partition("-")[0]
            if pid.isdecimal():
                owners.append((host, int(pid)))
    return owners


def _is_living_borg(pid: int) -> bool:
    try:
        # A zombie has no command line.
        return b"borg" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _host_id() -> str:
    return f"turku@{socket.gethostname()}"


def make_environment(base: Path, source: str) -> dict[str, str]:
    """Return the environment of borg: nothing is asked, and each source has its own files cache.

    The cache's entries don't age when the machine's other sources are archived.
    """
    return {
        "BORG_BASE_DIR": os.fspath(base),
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        "BORG_CHECK_I_KNOW_WHAT_I_AM_DOING": "YES",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_HOSTNAME_IS_UNIQUE": "yes",
        "BORG_HOST_ID": _host_id(),
        "BORG_FILES_CACHE_SUFFIX": source,
        "BORG_FILES_CACHE_TTL": "100",
    }


def make_create_command(repository: Path, record: Record) -> list[str]:
    """Return the borg command that archives the mirror in the folder it runs in.

    The mirror's name is part of the archived paths, because borg doesn't restore the attributes of
    the folder it extracts into.

    Real owners and ACLs aren't archived, for fake-super has them in extended attributes; a
    mirror's file that hasn't changed keeps its inode, time of change and size.
    """
    taken_at = record.taken_at.astimezone(timezone.utc)
    return [
        "borg",
        "create",
        "--json",
        *_common(_WRITER_LOCK_SECONDS),
        "--compression=lz4",
        "--files-cache=mtime,size,inode",
        "--noctime",
        "--noflags",
        "--noacls",
        "--sparse",
        f"--timestamp={taken_at:%Y-%m-%dT%H:%M:%S}",
        f"{repository}::{record.archive}",
        MIRROR,
    ]


def make_extract_command(
    repository: Path, record: Record, paths: Sequence[str] = (), *, may_lock: bool = True
) -> list[str]:
    """Return the borg command that extracts an archive, or some paths, into where it runs.

    The folders above a path come along with their attributes and without their content.
    `may_lock` False is for a repository that nobody can write to.
    """
    patterns: list[str] = []
    for path in paths:
        parts = [MIRROR, *path.split("/")]
        patterns += [f"pf:{'/'.join(parts[:end])}" for end in range(1, len(parts))]
        patterns.append(f"pp:{MIRROR}/{path}")
    unique = list(dict.fromkeys(patterns))
    return [
        "borg",
        "extract",
        *(_common() if may_lock else ["--bypass-lock"]),
        "--sparse",
        "--numeric-ids",
        "--noflags",
        "--noacls",
        f"{repository}::{record.archive}",
        *unique,
    ]


def make_check_command(repository: Path, record: Record) -> list[str]:
    """Return the borg command that checks one archive's metadata and that its chunks are there."""
    return [
        "borg",
        "check",
        "--archives-only",
        f"--glob-archives={_glob_escaped(record.archive or '')}",
        *_common(),
        os.fspath(repository),
    ]


def make_repair_command(repository: Path) -> list[str]:
    """Return the borg command that repairs a repository and its archives as far as it can be."""
    return ["borg", "check", "--repair", *_common(_WRITER_LOCK_SECONDS), os.fspath(repository)]


def _damage_file(folder: SourceFolder) -> Path:
    return folder.machine_path / ".borg.damaged"


def _note_damage(folder: SourceFolder, stage: str) -> None:
    write_durably(_damage_file(folder), stage)


def _noted_damage(folder: SourceFolder) -> str | None:
    try:
        return _damage_file(folder).read_text("ascii", "replace")
    except FileNotFoundError:
        return None


def _repository_id(folder: SourceFolder) -> str:
    return _read_configuration(folder)["id"]


def _read_configuration(folder: SourceFolder) -> Mapping[str, str]:
    """Return borg's settings of a repository. Raises ValueError, KeyError for what is none."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string((folder.repository / "config").read_text("utf-8"))
        section = parser["repository"]
    except (OSError, configparser.Error) as error:
        raise ValueError(str(error)) from error
    if section["version"] != "1" or not re.fullmatch(r"[0-9a-f]{64}", section["id"]):
        raise ValueError("it isn't a repository's")
    for name in ("segments_per_dir", "max_segment_size"):
        if int(section[name]) <= 0:
            raise ValueError(f"{name} isn't a size")
    for name in ("append_only", "storage_quota", "additional_free_space"):
        if not re.fullmatch(r"\d+[KMGT]?", section.get(name, "0")):
            raise ValueError(f"{name} isn't a number")
    return section


def _mend_configuration(folder: SourceFolder) -> None:
    """Write borg's settings of a repository anew when they are damaged.

    Its id only names borg's caches, and the rest is what every repository of ours has.
    """
    try:
        _read_configuration(folder)
    except (ValueError, KeyError) as error:
        logger.error("%s: borg's config is broken (%s): written anew", folder.label, error)
        lines = {
            "version": 1,
            "segments_per_dir": 1000,
            "max_segment_size": _SEGMENT_BYTES,
            "append_only": 0,
            "storage_quota": 0,
            "additional_free_space": 0,
            "id": secrets.token_hex(32),
        }
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        write_durably(folder.repository / "config", f"[repository]\n{text}\n")
        _note_damage(folder, _FOUND)


def _has_digest(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(1024 * 1024):
                found.update(block)
        return found.hexdigest() == digest
    except OSError:
        return False


def archive_name(folder: SourceFolder, snapshot: str) -> str:
    """Return the name of a snapshot's archive in the machine's repository."""
    return f"{folder.source}-{snapshot}"


def _glob_escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _common(lock_seconds: int = _READER_LOCK_SECONDS) -> list[str]:
    return [f"--lock-wait={lock_seconds}"]


def _archive(folder: SourceFolder, record: Record) -> str:
    return f"{folder.repository}::{record.archive or archive_name(folder, record.id)}"


def _archive_statistics(archive: Mapping[str, Any]) -> dict[str, Any]:
    counts = archive["stats"]
    return {
        "files_total": int(counts["nfiles"]),
        "bytes_total": int(counts["original_size"]),
        "bytes_stored": int(counts["deduplicated_size"]),
    }


def _words(done: programs.Finished) -> str:
    # After a traceback come versions, the platform and its arguments: nothing of what failed.
    words = " / ".join(dict.fromkeys(_RAISED.findall(done.stderr))) or done.last_words
    return words[-_REPORTED_MAX:] or f"it ended with code {done.code}"


def _check(folder: SourceFolder, done: programs.Finished, *, may_warn: bool = True) -> None:
    """Raise SnapshotError for what borg calls an error (or, unless it may, a warning)."""
    if done.code not in (0, _WARNING) or (done.code == _WARNING and not may_warn):
        raise SnapshotError(f"{folder.label}: borg failed: {_words(done)}.")

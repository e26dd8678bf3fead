"""Running rsync, borg, btrfs and others, so that none outlives the process that began it."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from turku_core.errors import TurkuError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_BLOCK = 65536
_POLL_SECONDS = 0.2
_STDERR_BYTES_MAX = 256 * 1024


class ProgramMissing(TurkuError):
    """A program that is needed isn't installed."""


class Cancelled(TurkuError):
    """A program was ended because its session ended."""


@dataclass(frozen=True)
class Finished:
    """How a program ended. `code` is negative for a signal; texts are surrogateescape'd."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def last_words(self) -> str:
        """The end of what it said on standard error, on one line."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-600:]


def environment(additions: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment programs run in: nothing inherited but PATH and HOME, C locale."""
    base = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": os.environ.get("HOME", "/nonexistent"),
        "LC_ALL": "C.UTF-8",
    }
    if "TMPDIR" in os.environ:
        base["TMPDIR"] = os.environ["TMPDIR"]
    return {**base, **(additions or {})}


def run(
    command: Sequence[str | bytes],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    cancelled: Callable[[], bool] | None = None,
    on_stdout: Callable[[bytes], None] | None = None,
    hold: Sequence[int] = (),
    nice: bool = False,
    identity: tuple[int, int] | None = None,
) -> Finished:
    """Run a program to its end, in a process group of its own that dies with this process.

    Args:
        command: The program and its arguments.
        env: The additions to the plain environment; secrets go here, never into `command`.
        cwd: Where it runs.
        stdin: What it reads.
        cancelled: Asked several times a second; True ends the whole process group.
        on_stdout: Is given standard output as it comes, instead of `Finished.stdout`.
        hold: File descriptors (of locks) that stay open for as long as the program lives.
        nice: Run it at low priority, for background work.
        identity: The user and group to run it as, which only root may say (see `owner_of`).

    Raises:
        ProgramMissing: It isn't installed.
        Cancelled: `cancelled` said so; the program is gone.
    """
    if cancelled is not None and cancelled():
        raise Cancelled("The session ended.")
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            pass_fds=tuple(hold),
            start_new_session=True,
            preexec_fn=_begin_nicely if nice else _begin,
            user=None if identity is None else identity[0],
            group=None if identity is None else identity[1],
            extra_groups=None if identity is None else (),
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            raise
        raise ProgramMissing(
            f"{os.fsdecode(command[0])} isn't installed; install the package of that name."
        ) from error
    try:
        return _attend(process, stdin, cancelled, on_stdout)
    finally:
        _end_group(process)


def _begin() -> None:
    """In the child: be killed when the thread that began it ends, whatever ends it (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _begin_nicely() -> None:
    _begin()
    os.nice(10)


def _attend(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    cancelled: Callable[[], bool] | None,
    on_stdout: Callable[[bytes], None] | None,
) -> Finished:
    assert process.stdout is not None
    assert process.stderr is not None
    stdout: list[bytes] = []
    stderr = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        rest = memoryview(stdin)
        checked = time.monotonic()
        while selector.get_map():
            for key, _ in selector.select(_POLL_SECONDS):
                if key.fileobj is process.stdin:
                    rest = _feed(selector, process.stdin, rest)
                    continue
                block = os.read(key.fd, _BLOCK)
                if not block:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    if len(stderr) < _STDERR_BYTES_MAX:
                        stderr += block
                elif on_stdout is not None:
                    on_stdout(block)
                else:
                    stdout.append(block)
            if cancelled is not None and time.monotonic() - checked >= _POLL_SECONDS:
                checked = time.monotonic()
                if cancelled():
                    raise Cancelled("The session ended.")
    code = process.wait()
    return Finished(code, b"".join(stdout), stderr.decode("utf-8", "surrogateescape"))


def _feed(
    selector: selectors.BaseSelector, stdin: IO[bytes] | None, rest: memoryview
) -> memoryview:
    """Write what standard input takes now; close it when all is written or nobody reads."""
    assert stdin is not None
    try:
        rest = rest[os.write(stdin.fileno(), rest) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        rest = rest[len(rest) :]
    if not rest:
        selector.unregister(stdin)
        stdin.close()
    return rest


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, and close the pipes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def owner_of(path: Path) -> tuple[int, int] | None:
    """Return whose files to write at `path`, when this is root and they are another user's.

    An administrator restores as root; what is left on the volume must stay the storage unit's own.
    """
    if os.geteuid() != 0:
        return None
    status = path.stat()
    return (status.st_uid, status.st_gid) if status.st_uid != 0 else None


def give(path: Path, owner: tuple[int, int] | None) -> None:
    """Give a file or folder that was just made to its owner (see `owner_of`)."""
    if owner is not None:
        os.chown(path, *owner, follow_symlinks=False)


def sync_file_system(path: Path) -> None:
    """Write everything of the file system at `path` to its disk (syncfs(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(path))
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it; one that isn't there is no error. Raises OSError."""
    if not os.path.lexists(path):
        return
    removed = run(["rm", "-rf", "--", os.fspath(path)], nice=True)
    if removed.code != 0 and path.is_dir():
        # Folders without permissions for their owner (of the old layout, or an extracted one).
        open_to_owner(path)
        removed = run(["rm", "-rf", "--", os.fspath(path)], nice=True)
    if os.path.lexists(path):
        raise OSError(0, removed.last_words or "it could not be removed", os.fspath(path))


def open_to_owner(path: Path) -> None:
    """Let the owner of a tree read, write and enter all of it, whatever its files' modes say."""
    run(["chmod", "-R", "u+rwX", "--", os.fspath(path)])

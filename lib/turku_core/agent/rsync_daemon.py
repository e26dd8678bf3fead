"""The rsync daemon of a session: a process per connection, behind a private Unix socket.

No port opens on the machine. Facts about rsync are from rsyncd.conf(5) and were tried with
versions 3.2.7 and 3.5.0.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from turku_core import fields
from turku_core.agent.processes import end, start
from turku_core.agent.templates import render
from turku_core.credentials import make_secret
from turku_core.protocol.messages import SourceSettings

SOCKET_NAME = "rsync"
RESTORE_MODULE = "turku-restore"

IDLE_SECONDS = 3600
"""rsync gives up after an hour without a byte. A dead network is noticed long before, by ssh; but
reading a file of a terabyte for its checksum is silent for a while."""

CONNECTIONS_MAX = 4
"""A storage unit needs one at a time; a second may linger while it ends."""

MODULE_PATH_BYTES_MAX = 2000
"""rsync gives up on its whole configuration when a path from the environment is much longer."""

_CONFIGURATION = "rsyncd.conf"
_CAP_SYS_CHROOT = 18
"""The capability's number, <linux/capability.h>."""

_MUNGED = "/rsyncd-munged/"


@dataclass(frozen=True)
class Module:
    """A folder that the daemon offers for one session.

    Attributes:
        rules: rsync filter rules, one each, that the daemon itself enforces.
        writable: A restore's module can only be written to; any other can only be read.
    """

    name: str
    path: Path
    username: str
    password: str = field(repr=False)
    rules: tuple[str, ...] = ()
    writable: bool = False


def make_module(
    name: str, path: Path, rules: Sequence[str] = (), *, writable: bool = False
) -> Module:
    """Return a module with fresh credentials, good for this session only."""
    username = f"turku-{secrets.token_hex(8)}"
    return Module(name, path, username, make_secret(), tuple(rules), writable)


def make_rules(source: SourceSettings, announced: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the filter rules that the daemon enforces for a source, in rsync's merge file form.

    They are the machine's own rules. Only where one of them is ``merge NAME``, a filter set that
    the API keeps, the API's rules are taken in its place; elsewhere nothing from the API counts.

    Args:
        source: The source as the machine itself configures it.
        announced: The source's filter rules as the API answered them, with its sets spliced in.
    """
    rules = []
    position = 0
    own = list(source.filter)
    for index, rule in enumerate(own):
        if fields.filter_set_name(rule) is None:
            rules.append(rule)
            if position < len(announced) and announced[position] == rule:
                position += 1
            continue
        following = next((r for r in own[index + 1 :] if fields.filter_set_name(r) is None), None)
        while position < len(announced) and announced[position] != following:
            # A set adds rules; it can't take back the machine's own.
            if announced[position] not in ("!", "clear"):
                rules.append(announced[position])
            position += 1
    return (*rules, *(_exclude_rule(pattern) for pattern in source.exclude))


def _exclude_rule(pattern: str) -> str:
    """Return a pattern of rsync's ``--exclude`` as a filter rule.

    ``--exclude`` takes ``+ `` and ``- `` prefixes and the lone ``!`` as filter rules (rsync(1),
    FILTER RULES).
    """
    return pattern if pattern.startswith(("+ ", "- ")) or pattern == "!" else f"- {pattern}"


def uses_chroot() -> bool:
    """Say whether the daemon confines each connection to its module by chroot(2).

    It does when it may (capabilities(7), CAP_SYS_CHROOT): always as root, except in a container
    that was denied it. Otherwise rsync itself confines the connection.
    """
    status = Path("/proc/self/status").read_text("ascii", "replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_CHROOT & 1)


def render_configuration(modules: Sequence[Module], *, as_root: bool, chroot: bool) -> str:
    """Return the text of rsyncd.conf for these modules.

    Args:
        modules: The modules; their paths, passwords and rules are not in the text.
        as_root: Whether the daemon will run as root, which keeps files' owners.
        chroot: See `uses_chroot`.
    """
    return render(
        "rsyncd.conf.j2",
        modules=modules,
        as_root=as_root,
        chroot=chroot,
        connections=CONNECTIONS_MAX,
        timeout=IDLE_SECONDS,
    )


def make_daemon_command() -> list[str]:
    """Return the command that serves the connection on its standard input, as from inetd."""
    return ["rsync", "--daemon", "--no-detach", f"--config={_CONFIGURATION}"]


def make_daemon_environment(modules: Sequence[Module]) -> dict[str, str]:
    """Return the whole environment of the daemon: where its modules' paths come from."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        **{f"TURKU_PATH_{number}": str(m.path) for number, m in enumerate(modules, start=1)},
    }


class RsyncDaemon:
    """Serves modules to whoever reaches the socket in the session's folder.

    Args:
        folder: The session's private folder (0700). Only this user reaches the socket in it.
        modules: What to offer.
    """

    def __init__(self, folder: Path, modules: Sequence[Module]) -> None:
        self._folder = folder
        self._environment = make_daemon_environment(modules)
        self._children: list[subprocess.Popen[bytes]] = []
        self._write_files(modules)
        self._listener = _listen(folder)

    def _write_files(self, modules: Sequence[Module]) -> None:
        text = render_configuration(modules, as_root=os.geteuid() == 0, chroot=uses_chroot())
        _write_private(self._folder / _CONFIGURATION, text)
        for number, module in enumerate(modules, start=1):
            _write_private(
                self._folder / f"secrets-{number}", f"{module.username}:{module.password}\n"
            )
            _write_private(
                self._folder / f"rules-{number}", "".join(f"{rule}\n" for rule in module.rules)
            )

    def fileno(self) -> int:
        """Return a descriptor that is readable when a connection waits."""
        return self._listener.fileno()

    def accept(self) -> None:
        """Take the connection that waits, and give it a daemon of its own."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        with connection:
            connection.setblocking(True)
            self._children = [child for child in self._children if child.poll() is None]
            if len(self._children) < CONNECTIONS_MAX:
                self._children.append(
                    start(
                        make_daemon_command(),
                        folder=self._folder,
                        environment=self._environment,
                        stdin=connection.fileno(),
                    )
                )

    def is_busy(self) -> bool:
        """Say whether a connection is open."""
        return any(child.poll() is None for child in self._children)

    def close(self) -> None:
        """Take no more connections and end the daemons of those that are open."""
        self._listener.close()
        end(self._children)


def _listen(folder: Path) -> socket.socket:
    """Listen on a Unix socket in `folder`, however long its path is (a name has 108 bytes)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        listener.listen(CONNECTIONS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(descriptor)
    return listener


def _write_private(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode("utf-8", "surrogateescape"))


def unmunge_links(folder: Path) -> int:
    """Give the symbolic links below `folder` the targets that they had in the backup.

    Outside a chroot rsync's daemon stores a link's target with a prefix, so that nobody can be led
    out of the module while it is being written (rsyncd.conf(5), munge symlinks). Afterwards the
    prefix has to go. A link that is replaced keeps its time, its owner and its other names, and
    its folder keeps its time.

    Returns:
        How many links were changed.
    """
    changed = 0
    replaced: dict[tuple[int, int], Path] = {}
    for parent, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            try:
                target = os.readlink(name, dir_fd=descriptor)
            except OSError:
                continue
            if target.startswith(_MUNGED):
                _replace_link(Path(parent, name), descriptor, target, replaced)
                changed += 1
    return changed


def _replace_link(
    path: Path, descriptor: int, munged: str, replaced: dict[tuple[int, int], Path]
) -> None:
    link = os.stat(path.name, dir_fd=descriptor, follow_symlinks=False)
    folder = os.stat(descriptor)
    temporary = f".{secrets.token_hex(8)}.turku"
    twin = replaced.get((link.st_dev, link.st_ino))
    if twin is not None:
        os.link(twin, temporary, dst_dir_fd=descriptor, follow_symlinks=False)
    else:
        os.symlink(munged.removeprefix(_MUNGED), temporary, dir_fd=descriptor)
        # A user may only keep a group of their own.
        with contextlib.suppress(PermissionError):
            os.chown(temporary, link.st_uid, link.st_gid, dir_fd=descriptor, follow_symlinks=False)
        times = (link.st_atime_ns, link.st_mtime_ns)
        os.utime(temporary, ns=times, dir_fd=descriptor, follow_symlinks=False)
        if link.st_nlink > 1:
            replaced[link.st_dev, link.st_ino] = path
    os.rename(temporary, path.name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    os.utime(descriptor, ns=(folder.st_atime_ns, folder.st_mtime_ns))

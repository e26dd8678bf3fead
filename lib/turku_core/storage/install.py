"""Installing the storage unit on a host: its user, its folders, sshd's part, and the worker."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from turku_core.configuration import ensure_folder, read_folder, write_durably
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.metrics import units
from turku_core.storage.settings import Paths
from turku_core.storage.templates import render

USER = "turku-storage"
SSHD_DROP_IN = Path("etc/ssh/sshd_config.d/50-turku-storage.conf")
UNIT = Path("etc/systemd/system/turku-storage-worker.service")
CRON = Path("etc/cron.d/turku-storage")

_COMMAND_SECONDS = 60
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+-@")
_EFFECTIVE = {
    "allowtcpforwarding": "remote",
    "allowstreamlocalforwarding": "no",
    "allowagentforwarding": "no",
    "gatewayports": "no",
    "permittty": "no",
    "permittunnel": "no",
    "x11forwarding": "no",
}
"""What `sshd -T` must say for the unit's user, in its own spelling."""


@dataclass(frozen=True)
class Installed:
    """What was done, and what the operator has yet to do, in sentences."""

    changed: tuple[Path, ...]
    notes: tuple[str, ...]


def install(root: Path, user: str = USER, uid: int | None = None) -> Installed:
    """Install the storage unit's user, folders, sshd drop-in and worker; do only what is missing.

    Below a `root` that isn't ``/`` the files are written and nothing is started, nobody made.

    Args:
        root: What all paths are below.
        user: The unit's user.
        uid: The user's id if there is no such user yet, for a volume that has backups of one with
            this id; None: the next that is free.

    Raises:
        ConfigurationError: It isn't run as root, or a path can't stand in the files.
        TurkuError: A program failed; the message has its words.
    """
    live = root == Path("/")
    if live and os.geteuid() != 0:
        raise ConfigurationError("install-service writes to /etc: run it as root.")
    paths = Paths(root)
    notes = []
    if live:
        notes += _ensure_user(user, paths, uid)
    _ensure_folders(paths, user if live else None)
    changed = install_sshd_drop_in(root, user, paths)
    worker = program("turku-storage-worker")
    listen = units.read_listen(paths.configuration)
    if not live or Path("/run/systemd/system").is_dir():
        changed += _write(root / UNIT, render(f"{UNIT.name}.j2", user=user, worker=worker))
        changed += _remove(root / CRON)
    else:
        changed += _write(root / CRON, render("turku-storage.cron.j2", user=user, worker=worker))
        if listen is not None:
            notes.append(f"{units.OPTION} needs systemd: without it nobody listens there.")
            listen = None
    if live:
        notes += _start(changed, paths)
    exporter = units.Exporter(
        program="turku-storage",
        command=f"{program('turku-storage')} metrics --http",
        user=user,
        installer="turku-storage install-service",
    )
    changed += units.install(root, exporter, listen)
    return Installed(tuple(changed), tuple(notes))


def uninstall(root: Path) -> Installed:
    """Take away what `install` brought, but for the user and the folders with what is in them.

    The machines' SSH keys go too: the worker writes them again when it is installed again, and
    without the drop-in sshd would take them from the user's home folder by itself.

    Raises:
        ConfigurationError: It isn't run as root.
        TurkuError: A program failed; the message has its words.
    """
    live = root == Path("/")
    if live and os.geteuid() != 0:
        raise ConfigurationError("uninstall-service removes files from /etc: run it as root.")
    systemd = live and Path("/run/systemd/system").is_dir()
    notes = []
    if systemd and (root / UNIT).exists():
        # First of all, for it would write the keys again.
        _run(["systemctl", "disable", "--now", UNIT.name])
    removed = [*_remove(root / UNIT), *_remove(root / CRON)]
    if systemd and removed:
        _run(["systemctl", "daemon-reload"])
    removed += units.remove(root, "turku-storage")
    removed += _remove(Paths(root).authorized_keys)
    drop_in = _remove(root / SSHD_DROP_IN)
    if live and drop_in:
        notes += _reload_sshd(systemd)
    return Installed((*removed, *drop_in), tuple(notes))


def program(name: str) -> str:
    """Return the absolute path of a console script of this very installation.

    Raises:
        ConfigurationError: It isn't there, or its path can't stand in a unit or a cron line.
    """
    for folder in (Path(sys.argv[0]).absolute().parent, Path(sys.executable).parent):
        path = folder / name
        if path.is_file():
            return _plain(path)
    raise ConfigurationError(f"The program {name} isn't beside {sys.argv[0]}.")


def _plain(path: Path) -> str:
    """Return a path as text; systemd, cron and sshd each have quoting rules of their own."""
    if not set(str(path)) <= _PLAIN:
        raise ConfigurationError(
            f"{path} has a character that a unit file, a cron line or sshd could misread: install "
            f"the storage unit under a plain path."
        )
    return str(path)


def _ensure_user(user: str, paths: Paths, uid: int | None) -> list[str]:
    try:
        pwd.getpwnam(user)
        return []
    except KeyError:
        _run(make_user_command(user, paths, uid))
        return [f"The user {user} was made."]


def make_user_command(user: str, paths: Paths, uid: int | None) -> list[str]:
    """Return the command that makes the unit's user."""
    wanted = [] if uid is None else ["--uid", str(uid)]
    # With a shell, for sshd runs the forced command in it; without a password, for keys only.
    return [
        "useradd", "--system", "--user-group", *wanted, "--shell", "/bin/sh",
        "--home-dir", str(paths.state), "--no-create-home", "--password", "*", "--", user,
    ]  # fmt: skip


def _ensure_folders(paths: Paths, user: str | None) -> None:
    ensure_folder(paths.configuration)
    ensure_folder(paths.state)
    paths.state.chmod(0o700)
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(paths.state, entry.pw_uid, entry.pw_gid)
        # The registration key lies here: root writes it, the unit reads it, nobody else.
        os.chown(paths.configuration, 0, entry.pw_gid)
        paths.configuration.chmod(0o750)


def install_sshd_drop_in(root: Path, user: str, paths: Paths) -> list[Path]:
    """Write sshd's part, and leave it only if sshd itself finds it good and effective.

    Returns:
        The file, if it was changed.

    Raises:
        TurkuError: sshd doesn't accept it, or its other configuration overrides it; what was
            there before is there again.
    """
    path = root / SSHD_DROP_IN
    text = render(
        "turku-storage-sshd.conf.j2", user=user, authorized_keys=_plain(paths.authorized_keys)
    )
    before = path.read_bytes() if path.exists() else None
    changed = _write(path, text)
    try:
        check_sshd(root / "etc/ssh/sshd_config", user, paths)
    except TurkuError:
        if before is None:
            path.unlink()
        else:
            write_durably(path, before, 0o644)
        raise
    return changed


def check_sshd(configuration: Path, user: str, paths: Paths) -> None:
    """Ask sshd whether its whole configuration is valid, and what it comes to for the unit's user.

    Raises:
        TurkuError: It isn't, or something else in it takes precedence.
    """
    sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin")
    if sshd is None:
        raise TurkuError("sshd isn't installed: install the package openssh-server.")
    if os.geteuid() == 0:
        # The distribution's unit makes it when sshd starts; `sshd -t` wants it too.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    _run([sshd, "-t", "-f", str(configuration)])
    said = _run(
        [sshd, "-T", "-f", str(configuration), "-C", f"user={user},host=localhost,addr=127.0.0.1"]
    )
    wrong = wrong_options(said, {**_EFFECTIVE, "authorizedkeysfile": str(paths.authorized_keys)})
    if wrong:
        raise TurkuError(
            f"{configuration} overrides {SSHD_DROP_IN.name} ({', '.join(wrong)}): see that it "
            f"includes /etc/ssh/sshd_config.d/*.conf at its top, and that nothing before it sets "
            f"these for {user}."
        )


def wrong_options(said: str, expected: Mapping[str, str]) -> list[str]:
    """Return the options in the output of ``sshd -T`` that differ, with what they are."""
    found = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    return [
        f"{name} is {found.get(name, 'not set')}"
        for name, value in expected.items()
        if found.get(name) != value
    ]


def _start(changed: Sequence[Path], paths: Paths) -> list[str]:
    systemd = Path("/run/systemd/system").is_dir()
    notes = []
    if paths.root / SSHD_DROP_IN in changed:
        notes += _reload_sshd(systemd)
    if systemd:
        _run(["systemctl", "daemon-reload"])
        _run(["systemctl", "enable", UNIT.name])
        if "api_url" in read_folder(paths.configuration).values:
            _run(["systemctl", "restart" if paths.root / UNIT in changed else "start", UNIT.name])
        else:
            notes.append(f"The worker isn't started yet: set api_url, then start {UNIT.name}.")
    return notes


def _reload_sshd(systemd: bool) -> list[str]:
    command = ["systemctl", "reload-or-restart", "ssh"] if systemd else ["service", "ssh", "reload"]
    try:
        _run(command)
    except TurkuError as error:
        return [f"sshd was not told of its new configuration; reload it by hand. ({error})"]
    return []


def _write(path: Path, text: str) -> list[Path]:
    if path.exists() and path.read_text("utf-8") == text:
        return []
    ensure_folder(path.parent)
    write_durably(path, text, 0o644)
    return [path]


def _remove(path: Path) -> list[Path]:
    if not path.exists():
        return []
    path.unlink()
    return [path]


def _run(command: Sequence[str]) -> str:
    """Run a program and return what it printed. Raises TurkuError with its words."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise TurkuError(f"{command[0]} isn't installed.") from error
    except subprocess.TimeoutExpired as error:
        raise TurkuError(f"{' '.join(command[:2])} did not end in time.") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise TurkuError(f"{' '.join(command[:2])} failed: {said}")
    return done.stdout

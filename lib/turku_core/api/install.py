"""Installing the API as a service: its user, its folders and its systemd units."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from turku_core.configuration import ensure_folder, write_durably
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.metrics import units

USER = "turku-api"
SERVICE = "turku-api.service"
TIMER = "turku-api-housekeeping.timer"
UNITS = (SERVICE, "turku-api-housekeeping.service", TIMER)

_CONFIGURATION = Path("etc/turku-api/config.d")
_DATA = Path("var/lib/turku-api")
_SYSTEMD = Path("etc/systemd/system")
_SYSTEMD_RUNS = Path("/run/systemd/system")
"""Is there exactly when systemd is the running system's manager, sd_booted(3)."""

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_PROGRAM_SECONDS_MAX = 120


@dataclass(frozen=True)
class Installed:
    """What was done."""

    changed: tuple[Path, ...]
    started: bool


def install(root: Path, user: str = USER) -> Installed:
    """Install the API as a service; do only what is missing.

    Below a `root` that isn't ``/`` the units are written, and nobody is made and nothing started.

    Raises:
        ConfigurationError: It isn't run as root.
        TurkuError: The host doesn't run systemd, or a program failed.
    """
    live = root == Path("/")
    if live and os.geteuid() != 0:
        raise ConfigurationError("install-service writes to /etc: run it as root.")
    program = find_program()
    listen = units.read_listen(root / _CONFIGURATION)
    if live:
        ensure_user(user)
        give_folders(root, user)
        if not _SYSTEMD_RUNS.is_dir():
            raise TurkuError(
                f"This host doesn't run systemd. The user {user} and its folders are ready: let "
                f"your service manager run `{program} serve --migrate` as {user}, and cron this "
                f"line of /etc/cron.d: 17 * * * * {user} {program} housekeeping"
            )
    changed = _write_units(root, user, program)
    exporter = units.Exporter(
        program="turku-api",
        command=f"{program} metrics --http",
        user=user,
        installer="turku-api install-service",
        needs_network=True,
    )
    changed += units.install(root, exporter, listen)
    if live:
        _run(["systemctl", "daemon-reload"])
        _run(["systemctl", "enable", SERVICE, TIMER])
        _run(["systemctl", "restart" if changed else "start", SERVICE, TIMER])
    return Installed(tuple(changed), live)


def render_unit(name: str, user: str, program: Path) -> str:
    """Return the text of one of our units."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # Unit files, not HTML; what goes in has been checked.
        autoescape=False,
    )
    return environment.get_template(f"{name}.j2").render(user=user, program=program)


def find_program() -> Path:
    """Return the absolute path of this very installation's ``turku-api``.

    Raises:
        ConfigurationError: It isn't there, or its path can't stand in a unit.
    """
    for folder in (Path(sys.argv[0]).absolute().parent, Path(sys.executable).parent):
        path = folder / "turku-api"
        if path.is_file():
            # systemd.service(5) has quoting rules of its own; nobody needs them here.
            if not all(c.isascii() and (c.isalnum() or c in "/._+-@") for c in str(path)):
                raise ConfigurationError(
                    f"{path} has a character that a unit file could misread: install the API "
                    "under a plain path."
                )
            return path
    raise ConfigurationError(f"The program turku-api isn't beside {sys.argv[0]}.")


def _write_units(root: Path, user: str, program: Path) -> list[Path]:
    changed = []
    for name in UNITS:
        path = root / _SYSTEMD / name
        text = render_unit(name, user, program)
        if not path.exists() or path.read_text("utf-8") != text:
            ensure_folder(path.parent)
            write_durably(path, text, 0o644)
            changed.append(path)
    return changed


def ensure_user(user: str) -> None:
    """Make the system account that the API runs as, unless it is there. Raises TurkuError."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        _run(
            [
                *("useradd", "--system", "--user-group", "--no-create-home"),
                *("--home-dir", f"/{_DATA}", "--shell", "/usr/sbin/nologin", "--", user),
            ]
        )


def give_folders(root: Path, user: str) -> None:
    """Let the user own its data, and read the configuration, which may hold a password."""
    entry = pwd.getpwnam(user)
    data, configuration = root / _DATA, root / _CONFIGURATION
    ensure_folder(data)
    data.chmod(0o700)
    for path in (data, *data.rglob("*")):
        # SQLite's journals come and go while the service runs.
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    ensure_folder(configuration)
    os.chown(configuration, 0, entry.pw_gid)
    configuration.chmod(0o750)


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROGRAM_SECONDS_MAX,
        )
    except subprocess.CalledProcessError as error:
        raise TurkuError(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TurkuError(f"{' '.join(command)} failed: {error}") from error

"""Letting check-ins happen by themselves: systemd units and timers, or cron lines."""

from __future__ import annotations

import hashlib
import logging
import socket
import subprocess
import sys
from pathlib import Path

from turku_core.agent.settings import Locations
from turku_core.agent.templates import render
from turku_core.configuration import ensure_folder, write_durably
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.metrics import units

logger = logging.getLogger(__name__)

PING = "turku-agent-ping"
UPDATE = "turku-update-config"

_SYSTEMD = Path("etc/systemd/system")
_SYSTEMD_RUNS = Path("/run/systemd/system")
"""Is there exactly when systemd is the running system's manager, sd_booted(3)."""

_CRON = Path("etc/cron.d/turku-agent")
_UNITS = (
    f"{PING}.service",
    f"{PING}.timer",
    f"{UPDATE}.service",
    f"{UPDATE}.timer",
)
_TIMERS = tuple(name for name in _UNITS if name.endswith(".timer"))
_SYSTEMCTL_SECONDS = 60
_CHECKIN_MINUTES = 5
_EXPORTER = "turku-agent"
"""What the units of the metrics are named after."""


def program(name: str) -> Path:
    """Return the absolute path of a console script of this very installation.

    Raises:
        ConfigurationError: It isn't where scripts belong, or its path can't stand in a unit.
    """
    path = Path(sys.argv[0]).absolute().with_name(name)
    if not path.is_file():
        path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise ConfigurationError(f"The program {name} isn't beside {sys.argv[0]}.")
    if not all(c.isascii() and (c.isalnum() or c in "/._+-@") for c in str(path)):
        # systemd.unit(5) and crontab(5) have quoting rules of their own; nobody needs them here.
        raise ConfigurationError(
            f"{path} has a character that a unit file or a cron line could misread: install the "
            "agent under a plain path."
        )
    return path


def install_systemd(root: Path) -> list[Path]:
    """Write the units and timers, and start the timers when `root` is the running system.

    The two ways exclude each other, so cron lines of ours are taken away.

    Returns:
        The files that were changed.
    """
    if root == Path("/") and not _SYSTEMD_RUNS.is_dir():
        raise TurkuError("This host doesn't run systemd: use turku-update-config install-cron.")
    listen = _metrics_listen(root)
    changed = []
    for unit in _UNITS:
        text = render(
            f"{unit}.j2",
            ping=program(PING),
            update=program(UPDATE),
            minutes=_CHECKIN_MINUTES,
        )
        changed += _write(root / _SYSTEMD / unit, text)
    changed += _remove(root / _CRON)
    if root == Path("/"):
        _systemctl("daemon-reload")
        _systemctl("enable", "--now", *_TIMERS)
    exporter = units.Exporter(
        program=_EXPORTER,
        command=f"{program(PING)} --metrics --http",
        user="root",
        installer="turku-update-config install-systemd",
    )
    return [*changed, *units.install(root, exporter, listen)]


def _metrics_listen(root: Path) -> str | None:
    return units.read_listen(Locations(root).configuration)


def install_cron(root: Path) -> list[Path]:
    """Write the cron lines, for hosts without systemd.

    cron has no random delay, so the machine's ID says at which minute and second its turn is.
    Units of ours are taken away.

    Returns:
        The files that were changed.
    """
    place = _place(root)
    text = render(
        "turku-agent.cron.j2",
        ping=program(PING),
        update=program(UPDATE),
        minutes=_CHECKIN_MINUTES,
        first_minute=place % _CHECKIN_MINUTES,
        second=place // _CHECKIN_MINUTES % 60,
        hourly_minute=place // (_CHECKIN_MINUTES * 60) % 60,
    )
    if _metrics_listen(root) is not None:
        logger.warning("%s needs systemd: without it nobody listens there.", units.OPTION)
    return [*_write(root / _CRON, text), *_remove_units(root)]


def _place(root: Path) -> int:
    """Return a large number that is this machine's own, and the same at every call."""
    locations = Locations(root)
    try:
        name = locations.machine_id.read_bytes()
    except OSError:
        name = socket.gethostname().encode()
    return int.from_bytes(hashlib.sha256(b"turku-agent cron:" + name).digest()[:8], "big")


def uninstall(root: Path) -> list[Path]:
    """Take the units, the timers and the cron lines away; identity and configuration stay.

    Returns:
        The files that were removed.
    """
    return [*_remove_units(root), *_remove(root / _CRON)]


def _remove_units(root: Path) -> list[Path]:
    metrics = units.remove(root, _EXPORTER)
    ours = [root / _SYSTEMD / unit for unit in _UNITS]
    if not any(unit.exists() for unit in ours):
        return metrics
    is_running = root == Path("/") and _SYSTEMD_RUNS.is_dir()
    if is_running:
        _systemctl("disable", "--now", *_TIMERS)
    removed = [path for unit in ours for path in _remove(unit)]
    if is_running:
        _systemctl("daemon-reload")
    return [*removed, *metrics]


def _write(path: Path, text: str) -> list[Path]:
    if path.exists() and path.read_text("utf-8") == text:
        return []
    ensure_folder(path.parent)
    write_durably(path, text, 0o644)
    return [path]


def _remove(path: Path) -> list[Path]:
    try:
        path.unlink()
    except FileNotFoundError:
        return []
    return [path]


def _systemctl(*words: str) -> None:
    try:
        subprocess.run(
            ["systemctl", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise TurkuError(f"systemctl {words[0]} did not end in time.") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise TurkuError(f"systemctl {words[0]} failed: {said}.") from error

"""Letting metrics be scraped: a socket that systemd listens on, and a process for each scrape.

Nothing runs between two scrapes, and what makes the metrics needs no right to listen.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from turku_core import fields
from turku_core.configuration import ensure_folder, read_folder, write_durably
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.fields import FieldError

OPTION = "metrics_listen"

_SYSTEMD = Path("etc/systemd/system")
_SYSTEMD_RUNS = Path("/run/systemd/system")
"""Is there exactly when systemd is the running system's manager, sd_booted(3)."""

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_SYSTEMCTL_SECONDS = 60


@dataclass(frozen=True)
class Exporter:
    """One program's metrics, as they are to be scraped.

    Attributes:
        program: ``turku-api``, ``turku-agent`` or ``turku-storage``; the units are named after it.
        command: What answers one scrape on standard input and output; its path is absolute.
        user: Whom it runs as.
        installer: The command that writes the units, for their first line.
        needs_network: Whether it reaches anything beyond this host's files.
    """

    program: str
    command: str
    user: str
    installer: str
    needs_network: bool = False

    @property
    def socket(self) -> str:
        """The name of the socket unit."""
        return f"{self.program}-metrics.socket"

    @property
    def service(self) -> str:
        """The name of the service unit, a template: an instance for each scrape."""
        return f"{self.program}-metrics@.service"


def read_listen(folder: Path) -> str | None:
    """Return the option ``metrics_listen`` of a folder ``config.d``; None when it isn't set.

    Raises:
        ConfigurationError: It isn't an address and a port, or a file can't be read.
    """
    merged = read_folder(folder)
    value = merged.values.get(OPTION)
    if value is None or value == "":
        return None
    try:
        return fields.listen_address(value, OPTION)
    except FieldError as error:
        raise ConfigurationError(f"{merged.origin(OPTION)}: {error}.") from error


def install(root: Path, exporter: Exporter, listen: str | None) -> list[Path]:
    """Write the units and let systemd listen, or take them away when nothing is to be scraped.

    Below a `root` that isn't ``/`` only the files are written.

    Args:
        root: The root of the system.
        exporter: Whose metrics.
        listen: Where, such as ``127.0.0.1:9520``; None: nowhere.

    Returns:
        The files that were changed.

    Raises:
        TurkuError: systemd could not be told.
    """
    if listen is None:
        return remove(root, exporter.program)
    changed = []
    for name in (exporter.socket, exporter.service):
        path = root / _SYSTEMD / name
        text = render(name.replace(exporter.program, "turku"), exporter, listen)
        if not path.exists() or path.read_text("utf-8") != text:
            ensure_folder(path.parent)
            write_durably(path, text, 0o644)
            changed.append(path)
    if _is_live(root):
        if changed:
            _systemctl("daemon-reload")
        _systemctl("enable", exporter.socket)
        _systemctl("restart" if changed else "start", exporter.socket)
    return changed


def remove(root: Path, program: str) -> list[Path]:
    """Take the units of a program away, if they are there.

    Returns:
        The files that were removed.
    """
    socket = f"{program}-metrics.socket"
    there = [root / _SYSTEMD / name for name in (socket, f"{program}-metrics@.service")]
    there = [path for path in there if path.exists()]
    if there and _is_live(root):
        _systemctl("disable", "--now", socket)
    for path in there:
        path.unlink()
    if there and _is_live(root):
        _systemctl("daemon-reload")
    return there


def render(template: str, exporter: Exporter, listen: str) -> str:
    """Return the text of a unit; `template` is its name with ``turku`` for the program's."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        # Unit files, not HTML; what goes in has been checked.
        autoescape=False,
    )
    return environment.get_template(f"{template}.j2").render(exporter=exporter, listen=listen)


def _is_live(root: Path) -> bool:
    return root == Path("/") and _SYSTEMD_RUNS.is_dir()


def _systemctl(*words: str) -> None:
    try:
        subprocess.run(
            ["systemctl", *words],
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SYSTEMCTL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise TurkuError(f"systemctl {words[0]} did not end in time.") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise TurkuError(f"systemctl {' '.join(words)} failed: {said}.") from error

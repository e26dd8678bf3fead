"""The console script ``turku-api``: Django's management commands, and Turku's own.

``--root DIR`` may stand before the command. It has to be known before Django reads its settings,
so it is taken from the command line here; everything else is each command's own business.
Commands may be written with hyphens (``list-machines``) or underscores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from turku_core import __version__
from turku_core.commandline import add_common_options, run
from turku_core.errors import ConfigurationError

PROGRAM = "turku-api"
DATA_FOLDER = Path("var/lib/turku-api")
_RUN_AS_ROOT = frozenset({"install-service"})


@dataclass(frozen=True)
class CommandLine:
    """What was asked for: the words before the command's name, the name, and the words after."""

    root: Path
    verbose: bool
    command: str
    arguments: tuple[str, ...]


def main() -> NoReturn:
    """Run one command, and end the process with its exit code."""
    parsed = parse(sys.argv[1:])
    run(lambda _: run_command(parsed), argparse.Namespace(verbose=parsed.verbose))


def parse(words: Sequence[str]) -> CommandLine:
    """Split a command line into our options and the command; ends the process on bad usage."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Run the API and look after it.",
        epilog=f"`{PROGRAM} help` lists the commands; `{PROGRAM} COMMAND --help` explains one.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_common_options(parser)
    parser.add_argument("command", metavar="COMMAND", help="such as serve, list-machines, health")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(list(words))
    return CommandLine(
        root=parsed.root.absolute(),
        verbose=parsed.verbose,
        command=parsed.command.replace("_", "-"),
        arguments=tuple(parsed.arguments),
    )


def run_command(asked: CommandLine) -> int:
    """Set Django up for a root and run a command in it.

    Returns:
        The command's exit code; commands also end the process themselves.

    Raises:
        TurkuError: The command failed; the message is for the operator.
    """
    if asked.command not in _RUN_AS_ROOT:
        become_owner(asked.root / DATA_FOLDER)
    os.environ["TURKU_API_ROOT"] = str(asked.root)
    os.environ["DJANGO_SETTINGS_MODULE"] = "turku_core.api.settings"
    # Imported late: Django reads the settings of the root that was just named.
    from turku_core.api.management.utility import Utility

    Utility([PROGRAM, asked.command.replace("-", "_"), *asked.arguments]).execute()
    return 0


def become_owner(folder: Path) -> None:
    """Let root act as the account that the API runs as, to which its data folder belongs.

    A database file that root made could not be written by the API afterwards.
    """
    if os.geteuid() != 0 or not folder.is_dir():
        return
    status = folder.stat()
    if status.st_uid == 0:
        return
    try:
        os.setgroups([status.st_gid])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
    except PermissionError as error:
        raise ConfigurationError(
            f"{folder} belongs to user id {status.st_uid}: run {PROGRAM} as that user."
        ) from error
    # The caller's home and current folder may be closed to that account.
    os.environ["HOME"] = str(folder)
    os.chdir("/")

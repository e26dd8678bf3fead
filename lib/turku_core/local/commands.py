"""The console script ``turku-local``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from turku_core import __version__
from turku_core.commandline import add_json_option, print_json, print_table, run
from turku_core.errors import DONE, FAILED
from turku_core.local.demo import run_demo
from turku_core.local.layout import Layout, make_layout
from turku_core.local.parts import ADMIN
from turku_core.local.supervisor import Running, read_running
from turku_core.local.turku import LocalTurku, is_up, stop_detached

DEFAULT_SOURCE = Path("/usr/share/doc")


def main() -> NoReturn:
    """Run ``turku-local``, and end the process with its exit code."""
    arguments = make_parser().parse_args()
    run(arguments.body, arguments)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``turku-local``."""
    parser = argparse.ArgumentParser(
        prog="turku-local",
        description="Run a whole Turku on this machine, in one folder: for trying it.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    up = commands.add_parser("up", help="start it and leave it running")
    down = commands.add_parser("down", help="end it; its files stay")
    status = commands.add_parser("status", help="say whether it runs, and where")
    add_json_option(status)
    for command, body in ((up, _up), (down, _down), (status, _status)):
        command.add_argument(
            "folder",
            type=Path,
            nargs="?",
            default=default_folder(),
            metavar="FOLDER",
            help="where it lives (default: %(default)s)",
        )
        command.set_defaults(body=body)
    demo = commands.add_parser(
        "demo", help="back up a real tree, change it, restore it, compare, and expire"
    )
    demo.add_argument(
        "--source",
        type=Path,
        default=DEFAULT_SOURCE,
        metavar="PATH",
        help="the tree; the demo works on a copy of it (default: %(default)s)",
    )
    demo.set_defaults(body=_demo)
    for command in (up, down, status, demo):
        command.add_argument(
            "-v", "--verbose", action="store_true", help="say on standard error what is being done"
        )
    return parser


def default_folder() -> Path:
    """Return where a local Turku lives when no folder is named."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "turku-local"


def _up(arguments: argparse.Namespace) -> int:
    layout = make_layout(arguments.folder)
    if is_up(layout):
        print(f"The Turku in {layout.folder} is already up.")
    else:
        print(f"Starting a Turku in {layout.folder} ...", flush=True)
        LocalTurku(layout.folder).start(detached=True)
    running = read_running(layout)
    if running is not None:
        _print_where(layout, running)
    return DONE


def _print_where(layout: Layout, running: Running) -> None:
    print_table(
        ["What", "Where"],
        [
            ("administration site", running.admin_url),
            ("log in as", f"{ADMIN}, with the password in {layout.admin_password}"),
            ("API", running.api_url),
            ("its CA certificate", layout.ca_certificate),
            ("registration keys", layout.registration_keys),
            ("storage unit", f"{running.ssh_user}@127.0.0.1, port {running.ssh_port}"),
            ("its volume", layout.volume),
            ("logs", layout.logs),
        ],
    )
    print(f"End it with `turku-local down {layout.folder}`.")


def _down(arguments: argparse.Namespace) -> int:
    layout = make_layout(arguments.folder)
    if stop_detached(layout):
        print(f"The Turku in {layout.folder} has ended. Its files are still there.")
    else:
        print(f"No Turku runs in {layout.folder}.")
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    layout = make_layout(arguments.folder)
    running = read_running(layout)
    is_running = running is not None and is_up(layout)
    if arguments.json:
        print_json(
            {
                "up": is_running,
                "folder": str(layout.folder),
                "admin_url": running.admin_url if running and is_running else None,
                "api_url": running.api_url if running and is_running else None,
                "ca_certificate": str(layout.ca_certificate) if is_running else None,
            }
        )
    elif running is not None and is_running:
        _print_where(layout, running)
    else:
        print(f"No Turku runs in {layout.folder}.")
    return DONE if is_running else FAILED


def _demo(arguments: argparse.Namespace) -> int:
    return run_demo(arguments.source)

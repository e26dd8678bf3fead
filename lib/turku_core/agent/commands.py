"""The agent's console scripts: ``turku-update-config`` and ``turku-agent-ping``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from turku_core.agent.settings import Locations, Settings, load_settings
from turku_core.commandline import (
    add_json_option,
    make_parser,
    print_json,
    print_table,
    run,
    run_and_leave,
    set_log_level,
    usage_error,
)
from turku_core.errors import DONE, TRY_AGAIN_LATER, ConfigurationError
from turku_core.protocol.client import Client

if TYPE_CHECKING:
    from turku_core.agent.backup import Outcome
    from turku_core.agent.identity import Identity
    from turku_core.agent.sources import LocalSource

# An idle check-in imports this module and `checkin`, nothing else of the agent: see there.

logger = logging.getLogger(__name__)

WAIT_SECONDS_MAX = 3600
_AS_THE_API_SAYS = "the API's default"


def update_config() -> NoReturn:
    """Run ``turku-update-config``."""
    arguments = _update_config_parser().parse_args()
    run(_BODIES[arguments.action], arguments)


def _update_config_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "turku-update-config",
        "Tell the API who this machine is and what is to be backed up. Run it after every change "
        "of the configuration; the timer does so every hour.",
    )
    add_json_option(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the configuration and show what would be sent; send and make nothing",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0,
        metavar="SECONDS",
        help="go on trying for so long while the API can't be reached, or doesn't know yet that "
        "this machine may register",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="send what is valid also when something isn't; the API keeps the rest as it knows it",
    )
    parser.add_argument(
        "--new-identity",
        action="store_true",
        help="first make a new identity, as a clone of another machine needs it; the old one is "
        "kept beside it, not used any more",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=sorted(_BODIES),
        default="send",
        help="send: register and send the sources (the default); identity: make the machine's "
        "identity if it has none, show it and send nothing; install-systemd, install-cron: let "
        "check-ins happen every five minutes; uninstall: take either away again",
    )
    return parser


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > WAIT_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds up to {WAIT_SECONDS_MAX}")
    return int(text)


def _send(arguments: argparse.Namespace) -> int:
    from turku_core.agent.identity import ensure_identity
    from turku_core.agent.registration import machine_config, update_config_within
    from turku_core.agent.sent import note_sent, sources_to_send
    from turku_core.agent.sources import load_sources
    from turku_core.agent.status import refresh_status

    locations = Locations(arguments.root)
    settings = _settings(locations)
    loaded = load_sources(locations.sources)
    if arguments.keep_going:
        for problem in loaded.problems:
            logger.warning("%s", problem)
        sources = sources_to_send(loaded, locations)
    else:
        sources = loaded.checked()
    if arguments.dry_run:
        return _show_config(arguments, locations, settings, sources)
    identity = ensure_identity(locations, new=arguments.new_identity)
    client = _client(settings)
    update_config_within(arguments.wait, client, settings, identity, sources)
    note_sent(sources, locations)
    refresh_status(client, identity, locations)
    if arguments.json:
        config = machine_config(settings, identity, sources).to_json()
        print_json({"machine": {"uuid": identity.uuid, **config}, "sent": True})
    else:
        print(
            f"The API knows machine {settings.unit_name} ({identity.uuid}) and its "
            f"{_counted(len(sources), 'source')}."
        )
    return DONE


def _show_config(
    arguments: argparse.Namespace,
    locations: Locations,
    settings: Settings,
    sources: Mapping[str, LocalSource],
) -> int:
    from turku_core.agent.identity import NoIdentity, load_identity

    try:
        uuid = load_identity(locations).uuid
    except NoIdentity:
        uuid = None
    if arguments.json:
        machine = {"uuid": uuid, "unit_name": settings.unit_name, "published": settings.published}
        shown = {name: source.settings.to_json() for name, source in sources.items()}
        print_json({"machine": {**machine, "sources": shown}, "sent": False})
        return DONE
    print(f"Machine {settings.unit_name} ({uuid or 'identity not made yet'})")
    print_table(
        ("source", "path", "frequency", "retention", "from"),
        [
            (
                name,
                each.path,
                each.settings.frequency or _AS_THE_API_SAYS,
                each.settings.retention or _AS_THE_API_SAYS,
                each.origin,
            )
            for name, each in sources.items()
        ],
    )
    print("The configuration is valid. Nothing was sent.")
    return DONE


def _identity(arguments: argparse.Namespace) -> int:
    """Show who the machine is, so that the API can be told before the machine itself registers."""
    from turku_core.agent.identity import ensure_identity

    identity = ensure_identity(Locations(arguments.root), new=arguments.new_identity)
    public_key = identity.public_key()
    if arguments.json:
        print_json({"uuid": identity.uuid, "ssh_public_key": public_key.line})
    else:
        print(f"This is machine {identity.uuid}; its SSH key is\n{public_key.line}")
    return DONE


def _install_systemd(arguments: argparse.Namespace) -> int:
    from turku_core.agent.install import install_systemd

    return _report(install_systemd(arguments.root), arguments)


def _install_cron(arguments: argparse.Namespace) -> int:
    from turku_core.agent.install import install_cron

    return _report(install_cron(arguments.root), arguments)


def _uninstall(arguments: argparse.Namespace) -> int:
    from turku_core.agent.install import uninstall

    return _report(uninstall(arguments.root), arguments)


def _report(changed: list[Path], arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({"changed": [str(path) for path in changed]})
    else:
        print("\n".join(str(path) for path in changed) or "Nothing had to be changed.")
    return DONE


_BODIES = {
    "send": _send,
    "identity": _identity,
    "install-systemd": _install_systemd,
    "install-cron": _install_cron,
    "uninstall": _uninstall,
}


def agent_ping() -> NoReturn:
    """Run ``turku-agent-ping``."""
    parser = _agent_ping_parser()
    arguments = parser.parse_args()
    problem = _misuse(arguments)
    if problem is not None:
        usage_error(parser.prog, problem)
    _end_by_exception()
    for chosen, body in (
        (arguments.check, _check),
        (arguments.list, _list),
        (arguments.restore, _restore),
        (arguments.status, _status),
        (arguments.metrics, _metrics),
        (arguments.backup_now, _backup_now),
    ):
        if chosen:
            run(body, arguments)
    run_and_leave(_ping, arguments)


def _agent_ping_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "turku-agent-ping",
        "Check in and back up what is due; or list, restore, or check whether all is well.",
    )
    add_json_option(parser)
    parser.add_argument(
        "--restore",
        action="store_true",
        help="restore; without --source, open the restore folder and wait for an administrator of "
        "the storage unit",
    )
    parser.add_argument("--list", action="store_true", help="list the snapshots there are")
    parser.add_argument(
        "--check", action="store_true", help="say precisely what is wrong, if anything is"
    )
    parser.add_argument("--status", action="store_true", help="say how this machine's sources fare")
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="print this machine's metrics in Prometheus' text form",
    )
    parser.add_argument(
        "--http",
        action="store_true",
        help="with --metrics: answer the HTTP request on standard input, as the socket unit needs",
    )
    parser.add_argument(
        "--backup-now",
        action="store_true",
        help="back up at once, whatever the schedules say, and say how it went",
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME",
        dest="sources",
        help="the source to restore or to list; with --backup-now, which may have several, the "
        "sources to back up instead of all",
    )
    parser.add_argument(
        "--machine",
        metavar="UUID|NAME",
        help="another machine, now gone, that this one was allowed to restore",
    )
    parser.add_argument(
        "--snapshot",
        default="latest",
        metavar="ID|TIME",
        help="a snapshot's id, `latest` (the default), or a time such as 2026-11-22T10:30: the "
        "newest snapshot that isn't younger",
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="PATH",
        dest="paths",
        help="restore only this path of the source; may be given several times",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--target",
        type=Path,
        metavar="DIR",
        help="restore into this folder instead of one of its own in the restore folder",
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="restore over the source itself; every file that differs is replaced, newer ones too",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show what a restore would change"
    )
    return parser


_MODES = ("--check", "--status", "--metrics", "--backup-now", "--list", "--restore")


def _misuse(arguments: argparse.Namespace) -> str | None:
    """Return a sentence when options don't go together, or None."""
    chosen = [each for each in _MODES if getattr(arguments, each[2:].replace("-", "_"))]
    if len(chosen) > 1:
        return f"{chosen[0]} doesn't go with {chosen[1]}."
    if len(arguments.sources) > 1 and not arguments.backup_now:
        return "Only --backup-now takes several sources."
    unattended = arguments.restore and arguments.sources
    if not unattended:
        for option, given in (
            ("--path", arguments.paths),
            ("--in-place", arguments.in_place),
            ("--dry-run", arguments.dry_run),
            ("--snapshot", arguments.snapshot != "latest"),
        ):
            if given:
                return f"{option} needs --restore --source NAME."
    if not arguments.restore and arguments.target:
        return "--target needs --restore."
    if arguments.http and not arguments.metrics:
        return "--http needs --metrics."
    if not (unattended or arguments.list):
        if arguments.sources and not arguments.backup_now:
            return "--source needs --restore, --list or --backup-now."
        if arguments.machine:
            return "--machine needs --list, or --restore with --source NAME."
    return None


def _end_by_exception() -> None:
    """Let SIGTERM and SIGHUP end the agent as Ctrl-C does: by an exception, and cleanly.

    Whichever comes first is the last that counts, so that none of them disturbs the cleaning up.
    """

    def interrupt(number: int, frame: object) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        # Whoever started it under nohup(1) wants it to go on.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _settings(locations: Locations) -> Settings:
    """Read the configuration, and log as it says from here on."""
    settings = load_settings(locations)
    set_log_level(settings.log_level)
    return settings


def _client(settings: Settings) -> Client:
    return Client(settings.api_urls, settings.api_ca_certificate)


def _ping(arguments: argparse.Namespace) -> int:
    from turku_core.agent.checkin import is_go, ping
    from turku_core.agent.identity import load_identity
    from turku_core.agent.locks import held
    from turku_core.configuration import ensure_private_folder

    locations = Locations(arguments.root)
    settings = _settings(locations)
    identity = load_identity(locations)
    ensure_private_folder(locations.run)
    with held(locations.run / "ping.lock", wait=False) as alone:
        if not alone:
            logger.info("another turku-agent-ping is at work; it checks in for this machine too")
            return TRY_AGAIN_LATER
        if not is_go(settings.gonogo_program):
            logger.info("the go/no-go program says: not now")
            return TRY_AGAIN_LATER
        code, outcomes = ping(locations, identity, _client(settings))
        _keep_status(locations, identity, settings, is_old=bool(outcomes))
    if arguments.json or (sys.stdout.isatty() and outcomes):
        _print_outcomes(outcomes, as_json=arguments.json)
    return code


def _keep_status(
    locations: Locations, identity: Identity, settings: Settings, *, is_old: bool
) -> None:
    """Ask how the sources fare at the first check-in after one that had sessions."""
    if is_old:
        from turku_core.agent.status import mark_old

        mark_old(locations)
    elif locations.status_is_old.exists():
        from turku_core.agent.status import refresh_status

        refresh_status(_client(settings), identity, locations)


def _print_outcomes(outcomes: Mapping[str, Outcome], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "sources": {
                    name: {"outcome": outcome.word, "message": outcome.message}
                    for name, outcome in outcomes.items()
                }
            }
        )
        return
    print_table(
        ("source", "outcome", "message"),
        [(name, outcome.word, outcome.message) for name, outcome in outcomes.items()],
    )


def _status(arguments: argparse.Namespace) -> int:
    from datetime import datetime, timezone

    from turku_core.agent.identity import load_identity
    from turku_core.agent.status import ask_status, print_status, read_status
    from turku_core.errors import TryAgainLater

    locations = Locations(arguments.root)
    settings = _settings(locations)
    identity = load_identity(locations)
    try:
        status = ask_status(_client(settings), identity, locations, datetime.now(timezone.utc))
    except TryAgainLater:
        last = read_status(locations)
        if last is not None:
            # Better than nothing; the error and the exit code say that it isn't of now.
            print_status(last, as_json=arguments.json)
            sys.stdout.flush()
        raise
    print_status(status, as_json=arguments.json)
    return DONE


def _backup_now(arguments: argparse.Namespace) -> int:
    from turku_core import fields
    from turku_core.agent.backup_now import back_up_now
    from turku_core.agent.identity import load_identity
    from turku_core.agent.status import mark_old

    try:
        names = fields.items(arguments.sources, "--source", fields.name, fields.SOURCES_MAX)
    except fields.FieldError as error:
        raise ConfigurationError(f"{error}.") from error
    locations = Locations(arguments.root)
    settings = _settings(locations)
    identity = load_identity(locations)
    code, outcomes = back_up_now(locations, identity, _client(settings), names)
    mark_old(locations)
    _print_outcomes(outcomes, as_json=arguments.json)
    return code


def _restore(arguments: argparse.Namespace) -> int:
    from turku_core.agent.restore_commands import restore_command

    return restore_command(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from turku_core.agent.restore_commands import list_command

    return list_command(arguments)


def _metrics(arguments: argparse.Namespace) -> int:
    from turku_core.agent.metrics import metrics_text
    from turku_core.metrics import scrape

    return scrape.show(lambda: metrics_text(Locations(arguments.root)), http=arguments.http)


def _check(arguments: argparse.Namespace) -> int:
    from turku_core.agent.check import check_command

    return check_command(arguments)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

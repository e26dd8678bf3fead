"""The console scripts of a storage unit."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from turku_core import fields
from turku_core.commandline import (
    add_common_options,
    add_json_option,
    make_parser,
    print_json,
    run,
    run_and_leave,
    set_log_level,
)
from turku_core.errors import DONE, ConfigurationError
from turku_core.storage.settings import Paths, Settings, read_settings

_LOCAL_TIME = Path("/etc/localtime")


def _now() -> datetime:
    """Return the time in this host's time zone, in which a day of a retention policy begins."""
    return datetime.now(_local_zone())


def _local_zone() -> tzinfo:
    try:
        with _LOCAL_TIME.open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return timezone.utc


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _own_settings(arguments: argparse.Namespace) -> Settings:
    """Become the unit's user, and read its settings."""
    from turku_core.storage.privileges import become_owner

    become_owner(Paths(arguments.root))
    return _settings(arguments)


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = read_settings(arguments.root)
    if settings.log_level is not None:
        set_log_level(settings.log_level)
    return settings


# turku-storage-ping


def ping() -> None:
    """Run ``turku-storage-ping``, the forced command of a machine's SSH key."""
    parser = argparse.ArgumentParser(
        prog="turku-storage-ping",
        description="Serve one session of an agent on standard input and output. sshd runs it, as "
        "the forced command of the machine's key.",
    )
    add_common_options(parser)
    parser.add_argument("machine", metavar="UUID", help="the machine whose key has logged in")
    run_and_leave(_ping, parser.parse_args())


def _ping(arguments: argparse.Namespace) -> int:
    from turku_core.storage import ping as module
    from turku_core.storage.privileges import become_owner

    paths = Paths(arguments.root)
    become_owner(paths)
    module.set_up_logging(paths)
    return module.serve(arguments.root, arguments.machine, _utc_now)


# turku-storage-update-config


def update_config() -> None:
    """Run ``turku-storage-update-config``."""
    parser = make_parser(
        "turku-storage-update-config",
        "Register this storage unit with the API, or bring what the API knows of it up to date, "
        "and write the SSH keys of the machines that may come. The worker does the same by itself "
        "every 20 seconds.",
    )
    add_json_option(parser)
    run(_update_config, parser.parse_args())


def _update_config(arguments: argparse.Namespace) -> int:
    from turku_core.storage.ping import make_catalogue
    from turku_core.storage.registration import Known, ensure_identity
    from turku_core.storage.registration import update_config as update

    settings = ensure_identity(_own_settings(arguments))
    known = update(settings, settings.make_client(), make_catalogue(settings), Known())
    if arguments.json:
        print_json({"name": settings.name, "machines": sorted(known.machines)})
    else:
        count = len(known.machines)
        print(f"Storage unit {settings.name} is registered; {count} machines are assigned to it.")
    return DONE


# turku-storage-worker


def worker() -> None:
    """Run ``turku-storage-worker``."""
    parser = make_parser(
        "turku-storage-worker",
        "Make the snapshots of what sessions have brought, send reports, expire and verify. Runs "
        "until it is told to stop (SIGTERM).",
    )
    parser.add_argument(
        "--once", action="store_true", help="do everything that is due now, and end"
    )
    run(_worker, parser.parse_args())


def _worker(arguments: argparse.Namespace) -> int:
    from turku_core.storage.ping import make_catalogue
    from turku_core.storage.registration import ensure_identity
    from turku_core.storage.worker import Worker

    settings = ensure_identity(_own_settings(arguments))
    zone = _local_zone()
    made = Worker(settings, make_catalogue(settings), lambda: datetime.now(zone))
    return made.run_once() if arguments.once else made.run()


# turku-storage-expire and turku-storage


def expire() -> None:
    """Run ``turku-storage-expire``, the same as ``turku-storage expire``."""
    parser = make_parser("turku-storage-expire", _EXPIRE)
    _add_expire_options(parser)
    run(_expire, parser.parse_args())


_EXPIRE = (
    "Expire the snapshots that the retention policies no longer want, and remove those that "
    "expired longer ago than the grace period. The worker does it by itself every hour."
)


def _add_expire_options(parser: argparse.ArgumentParser) -> None:
    _add_selection(parser)
    parser.add_argument(
        "--now", action="store_true", help="remove what is expired without the grace period"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--trust-clock",
        action="store_true",
        help="the clock is right, although it jumped: expire by it, from now on",
    )
    add_json_option(parser)


def _expire(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator import Operator, Selection

    operator = Operator(_own_settings(arguments), _now(), as_json=arguments.json)
    return operator.expire(
        Selection(arguments.machine, arguments.source),
        remove_now=arguments.now,
        dry_run=arguments.dry_run,
        trust_clock=arguments.trust_clock,
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "machine", nargs="?", metavar="MACHINE", help="only of this machine: its UUID or its name"
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="only of this source of it")


def storage() -> None:
    """Run ``turku-storage``, the operator's tool."""
    parser = make_parser("turku-storage", "Look after the snapshots of this storage unit.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, body: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text.split(". ")[0].rstrip("."), description=text)
        made.set_defaults(body=body)
        # Also after the command's name; the default is that of the options before it.
        made.add_argument("--root", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        made.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )  # fmt: skip
        return made

    listing = add("list", _list, "List the snapshots.")
    _add_selection(listing)
    add_json_option(listing)
    usage = add("usage", _usage, "Say how full the volumes are, and what is being done.")
    add_json_option(usage)
    metrics = add("metrics", _metrics, "Print the metrics of this unit in Prometheus' text form.")
    metrics.add_argument(
        "--http",
        action="store_true",
        help="answer the HTTP request on standard input, as the socket unit needs it",
    )
    _add_restore_options(
        add(
            "restore",
            _restore,
            "Restore a snapshot to a folder, or to an agent that waits for it. Without --target "
            "the port and the user name are those that the agent's session printed, and the "
            "password comes from the environment variable RSYNC_PASSWORD or is asked for.",
        )
    )
    verify = add(
        "verify", _verify, "Verify snapshots now. Without a choice, all that aren't expired."
    )
    _add_selection(verify)
    verify.add_argument("--snapshot", metavar="ID", help="only this one")
    add_json_option(verify)
    _add_expire_options(add("expire", _expire, _EXPIRE))
    listed_holds = add(
        "holds",
        _holds,
        "List the sources of which nothing expires, because far more than usual changed, and why.",
    )
    _add_selection(listed_holds)
    add_json_option(listed_holds)
    release = add(
        "release",
        _release,
        "Let the snapshots of a machine, or of one source of it, expire again, after you have "
        "looked at what changed. What changed so much is from then on part of what is usual.",
    )
    release.add_argument("machine", metavar="MACHINE", help="its UUID or its name")
    release.add_argument("source", nargs="?", metavar="SOURCE", help="only this source of it")
    add_json_option(release)
    install = add(
        "install-service",
        _install,
        "Make the storage unit's user, its folders, sshd's part of it, and the service (on hosts "
        "without systemd: the cron line). What is there already stays.",
    )
    install.add_argument("--user", default="turku-storage", help="the unit's user")
    install.add_argument(
        "--uid", type=int, metavar="UID",
        help="the user's id if there is no such user yet, as that of backups that are there",
    )  # fmt: skip
    add(
        "uninstall-service",
        _uninstall,
        "Take the service, sshd's part and the machines' SSH keys away: no machine gets in any "
        "more. Backups, state, configuration and the user stay.",
    )
    arguments = parser.parse_args()
    run(arguments.body, arguments)


def _list(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator import Operator, Selection

    operator = Operator(_own_settings(arguments), _now(), as_json=arguments.json)
    return operator.list_snapshots(Selection(arguments.machine, arguments.source))


def _holds(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator import Operator, Selection

    operator = Operator(_own_settings(arguments), _now(), as_json=arguments.json)
    return operator.list_holds(Selection(arguments.machine, arguments.source))


def _release(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator import Operator, Selection

    operator = Operator(_own_settings(arguments), _now(), as_json=arguments.json)
    return operator.release(Selection(arguments.machine, arguments.source))


def _usage(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator import Operator

    return Operator(_own_settings(arguments), _now(), as_json=arguments.json).usage()


def _metrics(arguments: argparse.Namespace) -> int:
    from turku_core.metrics import scrape
    from turku_core.storage.metrics import metrics_text

    return scrape.show(lambda: metrics_text(_own_settings(arguments)), http=arguments.http)


def _verify(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator import Operator, Selection

    operator = Operator(_own_settings(arguments), _now(), as_json=arguments.json)
    return operator.verify(Selection(arguments.machine, arguments.source), arguments.snapshot)


def _add_restore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="MACHINE", help="its UUID or its name")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument(
        "--snapshot",
        default="latest",
        metavar="WHICH",
        help="an id, `latest` (the default), `mirror`, or a time in ISO 8601",
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        dest="paths",
        metavar="PATH",
        help="only this path, relative to the source's folder; may be given again",
    )
    parser.add_argument("--target", type=Path, metavar="DIR", help="the folder to restore to")
    parser.add_argument("--to-port", type=int, metavar="PORT", help="the waiting agent's port")
    parser.add_argument("--username", metavar="NAME", help="the waiting agent's user name")
    parser.add_argument(
        "--into-filled-folder", action="store_true", help="the folder needn't be empty"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    parser.add_argument(
        "--checksum", action="store_true", help="compare contents, whatever sizes and times say"
    )
    add_json_option(parser)


def _restore(arguments: argparse.Namespace) -> int:
    from turku_core.storage.operator_restore import RestoreOrder, restore
    from turku_core.storage.privileges import acting_as, become_owner, find_owner

    if (arguments.target is None) == (arguments.to_port is None):
        raise ConfigurationError("Say where to restore to: --target DIR, or --to-port PORT.")
    paths = Paths(arguments.root)
    owner = find_owner(paths)
    if arguments.target is None:
        # Only files that stay on this host need root, for their owners.
        become_owner(paths)
    with acting_as(owner):
        settings = _settings(arguments)
    try:
        order = RestoreOrder(
            machine=arguments.machine,
            source=fields.name(arguments.source, "source"),
            snapshot=fields.snapshot_id(arguments.snapshot, "--snapshot"),
            paths=tuple(arguments.paths),
            target=arguments.target,
            port=arguments.to_port,
            username=None
            if arguments.username is None
            else fields.name(arguments.username, "--username"),
            into_filled_folder=arguments.into_filled_folder,
            dry_run=arguments.dry_run,
            checksum=arguments.checksum,
        )
        password = None if arguments.target is not None else _password()
        return restore(settings, owner, order, password, as_json=arguments.json)
    except fields.FieldError as error:
        raise ConfigurationError(f"{error}.") from error


def _password() -> str:
    found = os.environ.pop("RSYNC_PASSWORD", None)
    if found is None:
        if not sys.stdin.isatty():
            raise ConfigurationError(
                "The waiting agent's password is missing: set RSYNC_PASSWORD as the agent printed."
            )
        found = getpass.getpass("The waiting agent's password: ")
    return fields.secret(found, "RSYNC_PASSWORD")


def _install(arguments: argparse.Namespace) -> int:
    from turku_core.storage.install import install

    try:
        user = fields.user(arguments.user, "--user")
        uid = arguments.uid
        if uid is not None:
            uid = fields.integer(uid, "--uid", 1, 2**31)
    except fields.FieldError as error:
        raise ConfigurationError(f"{error}.") from error
    installed = install(arguments.root, user, uid)
    for path in installed.changed:
        print(f"Wrote {path}")
    for note in installed.notes:
        print(note)
    print(
        f"Next: write {Paths(arguments.root).configuration}/turku-storage.yaml (api_url, "
        f"api_auth_name, api_auth_secret, volumes), then run turku-storage-update-config."
    )
    return DONE


def _uninstall(arguments: argparse.Namespace) -> int:
    from turku_core.storage.install import uninstall

    removed = uninstall(arguments.root)
    for path in removed.changed:
        print(f"Removed {path}")
    for note in removed.notes:
        print(note)
    if not removed.changed:
        print("Nothing had to be removed.")
    return DONE

"""``turku-api order-restore``."""

from __future__ import annotations

import sys
from time import monotonic, sleep
from typing import Any

from django.core.management.base import CommandParser

from turku_core.api import clock
from turku_core.api.management.command import (
    ReportingCommand,
    as_object,
    operator_name,
    order_row,
)
from turku_core.api.models import OrderState, RestoreOrder
from turku_core.api.operations import find_machine
from turku_core.api.restore_orders import order_restore
from turku_core.commandline import human_size, print_json
from turku_core.errors import DONE, FAILED, TRY_AGAIN_LATER

POLL_SECONDS = 1.0


class Command(ReportingCommand):
    """Orders a restore, which the machine fetches at its next check-in."""

    help = "Order that a machine restores a snapshot, its own or another machine's."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what to restore and where to."""
        super().add_arguments(parser)
        parser.add_argument("machine", help="whose snapshot: a unit name or UUID")
        parser.add_argument("source", help="which source of it")
        parser.add_argument(
            "--to-machine", metavar="MACHINE", help="who restores it (default: the same machine)"
        )
        parser.add_argument(
            "--snapshot",
            default="latest",
            metavar="ID|TIME",
            help="a snapshot's id, `latest` (the default), or a time such as 2026-11-22T10:30: "
            "then the newest snapshot that isn't younger",
        )
        parser.add_argument(
            "--path",
            action="append",
            default=[],
            dest="paths",
            metavar="PATH",
            help="only this path of the source; may be given several times",
        )
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--target",
            metavar="DIR",
            help="restore into this folder instead of a new one in the machine's restore folder",
        )
        where.add_argument("--in-place", action="store_true", help="restore over the source itself")
        parser.add_argument("--dry-run", action="store_true", help="only say what would change")
        parser.add_argument(
            "--wait",
            type=int,
            default=0,
            metavar="SECONDS",
            help="wait for the outcome, at most so long",
        )

    def handle(self, **options: Any) -> None:
        """Make the order, and wait for its end if that is wanted."""
        from_machine = find_machine(options["machine"])
        machine = find_machine(options["to_machine"]) if options["to_machine"] else from_machine
        keys = ("source", "snapshot", "paths", "target", "in_place", "dry_run")
        wish = {key: options[key] for key in keys}
        order = order_restore(machine, from_machine, wish, clock.now(), operator_name())
        if options["wait"] > 0:
            order = _wait(order, options["wait"])
        if options["json"]:
            print_json(as_object(order_row(order)))
        else:
            _print(order)
        code = _exit_code(order, waited=options["wait"] > 0)
        if code != DONE:
            sys.stdout.flush()
            sys.exit(code)


def _wait(order: RestoreOrder, seconds: float) -> RestoreOrder:
    deadline = monotonic() + seconds
    while order.is_open and monotonic() < deadline:
        sleep(POLL_SECONDS)
        order = RestoreOrder.objects.get(pk=order.pk)
    return order


def _exit_code(order: RestoreOrder, *, waited: bool) -> int:
    if order.is_open:
        return TRY_AGAIN_LATER if waited else DONE
    return DONE if order.state == OrderState.DONE else FAILED


def _print(order: RestoreOrder) -> None:
    for change in order.changes:
        print(change)
    what = f"Restore order {order.pk}: {order.source_name} of {order.from_unit_name}"
    if order.is_open:
        when = (
            "It is being carried out."
            if order.state == OrderState.RUNNING
            else "The machine fetches it at its next check-in, within 5 minutes."
        )
        print(f"{what} to {order.unit_name}. {when} {order.message}".rstrip())
    elif order.state == OrderState.DONE:
        verb = "would be restored" if order.dry_run else "is restored"
        amount = f": {order.files} files, {human_size(order.bytes)}" if order.files else ""
        print(
            f"{what}, snapshot {order.restored_snapshot}, {verb} on {order.unit_name} in "
            f"{order.restored_to}{amount}."
        )
    else:
        print(f"{what} to {order.unit_name}: {order.state}. {order.message}".rstrip())

"""Restore orders: made by an operator, fetched and carried out by a machine, reported by it.

An order is handed out to one session at a time. It is leased then, and the machine says at each
check-in that it is still at work; the order of a machine that vanished is handed out again, a few
times. What was carried out is on the record, whoever has cancelled it meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Min
from django.utils import timezone

from turku_core import fields
from turku_core.api import grants, logins
from turku_core.api.models import Machine, OrderState, RestoreOrder, Source, StorageUnit
from turku_core.api.models.restore_orders import OPEN_STATES
from turku_core.api.operations import GRANT_DEFAULT, NotPossible, find_source
from turku_core.api.refusals import NotHere
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError
from turku_core.protocol import restore_orders as protocol
from turku_core.protocol.messages import MachineLogin

log = logging.getLogger(__name__)

LAPSES_AFTER = timedelta(days=7)
"""An order that nobody fetched for so long isn't meant any more; its grant has ended too."""

LEASE = timedelta(minutes=15)
"""From a check-in to the next one of a machine that is at work: three of them."""

ATTEMPTS_MAX = 3
"""How often an order is handed out to a machine that then vanishes."""

BUSY_PAUSE = timedelta(minutes=1)
"""Until the next try when the storage unit was busy."""

GRANT_PAUSE = timedelta(seconds=10)
"""Until it is looked at again whether the storage unit has fetched the grant."""

_REPORTED = {
    "done": OrderState.DONE,
    "failed": OrderState.FAILED,
    "refused": OrderState.REFUSED,
}


def order_restore(
    machine: Machine, from_machine: Machine, wish: Mapping[str, Any], now: datetime, by: str
) -> RestoreOrder:
    """Order that a machine restores a snapshot of itself or another one.

    Onto another machine it also allows the restore, for a week.

    Args:
        machine: Who is to restore; it must be active.
        from_machine: Whose snapshot; it may be gone for good.
        wish: ``source``, ``snapshot``, ``paths``, ``target``, ``in_place``, ``dry_run``.
        now: An aware datetime.
        by: Who orders it, for the record.

    Raises:
        ConfigurationError: A value of the wish isn't valid.
        TurkuError: The order can't be carried out; the message says why.
    """
    checked = _checked(wish)
    if not machine.is_active:
        raise NotPossible(f"{machine.unit_name} is not active: it can't restore anything.")
    if find_source(from_machine, checked.source).storage_id is None:
        raise NotPossible(
            f"The source {checked.source} of {from_machine.unit_name} was never backed up."
        )
    if checked.in_place:
        find_source(machine, checked.source)
    with transaction.atomic():
        if machine.pk != from_machine.pk:
            _grant(machine, from_machine, now, by)
        order = RestoreOrder.objects.create(
            machine=machine,
            machine_uuid=machine.uuid,
            unit_name=machine.unit_name,
            from_machine=from_machine,
            from_machine_uuid=from_machine.uuid,
            from_unit_name=from_machine.unit_name,
            source_name=checked.source,
            snapshot=_with_zone(checked.snapshot),
            paths=list(checked.paths),
            target=checked.target or "",
            in_place=checked.in_place,
            dry_run=checked.dry_run,
            ordered_at=now,
            ordered_by=by,
            not_before=now,
        )
        _refresh_machine(machine.pk)
    log.info("restore order %s: %s, by %s", order.pk, order, by)
    return order


def _checked(wish: Mapping[str, Any]) -> protocol.RestoreOrder:
    """Check a wish as the machine will."""
    anything = "00000000-0000-4000-8000-000000000000"
    try:
        order = protocol.RestoreOrder.from_json({**wish, "id": anything}, "order")
        for field, texts in (("paths", order.paths), ("target", [order.target or ""])):
            for text in texts:
                _check_encoding(text, field)
    except FieldError as error:
        raise ConfigurationError(f"{error}.") from error
    return order


def _check_encoding(text: str, field: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError(field, "must be UTF-8; name the folder above it instead") from None


def _with_zone(snapshot: str) -> str:
    """Return a time with the zone that it is meant in here, which the machine can't know."""
    moment = fields.parse_moment(snapshot)
    if moment is None or moment.tzinfo is not None:
        return snapshot
    return timezone.make_aware(moment).isoformat()


def _grant(machine: Machine, from_machine: Machine, now: datetime, by: str) -> None:
    until = now + GRANT_DEFAULT
    if (
        not grants.live(now)
        .filter(machine=machine, from_machine=from_machine, until__gte=until)
        .exists()
    ):
        grants.grant_restore(machine, from_machine, until=until, now=now, created_by=by)


def cancel(order: RestoreOrder, now: datetime) -> None:
    """Take an order back that no machine has fetched yet.

    Raises:
        NotPossible: It is being carried out, or has ended.
    """
    with transaction.atomic():
        if order.machine_id is not None:
            # Before the order, as everywhere.
            Machine.objects.select_for_update(no_key=True).get(pk=order.machine_id)
        order = RestoreOrder.objects.get(pk=order.pk)
        if order.state != OrderState.ORDERED:
            raise NotPossible(f"The order {order.pk} is {order.state} already.")
        order.state, order.ended_at = OrderState.CANCELLED, now
        order.save(update_fields=["state", "ended_at"])
        if order.machine_id is not None:
            _refresh_machine(order.machine_id)


@dataclass(frozen=True)
class HandedOut:
    """What became of a machine's orders.

    Attributes:
        orders: The ones that were leased just now, as the machine is told of them.
        come_back: When the machine had better ask again for others; None: at its own time.
    """

    orders: Sequence[dict[str, Any]]
    come_back: timedelta | None = None


def hand_out(machine_id: int, now: datetime) -> HandedOut:
    """Lease the orders of a machine whose time has come."""
    with transaction.atomic():
        machine = Machine.objects.select_for_update(no_key=True).get(pk=machine_id)
        lapse(now, machine=machine)
        orders = machine.restore_orders.filter(state__in=OPEN_STATES, not_before__lte=now)
        chosen = list(orders.order_by("pk")[: protocol.ORDERS_MAX])
        handed_out = [_answer(order) for order in chosen if _lease(order, now)]
        _refresh_machine(machine_id)
    waits = any(order.state == OrderState.ORDERED for order in chosen)
    return HandedOut(handed_out, GRANT_PAUSE if waits else None)


def _lease(order: RestoreOrder, now: datetime) -> bool:
    hindrance = _hindrance(order)
    obstacle = "" if hindrance else _obstacle(order)
    if hindrance:
        order.state, order.ended_at, order.message = OrderState.FAILED, now, hindrance
    elif obstacle:
        order.state, order.message = OrderState.ORDERED, obstacle
        order.not_before = now + GRANT_PAUSE
    elif order.attempts >= ATTEMPTS_MAX:
        order.state, order.ended_at = OrderState.FAILED, now
        order.message = (
            f"The machine took the order {order.attempts} times and never reported; an agent from "
            "before there were orders passes them over."
        )
    else:
        order.state, order.message = OrderState.RUNNING, ""
        order.attempts += 1
        order.handed_out_at, order.not_before = now, now + LEASE
    order.save()
    return order.state == OrderState.RUNNING


def _unit_of(order: RestoreOrder) -> StorageUnit | None:
    sources = Source.objects.filter(machine=order.from_machine_id, name=order.source_name)
    source = sources.select_related("storage").first()
    return source.storage if source else None


def _hindrance(order: RestoreOrder) -> str:
    """Say why the order can't be carried out any more; empty when it can."""
    if _unit_of(order) is None:
        return "The source that is wanted isn't on the record, or on a storage unit, any more."
    return ""


def _obstacle(order: RestoreOrder) -> str:
    """Say why the machine would be refused now; empty when it wouldn't.

    The storage unit has to have fetched the grant, or it doesn't know the machine.
    """
    unit = _unit_of(order)
    if unit is None or order.from_machine_id == order.machine_id:
        return ""
    if unit.last_checkin_at is None or unit.last_checkin_at <= order.ordered_at:
        return f"Storage unit {unit.name} has not fetched yet who may restore."
    return ""


def _answer(order: RestoreOrder) -> dict[str, Any]:
    is_own = order.from_machine_uuid == order.machine_uuid
    return protocol.RestoreOrder(
        id=order.uuid,
        machine=None if is_own else order.from_machine_uuid,
        source=order.source_name,
        snapshot=order.snapshot,
        paths=tuple(order.paths),
        target=order.target or None,
        in_place=order.in_place,
        dry_run=order.dry_run,
    ).to_json()


def extend(machine_id: int, running: Sequence[str], now: datetime) -> None:
    """Extend the leases of the orders that a machine says it is at work on."""
    with transaction.atomic():
        Machine.objects.select_for_update(no_key=True).get(pk=machine_id)
        RestoreOrder.objects.filter(
            machine=machine_id, uuid__in=running, state=OrderState.RUNNING
        ).update(not_before=now + LEASE)
        _refresh_machine(machine_id)


def not_later(machine: Machine, now: datetime) -> None:
    """Let a machine's orders wait no longer than they may, after the clock was ahead."""
    orders = machine.restore_orders.filter(state__in=OPEN_STATES)
    orders.filter(ordered_at__gt=now).update(ordered_at=now)
    orders.filter(not_before__gt=now + LEASE).update(not_before=now + LEASE)
    _refresh_machine(machine.pk)


def lapse(now: datetime, machine: Machine | None = None) -> int:
    """End the orders that are too old to be meant still, of all machines or one.

    Returns:
        How many there were.
    """
    old = RestoreOrder.objects.filter(
        state__in=OPEN_STATES, ordered_at__lte=now - LAPSES_AFTER, not_before__lte=now
    )
    if machine is not None:
        old = old.filter(machine=machine)
    return old.update(
        state=OrderState.LAPSED,
        ended_at=now,
        message=f"The machine did not carry it out within {LAPSES_AFTER.days} days.",
    )


def agent_restore_report(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Put on the record how a machine fared with an order. The same report again changes nothing.

    Raises:
        Refused: The machine isn't who it says.
        NotHere: It has no such order.
        FieldError: The report isn't valid.
    """
    login = MachineLogin.from_json(request)
    report = protocol.RestoreReport.from_json(fields.required(request, "order"), "order")
    machine = logins.machine_of(login)
    with transaction.atomic():
        Machine.objects.select_for_update(no_key=True).get(pk=machine.pk)
        order = machine.restore_orders.filter(uuid=report.id).first()
        if order is None:
            raise NotHere(f"machine {machine.uuid} has no restore order {report.id}")
        if order.state not in _REPORTED.values():
            _record(order, report, now)
            _refresh_machine(machine.pk)
    return {}


def _record(order: RestoreOrder, report: protocol.RestoreReport, now: datetime) -> None:
    order.message = report.message
    if report.outcome == "later":
        if order.is_open:
            order.state, order.attempts = OrderState.ORDERED, 0
            order.not_before = now + BUSY_PAUSE
    else:
        order.state, order.ended_at = _REPORTED[report.outcome], now
        order.restored_snapshot = report.snapshot or ""
        order.restored_to = report.target or ""
        order.files, order.bytes = report.files, report.bytes
        order.changes = list(report.changes)
        log.info("restore order %s: %s: %s. %s", order.pk, order, order.state, order.message)
    order.save()


def _refresh_machine(machine_id: int) -> None:
    """Store the earliest time at which an order of the machine may be handed out."""
    orders = RestoreOrder.objects.filter(machine=machine_id, state__in=OPEN_STATES)
    earliest = orders.order_by().aggregate(at=Min("not_before"))["at"]
    Machine.objects.filter(pk=machine_id).update(next_order_at=earliest)

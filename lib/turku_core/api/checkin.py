"""``agent_ping_checkin`` and ``agent_ping_restore``: what a machine is to do now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from turku_core.api import answers, clock_jumps, grants, leases, logins, restore_orders
from turku_core.api.models import Machine
from turku_core.api.refusals import Refused
from turku_core.protocol.messages import MachineLogin, last_handed_out_at_from_json
from turku_core.protocol.restore_orders import running_orders_from_json


def agent_ping_checkin(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer the sources that are due and the restores that were ordered, leased to the caller.

    Thousands of machines call this every five minutes, and hardly ever is anything due: then it
    is one read by the UUID's index and one write of a column without an index.
    """
    login = MachineLogin.from_json(request)
    running = running_orders_from_json(request["machine"])
    hears, last = last_handed_out_at_from_json(request["machine"])
    columns = ["pk", "secret_hash", "active", "next_due_at", "next_order_at", "last_checkin_at"]
    rows = Machine.objects.filter(uuid=login.uuid).order_by()
    if hears:
        rows = rows.annotate(unheard=leases.is_unheard_of(last, now))
        columns.append("unheard")
    nobody = (0, None, False, None, None, None, False)
    found = next(iter(rows.values_list(*columns)), nobody)
    pk, secret_hash, active, next_due_at, next_order_at, seen_at, *unheard = found
    logins.check_secret(login.secret, secret_hash)
    if not active:
        raise Refused
    Machine.objects.filter(pk=pk).update(last_checkin_at=now)
    if clock_jumps.has_gone_back(seen_at, now):
        next_due_at, next_order_at = clock_jumps.set_right(pk, now)
    answer: dict[str, Any] = {"scheduled_sources": {}}
    if running:
        restore_orders.extend(pk, running, now)
    pauses = []
    if next_order_at is not None and next_order_at <= now:
        ordered = restore_orders.hand_out(pk, now)
        pauses.append(ordered.come_back)
        if ordered.orders:
            answer["restore_orders"] = ordered.orders
    if any(unheard):
        leases.give_back(pk, last, now)
        next_due_at = now
    if next_due_at is not None and next_due_at <= now:
        handed_out = leases.hand_out(pk, now)
        pauses.append(handed_out.come_back)
        answer["scheduled_sources"] = answers.sources_to_back_up(handed_out.sources)
        if handed_out.sources:
            answer["handed_out_at"] = now.isoformat()
    waits = [pause.total_seconds() for pause in pauses if pause is not None]
    if waits:
        answer["come_back_seconds"] = min(waits)
    return {"machine": answer}


def agent_ping_restore(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer every source that the machine may restore, and what grants let it restore besides."""
    machine = logins.machine_of(MachineLogin.from_json(request))
    answer: dict[str, Any] = {"sources": grants.answers_of(machine, published=True)}
    former = grants.restore_sources(machine, now)
    if former:
        answer["restore_from"] = former
    return {"machine": answer}

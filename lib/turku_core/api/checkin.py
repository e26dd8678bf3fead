"""``agent_ping_checkin`` and ``agent_ping_restore``: what a machine is to do now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from turku_core.api import answers, grants, leases, logins
from turku_core.api.models import Machine
from turku_core.api.refusals import Refused
from turku_core.protocol.messages import MachineLogin


def agent_ping_checkin(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer the sources that are due, leased to the caller.

    Thousands of machines call this every five minutes, and hardly ever is anything due: then it
    is one read by the UUID's index and one write of a column without an index.
    """
    login = MachineLogin.from_json(request)
    columns = ("pk", "secret_hash", "active", "next_due_at")
    rows = Machine.objects.filter(uuid=login.uuid).order_by().values_list(*columns)
    pk, secret_hash, active, next_due_at = next(iter(rows), (0, None, False, None))
    logins.check_secret(login.secret, secret_hash)
    if not active:
        raise Refused
    Machine.objects.filter(pk=pk).update(last_checkin_at=now)
    if next_due_at is None or next_due_at > now:
        return {"machine": {"scheduled_sources": {}}}
    sources = answers.sources_to_back_up(leases.hand_out(pk, now))
    return {"machine": {"scheduled_sources": sources}}


def agent_ping_restore(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer every source that the machine may restore, and what grants let it restore besides."""
    machine = logins.machine_of(MachineLogin.from_json(request))
    answer: dict[str, Any] = {"sources": grants.answers_of(machine, published=True)}
    former = grants.restore_sources(machine, now)
    if former:
        answer["restore_from"] = former
    return {"machine": answer}

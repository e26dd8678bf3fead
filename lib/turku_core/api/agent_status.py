"""``agent_status``: a machine asks how its own sources fare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db.models import Max
from django.utils import timezone

from turku_core.api import due, holds, logins, overdue, states
from turku_core.api.models import Machine, Snapshot, SnapshotState, Source
from turku_core.protocol.messages import MachineLogin
from turku_core.protocol.status import SourceStatus, statuses_to_json


def agent_status(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer how each source that the machine's configuration names fares.

    Raises:
        Refused: The machine isn't who it says.
    """
    machine = logins.machine_of(MachineLogin.from_json(request))
    return {"machine": {"sources": statuses_to_json(statuses_of(machine, now))}}


def statuses_of(machine: Machine, now: datetime) -> dict[str, SourceStatus]:
    """Return how each source that the machine's configuration names fares, by its name."""
    named = machine.sources.filter(published=True).select_related("machine", "storage")
    sources = list(overdue.with_last_failure(named).order_by("name"))
    behind = overdue.examine(sources, now.astimezone(timezone.get_default_timezone()))
    proven = _last_proven(machine)
    held = holds.reasons(sources)
    return {
        source.name: replace(
            _status(source, behind.get(source.pk), proven.get(source.pk), now),
            held=held.get(source.pk, ""),
        )
        for source in sources
    }


def _last_proven(machine: Machine) -> dict[int, datetime | None]:
    held = Snapshot.objects.filter(source__machine=machine).exclude(state=SnapshotState.REMOVED)
    return dict(held.order_by().values_list("source").annotate(Max("proven_at")))


def _status(
    source: Source, behind: overdue.Behind | None, proven: datetime | None, now: datetime
) -> SourceStatus:
    last_good = due.last_success_of(source)
    problem = source.problem
    if behind is not None:
        state, problem = behind.kind.value, behind.reason
    elif not due.is_wanted(source):
        state = _unwanted_state(source)
    elif source.lease_until is not None and source.lease_until > now:
        state = "running"
    else:
        state = "new" if last_good is None else "ok"
    return SourceStatus(
        state=state,
        last_good=last_good,
        next_due=source.next_due_at,
        overdue_since=None if behind is None else behind.since,
        problem=problem,
        failures=source.failures,
        last_proven=proven,
        requested=source.requested_at is not None,
    )


def _unwanted_state(source: Source) -> str:
    return "paused" if source.paused else states.machine_state(source.machine)

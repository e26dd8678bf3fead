"""``agent_status``: a machine asks how its own sources fare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.utils import timezone

from turku_core.api import due, holds, logins, overdue, states
from turku_core.api.models import Machine, Source
from turku_core.api.proofs import Unproven, find_unproven, worst_by_source
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
    unproven = worst_by_source(find_unproven(now, overdue.wanted_sources().filter(machine=machine)))
    held = holds.reasons(sources)
    return {
        source.name: replace(
            _status(source, behind.get(source.pk), unproven.get(source.pk), now),
            held=held.get(source.pk, ""),
        )
        for source in sources
    }


def _status(
    source: Source, behind: overdue.Behind | None, unproven: Unproven | None, now: datetime
) -> SourceStatus:
    last_good = due.last_success_of(source, now)
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
        last_proven=source.last_proven_at,
        requested=source.requested_at is not None,
        unproven=None if unproven is None else unproven.kind.value,
        unproven_since=None if unproven is None else unproven.since,
        unproven_reason="" if unproven is None else _reason(unproven),
    )


def _reason(unproven: Unproven) -> str:
    return f"Snapshot {unproven.snapshot.name}: {unproven.reason}"


def _unwanted_state(source: Source) -> str:
    return "paused" if source.paused else states.machine_state(source.machine)

"""``storage_ping_checkin``: a machine has a session with a storage unit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from turku_core import fields
from turku_core.api import answers, grants, leases, logins
from turku_core.api.models import Assignment, Machine, StorageUnit
from turku_core.api.refusals import NotHere
from turku_core.fields import FieldError, optional, required

ACTIONS = ("checkin", "restore", "list")


def storage_ping_checkin(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer the sources that the session is for.

    In a check-in these are the ones handed out to the machine, whose leases go on for as long as
    the session may last; in a restore or a listing, all that the machine has on this unit.

    Raises:
        Refused: The storage unit isn't who it says.
        NotHere: The machine has nothing on this unit, or isn't active.
    """
    unit = logins.storage_unit_of(request)
    body = fields.mapping(required(request, "machine"), "machine")
    uuid = fields.uuid(required(body, "uuid", "machine"), "machine.uuid")
    action = optional(request, "action", _action, "checkin")
    machine = Machine.objects.filter(uuid=uuid, active=True, published=True).first()
    if machine is None:
        raise NotHere(f"machine {uuid} is not known or not active")
    former = grants.restore_from(now, on_unit=unit, to_machines=[machine.pk]).get(machine.pk)
    if not former and not Assignment.objects.filter(machine=machine, storage=unit).exists():
        raise NotHere(f"machine {uuid} has nothing on storage unit {unit.name}")
    sources = _sources_for(action, machine, unit, now)
    answer = {"uuid": uuid, **answers.machine_names(machine), "scheduled_sources": sources}
    if former:
        answer["restore_from"] = former
    return {"machine": answer}


def _action(value: object, field: str) -> str:
    if isinstance(value, str) and value in ACTIONS:
        return value
    raise FieldError(field, f"must be one of {', '.join(ACTIONS)}, not {fields.shown(value)}")


def _sources_for(
    action: str, machine: Machine, unit: StorageUnit, now: datetime
) -> dict[str, dict[str, Any]]:
    if action == "checkin":
        found = answers.sources_to_back_up(leases.open_session(machine, unit, now))
    else:
        found = grants.answers_of(machine, storage=unit)
    ids = dict(machine.sources.values_list("name", "pk"))
    return {name: {**answer, "id": ids[name]} for name, answer in found.items()}

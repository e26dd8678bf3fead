"""What a machine may restore of another one, while a grant lasts."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any

from django.db.models import QuerySet

from turku_core.api import answers
from turku_core.api.models import Machine, RestoreGrant, StorageUnit
from turku_core.errors import TurkuError
from turku_core.fields import FieldError


def grant_restore(
    machine: Machine, from_machine: Machine, *, until: datetime, now: datetime, created_by: str = ""
) -> RestoreGrant:
    """Let `machine` list and restore the snapshots of `from_machine` until `until`.

    Raises:
        TurkuError: They are the same machine, `machine` isn't active, or `until` is over.
    """
    if machine.pk == from_machine.pk:
        raise TurkuError(f"{machine} restores its own snapshots without a grant.")
    if not machine.is_active:
        raise TurkuError(f"{machine} is not active: it can't restore anything.")
    if until <= now:
        raise TurkuError(f"The grant would have ended at {until.isoformat()}: choose a later time.")
    return RestoreGrant.objects.create(
        machine=machine, from_machine=from_machine, until=until, created_by=created_by
    )


def live(now: datetime) -> QuerySet[RestoreGrant]:
    """Return the grants that have not ended, of machines that exist."""
    return (
        RestoreGrant.objects.filter(
            until__gt=now,
            machine__active=True,
            machine__published=True,
            from_machine__isnull=False,
        )
        .select_related("machine", "from_machine")
        .order_by("until")
    )


def restore_from(
    now: datetime, *, on_unit: StorageUnit, to_machines: Collection[int] | None = None
) -> dict[int, dict[str, dict[str, Any]]]:
    """Return, for a storage unit, which machine may restore from which others.

    Args:
        now: The time; a grant that has ended isn't there any more.
        on_unit: Only machines that were let in on this unit are restored from.
        to_machines: Only these machines' grants, by id; None for all.

    Returns:
        For the id of each machine with a grant: the former machines' UUIDs and names.
    """
    found = live(now).filter(from_machine__assignments__storage=on_unit)
    if to_machines is not None:
        found = found.filter(machine__in=to_machines)
    result: dict[int, dict[str, dict[str, Any]]] = {}
    for grant in found:
        if grant.machine_id is not None and grant.from_machine is not None:
            result.setdefault(grant.machine_id, {})[grant.from_machine.uuid] = {
                **answers.machine_names(grant.from_machine),
                "until": grant.until.astimezone(timezone.utc).isoformat(),
            }
    return result


def restore_sources(machine: Machine, now: datetime) -> dict[str, dict[str, Any]]:
    """Return, for a machine, what it may restore of others: their names and sources by UUID."""
    result: dict[str, dict[str, Any]] = {}
    for grant in live(now).filter(machine=machine):
        former = grant.from_machine
        if former is not None:
            result[former.uuid] = {
                **answers.machine_names(former),
                "until": grant.until.astimezone(timezone.utc).isoformat(),
                "sources": answers_of(former),
            }
    return result


def answers_of(machine: Machine, **only: Any) -> dict[str, dict[str, Any]]:
    """Return the machine's sources that are on a storage unit, for a restore.

    A source whose filter can't be used any more is answered without it: a restore brings back
    what is in the snapshot.
    """
    found = {}
    sources = machine.sources.filter(storage__isnull=False, **only).select_related("storage")
    for source in sources.order_by("name"):
        try:
            found[source.name] = answers.source_answer(source)
        except FieldError:
            source.filter = []
            found[source.name] = answers.source_answer(source)
    return found

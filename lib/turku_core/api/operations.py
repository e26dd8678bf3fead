"""What an operator does, for the commands and the administration site alike.

Retiring, disabling and rotating are methods of the models; here is what involves more than one of
them, or the schedules, and how an operator's words find a row.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.db.models import Q

from turku_core import fields
from turku_core.api import due, grants
from turku_core.api.models import (
    FilterSet,
    Machine,
    RegistrationKey,
    RestoreGrant,
    Source,
    StorageUnit,
)
from turku_core.errors import ConfigurationError, TurkuError

GRANT_DEFAULT = timedelta(days=7)
GRANT_MAX = timedelta(days=366)
_DURATION = re.compile(r"([1-9][0-9]{0,5})\s*([mhdw])")
_DURATION_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class NotFound(TurkuError):
    """What the operator named isn't there, or is more than one; the message says how to look."""


class NotPossible(TurkuError):
    """What was asked for can't be done in the present state; the message says why."""


def parse_duration(text: str) -> timedelta:
    """Return the duration that ``90m``, ``12h``, ``7d`` or ``2w`` means.

    Raises:
        ConfigurationError: It means none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is no duration: write 90m, 12h, 7d or 2w.")
    return timedelta(**{_DURATION_UNITS[match[2]]: int(match[1])})


def find_machine(name: str) -> Machine:
    """Return the machine with a UUID or unit name.

    A unit name that several machines bear means the one that is active, if only one is.

    Raises:
        NotFound: There is none, or the name doesn't tell which.
    """
    found = list(Machine.objects.filter(Q(uuid=name.lower()) | Q(unit_name=name))[:20])
    exact = [machine for machine in found if machine.uuid == name.lower()]
    active = [machine for machine in found if machine.is_active]
    for candidates in (exact, found, active):
        if len(candidates) == 1:
            return candidates[0]
    if found:
        uuids = ", ".join(machine.uuid for machine in found)
        raise NotFound(f"Several machines are named {name}; say which by its UUID: {uuids}.")
    raise NotFound(f"There is no machine {name}; `turku-api list-machines --all` shows them.")


def find_source(machine: Machine, name: str) -> Source:
    """Return a machine's source.

    Raises:
        NotFound: It has none of that name; the message names those it has.
    """
    source = machine.sources.filter(name=name).select_related("machine", "storage").first()
    if source is None:
        names = ", ".join(machine.sources.values_list("name", flat=True)) or "none"
        raise NotFound(f"{machine.unit_name} has no source {name}; its sources: {names}.")
    return source


def find_storage_unit(name: str) -> StorageUnit:
    """Return the storage unit of that name.

    Raises:
        NotFound: There is none.
    """
    unit = StorageUnit.objects.filter(name=name).first()
    if unit is None:
        raise NotFound(f"There is no storage unit {name}; `turku-api list-storages` shows them.")
    return unit


def find_registration_key(name: str) -> RegistrationKey:
    """Return the registration key of that name.

    Raises:
        NotFound: There is none.
    """
    key = RegistrationKey.objects.filter(name=name).first()
    if key is None:
        raise NotFound(
            f"There is no registration key {name}; `turku-api list-registration-keys` shows them."
        )
    return key


def find_filter_set(name: str) -> FilterSet:
    """Return the filter set of that name.

    Raises:
        NotFound: There is none.
    """
    found = FilterSet.objects.filter(name=name).first()
    if found is None:
        raise NotFound(f"There is no filter set {name}; `turku-api list-filter-sets` shows them.")
    return found


def pause(subject: Machine | Source | StorageUnit) -> None:
    """Make no more backups of it, or on it, until `resume`; sessions that run are let end."""
    subject.paused = True
    if isinstance(subject, StorageUnit):
        subject.save(update_fields=["paused"])
        return
    subject.next_due_at = None
    subject.save(update_fields=["paused", "next_due_at"])
    if isinstance(subject, Source):
        due.refresh_machine(subject.machine)


def resume(subject: Machine | Source | StorageUnit, now: datetime) -> None:
    """Make backups again, on schedule; windows that went by meanwhile were not missed."""
    subject.paused = False
    subject.save(update_fields=["paused"])
    if isinstance(subject, Machine):
        due.begin_again(subject, now)
    elif isinstance(subject, Source):
        subject.since = now
        subject.save(update_fields=["since"])
        due.refresh(subject, now)
        due.refresh_machine(subject.machine)


def reinstate(machine: Machine, now: datetime) -> None:
    """Take back a machine that was retired or deactivated.

    Raises:
        NotPossible: Another active machine uses its SSH key by now.
    """
    machine.active = True
    machine.withdrawn = False
    machine.retired_at = None
    try:
        machine.full_clean()
    except ValidationError as error:
        raise NotPossible(
            f"{machine.unit_name} ({machine.uuid}) can't be taken back: {' '.join(error.messages)}"
        ) from error
    machine.save(update_fields=["active", "withdrawn", "retired_at"])
    due.begin_again(machine, now)


def users_of_filter_set(name: str) -> list[str]:
    """Return who merges a filter set: other sets, and the published sources of machines."""
    sources = Source.objects.filter(published=True).exclude(filter=[]).select_related("machine")
    return [
        *(f"filter set {each.name}" for each in FilterSet.objects.all() if _merges(each, name)),
        *(str(source) for source in sources if _merges(source, name)),
    ]


def _merges(holder: FilterSet | Source, name: str) -> bool:
    rules = holder.rules if isinstance(holder, FilterSet) else holder.filter
    return any(fields.filter_set_name(rule) == name for rule in rules)


def delete_filter_set(filter_set: FilterSet) -> None:
    """Delete a filter set.

    Raises:
        NotPossible: It is used; those sources could not be backed up any more.
    """
    users = users_of_filter_set(filter_set.name)
    if users:
        named = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        raise NotPossible(f"The filter set {filter_set.name} is used by {named}.")
    filter_set.delete()


def request_backups(machine: Machine, names: Collection[str], now: datetime) -> list[Source]:
    """Make sources of a machine due at once, whatever their schedules and failures say.

    Args:
        machine: Whose sources.
        names: Which; none: every one that is published and not paused.
        now: An aware datetime.

    Returns:
        The sources that the machine will be told of at its next check-in.

    Raises:
        NotFound: The machine has no source of a name.
        NotPossible: The machine, or a source that was named, makes no backups now.
    """
    if not machine.is_active:
        raise NotPossible(f"{machine.unit_name} is not active: it would be answered 403.")
    if machine.paused:
        raise NotPossible(
            f"{machine.unit_name} is paused: `turku-api resume machine {machine.uuid}` first."
        )
    chosen = [find_source(machine, name) for name in names] or list(
        machine.sources.filter(published=True, paused=False).select_related("machine", "storage")
    )
    if not chosen:
        raise NotPossible(f"{machine.unit_name} has no source that could be backed up.")
    for source in chosen:
        if source.paused:
            raise NotPossible(f"The source {source.name} of {machine.unit_name} is paused.")
        if not source.published:
            raise NotPossible(
                f"The source {source.name} is no longer in {machine.unit_name}'s configuration."
            )
    for source in chosen:
        source.requested_at = now
        # Nor does it wait for the pause after a failure.
        source.failures = 0
        source.save(update_fields=["requested_at", "failures"])
        due.refresh(source, now)
    due.refresh_machine(machine)
    return chosen


def allow_restore(
    machine: Machine, from_machine: Machine, duration: timedelta, now: datetime, by: str
) -> RestoreGrant:
    """Let a machine list and restore another one's snapshots, for a while.

    Args:
        machine: Who may restore; it must be active.
        from_machine: Whose snapshots; it may be gone for good.
        duration: For how long, at most a year.
        now: An aware datetime.
        by: Who allows it, for the record.

    Raises:
        TurkuError: The grant would mean nothing, or not end.
    """
    if not timedelta(0) < duration <= GRANT_MAX:
        raise NotPossible(f"A grant lasts at most {GRANT_MAX.days} days.")
    return grants.grant_restore(machine, from_machine, until=now + duration, now=now, created_by=by)

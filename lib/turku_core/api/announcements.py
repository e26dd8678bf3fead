"""Announcements: relations say which machines and storage units they consist of.

Whoever is announced may register (see `permit_registration`). Whoever was announced, and is no
longer by any unit, is gone: a machine is retired, a storage unit deactivated. The next
announcement takes back what went that way, and nothing that an operator has let go.

Rows are locked in one order: announcements, machines, storage units.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db import transaction
from django.db.models import QuerySet

from turku_core import fields
from turku_core.api.models import Announcement, KeyKind, Machine, RegistrationKey, StorageUnit
from turku_core.api.operations import NotPossible, reinstate
from turku_core.api.refusals import NotYet, Refused
from turku_core.credentials import PublicKey
from turku_core.errors import TryAgainLater
from turku_core.fields import FieldError, join, optional, required

log = logging.getLogger(__name__)

COLUMNS = (
    "machine_uuid",
    "ssh_public_key",
    "ssh_key_fingerprint",
    "unit_name",
    "storage_name",
)


@dataclass(frozen=True)
class Announced:
    """What a unit says it is: a machine with its SSH key, or a storage unit.

    Attributes:
        key: The registration key of the unit's relation.
        unit: The unit's name, unique in its relation.
        unit_name: The name by which operators know the machine.
    """

    key: str
    unit: str
    machine_uuid: str = ""
    ssh_public_key: PublicKey | None = None
    unit_name: str = ""
    storage_name: str = ""

    @classmethod
    def from_json(cls, value: object, place: str) -> Announced:
        """Check one item of the ``announcements``."""
        said = fields.mapping(value, place)
        key = fields.name(required(said, "key", place), join(place, "key"))
        unit = fields.label(required(said, "unit", place), join(place, "unit"))
        storage = optional(said, "storage", fields.name, "", place)
        if storage:
            if "machine_uuid" in said:
                raise FieldError(place, "must be of a machine or of a storage unit, not of both")
            return cls(key, unit, storage_name=storage)
        return cls(
            key,
            unit,
            fields.uuid(required(said, "machine_uuid", place), join(place, "machine_uuid")),
            fields.public_key(
                required(said, "ssh_public_key", place), join(place, "ssh_public_key")
            ),
            optional(said, "unit_name", fields.label, "", place),
        )

    def columns(self) -> dict[str, str]:
        """Return the values of the row's columns `COLUMNS`."""
        ssh_key = self.ssh_public_key
        return {
            "machine_uuid": self.machine_uuid,
            "ssh_public_key": ssh_key.line if ssh_key else "",
            "ssh_key_fingerprint": ssh_key.fingerprint if ssh_key else "",
            "unit_name": self.unit_name,
            "storage_name": self.storage_name,
        }


@dataclass
class AnnouncementChanges:
    """What announcements, or their withdrawal, have changed.

    Attributes:
        announced: The units whose announcement is new or another one now.
        reinstated, retired: UUIDs of machines.
        reactivated, deactivated: Names of storage units.
        problems: A sentence for each machine that could not be taken back.
    """

    announced: list[str] = field(default_factory=list)
    reinstated: list[str] = field(default_factory=list)
    reactivated: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    deactivated: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def announce(announced: Sequence[Announced], now: datetime) -> AnnouncementChanges:
    """Put announcements on the record, each in place of what its unit said before.

    All at once or not at all; the same announcements again change nothing.

    Raises:
        TryAgainLater: A key isn't there yet.
        NotPossible: A key is one that was made by hand, or lets in the other kind.
    """
    by_unit = {(each.key, each.unit): each for each in announced}
    changes = AnnouncementChanges()
    with transaction.atomic():
        keys = _keys_of(announced)
        said_before = Announcement.objects.filter(
            key__in=keys.values(), unit__in={each.unit for each in announced}
        )
        known = {(row.key.name, row.unit): row for row in _locked(said_before)}
        former = []
        for place, each in sorted(by_unit.items()):
            row = known.get(place)
            before = {} if row is None else {name: getattr(row, name) for name in COLUMNS}
            if before == each.columns():
                continue
            former.append(before)
            Announcement.objects.update_or_create(
                key=keys[each.key],
                unit=each.unit,
                defaults={**each.columns(), "announced_at": now},
            )
            changes.announced.append(each.unit)
        _let_go(
            {row["machine_uuid"] for row in former if row},
            {row["storage_name"] for row in former if row},
            now,
            changes,
        )
        _take_back(now, changes)
    return changes


def withdraw(key_name: str, unit: str | None, now: datetime) -> AnnouncementChanges:
    """Take back what a unit has announced, or (None) all units of a relation.

    A key or a unit that isn't known has announced nothing, so that nothing is left to do.
    """
    changes = AnnouncementChanges()
    with transaction.atomic():
        rows = Announcement.objects.filter(key__name=key_name)
        if unit is not None:
            rows = rows.filter(unit=unit)
        gone = list(_locked(rows))
        Announcement.objects.filter(pk__in=[row.pk for row in gone]).delete()
        _let_go(
            {row.machine_uuid for row in gone}, {row.storage_name for row in gone}, now, changes
        )
    return changes


def permit_registration(key: RegistrationKey, uuid: str, ssh_public_key: PublicKey) -> None:
    """Let a machine register with a key; one that comes from a relation needs an announcement.

    Inside the transaction that makes the machine: the announcement is locked, so that it can't be
    withdrawn unnoticed meanwhile.

    Raises:
        NotYet: No unit of the relation has announced the machine.
        Refused: It was announced with another SSH key.
    """
    if not key.from_relation:
        return
    announced = list(_locked(key.announcements.filter(machine_uuid=uuid)))
    if not announced:
        raise NotYet(
            f"The machine {uuid} has not been announced on its relation yet; this comes by itself "
            "within moments."
        )
    _check_ssh_key(announced, uuid, ssh_public_key)


def permit_ssh_key(machine: Machine, ssh_public_key: PublicKey) -> None:
    """Let a machine change its SSH key; one of a relation changes to a key that was announced.

    Raises:
        Refused: Another key was announced.
    """
    key = machine.registration_key
    if key is None or not key.from_relation:
        return
    announced = Announcement.objects.filter(machine_uuid=machine.uuid)
    if announced:
        _check_ssh_key(announced, machine.uuid, ssh_public_key)


def _check_ssh_key(
    announced: Collection[Announcement], uuid: str, ssh_public_key: PublicKey
) -> None:
    shown = ssh_public_key.fingerprint
    if shown not in {each.ssh_key_fingerprint for each in announced}:
        log.warning("machine %s shows the SSH key %s, which was not announced", uuid, shown)
        raise Refused


def _keys_of(announced: Sequence[Announced]) -> dict[str, RegistrationKey]:
    """Return the keys by name, or say why one can't be announced under."""
    names = {each.key for each in announced}
    keys = {key.name: key for key in RegistrationKey.objects.filter(name__in=names)}
    for each in announced:
        key = keys.get(each.key)
        if key is None:
            raise TryAgainLater(
                f"There is no registration key {each.key} yet; sync-registration-keys makes it."
            )
        kind = KeyKind.STORAGE if each.storage_name else KeyKind.MACHINE
        if not key.from_relation or key.kind != kind:
            raise NotPossible(
                f"{each.unit} can't be announced under the registration key {key.name}, which "
                + (f"lets in a {key.kind}." if key.from_relation else "was made by hand.")
            )
    return keys


def _locked(rows: QuerySet[Announcement]) -> QuerySet[Announcement]:
    return rows.select_related("key").select_for_update(of=("self",)).order_by("pk")


def _let_go(
    uuids: Collection[str], names: Collection[str], now: datetime, changes: AnnouncementChanges
) -> None:
    """Let go of those among the machines and storage units that nobody announces any more."""
    machines = Machine.objects.filter(
        uuid__in=uuids, active=True, registration_key__from_relation=True
    )
    # Whoever takes back another announcement of the same machine waits here: one is the last.
    for machine in machines.select_for_update(no_key=True, of=("self",)).order_by("pk"):
        if Announcement.objects.filter(machine_uuid=machine.uuid).exists():
            continue
        machine.retire(now, withdrawn=True)
        log.info("machine %s (%s) is retired: no unit announces it", machine.uuid, machine)
        changes.retired.append(machine.uuid)
    units = StorageUnit.objects.filter(
        name__in=names, active=True, registration_key__from_relation=True
    )
    for unit in units.select_for_update(no_key=True, of=("self",)).order_by("pk"):
        if Announcement.objects.filter(storage_name=unit.name).exists():
            continue
        unit.deactivate(withdrawn=True)
        log.info("storage unit %s is not active: no unit announces it", unit.name)
        changes.deactivated.append(unit.name)


def _take_back(now: datetime, changes: AnnouncementChanges) -> None:
    """Take back what a withdrawal let go, where somebody announces it again."""
    uuids = Announcement.objects.values("machine_uuid")
    for machine in Machine.objects.filter(withdrawn=True, uuid__in=uuids).order_by("pk"):
        try:
            reinstate(machine, now)
        except NotPossible as error:
            changes.problems.append(str(error))
        else:
            changes.reinstated.append(machine.uuid)
    names = Announcement.objects.values("storage_name")
    for unit in StorageUnit.objects.filter(withdrawn=True, name__in=names).order_by("pk"):
        unit.activate()
        changes.reactivated.append(unit.name)

"""``storage_update_config``: storage units register, and learn whom they serve."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q

from turku_core import credentials, fields
from turku_core.api import answers, grants, leases, logins
from turku_core.api.models import Assignment, KeyKind, Machine, RegistrationKey, StorageUnit
from turku_core.api.models.storage_units import DEFAULT_SLOTS
from turku_core.api.refusals import Refused
from turku_core.fields import optional, required
from turku_core.protocol.messages import StorageConfig, StorageLogin

log = logging.getLogger(__name__)


def storage_update_config(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Register the storage unit, or take over what it says of itself.

    Returns:
        The active machines that may open sessions with it, each with its SSH key; or, when the
        unit has that list already (`known_revision`), only that it is unchanged.

    Raises:
        Refused: A newcomer without a valid registration key, or a known name with another secret.
        NotYet: The unit's relation is gone, and it comes back when there is one; or too many units
            came with its key.
        FieldError: A field isn't valid; nothing is changed.
    """
    login = StorageLogin.from_json(request)
    known = StorageUnit.objects.filter(name=login.name).exists()
    key = None if known else logins.registration_key_of(request, KeyKind.STORAGE, now)
    if known:
        logins.storage_unit_of(request, waits_if_withdrawn=True)
    body = fields.mapping(required(request, "storage"), "storage")
    config = StorageConfig.from_json(body)
    version = optional(body, "version", _version, "", "storage")
    with transaction.atomic():
        unit = _save_unit(login, key, config, version, now)
        leases.renew(unit, config.running, now)
    # Outside the transaction, since a long list would keep other writers waiting on SQLite.
    machines = _machine_list(unit, now)
    revision = _revision_of(machines)
    if config.known_revision == revision:
        return {"machines": {}, "unchanged": True, "revision": revision}
    return {"machines": machines, "revision": revision}


def _version(value: object, field: str) -> str:
    return fields.text(value, field, 64)


def _save_unit(
    login: StorageLogin,
    key: RegistrationKey | None,
    config: StorageConfig,
    version: str,
    now: datetime,
) -> StorageUnit:
    values = {
        "ssh_ping_host": config.ssh_ping_host,
        "ssh_ping_port": config.ssh_ping_port,
        "ssh_ping_user": config.ssh_ping_user,
        "ssh_ping_host_keys": [public_key.line for public_key in config.ssh_ping_host_keys],
        "space_total": config.space_total,
        "space_available": config.space_available,
        "published": config.published,
        "slots": config.slots or DEFAULT_SLOTS,
        "told_high_water_mark": config.high_water_mark,
        "told_verify_interval_days": config.verify_interval_days,
        "capabilities": list(config.capabilities),
        "version": version,
        "last_checkin_at": now,
    }
    secret_hash = credentials.hash_secret(login.secret)
    unit, is_new = StorageUnit.objects.get_or_create(
        name=login.name,
        defaults={
            **values,
            "secret_hash": secret_hash,
            "registration_key": key,
        },
    )
    if is_new:
        log.info("storage unit %s has registered", login.name)
        return unit
    unit = StorageUnit.objects.select_for_update(no_key=True).get(pk=unit.pk)
    logins.check_secret(login.secret, unit.secret_hash)
    if not unit.active:
        raise Refused
    for name, value in values.items():
        setattr(unit, name, value)
    unit.save(update_fields=list(values))
    return unit


def _machine_list(unit: StorageUnit, now: datetime) -> dict[str, dict[str, Any]]:
    """Return the machines that the unit is to let in, and note which keys it is told."""
    may_restore = grants.restore_from(now, on_unit=unit)
    assignments = {each.machine_id: each for each in unit.assignments.all()}
    machines: dict[str, dict[str, Any]] = {}
    told = []
    listed = Machine.objects.filter(
        Q(pk__in=Assignment.objects.filter(storage=unit).values("machine")) | Q(pk__in=may_restore)
    )
    for machine in listed.filter(active=True, published=True).order_by("pk"):
        machines[machine.uuid] = {
            **answers.machine_names(machine),
            "comment": machine.comment,
            "ssh_public_key": machine.ssh_public_key,
        }
        if machine.pk in may_restore:
            machines[machine.uuid]["restore_from"] = may_restore[machine.pk]
        assignment = assignments.get(machine.pk)
        if assignment and assignment.announced_key != machine.ssh_key_fingerprint:
            assignment.announced_key = machine.ssh_key_fingerprint
            told.append(assignment)
    if told:
        Assignment.objects.bulk_update(told, ["announced_key"], batch_size=200)
    return machines


def _revision_of(machines: Mapping[str, Any]) -> str:
    """Return a name for the content of a machine list: the same content has the same name."""
    content = json.dumps(machines, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:32]

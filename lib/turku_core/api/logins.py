"""Who is calling: the secrets of machines and storage units, and registration keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from turku_core import credentials
from turku_core.api.models import KeyKind, Machine, RegistrationKey, StorageUnit
from turku_core.api.refusals import NotYet, Refused
from turku_core.fields import required
from turku_core.protocol.messages import Auth, MachineLogin, StorageLogin

log = logging.getLogger(__name__)

NEWCOMERS_MAX = 1000
NEWCOMERS_WITHIN = timedelta(minutes=10)
"""A key made by hand, in whoever's hands, lets in so many; a fleet of 3,000 is in after half an
hour. A relation's key needs no bound, since it lets in only who was announced."""

NOBODY = credentials.hash_secret("")
"""Compared with when there is nobody, so that an unknown name takes as long as a wrong secret."""


def check_secret(secret: str, secret_hash: str | None) -> None:
    """Raise `Refused` unless `secret_hash`, None for an unknown caller, is the secret's."""
    matches = credentials.secret_matches(secret, NOBODY if secret_hash is None else secret_hash)
    if secret_hash is None or not matches:
        raise Refused


def machine_of(login: MachineLogin, *, waits_if_withdrawn: bool = False) -> Machine:
    """Return the active machine that `login` is of.

    Args:
        login: What it shows.
        waits_if_withdrawn: Whether a machine that no unit announces is told to try again: when its
            relation is made anew, it may well be here before its announcement.

    Raises:
        Refused: There is none, it isn't active, or its secret is another one.
        NotYet: See `waits_if_withdrawn`.
    """
    machine = Machine.objects.filter(uuid=login.uuid).first()
    check_secret(login.secret, machine.secret_hash if machine else None)
    if machine is not None and machine.withdrawn and waits_if_withdrawn:
        raise NotYet(f"The machine {machine.uuid} is not announced on any relation at present.")
    if machine is None or not machine.active:
        raise Refused
    return machine


def storage_unit_of(request: Mapping[str, Any], *, waits_if_withdrawn: bool = False) -> StorageUnit:
    """Return the active storage unit that the request is of; raises as `machine_of` does."""
    login = StorageLogin.from_json(request)
    unit = StorageUnit.objects.filter(name=login.name).first()
    check_secret(login.secret, unit.secret_hash if unit else None)
    if unit is not None and unit.withdrawn and waits_if_withdrawn:
        raise NotYet(f"The storage unit {unit.name} is not announced on any relation at present.")
    if unit is None or not unit.active:
        raise Refused
    return unit


def registration_key_of(request: Mapping[str, Any], kind: str, now: datetime) -> RegistrationKey:
    """Return the active registration key of `kind` that a newcomer's ``auth`` shows.

    Raises:
        Refused: There is none.
        NotYet: It has let in as many newcomers lately as a key made by hand may.
        FieldError: ``auth`` is missing or has the wrong form.
    """
    auth = Auth.from_json(required(request, "auth"))
    # Looked up by the hash: what can be learnt from the time an index takes is about the hash,
    # and tells nothing of the secret. The oldest agents send no name.
    secret_hash = credentials.hash_secret(auth.secret)
    keys = RegistrationKey.objects.filter(kind=kind, active=True, secret_hash=secret_hash)
    if auth.name is not None:
        keys = keys.filter(name=auth.name)
    key = keys.first()
    if key is None:
        raise Refused
    _bound_newcomers(key, now)
    return key


def _bound_newcomers(key: RegistrationKey, now: datetime) -> None:
    """Raise `NotYet` when a key has let in too many lately.

    They are counted in the database, for all workers and all API units. Registrations that are
    under way at this moment aren't among them: there are never more of those than threads. What
    was registered in the future, by a clock that was wrong, doesn't count.
    """
    if key.from_relation:
        return
    newcomers = key.machines if key.kind == KeyKind.MACHINE else key.storage_units
    lately = newcomers.filter(registered_at__gt=now - NEWCOMERS_WITHIN, registered_at__lte=now)
    if len(lately.order_by().values_list("pk", flat=True)[:NEWCOMERS_MAX]) == NEWCOMERS_MAX:
        log.warning("registration key %s has let in %d newcomers lately", key.name, NEWCOMERS_MAX)
        raise NotYet(
            f"{NEWCOMERS_MAX} newcomers have registered with this key within "
            f"{NEWCOMERS_WITHIN.total_seconds() / 60:.0f} minutes; the next ones have to wait."
        )

"""What the other sides' units say they are, as the API records it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import ops

from registration_keys import KINDS, Key, key_name
from turku_charm.programs import Programs
from turku_core.credentials import hash_secret
from turku_core.fields import FieldError
from turku_core.relations import AgentUnit, StorageUnit

logger = logging.getLogger(__name__)

PROGRAM = "turku-api"


def announcement(relation: ops.Relation, unit: ops.Unit) -> dict[str, Any] | None:
    """Return what a unit says, as `turku-api announce` takes it; None while it says nothing.

    What isn't valid is logged and passed over: one unit must not hold up the others.
    """
    databag = relation.data[unit]
    place = {"key": key_name(relation), "unit": unit.name}
    try:
        if KINDS[relation.name] == "storage":
            storage = StorageUnit.from_databag(databag)
            return None if storage is None else {**place, "storage": storage.name}
        machine = AgentUnit.from_databag(databag)
    except FieldError as error:
        logger.warning("what %s says over the relation isn't valid: %s", unit.name, error)
        return None
    if machine is None:
        return None
    named = {} if machine.unit_name is None else {"unit_name": machine.unit_name}
    return {
        **place,
        **named,
        "machine_uuid": machine.machine_uuid,
        "ssh_public_key": machine.ssh_public_key.line,
    }


def announce(programs: Programs, units: Iterable[tuple[ops.Relation, ops.Unit]]) -> None:
    """Record what units say. Raises TurkuError."""
    said = [found for relation, unit in units if (found := announcement(relation, unit))]
    if said:
        given = json.dumps({"announcements": said})
        _log("announced", programs.run_json(PROGRAM, "announce", given=given))


def withdraw(programs: Programs, key: str, unit: str) -> None:
    """Take back what a unit that is gone had announced. Raises TurkuError."""
    done = programs.run_json(PROGRAM, "withdraw", "--key", key, "--unit", unit)
    _log(f"{unit} is gone", done)


def sync_keys(programs: Programs, keys: Iterable[Key]) -> None:
    """Make the API's registration keys of relations exactly these. Raises TurkuError."""
    given = json.dumps({"keys": [key.as_json() for key in keys]})
    _log("registration keys", programs.run_json(PROGRAM, "sync-registration-keys", given=given))


def fingerprint(keys: Iterable[Key]) -> str:
    """Return what tells whether keys have changed, and nothing of their secrets."""
    return hash_secret(json.dumps([key.as_json() for key in keys], sort_keys=True))


def _log(what: str, done: Any) -> None:
    for change, names in sorted(done.items()) if isinstance(done, dict) else ():
        if names:
            logger.info("%s: %s: %s", what, change, names)

"""``agent_backup_now``: a machine asks for backups of its own sources, outside their schedules."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from turku_core import fields
from turku_core.api import logins
from turku_core.api.operations import NotFound, NotPossible, request_backups
from turku_core.api.refusals import NotHere
from turku_core.fields import FieldError
from turku_core.protocol.messages import MachineLogin


def agent_backup_now(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Make the named sources of the machine due at once; none named: all of them.

    Raises:
        Refused: The machine isn't who it says.
        NotHere: It has no source of a name.
        FieldError: The machine or a source makes no backups now; the message says why.
    """
    login = MachineLogin.from_json(request)
    names = fields.optional(request, "sources", _names, ())
    machine = logins.machine_of(login)
    try:
        sources = request_backups(machine, names, now)
    except NotFound as error:
        raise NotHere(str(error)) from error
    except NotPossible as error:
        raise FieldError("sources", str(error)) from error
    return {"machine": {"sources": [source.name for source in sources]}}


def _names(value: object, field: str) -> tuple[str, ...]:
    return fields.items(value, field, fields.name, fields.SOURCES_MAX)

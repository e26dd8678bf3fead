"""How this machine's sources fare: asked of the API, kept in a file, shown to a person."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from turku_core import fields
from turku_core.agent.identity import Identity
from turku_core.agent.settings import Locations
from turku_core.commandline import human_time, print_json, print_table
from turku_core.configuration import ensure_private_folder, write_durably
from turku_core.errors import TurkuError
from turku_core.fields import FieldError
from turku_core.protocol.client import Client
from turku_core.protocol.status import SourceStatus, statuses_from_json, statuses_to_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """What the API said of this machine's sources.

    Attributes:
        asked_at: When it said so, aware.
        sources: How each source fares, by its name.
    """

    asked_at: datetime
    sources: Mapping[str, SourceStatus]

    def to_json(self) -> dict[str, Any]:
        """Return it as ``--status --json`` prints it and the file keeps it."""
        return {
            "asked_at": self.asked_at.astimezone(timezone.utc).isoformat(),
            "sources": statuses_to_json(self.sources),
        }


def ask_status(client: Client, identity: Identity, locations: Locations, now: datetime) -> Status:
    """Ask the API how the sources fare, and keep the answer in a file.

    Raises:
        TurkuError: The call failed, or the answer isn't valid; the file stays as it was.
    """
    answer = client.call("agent_status", {"machine": identity.login()})
    try:
        machine = fields.mapping(fields.required(answer, "machine"), "machine")
        sources = fields.required(machine, "sources", "machine")
        status = Status(now, statuses_from_json(sources, "machine.sources"))
    except FieldError as error:
        raise TurkuError(f"The API's answer is not valid: {error}.") from error
    write_durably(locations.status, json.dumps(status.to_json(), indent=2) + "\n", 0o600)
    with contextlib.suppress(FileNotFoundError):
        locations.status_is_old.unlink()
    return status


def refresh_status(client: Client, identity: Identity, locations: Locations) -> None:
    """Ask again, as far as that is possible: whatever was done before is worth more than this.

    A fielded API doesn't know the call.
    """
    try:
        ask_status(client, identity, locations, datetime.now(timezone.utc))
    except (TurkuError, OSError) as error:
        logger.info("how the sources fare can't be asked now: %s", error)


def mark_old(locations: Locations) -> None:
    """Let the next check-in ask again: what a session brought becomes a snapshot only after it."""
    ensure_private_folder(locations.run)
    locations.status_is_old.touch(mode=0o600)


def read_status(locations: Locations) -> Status | None:
    """Return what the API said last, or None when that isn't known."""
    try:
        values = fields.mapping(json.loads(locations.status.read_bytes()), "status")
        return Status(
            fields.moment(fields.required(values, "asked_at"), "asked_at"),
            statuses_from_json(fields.required(values, "sources"), "sources"),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s can't be read: %s.", locations.status, error)
        return None


def print_status(status: Status, *, as_json: bool) -> None:
    """Print a table, or JSON for a program."""
    if as_json:
        print_json(status.to_json())
        return
    if not status.sources:
        print("The API knows of no source of this machine: run turku-update-config.")
        return
    print_table(
        ("source", "state", "last good", "next due", "proven", "problem"),
        [
            (
                name,
                each.state,
                human_time(each.last_good),
                human_time(each.next_due),
                human_time(each.last_proven),
                " ".join(filter(None, (each.problem, each.held, each.unproven_reason))),
            )
            for name, each in status.sources.items()
        ],
    )

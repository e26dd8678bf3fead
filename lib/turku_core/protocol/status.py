"""How a machine's sources fare, as the API tells the machine (``agent_status``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from turku_core import fields
from turku_core.fields import FieldError, join, optional, required

STATES = ("ok", "new", "running", "overdue", "failing", "missed", "paused", "unpublished")
"""What the API says of a source. ``new``: it has no good backup yet, and isn't late with it."""

BEHIND = ("overdue", "failing", "missed")
"""The states of a source that lacks a backup that it should have."""


@dataclass(frozen=True)
class SourceStatus:
    """How one source fares.

    Attributes:
        state: One of `STATES`; a newer API may know more.
        last_good: When the last good backup of the source's data began.
        next_due: When it is due again.
        overdue_since: When the backup that is lacking was due; None when none is.
        problem: What keeps it from being backed up, a sentence; empty when nothing does.
        failures: How many runs failed in a row.
        last_proven: When the storage unit last proved that one of its snapshots can be restored.
        requested: Whether a backup is still wanted that was asked for, whatever its schedule says.
        held: Why nothing of the source expires, a sentence; empty when its expiry isn't held.
        unproven: In which way a snapshot of it isn't proven to be restorable: ``damaged``,
            ``drill-failed`` or ``drill-overdue``; None when all are.
        unproven_since: When that one should have been proven at the latest.
        unproven_reason: A sentence on it; empty when there is none.
    """

    state: str
    last_good: datetime | None = None
    next_due: datetime | None = None
    overdue_since: datetime | None = None
    problem: str = ""
    failures: int = 0
    last_proven: datetime | None = None
    requested: bool = False
    held: str = ""
    unproven: str | None = None
    unproven_since: datetime | None = None
    unproven_reason: str = ""

    @property
    def is_behind(self) -> bool:
        """Whether it lacks a backup that it should have."""
        return self.state in BEHIND

    @classmethod
    def from_json(cls, value: object, place: str) -> SourceStatus:
        """Check one source of an answer to ``agent_status``."""
        source = fields.mapping(value, place)
        return cls(
            state=fields.name(required(source, "state", place), join(place, "state")),
            last_good=optional(source, "last_good", fields.moment, None, place),
            next_due=optional(source, "next_due", fields.moment, None, place),
            overdue_since=optional(source, "overdue_since", fields.moment, None, place),
            problem=optional(source, "problem", fields.long_text, "", place),
            failures=optional(source, "failures", fields.integer, 0, place),
            last_proven=optional(source, "last_proven", fields.moment, None, place),
            requested=optional(source, "requested", fields.boolean, False, place),
            held=optional(source, "held", fields.long_text, "", place),
            unproven=optional(source, "unproven", fields.name, None, place),
            unproven_since=optional(source, "unproven_since", fields.moment, None, place),
            unproven_reason=optional(source, "unproven_reason", fields.long_text, "", place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as it goes on the wire; times are ISO 8601, in UTC."""
        return {
            "state": self.state,
            "last_good": _text(self.last_good),
            "next_due": _text(self.next_due),
            "overdue_since": _text(self.overdue_since),
            "problem": self.problem,
            "failures": self.failures,
            "last_proven": _text(self.last_proven),
            "requested": self.requested,
            "held": self.held,
            "unproven": self.unproven,
            "unproven_since": _text(self.unproven_since),
            "unproven_reason": self.unproven_reason,
        }


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat()


def statuses_from_json(value: object, place: str) -> dict[str, SourceStatus]:
    """Check the ``sources`` of an answer to ``agent_status``."""
    sources = fields.mapping(value, place)
    if len(sources) > fields.SOURCES_MAX:
        raise FieldError(place, f"must have at most {fields.SOURCES_MAX} sources")
    return {
        fields.name(name, f"{place}, source name"): SourceStatus.from_json(each, join(place, name))
        for name, each in sources.items()
    }


def statuses_to_json(sources: Mapping[str, SourceStatus]) -> dict[str, Any]:
    """Return what `statuses_from_json` reads."""
    return {name: each.to_json() for name, each in sources.items()}

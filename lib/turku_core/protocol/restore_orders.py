"""Restores that are ordered at the API: what a machine is told, and what it reports.

Both ends check what they get. Whether an order is allowed is the machine's own decision; these
types only say that it can be understood.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turku_core import fields
from turku_core.fields import FieldError, join, optional, required

ORDERS_MAX = 100
"""How many orders a machine is told of at once."""

PATHS_MAX = 1000
CHANGES_MAX = 1000
CHANGE_CHARACTERS_MAX = 1024

OUTCOMES = ("done", "failed", "refused", "later")
"""How an order ended. ``refused``: the machine doesn't allow it. ``later``: not now, try again."""


@dataclass(frozen=True)
class RestoreOrder:
    """A restore that an administrator of the API wants a machine to carry out.

    Attributes:
        id: The order's own UUID.
        machine: Whose snapshot, by UUID; None is the machine that carries it out.
        snapshot: A snapshot's id, ``latest``, or an ISO 8601 time.
        paths: What to restore; empty is all of the source.
        target: The folder to restore into; None is a new one in the restore folder.
    """

    id: str
    source: str
    machine: str | None = None
    snapshot: str = "latest"
    paths: tuple[str, ...] = ()
    target: str | None = None
    in_place: bool = False
    dry_run: bool = False

    @classmethod
    def from_json(cls, value: object, place: str) -> RestoreOrder:
        """Check one item of ``machine.restore_orders``."""
        order = fields.mapping(value, place)
        checked = cls(
            id=fields.uuid(required(order, "id", place), join(place, "id")),
            source=fields.name(required(order, "source", place), join(place, "source")),
            machine=optional(order, "machine", fields.uuid, None, place),
            snapshot=optional(order, "snapshot", fields.snapshot_id, "latest", place),
            paths=optional(order, "paths", _paths, (), place),
            target=optional(order, "target", fields.absolute_path, None, place),
            in_place=optional(order, "in_place", fields.boolean, False, place),
            dry_run=optional(order, "dry_run", fields.boolean, False, place),
        )
        if checked.in_place and checked.target is not None:
            raise FieldError(place, "must have a target or be in place, not both")
        return checked

    def to_json(self) -> dict[str, Any]:
        """Return the order as it stands in the answer to a check-in."""
        values = dataclasses.asdict(self) | {"paths": list(self.paths)}
        return {key: value for key, value in values.items() if value is not None}


def _paths(value: object, field: str) -> tuple[str, ...]:
    return fields.items(value, field, _path, PATHS_MAX)


def _path(value: object, field: str) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return fields.absolute_path(value, field)
    return fields.relative_path(value, field)


def orders_from_json(value: object, place: str) -> tuple[list[RestoreOrder], list[str]]:
    """Return the orders that can be understood, and a sentence for each of the others."""
    if not isinstance(value, list):
        return [], [f"{place}: must be a list, not {fields.shown(value)}."]
    orders, problems = [], []
    for index, each in enumerate(value[:ORDERS_MAX]):
        try:
            orders.append(RestoreOrder.from_json(each, f"{place}[{index}]"))
        except FieldError as error:
            problems.append(f"{error}.")
    return orders, problems


@dataclass(frozen=True)
class RestoreReport:
    """How a machine fared with an order.

    Attributes:
        id: The order's UUID.
        outcome: One of `OUTCOMES`.
        message: A sentence; empty when all is well.
        snapshot: Which snapshot it came to.
        target: Where the files are.
        changes: What a dry run would change, a line each; the first `CHANGES_MAX`.
    """

    id: str
    outcome: str
    message: str = ""
    snapshot: str | None = None
    target: str | None = None
    files: int | None = None
    bytes: int | None = None
    changes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: object, place: str) -> RestoreReport:
        """Check the ``order`` of an ``agent_restore_report``."""
        report = fields.mapping(value, place)
        outcome = required(report, "outcome", place)
        if outcome not in OUTCOMES:
            raise FieldError(join(place, "outcome"), f"must be one of {', '.join(OUTCOMES)}")
        return cls(
            id=fields.uuid(required(report, "id", place), join(place, "id")),
            outcome=outcome,
            message=optional(report, "message", fields.long_text, "", place),
            snapshot=optional(report, "snapshot", fields.snapshot_id, None, place),
            target=optional(report, "target", _shown_path, None, place),
            files=optional(report, "files", fields.integer, None, place),
            bytes=optional(report, "bytes", fields.integer, None, place),
            changes=optional(report, "changes", _changes, (), place),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as it goes on the wire."""
        values = dataclasses.asdict(self) | {"changes": list(self.changes)}
        return {key: value for key, value in values.items() if value is not None}


def _shown_path(value: object, field: str) -> str:
    return fields.text(value, field, fields.PATH_BYTES_MAX)


def _changes(value: object, field: str) -> tuple[str, ...]:
    def change(each: object, place: str) -> str:
        return fields.text(each, place, CHANGE_CHARACTERS_MAX)

    return fields.items(value, field, change, CHANGES_MAX)


def running_orders_from_json(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """Check the optional ``running_orders`` of a check-in: orders that are being carried out."""

    def ids(value: object, field: str) -> tuple[str, ...]:
        return fields.items(value, field, fields.uuid, ORDERS_MAX)

    return optional(machine, "running_orders", ids, (), "machine")

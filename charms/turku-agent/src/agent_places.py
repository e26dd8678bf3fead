"""What this unit's relations and its option say is to be backed up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ops

from agent_machine import Claim
from agent_sources import OPTION, Place, option_place, relation_place
from backup_request import Asked, read_request


@dataclass(frozen=True)
class Said:
    """What all places say at the moment.

    Attributes:
        places: In the order in which they may take names.
        hooks: The text of each program that hooks name; None: leave them as they are.
    """

    places: Sequence[Place]
    hooks: Mapping[str, str] | None


def read_places(
    model: ops.Model, principal: str | None, option: str, mine: Claim, hooks: Path
) -> Said:
    """Read the relations of this unit's principal, and the option.

    Args:
        model: Where the relations are.
        principal: The principal's unit; None while it isn't known: its relations stay as they were.
        option: The option ``sources``.
        mine: The unit's claim, with what the places said before.
        hooks: The folder of the hooks' programs.
    """
    last = option_place(option)
    if principal is None:
        former = [key for key in mine.places if key != OPTION]
        return Said([*(Place(key, mine.places[key].label, None) for key in former), last], None)
    asked = list(_asked(model, principal, mine, hooks))
    texts: dict[str, str] | None = {}
    for each in asked:
        texts = None if texts is None or each.hooks is None else {**texts, **each.hooks}
    stated = _stated(model, principal)
    return Said([*stated, *(each.place for each in asked), last], texts)


def _stated(model: ops.Model, principal: str) -> Iterator[Place]:
    """Read the `sources` relations; the unit in them is the principal's."""
    for relation in model.relations["sources"]:
        if relation.active:
            unit = next((unit for unit in relation.units if unit.name == principal), None)
            databag = {} if unit is None else relation.data[unit]
            yield relation_place(f"sources:{relation.id}", principal, databag)


def _asked(model: ops.Model, principal: str, mine: Claim, hooks: Path) -> Iterator[Asked]:
    """Read the `backup` relations of the principal's application; others are other machines'."""
    for relation in model.relations["backup"]:
        if relation.active and relation.app.name == principal.partition("/")[0]:
            key, databag = f"backup:{relation.id}", relation.data[relation.app]
            yield read_request(key, principal, databag, hooks, mine.places.get(key))

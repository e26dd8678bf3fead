"""Which storage unit a source is placed on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from turku_core.api.models import Assignment, Machine, Source, StorageUnit

NO_ROOM = (
    "No storage unit has room for a new source: each is at its high-water mark, paused, not active "
    "or silent. Add space or a unit; the source is placed at the machine's next check-in."
)

SILENT_AFTER = timedelta(hours=1)
"""A unit that hasn't been heard of for so long (twelve polls of five minutes) gets nothing new."""

_chance = random.SystemRandom()


def accepts_sources(unit: StorageUnit) -> bool:
    """Whether new sources may be placed on the unit."""
    return unit.active and unit.published and not unit.paused and not unit.is_at_high_water_mark


def is_homeless(source: Source) -> bool:
    """Whether the source needs a storage unit: it never had one, or that one is gone for good."""
    return source.storage is None or not source.storage.active


def draw(units: Sequence[StorageUnit], chance: random.Random) -> StorageUnit | None:
    """Draw one of the units that accept sources, in proportion to their free space."""
    open_units = [unit for unit in units if accepts_sources(unit)]
    weights = [max(unit.space_available, 0.0) for unit in open_units]
    if not sum(weights):
        return None
    return chance.choices(open_units, weights)[0]


def place(machine: Machine, source: Source, now: datetime, chance: random.Random = _chance) -> bool:
    """Place a homeless source on a storage unit, and let its machine in there.

    It joins the machine's other sources, on the unit that the machine came to last; when that
    one and the machine's others take nothing new, a unit is drawn. The caller saves the source.

    Returns:
        Whether it was placed; if not, `Source.problem` says why.
    """
    heard_of = StorageUnit.objects.filter(last_checkin_at__gte=now - SILENT_AFTER)
    own = heard_of.filter(assignments__machine=machine).order_by("-assignments__pk")
    unit = next((unit for unit in own if accepts_sources(unit)), None)
    if unit is None:
        unit = draw(list(heard_of), chance)
    if unit is None:
        source.problem = NO_ROOM
        return False
    Assignment.objects.get_or_create(machine=machine, storage=unit)
    source.storage = unit
    if source.problem == NO_ROOM:
        source.problem = ""
    return True

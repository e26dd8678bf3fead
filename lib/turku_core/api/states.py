"""One word for the state of a machine, a source or a storage unit, as an operator reads it."""

from __future__ import annotations

from turku_core.api.models import Machine, Source, StorageUnit


def machine_state(machine: Machine) -> str:
    """Return ``retired``, ``disabled``, ``unpublished``, ``paused`` or ``active``."""
    if machine.retired_at is not None:
        return "retired"
    return _state(machine.active, machine.published, machine.paused)


def source_state(source: Source) -> str:
    """Return ``unpublished``, ``paused`` or ``active``, as far as the source itself goes."""
    return _state(True, source.published, source.paused)


def storage_state(unit: StorageUnit) -> str:
    """Return ``disabled``, ``unpublished``, ``paused``, ``full`` or ``active``."""
    state = _state(unit.active, unit.published, unit.paused)
    return "full" if state == "active" and unit.is_at_high_water_mark else state


def _state(active: bool, published: bool, paused: bool) -> str:
    if not active:
        return "disabled"
    if not published:
        return "unpublished"
    return "paused" if paused else "active"

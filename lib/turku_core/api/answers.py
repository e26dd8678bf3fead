"""Sources and machines as the API answers them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from turku_core.api import filters
from turku_core.api.models import Machine, Source, StorageUnit
from turku_core.fields import FieldError

log = logging.getLogger(__name__)


def source_answer(source: Source) -> dict[str, Any]:
    """Return a SOURCE of the v1 protocol.

    The source must be placed on a storage unit.

    Raises:
        FieldError: Its filter merges a filter set that can't be used.
    """
    if source.storage is None:
        raise ValueError(f"{source} is on no storage unit")
    return {
        "path": source.path,
        "retention": source.retention,
        "bwlimit": source.bwlimit,
        "filter": filters.splice(source.filter, filters.stored_rules),
        "exclude": list(source.exclude),
        "shared_service": source.shared_service,
        "large_rotating_files": source.large_rotating_files,
        "large_modifying_files": source.large_modifying_files,
        "snapshot_mode": source.snapshot_mode or None,
        "preserve_hard_links": source.preserve_hard_links,
        "storage": storage_answer(source.storage),
    }


def sources_to_back_up(sources: Iterable[Source]) -> dict[str, dict[str, Any]]:
    """Return the answer for each source that is leased to the caller, by name.

    One whose filter set was changed since, and can't be used any more, is left out: without its
    filter, what must not leave the machine would.
    """
    found = {}
    for source in sources:
        try:
            found[source.name] = source_answer(source)
        except FieldError as error:
            log.warning("machine %s, source %s: %s", source.machine, source.name, error)
    return found


def storage_answer(unit: StorageUnit) -> dict[str, Any]:
    """Return how an agent reaches a storage unit."""
    return {
        "name": unit.name,
        "ssh_ping_host": unit.ssh_ping_host,
        "ssh_ping_host_keys": list(unit.ssh_ping_host_keys),
        "ssh_ping_port": unit.ssh_ping_port,
        "ssh_ping_user": unit.ssh_ping_user,
    }


def machine_names(machine: Machine) -> dict[str, str | None]:
    """Return the names of a machine; one that it doesn't have is null."""
    return {
        "environment_name": machine.environment_name or None,
        "service_name": machine.service_name or None,
        "unit_name": machine.unit_name,
    }

"""The arguments that ``pause`` and ``resume`` share: a machine, a source or a storage unit."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.management.base import CommandParser

from turku_core.api.models import Machine, Source, StorageUnit
from turku_core.api.operations import find_machine, find_source, find_storage_unit
from turku_core.errors import ConfigurationError

KINDS = ("machine", "source", "storage")


def add_subject(parser: CommandParser) -> None:
    """Add the arguments that name what is meant."""
    parser.add_argument("kind", choices=KINDS, help="what is meant")
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="the machine (unit name or UUID), and then the source's name; or the storage unit",
    )


def find_subject(kind: str, names: Sequence[str]) -> Machine | Source | StorageUnit:
    """Return what the arguments name.

    Raises:
        NotFound: It isn't there.
        ConfigurationError: There are too few or too many names.
    """
    expected = 2 if kind == "source" else 1
    if len(names) != expected:
        form = "source MACHINE SOURCE" if kind == "source" else f"{kind} NAME"
        raise ConfigurationError(f"Write it as: {form}.")
    if kind == "storage":
        return find_storage_unit(names[0])
    machine = find_machine(names[0])
    return machine if kind == "machine" else find_source(machine, names[1])

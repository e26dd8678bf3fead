"""The names by which an operator may call a machine: its UUID, or what people know it by."""

from __future__ import annotations

import os
from pathlib import Path

from turku_core import fields
from turku_core.errors import TurkuError
from turku_core.storage.links import readable_name
from turku_core.storage.registration import read_known
from turku_core.storage.settings import Paths


class NoSuchMachine(TurkuError):
    """No machine, or more than one, goes by that name here."""


def read_names(paths: Paths) -> dict[str, str]:
    """Return the readable name of each machine, by UUID: its link, or what the API calls it."""
    names = {
        uuid: readable_name(machine.environment_name, machine.service_name, machine.unit_name)
        for uuid, machine in read_known(paths.known_machines).machines.items()
    }
    return {**names, **_links(paths.state / "machines")}


def _links(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    links = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            links[Path(os.readlink(path)).name] = path.name
    return links


def find_machine(paths: Paths, text: str) -> str:
    """Return the UUID of the machine that an operator means.

    Raises:
        NoSuchMachine: None goes by that name, or several do.
    """
    try:
        return fields.uuid(text, "machine")
    except fields.FieldError:
        pass
    known = read_known(paths.known_machines).machines
    found = {uuid for uuid, name in read_names(paths).items() if name == text}
    found |= {uuid for uuid, machine in known.items() if machine.unit_name == text}
    if len(found) == 1:
        return found.pop()
    if found:
        raise NoSuchMachine(
            f"{fields.shown(text)} is the name of {len(found)} machines: say which by its UUID, "
            f"one of {', '.join(sorted(found))}."
        )
    raise NoSuchMachine(
        f"No machine is called {fields.shown(text)} here: turku-storage list shows those there are."
    )

"""What the tests of our charms on machines use: the store of charms, and short words for things."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from tests.model.runner.model import ActionFailed, Model, active

TREE = Path(__file__).resolve().parent.parent.parent
BUNDLES = TREE / "bundles"
BASE = "debian@12"
"""The machines' distribution."""

NEIGHBOURS = Path(__file__).resolve().parent / "neighbours"
"""Charms that stand for those of others, a folder each."""


def pack_store(folder: Path) -> dict[str, Path]:
    """Pack all charms into a folder, unless they lie there, and return them by name."""
    if not (folder / "packed").exists():
        command = [sys.executable, "-m", "tools.pack_charms", "--base", BASE, "--into", str(folder)]
        subprocess.run(command, cwd=TREE, check=True, capture_output=True)
        api = next(folder.glob("turku-api_*.charm"))
        for charm in sorted(NEIGHBOURS.iterdir()):
            if (charm / "metadata.yaml").exists():
                pack_folder(charm, folder, api)
        (folder / "packed").touch()
    return {file.stem.partition("_")[0]: file for file in folder.glob("*.charm")}


def pack_folder(charm: Path, folder: Path, with_packages: Path) -> Path:
    """Pack a neighbour; one with ``src/charm.py`` gets the packages of one of our charms.

    Args:
        with_packages: The packed charm whose `venv` it gets, for `ops` and the interface libraries.
    """
    file = folder / f"{charm.name}.charm"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(charm.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(charm))
        if (charm / "src/charm.py").exists():
            with zipfile.ZipFile(with_packages) as packed:
                for entry in packed.infolist():
                    if entry.filename.startswith("venv/") or entry.filename == "dispatch":
                        archive.writestr(entry, packed.read(entry))
    return file


def act(model: Model, unit: str, action: str, **parameters: Any) -> Any:
    """Run one of our actions and return its JSON. Raises ActionFailed."""
    return json.loads(model.run(unit, action, **parameters)["json"])


def backups(model: Model, machine: str, source: str | None = None) -> list[dict[str, Any]]:
    """Return the API's records of a machine's backups, newest first; none of an unknown machine."""
    wanted = {} if source is None else {"source": source}
    try:
        found = act(model, "turku-api/0", "list-backups", machine=machine, **wanted)["backups"]
    except ActionFailed:
        return []
    return list(found)


def wait_for_backup(
    model: Model, machine: str, source: str | None = None, count: int = 1, seconds_max: float = 120
) -> float:
    """Wait until the API has so many good backups on record; return for how many seconds."""

    def is_there(each: Model) -> bool:
        good = [one for one in backups(each, machine, source) if one["outcome"] == "succeeded"]
        return len(good) >= count

    return model.wait(is_there, seconds_max, f"for backup {count} of {machine} {source or ''}")


def well(model: Model) -> bool:
    """Whether every unit is active; for `wait`, after something was disturbed.

    Units that aren't look again, as Juju lets each of them every five minutes: what a status says
    of a moment in which the API was started again stays until then.
    """
    if active(model):
        return True
    lacking = [unit for unit, (word, _) in model.status().items() if word != "active"]
    if lacking and model.is_settled():
        model.update_status(*lacking)
    return False


def agent_beside(model: Model, principal: str) -> str:
    """Return the name of the turku-agent unit beside a principal's unit."""
    return next(unit.name for unit in model.entities.units() if unit.principal == principal)

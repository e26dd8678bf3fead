"""The small bundle on machines: from nothing to the first backup, the actions, and the end.

The packed charms are those of `make charms BASE=debian@12`, the machines' own distribution.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.model.runner.model import ActionFailed, Model, deploy_bundle

TREE = Path(__file__).resolve().parent.parent.parent
BASE = "debian@12"
FIRST_BACKUP_SECONDS = 60


def principal(folder: Path) -> Path:
    """Pack a principal that does nothing, as the `ubuntu` charm does."""
    file = folder / "ubuntu.charm"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.yaml", "name: ubuntu\n")
        entry = zipfile.ZipInfo("dispatch")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, "#!/bin/sh\nstatus-set active\n")
    return file


@pytest.fixture(scope="module")
def charms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packed charms by name."""
    folder = tmp_path_factory.mktemp("charms")
    command = [sys.executable, "-m", "tools.pack_charms", "--base", BASE, "--into", str(folder)]
    subprocess.run(command, cwd=TREE, check=True, capture_output=True)
    packed = {file.name.partition("_")[0]: file for file in folder.glob("turku-*.charm")}
    return {**packed, "ubuntu": principal(folder)}


def act(model: Model, unit: str, action: str, **parameters: Any) -> Any:
    """Run an action and return its JSON."""
    return json.loads(model.run(unit, action, **parameters)["json"])


def backups(model: Model, machine: str) -> list[dict[str, Any]]:
    """Return the records of a machine's backups; none as long as it isn't known."""
    try:
        found: list[dict[str, Any]] = act(model, "turku-api/0", "list-backups", machine=machine)[
            "backups"
        ]
    except ActionFailed:
        return []
    return found


def test_the_small_bundle_backs_up_a_machine_that_comes_later_and_restores_it(
    image: Path, charms: dict[str, Path]
) -> None:
    with Model(image) as model:
        deploy_bundle(
            model,
            TREE / "bundles/turku.yaml",
            lambda name: charms[Path(name).name.partition("_")[0]],
        )
        model.settle(300)
        assert {name: word for name, (word, _) in model.status().items()} == {
            "turku-api/0": "active",
            "turku-storage/0": "active",
            "turku-agent/0": "active",
            "ubuntu/0": "active",
        }

        model.deploy(charms["ubuntu"], "web")
        model.settle(60)
        model.integrate("web:juju-info", "turku-agent:host")
        took = model.wait(lambda each: bool(backups(each, "web/0")), 120, "for the first backup")
        print(f"first backup {took:.0f} s after the relation")
        assert took < FIRST_BACKUP_SECONDS
        assert backups(model, "web/0")[0]["outcome"] == "succeeded"

        agent = next(unit.name for unit in model.entities.units() if unit.principal == "web/0")
        machine = model.machine_of(agent)
        machine.run(["sh", "-c", "echo precious >/etc/precious"])
        act(model, agent, "backup-now")
        model.wait(lambda each: len(backups(each, "web/0")) > 1, 60, "for the second backup")
        machine.run(["rm", "/etc/precious"])
        act(model, agent, "restore", source="etc", paths=["precious"], in_place=True)
        assert machine.run(["cat", "/etc/precious"]) == "precious\n"
        assert len(act(model, agent, "list-snapshots")["snapshots"]) == 2
        assert act(model, "turku-api/0", "health")["state"] == "OK"
        act(model, "turku-storage/0", "verify")
        act(model, "turku-storage/0", "expire", now=True)

        model.remove_unit("web/0")
        model.wait(lambda each: "web/0" not in each.status(), 120, "for web/0 to go")
        model.settle(120)
        left = machine.run(
            ["sh", "-c", "ls -d /opt/turku* /etc/turku* /etc/systemd/system/turku* || true"]
        )
        assert [line for line in left.splitlines() if line.startswith("/")] == []
        machines = act(model, "turku-api/0", "list-machines", all=True)["machines"]
        assert {each["unit"]: each["state"] for each in machines}["web/0"] == "retired"
        assert backups(model, "web/0")

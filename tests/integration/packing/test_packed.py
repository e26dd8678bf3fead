"""The packed charms run on this host: Juju's ``dispatch`` starts them, and so does their workload.

The hook is one that no charm acts on, so that nothing of this host changes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.hook_tools import Unit
from tests.support.packed import CHARMS, PYTHON, Packing, unpack

INSTALL = """
import sys
from pathlib import Path
from turku_charm.workload import Workload

workload = Workload(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
assert workload.install() and not workload.install()
print(workload.version(), workload.bin)
"""


@pytest.fixture
def unit(request: pytest.FixtureRequest, packing: Packing, tmp_path: Path) -> Unit:
    """Unpack the charm that the test is about, with hook tools for it."""
    charm_dir = unpack(packing.packed(request.param), tmp_path / request.param)
    return Unit.make(charm_dir, tmp_path / "tools")


ACTIONS = {
    "turku-agent": "list-snapshots",
    "turku-api": "health",
    "turku-storage": "usage",
}


@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_dispatch_starts_the_charm(unit: Unit) -> None:
    done = unit.dispatch("hooks/leader-settings-changed", PYTHON)
    assert done.returncode == 0, done.stderr
    said = unit.calls("juju-log")
    assert any(call.endswith("up and running.") for call in said)
    assert [call for call in said if "ERROR" in call] == []


@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_an_action_on_a_machine_without_the_workload_fails_with_a_sentence(unit: Unit) -> None:
    done = unit.dispatch(f"actions/{ACTIONS[unit.charm_dir.name]}", PYTHON)
    assert done.returncode == 0, done.stderr
    [sentence] = unit.calls("action-fail")
    assert sentence.endswith(".")
    assert [call for call in unit.calls("juju-log") if "ERROR" in call] == []


@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_every_program_of_the_workload_runs_from_its_own_packages(
    unit: Unit, tmp_path: Path
) -> None:
    role = unit.charm_dir.name.removeprefix("turku-")
    unit.dispatch("hooks/leader-settings-changed", PYTHON)  # links venv/bin/python
    done = subprocess.run(
        [unit.charm_dir / "venv/bin/python", "-c", INSTALL, role, unit.charm_dir, tmp_path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(unit.charm_dir / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, folder = done.stdout.split()
    assert version == "1.0.0"
    # Gone with the next refresh of the charm, so nothing may need it.
    unit.charm_dir.rename(tmp_path / "elsewhere")
    scripts = sorted(Path(folder).glob("turku-*"))
    assert scripts
    for script in scripts:
        said = subprocess.run(
            [script, "--help"], capture_output=True, text=True, check=True, env={}
        )
        assert said.stdout.startswith("usage:") or "turku-api" in said.stdout

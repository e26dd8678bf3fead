"""The packed charms run: Juju's ``dispatch`` starts them, and so does their workload.

What would change this host runs on a throwaway copy of it. There is no systemd there, so what a
charm does to services is proven elsewhere.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.hook_tools import Unit
from tests.support.packed import CHARMS, PYTHON, Packing, unpack

STORAGE = {
    "storage-list": ["data/0"],
    "storage-get": {"kind": "filesystem", "location": "/var/lib/turku-api"},
}
ANSWERS: dict[str, dict[str, object]] = {"turku-api": {**STORAGE}}

ACTIONS = {
    "turku-agent": "list-snapshots",
    "turku-api": "health",
    "turku-storage": "usage",
}
PROGRAMS = {
    "turku-agent": "turku-agent-ping",
    "turku-api": "turku-api",
    "turku-storage": "turku-storage",
}


@pytest.fixture
def unit(request: pytest.FixtureRequest, packing: Packing, tmp_path: Path) -> Unit:
    """Unpack the charm that the test is about, with hook tools for it."""
    charm_dir = unpack(packing.packed(request.param), tmp_path / request.param)
    return Unit.make(charm_dir, tmp_path / "tools", PYTHON, ANSWERS.get(request.param, {}))


@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_dispatch_starts_the_charm(unit: Unit) -> None:
    # A hook that no charm acts on.
    done = unit.dispatch("hooks/leader-settings-changed")
    assert done.returncode == 0, done.stderr
    assert any(call.endswith("up and running.") for call in unit.calls("juju-log"))
    assert unit.errors() == []


@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_an_action_on_a_machine_without_the_workload_fails_with_a_sentence(unit: Unit) -> None:
    done = unit.dispatch(f"actions/{ACTIONS[unit.charm_dir.name]}")
    assert done.returncode == 0, done.stderr
    [sentence] = unit.calls("action-fail")
    assert sentence.endswith(".")
    assert unit.errors() == []


INSTALL = """
import sys
from pathlib import Path
from turku_charm.workload import Workload

workload = Workload(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
assert workload.install() and not workload.install()
print(workload.version(), workload.bin)
"""


@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_every_program_of_the_workload_runs_from_its_own_packages(
    unit: Unit, tmp_path: Path
) -> None:
    role = unit.charm_dir.name.removeprefix("turku-")
    unit.dispatch("hooks/leader-settings-changed")  # links venv/bin/python
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
    # The charm's folder is another one after its next refresh, so nothing may need it.
    unit.charm_dir.rename(tmp_path / "elsewhere")
    scripts = sorted(Path(folder).glob("turku-*"))
    assert scripts
    for script in scripts:
        subprocess.run([script, "--help"], capture_output=True, check=True, env={})


ON_A_COPY = """
set -eu
mount -t tmpfs tmpfs "$1/copy"
mkdir "$1/copy/upper" "$1/copy/work" "$1/copy/root"
mount -t overlay overlay "$1/copy/root" \\
    -o "lowerdir=/,upperdir=$1/copy/upper,workdir=$1/copy/work"
cd "$1/copy/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p ".$1"
mount --bind "$1" ".$1"
exec chroot . sh -eu "$1/life.sh"
"""


@pytest.mark.needs_root
@pytest.mark.parametrize("unit", CHARMS, indirect=True)
def test_a_unit_s_hooks_install_the_workload_and_take_it_away_again(
    unit: Unit, tmp_path: Path
) -> None:
    name = unit.charm_dir.name
    hooks = {
        hook: shlex.join(unit.command(f"hooks/{hook}"))
        for hook in ("install", "config-changed", "start", "update-status", "upgrade-charm",
                     "stop", "remove")
    }  # fmt: skip
    (tmp_path / "copy").mkdir()
    (tmp_path / "life.sh").write_text(
        f"cd {unit.charm_dir}\n"
        f"{hooks['install']}\n"
        f"readlink /opt/{name}/current\n"
        f"/opt/{name}/current/bin/{PROGRAMS[name]} --version\n"
        f"{hooks['config-changed']}\n{hooks['start']}\n{hooks['update-status']}\n"
        f"{hooks['upgrade-charm']}\n"
        f"readlink /opt/{name}/current\n"
        f"{hooks['stop']}\n{hooks['remove']}\n"
        f"ls -d /opt/{name} /etc/systemd/system/turku* 2>&1 || true\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", ON_A_COPY, "copy", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    installed, version, upgraded, *left = done.stdout.splitlines()
    assert installed.startswith("versions/1.0.0-")
    assert version.endswith("1.0.0")
    assert upgraded == installed
    assert [line for line in left if "No such file" not in line] == []
    assert unit.errors() == []

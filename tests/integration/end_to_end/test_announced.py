"""A machine of a relation: from its announcement to its first session, on the real parts.

The storage unit's own worker fetches the list of machines here, every 20 seconds, as it does on a
real unit: nothing is told to hurry.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from turku_core import credentials
from turku_core.local import parts
from turku_core.local.layout import program
from turku_core.local.turku import LocalTurku, Machine

KEY = "agents-7"


def tell(turku: LocalTurku, *words: str, given: Any = None) -> Any:
    """Run a command of the API as the charm does."""
    done = subprocess.run(
        [program("turku-api"), "--root", str(turku.layout.api), *words, "--json"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def machine(turku: LocalTurku, unit_name: str, tmp_path: Path) -> Machine:
    """A machine with a relation's key, a source and an identity, of which the API knows nothing."""
    secret = credentials.make_secret()
    keys = [{"name": KEY, "kind": "machine", "secret": secret}]
    tell(turku, "sync-registration-keys", given={"keys": keys})
    root = parts.set_up_machine(
        turku.layout, unit_name, turku.running.api_url, {"name": KEY, "secret": secret}, {}
    )
    machine = Machine(unit_name, root)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("content")
    machine.write_source("docs", {"path": str(tmp_path / "data")})
    return machine


@pytest.fixture
def newcomer(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """The machine's service turku-update-config, and turku-agent-ping after it."""
    commands = [
        machine.command("turku-update-config", "--wait", "120"),
        machine.command("turku-agent-ping"),
    ]
    script = " && ".join(" ".join(command) for command in commands)
    with subprocess.Popen(["sh", "-c", script], stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def announcement(machine: Machine) -> dict[str, Any]:
    identity = json.loads(machine.run("turku-update-config", "identity", "--json").output)
    return {
        "key": KEY,
        "unit": "agent/0",
        "machine_uuid": identity["uuid"],
        "ssh_public_key": identity["ssh_public_key"],
    }


def test_a_first_session_begins_within_a_minute_of_the_announcement(
    turku: LocalTurku, machine: Machine, newcomer: subprocess.Popen[str]
) -> None:
    known = announcement(machine)
    time.sleep(6)
    assert newcomer.poll() is None, "it waits to be announced"
    before = time.time()
    assert tell(turku, "announce", given={"announcements": [known]})["announced"] == ["agent/0"]
    _, errors = newcomer.communicate(timeout=120)
    assert newcomer.returncode == 0, errors
    turku.wait_until_committed(60)
    (record,) = json.loads(
        turku.api_run("list-backups", "--machine", machine.uuid, "--json").output
    )
    assert record["outcome"] == "succeeded"
    waited = datetime.fromisoformat(record["begun"]).timestamp() - before
    assert 0 < waited < 60

    # The machine's relation is removed and made again: its backups and it itself are still there.
    assert tell(turku, "withdraw", "--key", KEY)["retired"] == [machine.uuid]
    assert machine.run("turku-agent-ping", check=False).exit_code == 1
    assert machine.run("turku-update-config", check=False).exit_code == 75
    again = tell(turku, "announce", given={"announcements": [known]})
    assert again["reinstated"] == [machine.uuid]
    machine.run("turku-update-config")
    turku.update_storage()
    assert len(machine.snapshots()) == 1


def test_a_machine_with_another_ssh_key_than_announced_is_refused(
    turku: LocalTurku, machine: Machine
) -> None:
    other = credentials.make_ssh_key_pair("other")[1]
    known = {**announcement(machine), "ssh_public_key": other}
    tell(turku, "announce", given={"announcements": [known]})
    done = machine.run("turku-update-config", "--wait", "60", check=False)
    assert done.exit_code == 1
    assert "refused" in done.errors

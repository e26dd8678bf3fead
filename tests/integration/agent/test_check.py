"""``--check`` against a real sshd: each thing that can be wrong is told apart."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.stand_ins import AgentMachine, StandInUnit


@pytest.fixture
def checked(machine: AgentMachine, tree: Path) -> AgentMachine:
    machine.add_source("docs", tree)
    return machine


def problems(machine: AgentMachine, **environment: str) -> list[tuple[str, str]]:
    done = machine.run("turku-agent-ping", "--check", "--json", **environment)
    said = json.loads(done.output)
    found = [(each["subject"], each["message"]) for each in said["findings"] if not each["ok"]]
    assert done.code == (1 if found else 0)
    assert said["ok"] is not found
    return found


def move_unit(machine: AgentMachine, **address: Any) -> None:
    offered = machine.offered["sources"]
    offered["docs"] = {**offered["docs"], "storage": machine.unit.address(**address)}


def test_when_all_is_well_it_says_so(checked: AgentMachine) -> None:
    assert problems(checked) == []
    done = checked.run("turku-agent-ping", "--check")
    assert done.code == 0
    assert done.output.startswith("All is well")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ({"ssh_ping_host": "no-such-host.invalid"}, "can't be resolved"),
        ({"ssh_ping_port": 1}, "nothing listens there"),
        ({"ssh_ping_user": "nobody"}, "refuses this machine's SSH key"),
    ],
)
def test_the_way_to_the_unit_is_tried_step_by_step(
    checked: AgentMachine, address: dict[str, Any], words: str
) -> None:
    move_unit(checked, **address)
    ((subject, message),) = problems(checked)
    assert subject == "storage unit unit-0"
    assert words in message


def test_a_wrong_host_key_is_named(checked: AgentMachine) -> None:
    other = (checked.state / "ssh_key.pub").read_text().strip()
    move_unit(checked, ssh_ping_host_keys=[other])
    ((_, message),) = problems(checked)
    assert "host key" in message
    assert "SHA256:" in message


def test_a_refused_forward_is_named(checked: AgentMachine, unit: StandInUnit) -> None:
    unit.authorize((checked.state / "ssh_key.pub").read_text().strip(), forwarding=False)
    ((_, message),) = problems(checked)
    assert "AllowTcpForwarding" in message


def test_something_else_than_ssh_on_the_port_is_named(checked: AgentMachine) -> None:
    move_unit(checked, ssh_ping_port=int(checked.api.url.split(":")[2].split("/")[0]))
    ((_, message),) = problems(checked)
    assert "doesn't speak SSH" in message


def test_a_missing_path_and_a_missing_hook_are_named(checked: AgentMachine, tmp_path: Path) -> None:
    checked.add_source("gone", tmp_path / "gone", run_after_backup="/no/such/hook")
    messages = [message for subject, message in problems(checked) if subject == "source gone"]
    assert "isn't there" in messages[0]
    assert "/no/such/hook is missing" in messages[1]


def test_a_source_that_the_api_doesnt_know_is_named(checked: AgentMachine, tree: Path) -> None:
    checked.add_source("new", tree)
    del checked.offered["sources"]["new"]
    ((subject, message),) = problems(checked)
    assert subject == "source new"
    assert "turku-update-config" in message


def test_an_unknown_machine_and_an_api_that_is_down_are_told_apart(
    checked: AgentMachine,
) -> None:
    checked.api.answers["agent_ping_restore"] = (403, "Bad credentials")
    ((subject, _),) = problems(checked)
    assert subject == "registration"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        checked.configure(api_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        subjects = [subject for subject, _ in problems(checked)]
    assert subjects[0].startswith("API http://127.0.0.1")
    assert subjects[1] == "registration"


def test_missing_programs_and_a_readable_key_are_named(
    checked: AgentMachine, tmp_path: Path
) -> None:
    (checked.state / "ssh_key").chmod(0o644)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ssh", "setpriv", "sh"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    found_problems = dict(problems(checked, PATH=str(folder)))
    assert "install the package rsync" in found_problems["program rsync"]
    assert "chmod 600" in found_problems["SSH key"]


def test_without_a_configuration_the_rest_is_looked_at_all_the_same(
    checked: AgentMachine,
) -> None:
    (checked.root / "etc/turku-agent/config.d/10-test.json").write_text("{")
    (checked.root / "etc/turku-agent/sources.d/bad.yaml").write_text("a: [1\n")
    subjects = [subject for subject, _ in problems(checked)]
    assert subjects == ["configuration", "sources"]

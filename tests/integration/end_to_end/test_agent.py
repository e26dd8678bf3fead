"""The agent's own commands against the real API, sshd and storage unit."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from turku_core.local.layout import program
from turku_core.local.turku import LocalTurku, Machine


@pytest.fixture
def machine(turku: LocalTurku, unit_name: str, tmp_path: Path) -> Machine:
    """A machine with one backup."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("content")
    made = turku.add_machine(unit_name, {"docs": {"path": str(data)}})
    made.run("turku-agent-ping")
    turku.wait_until_committed()
    return made


def test_check_finds_all_well_and_names_what_isnt(machine: Machine) -> None:
    said = json.loads(machine.run("turku-agent-ping", "--check", "--json").output)
    assert said["ok"]
    subjects = {finding["subject"] for finding in said["findings"]}
    assert {"configuration", "identity", "registration", "source docs"} <= subjects
    assert any(subject.startswith("storage unit ") for subject in subjects)
    machine.write_source("new", {"path": "/no/such/path"})
    done = machine.run("turku-agent-ping", "--check", check=False)
    assert done.exit_code == 1
    assert "source new: The source's path /no/such/path isn't there" in done.output
    assert "turku-update-config" in done.output


def test_the_line_that_a_restore_by_hand_shows_works_as_it_is(
    machine: Machine, tmp_path: Path
) -> None:
    folder = tmp_path / "by-hand"
    agent = subprocess.Popen(
        machine.command("turku-agent-ping", "--restore", "--target", str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    command = ""
    while "turku-storage" not in command or "--to-port" not in command:
        line = agent.stdout.readline()
        assert line, agent.communicate()
        command = line.partition(":")[2].strip()
    words = shlex.split(command)
    password = words.pop(0)
    assert password.startswith("RSYNC_PASSWORD=")
    words[0] = program(words[0])
    subprocess.run(["env", password, *words], check=True, timeout=120, capture_output=True)
    assert (folder / "file").read_text() == "content"
    agent.send_signal(signal.SIGINT)
    agent.communicate(timeout=60)
    assert agent.returncode == 0

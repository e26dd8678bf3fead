"""Programs written from the protocol's facts alone, against the real API and storage unit."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.fielded import FieldedAgent, call
from tests.support.trees import describe_tree, differences
from turku_core.credentials import make_ssh_key_pair
from turku_core.local.turku import LocalTurku


def registration_key(turku: LocalTurku, kind: str) -> dict[str, str]:
    keys: dict[str, dict[str, str]] = json.loads(turku.layout.registration_keys.read_text())
    return keys[kind]


def own_programs_first() -> dict[str, str]:
    """Return an environment in which a command that names our programs finds these."""
    programs = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(params=["name and secret", "secret alone"])
def auth(request: pytest.FixtureRequest, turku: LocalTurku) -> Any:
    key = registration_key(turku, "machine")
    return key if request.param == "name and secret" else key["secret"]


@pytest.mark.needs_root
def test_a_fielded_agent_registers_is_backed_up_and_gets_its_data_back(
    turku: LocalTurku, unit_name: str, tmp_path: Path, auth: Any
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "letter").write_text("Dear machine")
    (source / "draft.tmp").write_text("left out")
    ca = turku.layout.ca_certificate
    agent = FieldedAgent(tmp_path / "agent", turku.running.api_url, ca, unit_name)
    sources = {"letters": {"path": str(source), "exclude": ["*.tmp"], "snapshot_mode": "attic"}}
    assert agent.update_config(auth, sources) == (200, b"{}")
    assert agent.update_config(None, sources) == (200, b"{}")
    turku.update_storage()

    exit_code, said = agent.check_in({"letters": str(source)})
    assert exit_code == 0, said
    turku.wait_until_committed(120)
    assert agent.check_in({"letters": str(source)}) == (0, "nothing is due")

    (source / "draft.tmp").unlink()
    before = describe_tree(source)
    with agent.restore_session(target) as said:
        assert "turku-restore" in said
        command = next(line for line in said.splitlines() if "turku-storage" in line)
        subprocess.run(["sh", "-c", command], env=own_programs_first(), check=True)
    after = describe_tree(target)
    for tree in (before, after):
        tree.pop(b".", None)
    assert differences(before, after) == []


def test_a_fielded_storage_unit_registers_learns_its_machines_and_reports(
    turku: LocalTurku, unit_name: str, tmp_path: Path
) -> None:
    url, ca = turku.running.api_url, turku.layout.ca_certificate
    name = f"field-{unit_name}"
    login = {"name": name, "secret": secrets.token_hex(20)}
    config = {
        **login,
        "ssh_ping_host": "storage.example.com",
        "ssh_ping_port": 22,
        "ssh_ping_user": "turku",
        "ssh_ping_host_keys": [make_ssh_key_pair("host")[1]],
        # So much space that the lot falls on it, whatever the real unit has.
        "space_total": 9_000_000_000_000_000,
        "space_available": 9_000_000_000_000_000,
    }
    wrong = {"name": "nobody", "secret": secrets.token_hex(20)}
    assert call(url, "storage_update_config", {"storage": config, "auth": wrong}, ca)[0] == 403
    key = registration_key(turku, "storage")
    status, body = call(url, "storage_update_config", {"storage": config, "auth": key}, ca)
    assert (status, json.loads(body)["machines"]) == (200, {})
    try:
        agent = FieldedAgent(tmp_path / "agent", url, ca, unit_name)
        source = {"path": str(tmp_path), "retention": "last 3 days", "bwlimit": "1m"}
        status, _ = agent.update_config(registration_key(turku, "machine"), {"docs": source})
        assert status == 200

        status, body = call(url, "storage_update_config", {"storage": config}, ca)
        machine = json.loads(body)["machines"][agent.uuid]
        assert machine["unit_name"] == unit_name
        assert set(machine) >= {"environment_name", "service_name", "comment", "ssh_public_key"}

        due = agent.ask("agent_ping_checkin")["scheduled_sources"]
        assert due["docs"]["storage"]["name"] == name
        assert due["docs"]["storage"]["ssh_ping_host_keys"]
        assert due["docs"]["retention"] == "last 3 days"

        asked: dict[str, Any] = {"storage": login, "machine": {"uuid": agent.uuid}}
        status, body = call(url, "storage_ping_checkin", asked, ca)
        answer = json.loads(body)["machine"]
        assert (status, answer["uuid"]) == (200, agent.uuid)
        assert answer["scheduled_sources"]["docs"]["path"] == str(tmp_path)

        now = time.time()
        result = {
            "success": True,
            "snapshot": "2015-02-03T04:05:06",
            "summary": "Number of files: 3",
            "time_begin": now - 1.5,
            "time_end": now,
        }
        asked["machine"]["sources"] = {"docs": result}
        for _ in range(2):
            assert call(url, "storage_ping_source_update", asked, ca) == (200, b"{}")
        assert agent.ask("agent_ping_checkin")["scheduled_sources"] == {}
        listed = turku.api_run("list-backups", "--machine", agent.uuid, "--json").output
        assert listed.count("2015-02-03T04:05:06") == 1
    finally:
        turku.api_run("pause", "storage", name)


@pytest.mark.parametrize(
    ("name", "payload", "status"),
    [
        ("health", {}, 200),
        ("agent_ping_checkin", {}, 400),
        ("agent_ping_checkin", [], 400),
        ("agent_ping_checkin", {"machine": {"uuid": "x", "secret": "x" * 20}}, 400),
        (
            "agent_ping_checkin",
            {"machine": {"uuid": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "secret": "x" * 20}},
            403,
        ),
        ("no_such_call", {}, 404),
    ],
)
def test_the_status_codes_are_those_of_the_protocol(
    turku: LocalTurku, name: str, payload: Any, status: int
) -> None:
    found, _ = call(turku.running.api_url, name, payload, turku.layout.ca_certificate)
    assert found == status

"""A whole life of Turku on a real controller: each test goes on where the one before ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.juju import Model, units_of

pytestmark = [pytest.mark.asyncio, pytest.mark.abort_on_fail]

OURS = ("turku-api", "turku-storage", "turku-agent")


async def agent_of(model: Model, principal: str) -> str:
    """Return the agent's unit beside a principal's unit."""
    applications = await model.status()
    unit = applications[principal.partition("/")[0]]["units"][principal]
    [name] = [name for name in unit["subordinates"] if name.startswith("turku-agent/")]
    return str(name)


async def test_the_bundle_deploys_and_becomes_active(model: Model, bundle: Path) -> None:
    await model.juju("deploy", str(bundle))
    await model.wait_until_active(*OURS)


async def test_a_machine_that_is_related_is_backed_up_within_a_minute(model: Model) -> None:
    await model.juju("deploy", "ubuntu", "late", "--base=ubuntu@24.04", "--channel=latest/stable")
    await model.wait_until_active("late")
    await model.juju("integrate", "turku-agent:host", "late:juju-info")
    await model.wait(
        "an agent beside it",
        lambda applications: len(units_of(applications, "turku-agent")) == 2,
        minutes=10,
    )
    await model.wait_until_active("turku-agent")
    agent = await agent_of(model, "late/0")
    deadline = time.monotonic() + 60
    snapshots: list[Any] = []
    while not snapshots and time.monotonic() < deadline:
        snapshots = (await model.run(agent, "list-snapshots"))["snapshots"]
    assert [snapshot["source"] for snapshot in snapshots] == ["etc"]


async def test_a_backup_at_once_is_on_the_record(model: Model) -> None:
    agent = await agent_of(model, "ubuntu/0")
    await model.execute("ubuntu/0", "echo first > /etc/turku-was-here")
    done = await model.run(agent, "backup-now")
    assert {name: source["outcome"] for name, source in done["sources"].items()} == {
        "etc": "success"
    }
    machines = (await model.run("turku-api/0", "list-machines"))["machines"]
    assert len(machines) == 2
    for machine in machines:
        found = await model.run("turku-api/0", "list-backups", f"machine={machine['uuid']}")
        assert found["backups"]


async def test_a_file_that_was_lost_comes_back(model: Model) -> None:
    agent = await agent_of(model, "ubuntu/0")
    await model.execute("ubuntu/0", "rm /etc/turku-was-here")
    await model.run(agent, "restore", "source=etc", 'paths=["turku-was-here"]', "in-place=true")
    assert (await model.execute("ubuntu/0", "cat /etc/turku-was-here")).strip() == "first"


async def test_the_api_restores_one_machine_s_data_onto_another(model: Model) -> None:
    agents = [await agent_of(model, unit) for unit in ("ubuntu/0", "late/0")]
    uuids = [
        (await model.run(agent, "list-snapshots"))["snapshots"][0]["machine"] for agent in agents
    ]
    target = "/var/lib/turku-agent/restore/from-another"
    await model.run(
        "turku-api/0", "restore", f"machine={uuids[0]}", f"to-machine={uuids[1]}", "source=etc",
        'paths=["turku-was-here"]', f"target={target}", "wait=600",
    )  # fmt: skip
    restored = await model.execute("late/0", f"cat {target}/turku-was-here")
    assert restored.strip() == "first"


async def test_expiry_says_what_it_would_do_and_keeps_the_newest(model: Model) -> None:
    await model.run("turku-storage/0", "expire", "dry-run=true")
    await model.run("turku-storage/0", "expire")
    agent = await agent_of(model, "ubuntu/0")
    assert (await model.run(agent, "list-snapshots"))["snapshots"]
    await model.run("turku-storage/0", "verify")


async def test_a_second_api_unit_without_postgresql_is_blocked_and_says_why(model: Model) -> None:
    await model.juju("add-unit", "turku-api")

    def is_blocked(applications: dict[str, Any]) -> bool:
        unit = units_of(applications, "turku-api").get("turku-api/1", {})
        status = unit.get("workload-status", {})
        return status.get("current") == "blocked" and "PostgreSQL" in status.get("message", "")

    await model.wait("turku-api/1 blocked", is_blocked, minutes=30)
    await model.juju("remove-unit", "turku-api/1", "--no-prompt")
    await model.wait(
        "one API unit again",
        lambda applications: list(units_of(applications, "turku-api")) == ["turku-api/0"],
        minutes=15,
    )
    await model.wait_until_active("turku-api")


async def test_a_second_storage_unit_joins(model: Model) -> None:
    await model.juju("add-unit", "turku-storage")
    await model.wait(
        "two storage units",
        lambda applications: len(units_of(applications, "turku-storage")) == 2,
        minutes=15,
    )
    await model.wait_until_active("turku-storage")


async def test_a_principal_that_is_no_longer_backed_up_stays_as_it_was(model: Model) -> None:
    await model.juju("remove-relation", "turku-agent:host", "late:juju-info")
    await model.wait(
        "one agent",
        lambda applications: len(units_of(applications, "turku-agent")) == 1,
        minutes=15,
    )
    left = await model.execute(
        "late/0", "ls -d /opt/turku-agent /etc/systemd/system/turku-* 2>/dev/null || true"
    )
    assert left.strip() == ""
    machines = (await model.run("turku-api/0", "list-machines"))["machines"]
    assert len(machines) == 1


async def test_everything_can_be_removed(model: Model) -> None:
    for name in ("turku-agent", "turku-storage", "turku-api", "late", "ubuntu"):
        await model.juju("remove-application", name, "--no-prompt", "--destroy-storage")
    await model.wait("nothing left", lambda applications: not applications, minutes=30)

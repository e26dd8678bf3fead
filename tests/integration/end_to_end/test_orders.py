"""Restores ordered at the API, backups at once, and how sources fare, with every part real."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import describe_tree, differences, make_odd_tree
from turku_core.local.turku import LocalTurku, Machine

IS_ROOT = os.geteuid() == 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    make_odd_tree(folder, as_root=IS_ROOT)
    return folder


@pytest.fixture
def machine(turku: LocalTurku, unit_name: str, source: Path) -> Machine:
    """A machine with one snapshot."""
    made = turku.add_machine(unit_name, {"docs": {"path": str(source)}})
    made.run("turku-agent-ping", "--backup-now")
    turku.wait_until_committed(120)
    return made


def order(turku: LocalTurku, machine: Machine, *options: str) -> dict[str, Any]:
    said = turku.api_run("order-restore", machine.uuid, "docs", "--json", *options).output
    made: dict[str, Any] = json.loads(said)
    return made


def outcome(turku: LocalTurku, made: dict[str, Any]) -> dict[str, Any]:
    listed = json.loads(turku.api_run("list-restores", "--json").output)
    [found] = [each for each in listed if each["id"] == made["id"]]
    row: dict[str, Any] = found
    return row


def test_an_order_brings_a_machines_own_data_into_its_restore_folder(
    turku: LocalTurku, machine: Machine, source: Path
) -> None:
    before = describe_tree(source)
    made = order(turku, machine)
    machine.run("turku-agent-ping")
    done = outcome(turku, made)
    assert (done["state"], done["message"]) == ("done", "")
    assert str(machine.root / "var/lib/turku-agent/restore/docs") in done["to"]
    assert differences(before, describe_tree(Path(done["to"]))) == []
    assert machine.run("turku-agent-ping").errors == ""


def test_an_order_in_place_mends_a_source_where_the_machine_allows_it(
    turku: LocalTurku, machine: Machine, source: Path
) -> None:
    (source / "new file").write_text("stays")
    before = describe_tree(source)
    victim = next(path for path in sorted(source.rglob("*")) if path.is_file())
    content = victim.read_bytes()
    victim.write_bytes(b"damaged")
    refused = order(turku, machine, "--in-place")
    machine.run("turku-agent-ping")
    assert outcome(turku, refused)["state"] == "refused"
    assert victim.read_bytes() == b"damaged"

    folder = machine.root / "etc/turku-agent/config.d"
    (folder / "90-orders.json").write_text(json.dumps({"restore_orders": "anywhere"}))
    dry = order(turku, machine, "--in-place", "--dry-run")
    machine.run("turku-agent-ping")
    assert outcome(turku, dry)["state"] == "done"
    assert any(victim.name in change for change in outcome(turku, dry)["changes"])
    assert victim.read_bytes() == b"damaged"

    made = order(turku, machine, "--in-place")
    machine.run("turku-agent-ping")
    assert outcome(turku, made)["state"] == "done"
    assert victim.read_bytes() == content
    assert set(describe_tree(source)) == set(before)


def test_prior_art_32_a_lost_machines_data_is_ordered_onto_another_with_nothing_else_done(
    turku: LocalTurku, machine: Machine, unit_name: str, source: Path
) -> None:
    before = describe_tree(source)
    turku.api_run("retire", machine.uuid)
    heir = turku.add_machine(f"{unit_name}-heir", {})
    made = order(turku, machine, "--to-machine", heir.uuid)
    # It comes back by itself until the storage unit, which asks every 20 seconds, knows of it.
    heir.run("turku-agent-ping")
    done = outcome(turku, made)
    assert (done["state"], done["message"]) == ("done", "")
    assert machine.uuid in done["to"]
    assert differences(before, describe_tree(Path(done["to"]))) == []


def test_waiting_for_an_order_says_how_it_went(turku: LocalTurku, machine: Machine) -> None:
    nobody = turku.api_run("order-restore", machine.uuid, "docs", "--wait", "1", check=False)
    assert nobody.exit_code == 75
    number = json.loads(turku.api_run("list-restores", "--json", "--limit", "1").output)[0]["id"]
    turku.api_run("cancel-restore", str(number))
    machine.run("turku-agent-ping")
    assert not (machine.root / "var/lib/turku-agent/restore").exists()


def test_how_a_source_fares_follows_what_happens_to_it(
    turku: LocalTurku, machine: Machine, source: Path
) -> None:
    def status() -> dict[str, Any]:
        said = machine.run("turku-agent-ping", "--status", "--json").output
        found: dict[str, Any] = json.loads(said)["sources"]["docs"]
        return found

    assert status()["state"] == "ok"
    good = status()["last_good"]
    away = source.with_name("away")
    source.rename(away)
    failed = machine.run("turku-agent-ping", "--backup-now", "--json", check=False)
    assert failed.exit_code == 1
    assert json.loads(failed.output)["sources"]["docs"]["outcome"] == "cancelled"
    turku.wait_until_committed(120)
    after = status()
    assert (after["state"], after["last_good"], after["failures"]) == ("failing", good, 1)
    assert str(source) in after["problem"]
    away.rename(source)
    machine.run("turku-agent-ping", "--backup-now")
    turku.wait_until_committed(120)
    assert status()["state"] == "ok"
    assert status()["last_good"] > good
    turku.storage_run("turku-storage", "verify", machine.uuid)
    turku.wait_until_committed(120)
    assert status()["last_proven"] is not None


def metric(text: str, name: str, *labels: str) -> float:
    """Return the one sample of a metric with these labels, 0 when there is none."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    lines = [line for line in lines if all(label in line for label in labels)]
    assert len(lines) < 2, lines
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0


def test_a_drill_that_can_not_be_made_is_told_everywhere(
    turku: LocalTurku, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the record, at the API and in its health, in the status, and in all metrics."""

    def told() -> dict[str, bool]:
        turku.wait_until_committed(120)
        kept = turku.storage_run("turku-storage", "list", machine.uuid, "--json").output
        health = json.loads(turku.api_run("health", "--json", check=False).output)
        overdue = json.loads(turku.api_run("list-overdue", "--json").output)
        status = json.loads(machine.run("turku-agent-ping", "--status", "--json").output)
        unit = turku.storage_run("turku-storage", "metrics").output
        fleet = turku.api_run("metrics").output
        own = machine.run("turku-agent-ping", "--metrics").output
        problems = health["checks"]["unproven"]["problems"]
        return {
            "record": json.loads(kept)["snapshots"][0]["unproven"] is not None,
            "health": any(machine.name in each["about"] for each in problems),
            "list": [each["state"] for each in overdue if each["uuid"] == machine.uuid]
            == ["drill-failed"],
            "status": status["sources"]["docs"]["unproven"] == "drill-failed",
            "unit": metric(unit, "turku_storage_source_drills_failed", machine.uuid) == 1,
            "fleet": metric(fleet, "turku_api_source_drills_failed", machine.uuid) == 1,
            "machine": metric(own, "turku_agent_source_unproven_since_timestamp_seconds") > 0,
        }

    silent = told()
    assert not any(silent.values()), silent
    program = tmp_path / "programs/borg"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho borg is ill >&2\nkill -9 $$\n")
    program.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        verified = turku.storage_run("turku-storage", "verify", machine.uuid, check=False)
        assert verified.exit_code == 1
    loud = told()
    assert all(loud.values()), loud
    turku.storage_run("turku-storage", "verify", machine.uuid)
    assert told() == silent
    said = json.loads(machine.run("turku-agent-ping", "--status", "--json").output)
    assert said["sources"]["docs"]["last_proven"] is not None
    [row] = json.loads(turku.api_run("list-sources", machine.uuid, "--json").output)
    assert row["proven"] is not None


def test_a_backup_at_once_right_after_another_waits_for_its_commit(
    turku: LocalTurku, machine: Machine
) -> None:
    for _ in range(2):
        machine.run("turku-agent-ping", "--backup-now")
    turku.wait_until_committed(120)
    assert len(machine.snapshots()) == 3

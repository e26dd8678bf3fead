"""Scenario 1. From nothing to active; a principal that comes later is backed up without a word."""

from __future__ import annotations

from tests.model.fleet import act, agent_beside, backups, wait_for_backup
from tests.model.runner.model import Model

FIRST_BACKUP_SECONDS = 60


def test_a_machine_that_comes_later_is_backed_up_within_a_minute(small: Model) -> None:
    assert {name: word for name, (word, _) in small.status().items()} == {
        "turku-api/0": "active",
        "turku-storage/0": "active",
        "turku-agent/0": "active",
        "ubuntu/0": "active",
    }
    small.deploy("ubuntu", "web")
    small.settle(60)
    small.integrate("web:juju-info", "turku-agent:host")
    took = wait_for_backup(small, "web/0")
    print(f"first backup {took:.0f} s after the relation")
    assert took < FIRST_BACKUP_SECONDS
    assert [each["outcome"] for each in backups(small, "web/0")] == ["succeeded"]

    agent = agent_beside(small, "web/0")
    small.update_status()
    small.settle(60)
    assert small.status()[agent][0] == "active"
    assert "Last good backup" in small.status()[agent][1]
    assert act(small, "turku-api/0", "health")["state"] == "OK"

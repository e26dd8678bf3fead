"""Scenario 1. From nothing to active; a principal that comes later is backed up without a word."""

from __future__ import annotations

import json
import re
import time

from tests.model.fleet import act, agent_beside, backups, wait_for_backup, well
from tests.model.runner.model import Model

FIRST_BACKUP_SECONDS = 60


def scrape(model: Model, unit: str) -> str:
    """Return the metrics of a unit, from where the collector beside it was told to find them."""
    machine = model.machine_of(unit)
    offered = json.loads(machine.run(["cat", f"/run/collector/{unit.replace('/', '-')}.json"]))
    (job,) = offered["metrics_scrape_jobs"]
    (target,) = job["static_configs"][0]["targets"]
    return machine.run(["curl", "-sS", "--fail", f"http://{target}{job['metrics_path']}"])


def sample(metrics: str, name: str, **labels: str) -> float:
    """Return the value of the one sample with a name and labels."""
    found = [
        float(match[2])
        for match in re.finditer(rf"^{name}{{(.*)}} (\S+)$", metrics, re.MULTILINE)
        if all(f'{label}="{value}"' in match[1] for label, value in labels.items())
    ]
    assert len(found) == 1, (name, labels, metrics)
    return found[0]


def test_a_machine_that_comes_later_is_backed_up_within_a_minute(small: Model) -> None:
    assert {name: word for name, (word, _) in small.status().items()} == {
        "turku-api/0": "active",
        "turku-storage/0": "active",
        "turku-agent/0": "active",
        "ubuntu/0": "active",
    }
    assert len({small.machine_of(each).name for each in small.status()}) == 3

    small.deploy("ubuntu", "web")
    with small.host_to_itself():
        began = time.time()
        small.integrate("web:juju-info", "turku-agent:host")
        took = wait_for_backup(small, "web/0")
    print(f"first backup {took:.0f} s after the relation")
    assert took < FIRST_BACKUP_SECONDS
    assert [each["outcome"] for each in backups(small, "web/0")] == ["succeeded"]

    agent = agent_beside(small, "web/0")
    small.update_status()
    small.wait(well, 60, "for the statuses")
    assert small.status()[agent][1].startswith("Last good backup ")
    assert act(small, "turku-api/0", "health")["state"] == "OK"

    small.deploy("collector")
    for principal in ("web", "turku-api", "turku-storage"):
        small.integrate(f"{principal}:juju-info", "collector:host")
    for charm in ("turku-agent", "turku-api", "turku-storage"):
        small.integrate(f"{charm}:cos-agent", "collector:cos-agent")
    small.wait(well, 60, "for the collectors")
    metrics = scrape(small, "turku-api/0")
    last = sample(
        metrics, "turku_api_source_last_success_timestamp_seconds", machine="web/0", source="etc"
    )
    assert began <= last <= time.time()
    mine = scrape(small, agent)
    assert sample(mine, "turku_agent_source_last_success_timestamp_seconds", source="etc") == last
    kept = scrape(small, "turku-storage/0")
    assert (
        sample(kept, "turku_storage_source_snapshots", machine="web/0", source="etc", state="good")
        == 1
    )

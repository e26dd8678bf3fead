"""Scenario 7. Forty agents, two API units on PostgreSQL, two storage units of three slots each.

All agents check in at once when a period begins. Every source is backed up once in each period,
none twice, no storage unit is ever sent or runs more sessions than it has slots, and the API's
records and the storage units' snapshots say the same. TURKU_MODEL_AGENTS makes the fleet smaller.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.model.fleet import BUNDLES
from tests.model.runner.machines import Machine
from tests.model.runner.model import Model, active

pytestmark = pytest.mark.slow_model

AGENTS = int(os.environ.get("TURKU_MODEL_AGENTS", "40"))
SLOTS = 3
API = "/opt/turku-api/current/bin/turku-api"
STORAGE = "/opt/turku-storage/current/bin/turku-storage"
API_UNITS = ("turku-api/0", "turku-api/1")
STORAGE_UNITS = ("turku-storage/0", "turku-storage/1")

BOOTING_AT_ONCE = 4
DEPLOYING_SECONDS_MAX = 1800
PERIOD_SECONDS_MAX = 1500
SAMPLE_SECONDS = 1.0
AGAIN_SECONDS = 20.0

LEASES = """
    SELECT unit.name, count(DISTINCT source.machine_id)
    FROM turku_api_source AS source JOIN turku_api_storageunit AS unit
    ON source.lease_storage_id = unit.id WHERE source.lease_until > now() GROUP BY unit.name
"""


@dataclass
class Sampler:
    """Looks, in a thread, how many sessions each storage unit has, as it and as the API sees it.

    Attributes:
        running: The most that were seen at once, by storage unit: tunnels that an rsync pulls from.
        leased: The most machines that had a lease at once, by storage unit, in the database.
        samples: How often it has looked.
    """

    model: Model
    running: Counter[str] = field(default_factory=Counter)
    leased: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            try:
                self._look()
            except Exception as error:
                self.errors.append(repr(error))

    def _look(self) -> None:
        for unit in STORAGE_UNITS:
            machine = self.model.machine_of(unit)
            shown = machine.run(["pgrep", "-af", "^rsync --archive"], check=False)
            tunnels = set(re.findall(r"rsync://\S+", shown))
            self.running[unit] = max(self.running[unit], len(tunnels))
        for name, count in query(self.model, LEASES):
            self.leased[name] = max(self.leased[name], int(count))
        self.samples += 1


def query(model: Model, sql: str) -> list[list[str]]:
    """Return the rows of a query to the API's database."""
    # The one database that isn't the server's own.
    script = """
        own="SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
        psql -XAtF ';' -c "$0" "$(psql -XAt -c "$own")"
    """
    as_server = ["runuser", "-u", "postgres", "--", "sh", "-ec", script, sql]
    rows = model.machine_of("postgresql/0").run(as_server)
    return [line.split(";") for line in rows.splitlines() if line]


@dataclass(frozen=True)
class Fleet:
    """The deployed fleet.

    Attributes:
        sampler: Has looked since before the first agent.
    """

    model: Model
    sampler: Sampler

    def agents(self) -> dict[str, Machine]:
        """Return the agents' machines, by the name of the principal."""
        return {
            name: self.model.machine_of(name) for name in map("ubuntu/{}".format, range(AGENTS))
        }

    def records(self) -> list[dict[str, Any]]:
        """Return the API's records of all backups."""
        command = [API, "list-backups", "--json", "--limit", "1000"]
        found: list[dict[str, Any]] = json.loads(self.model.machine_of(API_UNITS[0]).run(command))
        return found

    def done_since(self, moment: datetime) -> set[str]:
        """Return the machines with a good backup that began then or later."""
        rows = query(
            self.model,
            "SELECT DISTINCT unit_name FROM turku_api_backup "
            f"WHERE outcome = 'succeeded' AND time_begin >= '{moment.isoformat()}'",
        )
        return {name for (name,) in rows}

    def snapshots(self, unit: str) -> list[dict[str, Any]]:
        """Return the snapshots on a storage unit."""
        listed = json.loads(self.model.machine_of(unit).run([STORAGE, "list", "--json"]))
        return list(listed["snapshots"])

    def storage_name(self, unit: str) -> str:
        """Return the name under which the API knows a storage unit."""
        config = "/var/lib/turku-storage/config.d/identity.json"
        return str(json.loads(self.model.machine_of(unit).run(["cat", config]))["name"])

    def wait_for_everyone(self, since: datetime) -> float:
        """Wait until every machine has a good backup that began since then.

        Those that haven't are told to check in now and again, as by an impatient operator; one that
        is checking in goes on with it.
        """
        told = [-AGAIN_SECONDS]

        def is_done(_: Model) -> bool:
            missing = set(self.agents()) - self.done_since(since)
            if missing and time.monotonic() - told[-1] >= AGAIN_SECONDS:
                self.check_in(missing)
                told.append(time.monotonic())
            time.sleep(SAMPLE_SECONDS)
            return not missing

        return self.model.wait(is_done, PERIOD_SECONDS_MAX, f"for everyone's backup since {since}")

    def check_in(self, names: set[str]) -> None:
        """Let machines check in, all at once."""
        agents = self.agents()
        for name in names:
            agents[name].run(["systemctl", "start", "--no-block", "turku-agent-ping"])


def sources_due_at(moment: datetime) -> str:
    """Return the agents' option with a source that is due each hour, at that minute of it."""
    source = {
        "path": "/srv/data",
        "frequency": f"cron {moment.minute} * * * *",
        # A session takes some seconds: long enough for others to find the slots taken.
        "bwlimit": "200",
    }
    return json.dumps({"data": source})


@pytest.fixture(scope="module")
def fleet(image: Path, store: dict[str, Path]) -> Iterator[Fleet]:
    """The HA bundle with many principals, whose sources are in a period that ends in an hour."""
    began = time.monotonic()
    sources = sources_due_at(datetime.now(timezone.utc) - timedelta(minutes=1))
    overlay = {
        "postgresql": {"num_units": 1},
        "turku-storage": {"storage": {"data": "2G"}, "options": {"slots": SLOTS}},
        "turku-agent": {"options": {"sources": sources}},
        "ubuntu": {"num_units": 0},
    }
    with Model(image, store) as model:
        model.deploy(BUNDLES / "turku-ha.yaml", overlay=overlay)
        model.wait(is_ready, 900, "for the API and the storage units")
        print(f"the API and the storage units are active after {time.monotonic() - began:.0f} s")
        with Sampler(model) as sampler:
            with ThreadPoolExecutor(BOOTING_AT_ONCE) as pool:
                list(pool.map(lambda _: add_agent(model), range(AGENTS)))
            model.wait(active, DEPLOYING_SECONDS_MAX, "for the agents")
            print(f"{AGENTS} agents are active after {time.monotonic() - began:.0f} s")
            yield Fleet(model, sampler)


def is_ready(model: Model) -> bool:
    """Whether the API and the storage units are active; the agent has no principal yet."""
    status = model.status()
    return model.is_settled() and all(
        status[unit][0] == "active" for unit in (*API_UNITS, *STORAGE_UNITS)
    )


def add_agent(model: Model) -> None:
    """Add a principal's machine that has something to back up."""
    name = model.add_machine()
    script = (
        "mkdir -p /srv/data && for n in 1 2 3; do head -c 250K /dev/urandom >/srv/data/$n; done"
    )
    model.machines[name].run(["sh", "-ec", script])
    model.add_unit("ubuntu", machine=name)


def test_every_source_is_backed_up_once_a_period_within_the_slots(fleet: Fleet) -> None:
    began = datetime.now(timezone.utc)
    took = fleet.wait_for_everyone(began - timedelta(hours=1))
    print(f"every source has its first backup {took:.0f} s later")

    # The period that has begun ends sooner than it would have.
    ahead = timedelta(minutes=2, seconds=3 * AGENTS)
    firing = (datetime.now(timezone.utc) + ahead).replace(second=0, microsecond=0)
    fleet.model.configure("turku-agent", sources=sources_due_at(firing))
    fleet.model.settle(DEPLOYING_SECONDS_MAX)
    left = (firing - datetime.now(timezone.utc)).total_seconds()
    print(f"the next period begins in {left:.0f} s")
    fleet.model.wait(lambda _: datetime.now(timezone.utc) >= firing, max(0, left) + 60)
    took = fleet.wait_for_everyone(firing)
    print(f"every source has its second backup {took:.0f} s later")
    # What may be made twice is asked for once more, by everyone.
    fleet.check_in(set(fleet.agents()))
    fleet.model.wait(lambda _: is_idle(fleet), PERIOD_SECONDS_MAX, "for the last check-ins")

    records = fleet.records()
    assert {each["outcome"] for each in records} == {"succeeded"}
    periods = Counter(
        (each["machine"], datetime.fromisoformat(each["begun"]) >= firing) for each in records
    )
    assert periods == {(name, later): 1 for name in fleet.agents() for later in (False, True)}

    recorded = {(each["storage"], each["uuid"], each["snapshot"]) for each in records}
    kept = [
        (fleet.storage_name(unit), each["machine"], each["id"])
        for unit in STORAGE_UNITS
        for each in fleet.snapshots(unit)
    ]
    assert len(kept) == len(set(kept)) == len(records)
    assert set(kept) == recorded

    share = Counter(storage for storage, _, _ in recorded)
    assert set(share) == {fleet.storage_name(unit) for unit in STORAGE_UNITS}
    print(f"snapshots: {share}; at most at once: {fleet.sampler.running} {fleet.sampler.leased}")

    sampler = fleet.sampler
    assert sampler.samples > AGENTS and not sampler.errors
    assert 0 < max(sampler.running.values()) <= SLOTS
    assert 0 < max(sampler.leased.values()) <= SLOTS


def is_idle(fleet: Fleet) -> bool:
    """Whether no agent is checking in, and the storage units have nothing left to tell the API."""
    time.sleep(SAMPLE_SECONDS)
    for machine in fleet.agents().values():
        state = machine.run(["systemctl", "is-active", "turku-agent-ping"], check=False).strip()
        if state in ("active", "activating"):
            return False
    for unit in STORAGE_UNITS:
        said = json.loads(fleet.model.machine_of(unit).run([STORAGE, "usage", "--json"]))
        if any(said["work"][what] for what in ("sessions", "jobs", "reports_waiting")):
            return False
    return True

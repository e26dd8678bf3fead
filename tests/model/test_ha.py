"""Scenario 4. `bundles/turku-ha.yaml` on a real PostgreSQL: API units, leader and database are lost
in the middle of check-ins, storage units fill up, and no backup is lost or made twice.

Where the bundle says three units of PostgreSQL there is one, of a charm that stands for the real
one; where it says block devices, the storage units have sized filesystems.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.model.fleet import BUNDLES, act, agent_beside, well
from tests.model.runner.machines import Machine
from tests.model.runner.model import Model

OVERLAY = {
    "postgresql": {"num_units": 1},
    "turku-storage": {"storage": {"data": "1G"}},
}
API = "/opt/turku-api/current/bin/turku-api"
PING = "/opt/turku-agent/current/bin/turku-agent-ping"
UPDATE_CONFIG = "/opt/turku-agent/current/bin/turku-update-config"
STORAGE_UPDATE_CONFIG = "/opt/turku-storage/current/bin/turku-storage-update-config"
STORAGE = "/opt/turku-storage/current/bin/turku-storage"
API_UNITS = ("turku-api/0", "turku-api/1")
STORAGE_UNITS = ("turku-storage/0", "turku-storage/1")
VOLUME = "/srv/turku-storage/data"
SECONDS_MAX = 400.0
PAUSE = 0.4
DONE, TRY_AGAIN_LATER = 0, 75

ROUNDS = "/srv/rounds"
ROUND = f"""\
#!/bin/sh
# Write a new number, back it up, note how that ended; until there is a file `stop`.
cd /var/lib/rounds
number=$(cat {ROUNDS}/number)
while [ ! -e stop ]; do
    number=$((number + 1))
    echo $number >{ROUNDS}/number
    code={TRY_AGAIN_LATER}
    while [ $code = {TRY_AGAIN_LATER} ]; do
        {PING} --verbose --backup-now --source rounds >>said 2>&1
        code=$?
        echo "$number $code" >>ended
        [ $code = {TRY_AGAIN_LATER} ] && sleep 0.5
    done
done
"""


@dataclass(frozen=True)
class Rounds:
    """An agent that backs up one number after the other, as long as it is let."""

    unit: str
    machine: Machine

    def prepare(self) -> None:
        """Give the machine the source; the rounds, and not the timer, see to its first backup."""
        script = f"""
            systemctl stop turku-agent-ping.timer
            mkdir -p {ROUNDS} /var/lib/rounds
            echo 0 >{ROUNDS}/number
            cat >/var/lib/rounds/round
        """
        self.machine.run(["sh", "-ec", script], given=ROUND.encode())
        add_source(self.machine, "rounds", ROUNDS)

    def begin(self) -> None:
        """Go on with the next number."""
        self.machine.run(["rm", "-f", "/var/lib/rounds/stop"])
        unit = ["--unit=rounds", "--collect", "--quiet", "--property=RuntimeMaxSec=900"]
        self.machine.run(["systemd-run", *unit, "sh", "/var/lib/rounds/round"])

    def end(self) -> None:
        """Begin no other number; the one at work is seen through."""
        self.machine.run(["touch", "/var/lib/rounds/stop"])

    @property
    def is_active(self) -> bool:
        """Whether a number is at work."""
        state = self.machine.run(["systemctl", "is-active", "rounds"], check=False)
        return state.strip() == "active"

    @property
    def attempts(self) -> list[tuple[int, int]]:
        """The number and the exit code of each attempt so far."""
        lines = [line.split() for line in self._read("ended").splitlines()]
        return [(int(number), int(code)) for number, code in lines]

    @property
    def done(self) -> list[int]:
        """The numbers of which the agent said that they are backed up."""
        return [number for number, code in self.attempts if code == DONE]

    def said(self) -> str:
        """Return all that the agent has said."""
        return self._read("said")

    def _read(self, name: str) -> str:
        path = self.machine.root / "var/lib/rounds" / name
        return path.read_text("utf-8") if path.exists() else ""


@dataclass(frozen=True)
class Fleet:
    """The deployed bundle, and its agents that go round."""

    model: Model
    rounds: list[Rounds]

    # The agents that go round.

    def begin(self) -> None:
        """Let all agents go round, and wait until each has been once."""
        for each in self.rounds:
            each.begin()
        self.wait_for_more()

    def wait_for_more(self, count: int = 1) -> None:
        """Wait until each agent has backed up so many numbers more."""
        before = {each.unit: len(each.done) for each in self.rounds}

        def are_there() -> bool:
            self.require_clean_answers()
            return all(len(each.done) >= before[each.unit] + count for each in self.rounds)

        self.wait(are_there, "for a backup of each agent")

    def require_clean_answers(self) -> None:
        """Fail if an agent ended in another way than done, or asked to try again later."""
        for each in self.rounds:
            codes = {code for _, code in each.attempts}
            assert codes <= {DONE, TRY_AGAIN_LATER}, f"{each.unit}: {each.said()[-3000:]}"

    def end(self, unit: str = API_UNITS[0]) -> None:
        """Stop them, and see that the API has each of their backups on record, and once.

        A backup that an agent was told to try again may have been made all the same.

        Args:
            unit: The API unit to ask.
        """
        for each in self.rounds:
            each.end()
        self.wait(lambda: not any(each.is_active for each in self.rounds), "for the last rounds")
        self.wait(self.storage_units_are_idle, "for the storage units' reports")
        self.require_clean_answers()
        records = self.ask("list-backups", "--source", "rounds", "--limit", "1000", unit=unit)
        for each in self.rounds:
            own = [record for record in records if record["machine"] == each.unit]
            assert {record["outcome"] for record in own} == {"succeeded"}
            assert len({record["snapshot"] for record in own}) == len(own)
            assert len(each.done) <= len(own) <= len(each.attempts), each.attempts

    def storage_units_are_idle(self) -> bool:
        work = [self.usage(unit)["work"] for unit in STORAGE_UNITS]
        return not any(each["sessions"] or each["jobs"] or each["reports_waiting"] for each in work)

    # What units say.

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Wait until something holds, and leave the machines time to work for it."""

        def is_so(_: Model) -> bool:
            time.sleep(PAUSE)
            return until()

        self.model.wait(is_so, SECONDS_MAX, what)

    def address(self, unit: str) -> str:
        """Return the address of a unit's machine."""
        return self.model.machine_of(unit).address

    def main_process(self, unit: str) -> str:
        """Return the number of the API's main process on a unit."""
        show = ["systemctl", "show", "--property=MainPID", "--value", "turku-api.service"]
        return self.model.machine_of(unit).run(show).strip()

    def call(self, unit: str, name: str, payload: dict[str, Any]) -> tuple[int, str]:
        """Call one API unit from an agent's machine, and return its answer; 0: it gave none."""
        url = f"https://{self.address(unit)}:443/v1/{name}"
        command = [
            *("curl", "--silent", "--insecure", "--max-time", "30"),
            *("--json", "@-", "--write-out", "\n%{http_code}", url),
        ]
        given = json.dumps(payload).encode()
        text = self.rounds[0].machine.run(command, given=given, check=False)
        body, _, code = text.rpartition("\n")
        return int(code), body

    def is_healthy(self, unit: str) -> bool:
        """Whether an API unit says that it can serve."""
        return self.call(unit, "health", {})[0] == 200

    def ask(self, *words: str, unit: str = API_UNITS[0]) -> Any:
        """Return what `turku-api` says on a unit."""
        return json.loads(self.model.machine_of(unit).run([API, *words, "--json"]))

    def usage(self, unit: str) -> dict[str, Any]:
        """Return what `turku-storage usage` says on a unit."""
        found: dict[str, Any] = json.loads(
            self.model.machine_of(unit).run([STORAGE, "usage", "--json"])
        )
        return found

    def update_status(self, *units: str) -> None:
        """Let units run their update-status, and wait for it."""
        self.model.update_status(*units)
        self.model.settle(SECONDS_MAX)

    def configuration(self, agent: Machine) -> dict[str, Any]:
        """Return what the charm has told an agent of the API."""
        text = (agent.root / "etc/turku-agent/config.d/50-juju.json").read_text("utf-8")
        found: dict[str, Any] = json.loads(text)
        return found

    def first_unit(self) -> str:
        """Return the API unit that the agents ask first."""
        first = self.configuration(self.rounds[0].machine)["api_url"][0]
        return next(unit for unit in API_UNITS if f"//{self.address(unit)}:" in first)

    def storage_name(self, unit: str) -> str:
        """Return the name under which the API knows a storage unit."""
        text = self.model.machine_of(unit).run([STORAGE_UPDATE_CONFIG, "--json"])
        return str(json.loads(text)["name"])

    def home_of(self, machine: str, source: str) -> str | None:
        """Return the storage unit on which a source was placed."""
        names = {self.storage_name(unit): unit for unit in STORAGE_UNITS}
        for row in self.ask("list-sources"):
            if (row["machine"], row["source"]) == (machine, source):
                return names.get(row["storage"])
        return None

    def fill(self, unit: str, percent: int = 85) -> None:
        """Put a file on a storage unit's volume, so large that it is so full; tell the API."""
        (volume,) = self.usage(unit)["volumes"]
        used = volume["bytes_total"] - volume["bytes_available"]
        size = volume["bytes_total"] * percent // 100 - used
        machine = self.model.machine_of(unit)
        machine.run(["fallocate", "--length", str(size), f"{volume['path']}/filler"])
        machine.run([STORAGE_UPDATE_CONFIG])

    def make_room(self, unit: str) -> None:
        """Take the file away again."""
        (volume,) = self.usage(unit)["volumes"]
        machine = self.model.machine_of(unit)
        machine.run(["rm", f"{volume['path']}/filler"])
        machine.run([STORAGE_UPDATE_CONFIG])


def other(units: Sequence[str], one: str) -> str:
    """Return the other one of two units."""
    return next(unit for unit in units if unit != one)


def check_in(machine: Machine) -> None:
    """Let an agent check in now, as its timer does, and again as long as it is to come back."""
    again = (
        f"while :; do {PING}; code=$?; [ $code = {TRY_AGAIN_LATER} ] || exit $code; sleep 1; done"
    )
    machine.run(["sh", "-c", again], seconds_max=SECONDS_MAX)


def add_source(machine: Machine, name: str, path: str) -> None:
    """Name a source on a machine, as a person does."""
    source = {name: {"path": path, "frequency": "monthly", "retention": "last 1000 snapshots"}}
    file = f"/etc/turku-agent/sources.d/{name}.json"
    given = json.dumps(source).encode()
    machine.run(["sh", "-ec", f"mkdir -p {path}; cat >{file}; {UPDATE_CONFIG}"], given=given)


@pytest.fixture(scope="module")
def fleet(image: Path, store: dict[str, Path]) -> Iterator[Fleet]:
    """The bundle, deployed and active, with agents that can go round."""
    with Model(image, store) as model:
        model.deploy(BUNDLES / "turku-ha.yaml", overlay=OVERLAY)
        model.wait(well, 600, "for the bundle to be active")
        units = model.entities.applications["ubuntu"].units
        rounds = [Rounds(unit, model.machine_of(unit)) for unit in units]
        for each in rounds:
            each.prepare()
        yield Fleet(model, rounds)


def test_the_bundle_becomes_active_and_one_api_unit_has_migrated_the_database(
    fleet: Fleet,
) -> None:
    status = fleet.model.status()
    urls = [f"https://{fleet.address(unit)}:443/v1" for unit in API_UNITS]
    assert [status[unit] for unit in API_UNITS] == [
        ("active", f"{url}, PostgreSQL") for url in urls
    ]
    for each in fleet.rounds:
        assert sorted(fleet.configuration(each.machine)["api_url"]) == sorted(urls)

    log = "/var/log/postgresql/postgresql-15-main.log"
    lines = fleet.model.machine_of("postgresql/0").run(["grep", "CREATE TABLE", log]).splitlines()
    made = [(line.split()[3], line.split()[8]) for line in lines]
    tables = [table for _, table in made]
    assert '"turku_api_machine"' in tables
    assert len(tables) == len(set(tables))
    assert {host for host, _ in made} <= {fleet.address(unit) for unit in API_UNITS}
    assert len({host for host, _ in made}) == 1


def test_agents_go_on_when_an_api_unit_is_killed_in_the_middle_of_their_check_ins(
    fleet: Fleet,
) -> None:
    unit = fleet.first_unit()
    before = fleet.main_process(unit)
    fleet.begin()
    fleet.model.machine_of(unit).run(["systemctl", "kill", "--signal=KILL", "turku-api.service"])
    fleet.wait_for_more(2)
    fleet.wait(lambda: fleet.is_healthy(unit), "for the killed unit to serve again")
    assert fleet.main_process(unit) != before
    fleet.end()
    for each in fleet.rounds:
        assert len(each.done) == len(each.attempts), each.said()[-3000:]


def test_the_other_api_unit_leads_when_the_leader_has_no_power(fleet: Fleet) -> None:
    model = fleet.model
    old = fleet.first_unit()
    new = other(API_UNITS, old)
    model.elect(old)
    model.wait(well, SECONDS_MAX, "for the bundle to be active")
    before = fleet.configuration(fleet.rounds[0].machine)
    said_before = {each.unit: len(each.said()) for each in fleet.rounds}

    fleet.begin()
    model.machine_of(old).stop(kill=True)
    fleet.wait_for_more()
    for each in fleet.rounds:
        # It was asked, and didn't answer.
        assert f"https://{fleet.address(old)}:443/v1: " in each.said()[said_before[each.unit] :]

    hooks_before = len(model.hooks_run)
    model.elect(new)
    fleet.wait(
        lambda: (new, "leader-elected") in model.hooks_run[hooks_before:], "for the new leader"
    )
    for each in fleet.rounds:
        each.end()
    name = before["api_auth_name"]
    assert act(model, new, "rotate-registration-key", name=name)["handed_over"]
    model.deploy("ubuntu", "late")
    model.integrate("late:juju-info", "turku-agent:host")

    def has_backup() -> bool:
        records = fleet.ask("list-backups", "--source", "etc", unit=new)
        return any(each["machine"] == "late/0" for each in records)

    fleet.wait(has_backup, "for the first backup of the machine that came late")
    now = fleet.configuration(model.machine_of("late/0"))
    assert (now["api_auth_name"], now["api_url"]) == (name, before["api_url"])
    assert now["api_auth_secret"] != before["api_auth_secret"]
    assert registers_with(fleet, new, before) == 403
    assert registers_with(fleet, new, now) == 503  # "not announced yet": the key is good
    fleet.end(unit=new)

    model.machine_of(old).start()
    fleet.wait(lambda: fleet.is_healthy(old), "for the lost unit to serve again")
    model.wait(well, SECONDS_MAX, "for the bundle to be active again")
    assert "late/0" in {each["machine"] for each in fleet.ask("list-sources", unit=old)}
    late = Rounds("late/0", model.machine_of("late/0"))
    late.prepare()
    fleet.rounds.append(late)


def registers_with(fleet: Fleet, unit: str, configuration: Mapping[str, Any]) -> int:
    """Return the API's HTTP status for a stranger that shows a registration key."""
    auth = {"name": configuration["api_auth_name"], "secret": configuration["api_auth_secret"]}
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    machine = {
        "uuid": str(uuid.uuid4()),
        "secret": secrets.token_urlsafe(32),
        "unit_name": "stranger/0",
        "ssh_public_key": key,
    }
    return fleet.call(unit, "update_config", {"auth": auth, "machine": machine})[0]


def test_a_database_that_is_away_is_waited_for_by_agents_and_api_units(fleet: Fleet) -> None:
    database = fleet.model.machine_of("postgresql/0")
    processes = [fleet.main_process(unit) for unit in API_UNITS]
    fleet.begin()
    database.run(["systemctl", "restart", "postgresql"])
    fleet.wait_for_more()

    said_before = {each.unit: len(each.said()) for each in fleet.rounds}
    database.run(["systemctl", "stop", "postgresql"])
    refusal = "The API can't do it now; try again later: The API's database can't serve"
    fleet.wait(
        lambda: all(refusal in each.said()[said_before[each.unit] :] for each in fleet.rounds),
        "for each agent to be told so",
    )
    assert [fleet.call(unit, "health", {})[0] for unit in API_UNITS] == [503, 503]
    fleet.update_status(*API_UNITS)
    waits = ("waiting", "Waiting for PostgreSQL: it doesn't answer the API.")
    assert [fleet.model.status()[unit] for unit in API_UNITS] == [waits, waits]
    database.run(["systemctl", "start", "postgresql"])
    fleet.wait_for_more()
    fleet.update_status(*API_UNITS)
    assert [fleet.model.status()[unit][0] for unit in API_UNITS] == ["active", "active"]
    fleet.end()
    assert [fleet.main_process(unit) for unit in API_UNITS] == processes


def test_a_full_storage_unit_takes_nothing_new_and_goes_on_with_what_it_has(fleet: Fleet) -> None:
    model = fleet.model
    first = fleet.rounds[0]
    full = fleet.home_of(first.unit, "rounds")
    assert full is not None
    free = other(STORAGE_UNITS, full)
    fleet.fill(full)
    add_source(first.machine, "second", "/srv/second")
    model.deploy("ubuntu", "newcomer")
    model.integrate("newcomer:juju-info", "turku-agent:host")
    first.machine.run([PING, "--backup-now"])
    assert fleet.home_of(first.unit, "rounds") == full
    assert fleet.home_of(first.unit, "second") == free
    fleet.wait(lambda: fleet.home_of("newcomer/0", "etc") is not None, "for the newcomer's place")
    assert fleet.home_of("newcomer/0", "etc") == free
    model.settle(SECONDS_MAX)

    fleet.fill(free)
    add_source(first.machine, "third", "/srv/third")
    check_in(first.machine)
    status = json.loads(first.machine.run([PING, "--status", "--json"]))["sources"]
    assert status["third"]["problem"].startswith("No storage unit has room for a new source")
    agent = agent_beside(model, first.unit)
    fleet.update_status(agent, *STORAGE_UNITS)
    assert "Source third: No storage unit has room" in model.status()[agent][1]
    assert all("over its mark" in model.status()[unit][1] for unit in STORAGE_UNITS)
    health = act(model, API_UNITS[0], "health")
    assert health["state"] == "WARNING"
    assert len(health["checks"]["storage_full"]["problems"]) == 2
    first.machine.run([PING, "--backup-now", "--source", "rounds", "--source", "second"])

    fleet.make_room(free)
    check_in(first.machine)
    assert fleet.home_of(first.unit, "third") == free
    fleet.make_room(full)


def test_every_backup_on_record_is_there_and_restores(fleet: Fleet) -> None:
    fleet.wait(fleet.storage_units_are_idle, "for the storage units' reports")
    records = fleet.ask("list-backups", "--limit", "1000")
    assert {each["outcome"] for each in records} <= {"succeeded", "partial"}
    with ThreadPoolExecutor() as pool:
        restored = [*pool.map(lambda unit: restore_all(fleet, unit, records), STORAGE_UNITS)]
    numbers: dict[str, Counter[int]] = {each.unit: Counter() for each in fleet.rounds}
    for machine, source, folder in [each for several in restored for each in several]:
        if source == "rounds":
            numbers[machine][int((folder / "number").read_text())] += 1
        if source == "etc":
            assert (folder / "hostname").read_text() == f"{fleet.model.machine_of(machine).name}\n"
    for each in fleet.rounds:
        assert set(each.done) <= set(numbers[each.unit])


def restore_all(
    fleet: Fleet, unit: str, records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, Path]]:
    """Restore each backup that the API says is on a storage unit.

    Returns:
        The machine, the source and the folder, as the host sees it, of each.
    """
    machine = fleet.model.machine_of(unit)
    name = fleet.storage_name(unit)
    own = [each for each in records if each["storage"] == name]
    listed = json.loads(machine.run([STORAGE, "list", "--json"]))
    assert listed["problems"] == []
    assert sorted((each["uuid"], each["source"], each["snapshot"]) for each in own) == sorted(
        (each["machine"], each["source"], each["id"]) for each in listed["snapshots"]
    )
    lines, found = [], []
    for each in own:
        folder = f"/var/tmp/restored/{each['uuid']}/{each['source']}/{each['snapshot']}"
        lines.append(
            f"mkdir -p {folder}; {STORAGE} restore {each['uuid']} {each['source']} "
            f"--snapshot {each['snapshot']} --target {folder}\n"
        )
        found.append((each["machine"], each["source"], Path(f"{machine.root}{folder}")))
    machine.run(["sh", "-e"], given="".join(lines).encode())
    return found

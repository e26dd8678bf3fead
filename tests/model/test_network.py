"""Scenario 6. Machines reach the API's HTTPS and a storage unit's SSH, and nothing reaches them.

The bridge between the machines lets only that pass, and counts what else is tried. A machine, or
the API, that is cut off in the middle of a transfer costs no backup and leaves nothing behind.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.model.fleet import act, agent_beside, backups, wait_for_backup
from tests.model.runner.machines import Machine
from tests.model.runner.model import Model
from tests.model.runner.network import Flow

AGENT = "walled-agent"
API, STORAGE = "turku-api/0", "turku-storage/0"
HTTPS, SSH = 443, 22

SLOW = "2mbit"
BIG_KILOBYTES, MIDDLE_KILOBYTES = 6000, 500
"""What is sent, at a quarter of a megabyte a second, and what of it is there in the middle."""

AGENT_NOTICES_SECONDS = 75
STORAGE_NOTICES_SECONDS = 150
"""How long after the line is cut a side ends its session by itself, as the documents say."""

FIRST_RETRY = timedelta(minutes=5)
LATE_SECONDS = 60
"""What a busy host may add."""


@dataclass
class Walls:
    """A model whose bridge lets only pass what Turku needs.

    Attributes:
        probes: The connections that the tests themselves tried, and that must not have passed.
    """

    model: Model
    probes: set[Flow] = field(default_factory=set)

    @property
    def api(self) -> Machine:
        """The API's machine."""
        return self.model.machine_of(API)

    @property
    def storage(self) -> Machine:
        """The storage unit's machine."""
        return self.model.machine_of(STORAGE)

    def agents(self) -> list[Machine]:
        """Return the machines that are neither."""
        others = (self.api, self.storage)
        return [each for each in self.model.machines.values() if each not in others]

    def raise_walls(self) -> None:
        """Let pass what the documents say that Turku needs, and nothing else."""
        api, storage = self.api.address, self.storage.address
        needed = [Flow(storage, api, HTTPS)]
        for machine in self.agents():
            needed += [Flow(machine.address, api, HTTPS), Flow(machine.address, storage, SSH)]
        self.model.network.allow_only(needed)

    def probe(self, where: Machine, to: Machine, port: int) -> None:
        """Try a connection that must not pass."""
        reached = where.run(["timeout", "1", *connect(to, port)], check=False)
        assert "connected" not in reached
        self.probes.add(Flow(where.address, to.address, port))

    def assert_nothing_else_was_tried(self) -> None:
        """Compare what was dropped with the probes: Turku has tried nothing that isn't allowed."""
        dropped = self.model.network.traffic().dropped
        assert set(dropped) == self.probes
        assert all(count > 0 for count in dropped.values())


def connect(to: Machine, port: int) -> list[str]:
    """Return a command that connects and says so."""
    return ["bash", "-c", f"exec 3<>/dev/tcp/{to.address}/{port} && echo connected"]


@pytest.fixture(scope="module")
def walls(small: Model) -> Iterator[Walls]:
    """The small bundle behind walls, with two machines in it that haven't met Turku yet.

    They have no SSH server of their own, so that nothing at all listens there. Their agent
    application is theirs, so that nobody scrapes them.
    """
    made = Walls(small)
    places = {name: small.add_machine() for name in ("walled", "severed")}
    for name, place in places.items():
        machine = small.machines[place]
        machine.run(["systemctl", "disable", "--now", "--quiet", "ssh"])
        fill(machine, name)
        small.deploy("ubuntu", name, machines=[place])
    small.deploy("turku-agent", AGENT, config={"sources": "data: {path: /srv/data}"})
    small.integrate(f"{AGENT}:api", "turku-api:agents")
    small.settle(120)
    made.raise_walls()
    yield made
    small.network.allow_all()


def fill(machine: Machine, name: str) -> None:
    """Give a machine new data: a large file, a small one, and a link."""
    script = f"""
        mkdir -p /srv/data/folder
        head -c {BIG_KILOBYTES}K /dev/urandom >/srv/data/big-{name}
        head -c 100 /dev/urandom >/srv/data/folder/small
        chmod 640 /srv/data/folder/small && chown 12:34 /srv/data/folder
        ln -sf folder/small /srv/data/link
    """
    machine.run(["sh", "-ec", script])


def listening(machine: Machine) -> set[str]:
    """Return what listens on a machine for TCP or UDP: the program, and the address and port."""
    found = set()
    for line in machine.run(["ss", "-Hltnup"]).splitlines():
        address = line.split()[4]
        program = re.search(r'users:\(\("([^"]+)"', line)
        found.add(f"{program[1] if program else 'somebody'} {address}")
    return found


def expected_listeners(walls: Walls, unit: str) -> set[str]:
    """Return what may listen beside a unit: the distribution's SSH server, and our own."""
    expected = {"sshd 0.0.0.0:22", "sshd [::]:22"}
    if unit == API:
        expected.add("turku-api 0.0.0.0:443")
    application = unit.partition("/")[0]
    for relation in walls.model.entities.relations.values():
        if application in relation.ends and relation.ends[application].name == "cos-agent":
            expected.add(f"systemd 127.0.0.1:{ {API: 9520, STORAGE: 9522}[unit] }")
    return expected


@contextmanager
def slow_line(walls: Walls) -> Iterator[None]:
    """Let the storage unit receive slowly as long as this lasts."""
    interface = walls.storage.interface()
    walls.model.network.slow_down(interface, SLOW)
    try:
        yield
    finally:
        walls.model.network.speed_up(interface)


def wait_for_the_middle(walls: Walls, name: str) -> None:
    """Wait until some of a machine's large file has come, and not all of it."""
    arriving = ["find", "/srv/turku-storage/data", "-name", f".big-{name}.*", "-size"]

    def has_begun(_: Model) -> bool:
        return walls.storage.run([*arriving, f"+{MIDDLE_KILOBYTES}k"], check=False) != ""

    walls.model.wait(has_begun, 120, f"for the transfer of {name}")
    found = walls.storage.run([*arriving, f"-{BIG_KILOBYTES - MIDDLE_KILOBYTES}k"])
    assert found, "the transfer was too fast for this test"


def is_pinging(machine: Machine) -> bool:
    """Whether a machine is checking in or in a session."""
    state = machine.run(["systemctl", "is-active", "turku-agent-ping"], check=False)
    return state.strip() in ("activating", "active", "deactivating")


def snapshots(model: Model, name: str) -> list[dict[str, Any]]:
    """Return the snapshots of a machine's data that the storage unit has."""
    found = act(model, STORAGE, "list-snapshots", machine=f"fleet-{name}-{name}_0", source="data")
    return list(found["snapshots"])


def outcomes(model: Model, name: str) -> list[str]:
    """Return how a machine's backups went, the newest first, as the API has it on record."""
    return [each["outcome"] for each in backups(model, f"{name}/0", "data")]


def tree(machine: Machine, folder: str) -> str:
    """Return a checksum over everything in a folder: content, names, modes, owners, times."""
    script = "cd $0 && tar --sort=name --numeric-owner -cf - * | sha256sum"
    return machine.run(["bash", "-o", "pipefail", "-c", script, folder])


def assert_restored_as_it_is(model: Model, name: str) -> None:
    """Restore the newest snapshot beside the source, and compare it with the source."""
    restored = act(model, agent_beside(model, f"{name}/0"), "restore", source="data")
    machine = model.machine_of(f"{name}/0")
    assert tree(machine, restored["target"]) == tree(machine, "/srv/data")


@dataclass(frozen=True)
class Severed:
    """A machine that was cut off in the middle of its first backup.

    Attributes:
        at: When, as `time.monotonic` counts.
        listening: What listened during the session, on the machine and on the storage unit.
    """

    machine: Machine
    at: float
    listening: tuple[set[str], set[str]]


def sever(walls: Walls) -> Severed:
    """Cut a machine off in the middle of a transfer; its check-ins by timer have been stopped."""
    machine = walls.model.machine_of("severed/0")
    wait_for_the_middle(walls, "severed")
    during = (listening(machine), listening(walls.storage))
    walls.model.network.cut_off([machine.address])
    at = time.monotonic()
    assert is_pinging(machine)
    return Severed(machine, at, during)


def stop_timers(machine: Machine) -> None:
    """Let a machine begin nothing by itself, so that nothing else is at work when a test looks."""
    machine.run(["systemctl", "stop", "turku-agent-ping.timer", "turku-update-config.timer"])


@pytest.fixture(scope="module")
def severed(walls: Walls) -> Iterator[Severed]:
    """A machine that was cut off while it was sending; it notices while other tests run."""
    with slow_line(walls):
        walls.model.integrate("severed:juju-info", f"{AGENT}:host")
        wait_for_the_middle(walls, "severed")
        stop_timers(walls.model.machine_of("severed/0"))
        made = sever(walls)
    yield made
    walls.model.network.mend()


@pytest.mark.usefixtures("severed")
def test_a_machine_registers_backs_up_restores_and_checks_in_by_two_ports_only(
    walls: Walls,
) -> None:
    model = walls.model
    model.integrate("walled:juju-info", f"{AGENT}:host")
    wait_for_backup(model, "walled/0", "data")
    assert_restored_as_it_is(model, "walled")
    machine = model.machine_of("walled/0")
    machine.run(["systemctl", "start", "turku-agent-ping"])
    act(model, agent_beside(model, "walled/0"), "check")
    walls.assert_nothing_else_was_tried()

    traffic = model.network.traffic()
    ways = {
        Flow(machine.address, walls.api.address, HTTPS),
        Flow(machine.address, walls.storage.address, SSH),
    }
    assert {each for each in traffic.passed if each.source == machine.address} == ways
    assert Flow(walls.storage.address, walls.api.address, HTTPS) in traffic.passed
    agents = {each.address for each in walls.agents()}
    assert not agents & {each.destination for each in (*traffic.passed, *traffic.dropped)}


@pytest.mark.usefixtures("severed")
def test_the_walls_hold_and_count_what_is_tried(walls: Walls) -> None:
    machine = walls.model.machine_of("walled/0")
    walls.probe(walls.api, machine, SSH)
    walls.probe(walls.storage, machine, SSH)
    walls.probe(walls.storage, machine, 873)
    walls.probe(machine, walls.storage, 873)
    walls.probe(machine, walls.api, SSH)
    walls.assert_nothing_else_was_tried()
    allowed = machine.run(["timeout", "20", *connect(walls.api, HTTPS)])
    assert "connected" in allowed


def test_nothing_listens_but_the_api_and_the_storage_units_ssh(
    walls: Walls, severed: Severed
) -> None:
    machine, storage = severed.listening
    assert machine == set()
    forwards = storage - expected_listeners(walls, STORAGE)
    assert forwards
    assert all(each.startswith(("sshd 127.0.0.1:", "sshd [::1]:")) for each in forwards)

    assert listening(walls.model.machine_of("walled/0")) == set()
    assert listening(walls.api) == expected_listeners(walls, API)


@pytest.mark.usefixtures("severed")
def test_an_api_that_is_lost_in_the_middle_of_a_transfer_costs_no_backup(walls: Walls) -> None:
    model, machine = walls.model, walls.model.machine_of("walled/0")
    model.wait(lambda _: not is_pinging(machine), 120, "for the last check-in")
    assert outcomes(model, "walled") == ["succeeded"]
    fill(machine, "walled")
    act(model, API, "backup-now", machine="walled/0", sources=["data"])
    with slow_line(walls):
        machine.run(["systemctl", "start", "--no-block", "turku-agent-ping"])
        wait_for_the_middle(walls, "walled")
        walls.api.disconnect()
    try:
        model.wait(lambda _: not is_pinging(machine), 120, "for the end of the session")
        ended = machine.run(["systemctl", "show", "--value", "-pResult", "turku-agent-ping"])
        assert ended.strip() == "success"
        model.wait(lambda _: len(snapshots(model, "walled")) == 2, 60, "for the snapshot")
        assert act(model, STORAGE, "usage")["work"]["reports_waiting"] > 0
        assert outcomes(model, "walled") == ["succeeded"]
    finally:
        walls.api.connect()
    wait_for_backup(model, "walled/0", "data", 2)
    assert outcomes(model, "walled") == ["succeeded", "succeeded"]
    recorded = {each["snapshot"] for each in backups(model, "walled/0", "data")}
    assert {each["id"] for each in snapshots(model, "walled")} == recorded
    model.wait(lambda _: act(model, STORAGE, "usage")["work"]["reports_waiting"] == 0, 60)
    assert_restored_as_it_is(model, "walled")
    walls.assert_nothing_else_was_tried()


def assert_the_agent_left_nothing(machine: Machine) -> None:
    """No process of a session, no file of one with a secret, no lock, nothing that listens."""
    assert machine.run(["pgrep", "-fl", "turku-agent|rsync|ssh"], check=False) == ""
    folders = ["find", "/run/turku-agent/sessions", "-mindepth", "1", "-type", "d"]
    assert machine.run(folders) == ""
    machine.run(["flock", "--nonblock", "/run/turku-agent/ping.lock", "true"])
    assert listening(machine) == set()
    assert "turku" not in machine.run(["ss", "-Hlx"])


def uuid_of(machine: Machine) -> str:
    """Return the UUID that a machine has made for itself."""
    identity = json.loads(machine.run(["cat", "/var/lib/turku-agent/config.d/identity.json"]))
    return str(identity["machine_uuid"])


def is_served(walls: Walls, machine: Machine) -> bool:
    """Whether the storage unit still has a process for a machine's session."""
    command = ["pgrep", "-u", "turku-storage", "-f", uuid_of(machine)]
    return walls.storage.run(command, check=False) != ""


def assert_the_storage_unit_left_nothing(walls: Walls, machine: Machine) -> None:
    """No slot taken, no tunnel, and the failure reported."""
    work = act(walls.model, STORAGE, "usage")["work"]
    assert uuid_of(machine) not in [each["machine"] for each in work["sessions"]]
    assert listening(walls.storage) == expected_listeners(walls, STORAGE)
    slots = [
        "bash",
        "-c",
        "set -e; for f in /var/lib/turku-storage/slots/*; do flock -n $f true; done",
    ]
    walls.storage.run(slots)


def assert_a_failure_is_on_record_and_will_be_tried_again(model: Model, failures: int) -> None:
    """The newest backup failed, for a reason that is told, and the source is due in 5 minutes."""
    model.wait(lambda _: outcomes(model, "severed").count("failed") == failures, 60, "the record")
    newest = backups(model, "severed/0", "data")[0]
    assert newest["outcome"] == "failed" and "connection" in newest["summary"]
    command = ["/opt/turku-api/current/bin/turku-api", "list-sources", "--json", "severed/0"]
    (source,) = json.loads(model.machine_of(API).run(command))
    due = datetime.fromisoformat(source["next_due"])
    pause = due - datetime.fromisoformat(newest["ended"])
    assert timedelta(0) < pause <= FIRST_RETRY + timedelta(seconds=LATE_SECONDS)
    assert due > datetime.now(timezone.utc) - FIRST_RETRY


def assert_the_next_run_is_whole(walls: Walls, good: int) -> None:
    """Back up again, and find one more snapshot that holds exactly what there is."""
    model = walls.model
    act(model, agent_beside(model, "severed/0"), "backup-now", sources=["data"])
    wait_for_backup(model, "severed/0", "data", good)
    assert len(snapshots(model, "severed")) == good == outcomes(model, "severed").count("succeeded")
    assert_restored_as_it_is(model, "severed")
    walls.assert_nothing_else_was_tried()


def test_a_machine_that_was_cut_off_in_the_middle_of_a_transfer_tries_again(
    walls: Walls, severed: Severed
) -> None:
    model, machine = walls.model, severed.machine
    left = severed.at + AGENT_NOTICES_SECONDS + LATE_SECONDS - time.monotonic()
    model.wait(lambda _: not is_pinging(machine), left, "for the agent to give up")
    assert_the_agent_left_nothing(machine)
    model.network.mend()
    left = severed.at + STORAGE_NOTICES_SECONDS + LATE_SECONDS - time.monotonic()
    model.wait(lambda _: not is_served(walls, machine), left, "for the slot to be free")
    assert_the_storage_unit_left_nothing(walls, machine)
    assert_a_failure_is_on_record_and_will_be_tried_again(model, 1)
    assert_the_next_run_is_whole(walls, 1)


@pytest.mark.slow_model
def test_a_machine_that_stays_cut_off_keeps_its_slot_for_two_and_a_half_minutes_at_most(
    walls: Walls, severed: Severed
) -> None:
    model, machine = walls.model, severed.machine
    model.network.mend()
    model.wait(lambda _: not is_pinging(machine) and not is_served(walls, machine), 240)
    failures, good = (outcomes(model, "severed").count(each) for each in ("failed", "succeeded"))
    fill(machine, "severed")
    act(model, API, "backup-now", machine="severed/0")
    with slow_line(walls):
        machine.run(["systemctl", "start", "--no-block", "turku-agent-ping"])
        again = sever(walls)
    left = again.at + STORAGE_NOTICES_SECONDS + LATE_SECONDS - time.monotonic()
    model.wait(lambda _: not is_served(walls, machine), left, "for the slot to be free")
    assert_the_agent_left_nothing(machine)
    assert_the_storage_unit_left_nothing(walls, machine)
    assert_a_failure_is_on_record_and_will_be_tried_again(model, failures + 1)
    model.network.mend()
    assert_the_next_run_is_whole(walls, good + 1)

"""Scenario 5. The life of a Turku: options, keys, certificates, upgrades, removals, reboots.

One model, from `bundles/turku.yaml`, whose storage unit begins without any storage. The tests go on
where the one before ended, as an operator does.
"""

from __future__ import annotations

import json
import secrets
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.model.fleet import BUNDLES, act, agent_beside, well
from tests.model.runner.machines import Machine
from tests.model.runner.model import Model
from turku_core import __version__

DATA, BULK = "/srv/data", "/srv/bulk"
BULK_BYTES = 12 * 1024 * 1024
NIGHT = (datetime.now(timezone.utc).hour + 12) % 24
"""An hour that these tests don't see, in whichever of their time zones it is meant."""

WINDOW = f"daily, {NIGHT:02}00-{NIGHT:02}59"

SOURCES = f"""
data: {{path: /srv/data, retention: last 30 snapshots}}
bulk: {{path: /srv/bulk, frequency: monthly, bwlimit: 2m}}
nightly: {{path: /srv/data, frequency: "{WINDOW}"}}
"""
"""What the option asks for. The second takes a while; the third waits for its window."""

PATIENCE = 300
"""Seconds that anything may take on a busy host."""

NEXT_VERSION = f"{__version__}.1"
PING = "/opt/turku-agent/current/bin/turku-agent-ping"
UPDATE = "/opt/turku-agent/current/bin/turku-update-config"
IDENTITY = "/var/lib/turku-agent/config.d/identity.json"
CONFIGURATION = "/etc/turku-agent/config.d/50-juju.json"


@dataclass
class Before:
    """What there was on the machine of `late/0`.

    Attributes:
        files: Its files before it had an agent.
        data: Its source `data` when its agent was removed.
        machine: The UUID it had then.
    """

    files: set[str] = field(default_factory=set)
    data: str = ""
    machine: str = ""


@pytest.fixture(scope="module")
def before() -> Before:
    """What the tests here tell each other of the machine of `late/0`."""
    return Before()


@pytest.fixture(scope="module")
def life(image: Path, store: dict[str, Path], before: Before) -> Iterator[Model]:
    """A small Turku whose storage unit has no storage, and a machine `late/0` without an agent."""
    with Model(image, store) as model:
        model.deploy("ubuntu", "late")
        model.deploy(BUNDLES / "turku.yaml", overlay={"turku-storage": {"storage": {}}})
        for unit in ("late/0", "ubuntu/0"):
            fill(model.machine_of(unit))
        model.wait(well, PATIENCE, "for the small bundle to be active")
        before.files = files(model.machine_of("late/0"))
        yield model


# What is looked at.


def files(machine: Machine) -> set[str]:
    """Return the paths on a machine's disk, without Juju's, logs and what is backed up."""
    left_out = ("/var/lib/juju", "/var/log", "/srv")
    prune = " -o ".join(f"-path {path}" for path in left_out)
    script = f"find / -xdev \\( {prune} \\) -prune -o -print"
    return set(machine.run(["sh", "-c", script]).splitlines())


def machine_names(model: Model, uuid: str) -> dict[str, str]:
    """Return a machine's name and state as the API has them."""
    listed = api(model, "list-machines", "--all")
    return {each["unit"]: each["state"] for each in listed if each["uuid"] == uuid}


def alerts_of(model: Model, name: str) -> list[str]:
    """Return what the fleet's health and its metrics have to say against a machine."""
    machine = model.machine_of("turku-api/0")
    program = "/opt/turku-api/current/bin/turku-api"
    metrics = machine.run([program, "metrics"]).splitlines()
    health = act(model, "turku-api/0", "health")["checks"].values()
    return [
        *(line for line in metrics if f'"{name}"' in line and "behind" in line),
        *(
            f"{problem['about']}: {problem['why']}"
            for check in health
            for problem in check["problems"]
            if name in problem["about"]
        ),
    ]


def agents_on(model: Model, machine: Machine) -> list[str]:
    """Return the agent units on a machine."""
    return [
        unit.name
        for unit in model.entities.units()
        if unit.application == "turku-agent" and model.machines[unit.machine] is machine
    ]


def places(model: Model, unit: str, source: str) -> list[str]:
    """Return the volumes on which a source has its place."""
    uuid = identity(model.machine_of(unit))["machine_uuid"]
    storage = model.machine_of("turku-storage/0")
    return [
        each["name"]
        for each in usage(model)["volumes"]
        if "yes"
        in storage.run(
            ["sh", "-c", f"test -d {each['path']}/machines/{uuid}/{source} && echo yes"],
            check=False,
        )
    ]


def fill(machine: Machine) -> None:
    """Give a machine something to back up: owners and modes, a link, a file and its new bytes."""
    machine.run(["mkdir", "-p", f"{DATA}/folder", BULK])
    script = (
        f"cd {DATA} && echo one >folder/one && chown 1234:4321 folder/one && chmod 640 folder/one"
        " && ln -sf folder/one link && ln -f folder/one hard && chmod 2750 folder"
    )
    machine.run(["sh", "-c", script])
    renew(machine)


def renew(machine: Machine) -> None:
    """Let the sources hold what they never held before."""
    machine.run(["sh", "-c", f"cat >{DATA}/changing"], given=secrets.token_hex(64).encode())
    machine.run(["sh", "-c", f"head -c {BULK_BYTES} /dev/urandom >{BULK}/large"])


def tree(machine: Machine, folder: str) -> str:
    """Return everything below a folder: kinds, modes, owners, times, links and contents."""
    script = (
        "find . -mindepth 1 -printf '%P %y %m %U:%G %T@ %l\\n' | sort;"
        "find . -type f -printf '%P\\n' | sort | xargs -r -d '\\n' sha256sum"
    )
    return machine.run(["sh", "-c", script], folder=folder)


def api(model: Model, *words: str) -> Any:
    """Ask the workload on the API unit."""
    command = ["/opt/turku-api/current/bin/turku-api", *words, "--json"]
    return json.loads(model.machine_of("turku-api/0").run(command))


def identity(machine: Machine) -> dict[str, str]:
    """Return who a machine's agent is."""
    return dict(json.loads(machine.run(["cat", IDENTITY])))


def sources(model: Model, unit: str) -> dict[str, dict[str, Any]]:
    """Return what the API knows of a machine's sources, by name; none of an unknown machine."""
    listed = api(model, "list-sources")
    return {each["source"]: each for each in listed if each["machine"] == unit}


def records(model: Model, unit: str, source: str) -> list[dict[str, Any]]:
    """Return the API's records of a source's backups, newest first."""
    return list(api(model, "list-backups", f"--machine={unit}", f"--source={source}"))


def usage(model: Model) -> dict[str, Any]:
    """Return what the storage unit says of itself."""
    return dict(act(model, "turku-storage/0", "usage"))


def snapshots(model: Model, machine: str, source: str) -> list[str]:
    """Return the ids of a source's snapshots on the storage unit, none of them half-made."""
    said = act(model, "turku-storage/0", "list-snapshots", machine=machine, source=source)
    assert said["problems"] == []
    return sorted(each["id"] for each in said["snapshots"])


def wait_for_check_in(model: Model, unit: str, seconds_max: float = PATIENCE) -> None:
    """Let a machine check in now, and wait until the API has seen it."""
    before = api(model, "show-machine", unit)["last_seen"]

    def is_seen(each: Model) -> bool:
        each.machine_of(unit).run(["systemctl", "start", "--no-block", "turku-agent-ping.service"])
        return bool(api(each, "show-machine", unit)["last_seen"] != before)

    model.wait(is_seen, seconds_max, f"for a check-in of {unit}")


def wait_for_status(model: Model, unit: str, word: str, *words: str) -> str:
    """Wait until a unit has a status with these words, and return its message."""

    def says_it(each: Model) -> bool:
        status, message = each.status()[unit]
        return status == word and all(word in message for word in words) and each.is_settled()

    model.wait(says_it, PATIENCE, f"for {unit} to be {word}: {' '.join(words)}")
    return model.status()[unit][1]


# A backup that lasts for as long as a test wants.


def begin_slow_backup(model: Model, unit: str) -> None:
    """Begin a backup of `bulk`, and hold it with a part of the file on the storage unit.

    Its sender is stopped where it stands, so that nothing depends on how fast the host is.
    """
    machine = model.machine_of(unit)
    act(model, "turku-api/0", "backup-now", machine=unit, sources=["bulk"])
    machine.run(["systemctl", "start", "--no-block", "turku-agent-ping.service"])
    uuid = identity(machine)["machine_uuid"]
    look = f"find /srv/turku-storage -path '*{uuid}/bulk/*' -name '.large.*' -size +64k"
    storage = model.machine_of("turku-storage/0")
    model.wait(
        lambda _: bool(storage.run(["sh", "-c", look]).strip()),
        PATIENCE,
        f"for a transfer of {unit}",
    )
    machine.run(["pkill", "-STOP", "-x", "rsync"])


def let_go_on(model: Model, unit: str) -> None:
    """Let a backup go on that was held."""
    model.machine_of(unit).run(["pkill", "-CONT", "-x", "rsync"])


# Options.


def test_an_option_of_each_charm_reaches_its_workload(life: Model) -> None:
    assert "backups lie on the root disk" in wait_for_status(life, "turku-storage/0", "active")
    life.configure("turku-api", default_schedule="weekly", time_zone="Europe/Helsinki")
    life.configure("turku-storage", slots=3, high_water_mark=60)
    life.settle(PATIENCE)
    life.configure("turku-agent", sources=SOURCES)
    life.wait(
        lambda each: "data" in sources(each, "ubuntu/0"), PATIENCE, "for the API to know of them"
    )
    for source in ("data", "bulk"):
        wait_for_backup_now(life, "ubuntu/0", source)

    known = sources(life, "ubuntu/0")
    assert {name: each["frequency"] for name, each in known.items()} == {
        "data": "weekly",
        "bulk": "monthly",
        "nightly": WINDOW,
    }
    due = datetime.fromisoformat(known["nightly"]["next_due"])
    assert due.astimezone(ZoneInfo("Europe/Helsinki")).hour == NIGHT

    said = usage(life)
    assert said["work"]["slots"] == 3
    assert [each["high_water_pct"] for each in said["volumes"]] == [60]


def test_a_time_zone_moves_the_windows_that_are_yet_to_come(life: Model) -> None:
    life.configure("turku-api", time_zone="America/New_York")
    life.settle(PATIENCE)
    # A machine's schedules are looked at again when it tells its sources, which it does each hour.
    life.machine_of("ubuntu/0").run(["systemctl", "start", "turku-update-config.service"])
    due = datetime.fromisoformat(sources(life, "ubuntu/0")["nightly"]["next_due"])
    assert due.astimezone(ZoneInfo("America/New_York")).hour == NIGHT


def test_an_invalid_option_blocks_with_words_and_heals(life: Model) -> None:
    life.configure("turku-api", time_zone="Mars/Olympus")
    life.configure("turku-storage", high_water_mark=0)
    life.configure(
        "turku-agent", sources=SOURCES.replace("{path: /srv/data, ret", "{path: srv/data, ret")
    )
    agent = agent_beside(life, "ubuntu/0")
    wait_for_status(life, "turku-api/0", "blocked", "time-zone", "Mars/Olympus", "Europe/Helsinki")
    wait_for_status(life, "turku-storage/0", "blocked", "high-water-mark", "from 1 to 100")
    wait_for_status(life, agent, "blocked", "data", "path")
    # What worked before goes on.
    wait_for_check_in(life, "ubuntu/0")
    assert set(sources(life, "ubuntu/0")) >= {"bulk", "nightly"}
    assert usage(life)["volumes"][0]["high_water_pct"] == 60

    life.configure("turku-api", time_zone="UTC", default_schedule="daily")
    life.configure("turku-storage", high_water_mark=80, slots=10)
    life.configure("turku-agent", sources=SOURCES)
    life.wait(well, PATIENCE, "for all to be active again")
    assert usage(life)["work"]["slots"] == 10


# Keys and certificates.


def register_as_stranger(machine: Machine, key: dict[str, Any]) -> str:
    """Try to register somebody new with a registration key, and return what that says."""
    folder = f"/tmp/stranger-{secrets.token_hex(4)}"
    configuration = json.dumps({**key, "unit_name": "stranger"}).encode()
    machine.run(["mkdir", "-p", f"{folder}/etc/turku-agent/config.d"])
    file = f"{folder}/etc/turku-agent/config.d/stranger.json"
    machine.run(["sh", "-c", f"cat >{file}"], given=configuration)
    said = machine.run([UPDATE, "--root", folder], check=False)
    machine.run(["rm", "-r", folder])
    return said


def test_a_rotated_key_lets_a_new_machine_in_and_the_old_one_nobody(life: Model) -> None:
    machine = life.machine_of("ubuntu/0")
    old = json.loads(machine.run(["cat", CONFIGURATION]))
    before = api(life, "show-machine", "ubuntu/0")
    name = old["api_auth_name"]
    assert act(life, "turku-api/0", "rotate-registration-key", name=name)["handed_over"] is True
    life.settle(PATIENCE)

    new = json.loads(machine.run(["cat", CONFIGURATION]))
    assert new["api_auth_secret"] != old["api_auth_secret"]
    refused = register_as_stranger(machine, old)
    assert "wrong or disabled" in refused, refused
    # The same with the new one gets as far as any machine that Juju hasn't told of.
    let_in = register_as_stranger(machine, new)
    assert "not been announced" in let_in, let_in

    wait_for_check_in(life, "ubuntu/0")
    after = api(life, "show-machine", "ubuntu/0")
    assert (after["uuid"], after["registered"]) == (before["uuid"], before["registered"])

    life.integrate("late:juju-info", "turku-agent:host")
    life.wait(
        lambda each: "late/0" in {one["unit"] for one in api(each, "list-machines")},
        PATIENCE,
        "for the new machine to register",
    )
    wait_for_backup_now(life, "late/0", "data")
    assert [each["unit"] for each in api(life, "list-machines")] == ["late/0", "ubuntu/0"]


def issuer_served(model: Model) -> str:
    """Return the authority of the certificate that the API shows; none while it starts anew."""
    machine = model.machine_of("turku-api/0")
    script = f"openssl s_client -connect {machine.address}:443 | openssl x509 -noout -issuer"
    return machine.run(["sh", "-c", f"({script}) </dev/null 2>/dev/null"], check=False).strip()


def wait_for_issuer(model: Model, served: Callable[[str], bool]) -> None:
    """Wait until the API shows another certificate and everybody has heard of it."""
    model.wait(lambda each: served(issuer_served(each)), PATIENCE, "for the API's new certificate")
    model.wait(well, PATIENCE, "for all to be active with the new certificate")


def test_certificates_switch_both_ways_and_nobody_registers_anew(life: Model) -> None:
    units = ("ubuntu/0", "late/0")
    identities = {unit: identity(life.machine_of(unit)) for unit in units}
    registered = {unit: api(life, "show-machine", unit)["registered"] for unit in units}
    life.deploy("self-signed-certificates")
    own = issuer_served(life)

    life.integrate("turku-api:certificates", "self-signed-certificates:certificates")
    wait_for_issuer(life, lambda issuer: "self-signed-certificates-operator" in issuer)
    for unit in units:
        wait_for_check_in(life, unit)
    # The storage unit reports it over the same certificate.
    wait_for_backup_now(life, "ubuntu/0", "data")

    life.remove_relation("turku-api:certificates", "self-signed-certificates:certificates")
    wait_for_issuer(life, lambda issuer: issuer == own)
    for unit in units:
        wait_for_check_in(life, unit)

    assert {unit: identity(life.machine_of(unit)) for unit in units} == identities
    assert {unit: api(life, "show-machine", unit)["registered"] for unit in units} == registered


def wait_for_backup_now(model: Model, unit: str, source: str) -> str:
    """Back up a source at once and return its newest snapshot's id, once the API knows of it."""
    known = {each["snapshot"] for each in records(model, unit, source)}
    act(model, agent_beside(model, unit), "backup-now", sources=[source])
    return wait_for_another(model, unit, source, known)


def wait_for_another(model: Model, unit: str, source: str, known: Collection[str]) -> str:
    """Wait until the newest record of a source is a good one with a new snapshot; return its id."""

    def is_there(each: Model) -> bool:
        newest = records(each, unit, source)[:1]
        return any(one["outcome"] == "succeeded" and one["snapshot"] not in known for one in newest)

    model.wait(is_there, PATIENCE, f"for another backup of {source} of {unit}")
    return str(records(model, unit, source)[0]["snapshot"])


# Upgrades.


def newer(charm: Path, folder: Path) -> Path:
    """Return a charm's next release: the same, with the next version of turku-core."""
    file = folder / charm.name
    with zipfile.ZipFile(charm) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("/turku_core/__init__.py"):
                content = content.replace(__version__.encode(), NEXT_VERSION.encode())
            if "/turku_core-" in entry.filename and entry.filename.endswith("/METADATA"):
                content = content.replace(
                    f"\nVersion: {__version__}\n".encode(), f"\nVersion: {NEXT_VERSION}\n".encode()
                )
            new.writestr(entry, content, zipfile.ZIP_STORED)
    return file


def test_charms_are_upgraded_while_a_backup_runs(
    life: Model, store: dict[str, Path], tmp_path: Path
) -> None:
    machine = life.machine_of("ubuntu/0")
    who, key = identity(machine), machine.run(["cat", "/var/lib/turku-agent/ssh_key.pub"])
    held = snapshots(life, "ubuntu/0", "bulk"), snapshots(life, "ubuntu/0", "data")
    renew(machine)
    begin_slow_backup(life, "ubuntu/0")

    for name in ("turku-api", "turku-storage", "turku-agent"):
        life.upgrade(name, newer(store[name], tmp_path))
    life.wait(well, PATIENCE, "for the upgraded charms to be active")
    units = {name: unit.workload_version for name, unit in units_of(life).items()}
    assert {units[name] for name in ("turku-api/0", "turku-storage/0")} == {NEXT_VERSION}
    assert {units[agent_beside(life, name)] for name in ("ubuntu/0", "late/0")} == {NEXT_VERSION}
    for path in ("api", "storage"):
        program = f"/opt/turku-{path}/current/bin/turku-{path}"
        assert NEXT_VERSION in life.machine_of(f"turku-{path}/0").run([program, "--version"])
    assert NEXT_VERSION in machine.run([PING, "--version"])
    # The session has outlived it.
    assert [each["sources"] for each in usage(life)["work"]["sessions"]] == [["bulk"]]
    let_go_on(life, "ubuntu/0")
    newest = wait_for_another(life, "ubuntu/0", "bulk", held[0])

    assert [each["outcome"] for each in records(life, "ubuntu/0", "bulk")].count("failed") == 0
    assert identity(machine) == who
    assert machine.run(["cat", "/var/lib/turku-agent/ssh_key.pub"]) == key
    now = snapshots(life, "ubuntu/0", "bulk"), snapshots(life, "ubuntu/0", "data")
    assert now == ([*held[0], newest], held[1])
    assert_restored(life, "ubuntu/0", "bulk", BULK)


def units_of(model: Model) -> dict[str, Any]:
    """Return the model's units by name."""
    return {unit.name: unit for unit in model.entities.units()}


def assert_restored(model: Model, unit: str, source: str, folder: str, **parameters: Any) -> None:
    """Restore a source's newest snapshot beside it and compare."""
    machine = model.machine_of(unit)
    target = f"/var/tmp/restored-{secrets.token_hex(4)}"
    agent = agent_beside(model, unit)
    act(model, agent, "restore", source=source, target=target, **parameters)
    assert tree(machine, target) == tree(machine, folder)
    machine.run(["rm", "-r", target])


# Who shares a machine, and who leaves it.


def test_the_agent_of_two_principals_goes_only_with_the_last(life: Model) -> None:
    machine, number = life.machine_of("late/0"), life.entities.unit("late/0").machine
    who = identity(machine)
    life.deploy("ubuntu", "beside", machines=[number])
    life.settle(PATIENCE)
    life.integrate("beside:juju-info", "turku-agent:host")
    life.wait(well, PATIENCE, "for the second principal's agent unit")
    assert machine_names(life, who["machine_uuid"]) == {"late/0": "active"}

    life.remove_unit("late/0")
    life.wait(lambda each: "late/0" not in each.status(), PATIENCE, "for the first principal to go")
    life.settle(PATIENCE)
    assert identity(machine) == who
    life.wait(
        lambda each: machine_names(each, who["machine_uuid"]) == {"beside/0": "active"},
        PATIENCE,
        "for the machine to have the name of the principal that is left",
    )
    wait_for_check_in(life, "beside/0")
    wait_for_backup_now(life, "beside/0", "data")


def test_a_unit_that_goes_leaves_its_backups_and_nothing_on_the_machine(
    life: Model, before: Before
) -> None:
    machine = life.machine_of("beside/0")
    uuid = identity(machine)["machine_uuid"]
    held = {name: snapshots(life, uuid, name) for name in ("data", "bulk")}
    # An alert, to be silenced: a source can't be backed up any more.
    before.data = tree(machine, DATA)
    machine.run(["rm", "-r", DATA])
    act(life, "turku-api/0", "backup-now", machine="beside/0", sources=["data"])
    machine.run(["systemctl", "start", "--no-block", "turku-agent-ping.service"])
    life.wait(
        lambda each: bool(alerts_of(each, "beside/0")), PATIENCE, "for an alert of the machine"
    )

    life.remove_relation("beside:juju-info", "turku-agent:host")
    life.wait(lambda each: not agents_on(each, machine), PATIENCE, "for the agent to go")
    life.settle(PATIENCE)

    assert "beside/0" in life.status()
    assert machine_names(life, uuid) == {"beside/0": "retired"}
    assert uuid not in {each["uuid"] for each in api(life, "list-machines")}
    assert alerts_of(life, "beside/0") == []
    assert {name: snapshots(life, uuid, name) for name in held} == held
    assert files(machine) - before.files == set()
    assert "turku" not in machine.run(["systemctl", "list-units", "--all", "--no-legend"])
    assert "turku" not in machine.run(["ps", "-eo", "args"])
    before.machine = uuid


# Storage that comes later.


def test_storage_attached_later_loses_nothing_of_what_was_before(
    life: Model, before: Before
) -> None:
    held = {
        (machine, source): snapshots(life, machine, source)
        for machine in ("ubuntu/0", before.machine)
        for source in ("data", "bulk")
    }
    assert "backups lie on the root disk" in life.status()["turku-storage/0"][1]

    life.add_storage("turku-storage/0", "data", "400M")
    life.wait(well, PATIENCE, "for the storage unit to have its storage")
    assert "root disk" not in life.status()["turku-storage/0"][1]
    volumes = {each["name"]: each for each in usage(life)["volumes"]}
    assert {name: (each["mounted"], each["accept_new"]) for name, each in volumes.items()} == {
        "data": (True, True),
        "folder": (True, False),
    }
    assert volumes["data"]["bytes_total"] < 400 * 1024 * 1024

    # What was there is there, is restored, and goes on where it is.
    for (machine, source), ids in held.items():
        assert snapshots(life, machine, source) == ids
    assert_restored(life, "ubuntu/0", "bulk", BULK)
    renew(life.machine_of("ubuntu/0"))
    newest = wait_for_backup_now(life, "ubuntu/0", "data")
    assert snapshots(life, "ubuntu/0", "data") == [*held["ubuntu/0", "data"], newest]
    assert places(life, "ubuntu/0", "data") == ["folder"]
    assert_restored(life, "ubuntu/0", "data", DATA)


def test_the_same_machine_deployed_again_restores_what_the_former_one_had(
    life: Model, before: Before
) -> None:
    machine = life.machine_of("beside/0")
    number, former = life.entities.unit("beside/0").machine, before.machine
    life.deploy("ubuntu", "again", machines=[number])
    life.settle(PATIENCE)
    life.integrate("again:juju-info", "turku-agent:host")
    life.wait(
        lambda each: "again/0" in {one["unit"] for one in api(each, "list-machines")},
        PATIENCE,
        "for the new machine to register",
    )
    assert identity(machine)["machine_uuid"] != former
    assert machine_names(life, former) == {"beside/0": "retired"}

    order = act(
        life, "turku-api/0", "restore", machine=former, source="data", **{"to-machine": "again/0"}
    )

    def is_restored(each: Model) -> bool:
        machine.run(["systemctl", "start", "--no-block", "turku-agent-ping.service"])
        [state] = [one for one in api(each, "list-restores") if one["id"] == order["id"]]
        assert state["state"] not in ("refused", "failed"), state
        return bool(state["state"] == "done")

    def is_idle(_: Model) -> bool:
        state = machine.run(["systemctl", "is-active", "turku-agent-ping.service"], check=False)
        return state.strip() not in ("active", "activating")

    life.wait(is_restored, PATIENCE, "for the restore that was ordered")
    # The last of these check-ins may still find that the source isn't there.
    life.wait(is_idle, PATIENCE, "for the last check-in to end")
    [folder] = machine.run(
        ["sh", "-c", f"ls -d /var/lib/turku-agent/restore/{former}/data/*"]
    ).split()
    assert tree(machine, folder) == before.data
    # The order lets the machine go on from there by itself, and put it where it belongs.
    agent = agent_beside(life, "again/0")
    act(life, agent, "restore", machine=former, source="data", target=DATA)
    assert tree(machine, DATA) == before.data
    wait_for_backup_now(life, "again/0", "data")
    # What is new goes to the storage that came.
    assert places(life, "again/0", "data") == ["data"]
    life.update_status()
    life.wait(well, PATIENCE, "for the machine to be well")


# Machines that go down in the middle of a backup.


def test_machines_rebooted_in_the_middle_of_a_backup_end_in_a_clean_retry(life: Model) -> None:
    units = ("ubuntu/0", "again/0")
    held = {unit: snapshots(life, unit, "bulk") for unit in units}
    for unit in units:
        renew(life.machine_of(unit))
        begin_slow_backup(life, unit)
    plugged, orderly = (life.machine_of(unit) for unit in units)
    plugged.stop(kill=True)
    plugged.start()
    let_go_on(life, "again/0")
    orderly.reboot()
    for unit in units:
        assert_retried(life, unit, held[unit])


@pytest.mark.parametrize("way", ["by its plug", "in order"])
def test_a_storage_unit_rebooted_in_the_middle_of_a_backup(life: Model, way: str) -> None:
    held = snapshots(life, "ubuntu/0", "bulk")
    renew(life.machine_of("ubuntu/0"))
    begin_slow_backup(life, "ubuntu/0")
    storage = life.machine_of("turku-storage/0")
    if way == "by its plug":
        storage.stop(kill=True)
        let_go_on(life, "ubuntu/0")
        storage.start()
    else:
        let_go_on(life, "ubuntu/0")
        storage.reboot()
    assert_retried(life, "ubuntu/0", held)
    # The other volume, which is a mount, is there again as well.
    wait_for_backup_now(life, "again/0", "data")
    assert_restored(life, "again/0", "data", DATA)
    life.update_status()
    life.wait(well, PATIENCE, "for all to be well again")


def assert_retried(model: Model, unit: str, held: list[str]) -> None:
    """Wait until the broken run is on record, try again, and compare what came of it."""
    model.wait(
        lambda each: records(each, unit, "bulk")[0]["outcome"] == "failed",
        PATIENCE,
        f"for the broken backup of {unit} to be on record",
    )
    assert snapshots(model, unit, "bulk") == held
    newest = wait_for_backup_now(model, unit, "bulk")
    assert snapshots(model, unit, "bulk") == [*held, newest]
    assert_restored(model, unit, "bulk", BULK)
    [verified] = act(
        model, "turku-storage/0", "verify", machine=unit, source="bulk", snapshot=newest
    )["verified"]
    assert verified["proven"] is True

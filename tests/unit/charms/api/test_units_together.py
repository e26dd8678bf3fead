"""Several API units and an other side, in the order of hooks that Juju has for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ops
import pytest
from ops import testing

from tests.support.api_unit import CHARM, Api, Systemd
from tests.support.charms import CHARMS
from tests.support.joined import Joined
from turku_core.credentials import PublicKey, make_ssh_key_pair
from turku_core.relations import AgentUnit

AGENT = {"name": "agent", "requires": {"api": {"interface": "turku_agent"}}}
SSH_KEYS = [PublicKey.parse(make_ssh_key_pair("")[1]) for _ in range(2)]


class Agent(ops.CharmBase):
    """An agent's charm, as far as the API's charm sees it: each unit is a machine."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on.api_relation_created, self._say)

    def _say(self, event: ops.RelationEvent) -> None:
        said = AgentUnit(uuid_of(self.unit.name), key_of(self.unit.name), self.unit.name)
        event.relation.data[self.unit].update(said.to_databag())


def uuid_of(unit: str) -> str:
    """Return the UUID of a unit's machine."""
    return f"6ba7b810-9dad-41d1-80b4-00c04fd430{int(unit.rpartition('/')[2]):02d}"


def key_of(unit: str) -> PublicKey:
    """Return the SSH key of a unit's machine."""
    return SSH_KEYS[int(unit.rpartition("/")[2])]


@dataclass
class Fleet:
    """API units and agents, and what the first unit's database knows."""

    joined: Joined
    systemd: Systemd

    def api(self, number: int = 0) -> Api:
        """Return a unit, for what its files and its database say."""
        unit = self.joined.unit(f"turku-api/{number}")
        return Api(unit.root, self.systemd, unit=number, state=unit.state)

    def register(self, *units: str) -> None:
        """Let agents register, as far as the database is concerned."""
        for unit in units:
            self.api().programs.run(
                "turku-api",
                "shell",
                "-c",
                "from turku_core.api.models import Machine, RegistrationKey as K;"
                f"Machine.objects.create(uuid='{uuid_of(unit)}', unit_name='{unit}',"
                f" secret_hash='x' * 64, ssh_public_key='{key_of(unit).line}',"
                f" ssh_key_fingerprint='{key_of(unit).fingerprint}',"
                " registration_key=K.objects.get(name__startswith='agents'))",
            )

    def machines(self) -> dict[str, str]:
        """Return the state of each machine by its unit's name."""
        rows = self.api().ask("list-machines", "--all")
        return {row["unit"]: row["state"] for row in rows}


@pytest.fixture
def deploy(systemd: Systemd, tmp_path: Path) -> Callable[[int, int], Fleet]:
    """Deploy so many API units, and so many agents that are integrated with them."""

    def deploy_units(units: int, agents: int) -> Fleet:
        joined = Joined(tmp_path)
        joined.deploy(
            "turku-api",
            CHARM.TurkuApiCharm,
            CHARMS / "turku-api",
            units=units,
            storages=frozenset({testing.Storage("data")}),
        )
        joined.deploy("agent", Agent, metadata=AGENT, units=agents)
        joined.integrate("agent:api", "turku-api:agents")
        joined.settle()
        return Fleet(joined, systemd)

    return deploy_units


def test_a_fleet_comes_up_and_is_announced(deploy: Callable[[int, int], Fleet]) -> None:
    fleet = deploy(1, 2)
    assert fleet.joined.statuses()["turku-api/0"] == "active: https://192.0.2.0:443/v1, SQLite"
    fleet.register("agent/0", "agent/1")
    assert fleet.machines() == {"agent/0": "active", "agent/1": "active"}
    fleet.joined.update_status()
    hooks = fleet.joined.settle()
    assert hooks == 3, "nothing follows from hooks that find everything as it should be"


def test_a_machine_that_goes_is_retired_and_the_others_stay(
    deploy: Callable[[int, int], Fleet],
) -> None:
    fleet = deploy(1, 2)
    fleet.register("agent/0", "agent/1")
    fleet.joined.remove_unit("agent/1")
    fleet.joined.settle()
    assert fleet.machines() == {"agent/0": "active", "agent/1": "retired"}


def test_a_second_unit_says_why_it_does_not_serve_and_goes_without_a_trace(
    deploy: Callable[[int, int], Fleet],
) -> None:
    fleet = deploy(2, 1)
    fleet.register("agent/0")
    statuses = fleet.joined.statuses()
    assert statuses["turku-api/0"].startswith("active")
    assert statuses["turku-api/1"].startswith("blocked: This unit doesn't serve: turku-api/0")
    fleet.joined.remove_unit("turku-api/1")
    fleet.joined.settle()
    assert fleet.machines() == {"agent/0": "active"}
    assert set(fleet.api().keys().values()) == {"active"}


def test_a_unit_with_the_data_that_goes_takes_no_machine_and_no_key_along(
    deploy: Callable[[int, int], Fleet],
) -> None:
    fleet = deploy(2, 1)
    fleet.register("agent/0")
    first = fleet.api()
    fleet.joined.remove_unit("turku-api/0")
    fleet.joined.settle()
    # Its storage may come back: in the database that it leaves all is as it was.
    rows = first.ask("list-machines", "--all")
    assert [row["state"] for row in rows] == ["active"]
    assert set(first.keys().values()) == {"active"}
    status = fleet.joined.statuses()["turku-api/1"]
    assert status.startswith("blocked: The database was on turku-api/0, which is gone")
    assert not (fleet.joined.unit("turku-api/1").root / "var/lib/turku-api/turku.sqlite3").exists()


def test_a_relation_that_is_removed_and_made_again_takes_its_machines_back(
    deploy: Callable[[int, int], Fleet],
) -> None:
    fleet = deploy(1, 1)
    fleet.register("agent/0")
    (relation,) = [link.id for link in fleet.joined.links.values() if not link.container
                   and "agent" in dict(link.ends)]  # fmt: skip
    fleet.joined.remove_relation(relation)
    fleet.joined.settle()
    assert fleet.machines() == {"agent/0": "retired"}
    assert set(fleet.api().keys().values()) == {"disabled"}
    fleet.joined.integrate("agent:api", "turku-api:agents")
    fleet.joined.settle()
    assert sorted(fleet.api().keys().values()) == ["active", "disabled"]
    assert fleet.machines() == {"agent/0": "active"}

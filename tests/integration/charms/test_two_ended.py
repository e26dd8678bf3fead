"""The three charms on both ends of their relations, until nothing changes any more.

Real are the charms, their programs, the API with its database and TLS. `ops.testing` stands for
Juju, joined by `tests.support.joined`; apt and systemd have a stand-in.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from ops import testing

from tests.integration.charms.conftest import Fleet
from turku_core.errors import TryAgainLater, TurkuError

SEND = "turku-update-config"


def test_everyone_finds_the_api_and_comes_to_rest(joined: Fleet) -> None:
    assert joined.statuses()["turku-api/0"].startswith("active: ")
    url = f"https://localhost:{joined.port}/v1"
    assert joined.config_of("turku-agent/0", "agent")["api_url"] == [url]
    assert joined.config_of("turku-storage/0", "storage")["api_url"] == [url]
    assert joined.settle() == 0


def test_a_second_round_of_hooks_changes_nothing_on_either_side(joined: Fleet) -> None:
    joined.update_status()
    joined.settle()
    before = {link.id: dict(link.data) for link in joined.links.values()}
    secrets = {app.name: dict(app.secrets) for app in joined.apps.values()}
    count = len(joined.hooks_run)
    joined.update_status()
    assert joined.settle() == 4
    assert len(joined.hooks_run) == count + 4
    assert {link.id: dict(link.data) for link in joined.links.values()} == before
    assert {app.name: dict(app.secrets) for app in joined.apps.values()} == secrets


def test_each_relation_has_a_key_of_its_own_and_no_databag_has_a_secret_in_it(
    joined: Fleet,
) -> None:
    agent = joined.config_of("turku-agent/0", "agent")["api_auth_secret"]
    storage = joined.config_of("turku-storage/0", "storage")["api_auth_secret"]
    assert agent != storage
    said = " ".join(
        text
        for link in joined.links.values()
        for bag in link.data.values()
        for text in bag.values()
    )
    assert agent not in said
    assert storage not in said
    assert "PRIVATE KEY" not in said


def test_what_the_relations_carry_lets_machine_and_storage_unit_register(joined: Fleet) -> None:
    with joined.serving():
        joined.programs("turku-storage/0").run("turku-storage-update-config")
        joined.programs("turku-agent/0").run(SEND)
        machines = joined.machines()
    assert list(machines) == ["ubuntu/0"]
    assert machines["ubuntu/0"]["service"] == "ubuntu"
    assert machines["ubuntu/0"]["environment"] == "fleet"


def test_the_registration_key_alone_lets_nobody_in(joined: Fleet) -> None:
    with joined.serving():
        programs = joined.programs("turku-agent/0")
        stranger = joined.copy_of("turku-agent/0")
        shutil.rmtree(stranger / "var/lib/turku-agent")
        with pytest.raises(TryAgainLater, match="announced"):
            replace(programs, root=stranger).run(SEND)
        # Nor may the machine's own UUID be taken with another SSH key.
        impostor = joined.copy_of("turku-agent/0")
        for path in (impostor / "var/lib/turku-agent").glob("ssh_key*"):
            path.unlink()
        with pytest.raises(TurkuError, match="refused"):
            replace(programs, root=impostor).run(SEND)
        assert joined.machines() == {}


def test_a_machine_whose_principal_goes_is_retired_and_is_let_in_no_more(joined: Fleet) -> None:
    with joined.serving():
        programs = joined.programs("turku-agent/0")
        programs.run(SEND)
        # Who had copied the machine's identity before the charm took it away.
        copy = joined.copy_of("turku-agent/0")
        joined.remove_unit("ubuntu/0")
        joined.settle()
        assert joined.machines()["ubuntu/0"]["state"] == "retired"
        with pytest.raises(TurkuError, match="refused"):
            replace(programs, root=copy).run("turku-agent-ping")


def test_a_relation_that_is_made_again_brings_the_machine_back(joined: Fleet) -> None:
    with joined.serving():
        joined.programs("turku-agent/0").run(SEND)
        link = next(each for each in joined.links.values() if each.interface == "turku_agent")
        old = joined.config_of("turku-agent/0", "agent")["api_auth_secret"]
        joined.remove_relation(link.id)
        joined.settle()
        assert joined.machines()["ubuntu/0"]["state"] == "retired"
        joined.integrate("turku-agent:api", "turku-api:agents")
        joined.settle()
        joined.programs("turku-agent/0").run(SEND)
        assert joined.machines()["ubuntu/0"]["state"] == "active"
        assert joined.config_of("turku-agent/0", "agent")["api_auth_secret"] != old


def test_a_rotated_key_reaches_the_other_side_and_what_registered_goes_on(joined: Fleet) -> None:
    with joined.serving():
        joined.programs("turku-agent/0").run(SEND)
        before = joined.config_of("turku-agent/0", "agent")
        results = joined.run("turku-api/0", "rotate-registration-key", name=before["api_auth_name"])
        joined.settle()
        after = joined.config_of("turku-agent/0", "agent")
        assert after["api_auth_secret"] != before["api_auth_secret"]
        assert after["api_auth_secret"] not in str(results)
        joined.programs("turku-agent/0").run("turku-agent-ping", "--status")


def test_several_applications_of_each_kind_share_an_api(fleet: Fleet) -> None:
    fleet.deploy_api()
    for number in ("one", "two"):
        fleet.deploy_storage(f"storage-{number}")
        fleet.deploy_agent(f"agent-{number}", f"principal-{number}")
        fleet.integrate(f"storage-{number}:api", "turku-api:storages")
        fleet.integrate(f"agent-{number}:api", "turku-api:agents")
        fleet.integrate(f"agent-{number}:host", f"principal-{number}:info")
    fleet.settle()
    keys = {
        fleet.config_of(unit, role)["api_auth_name"]
        for unit, role in (
            ("storage-one/0", "storage"),
            ("storage-two/0", "storage"),
            ("agent-one/0", "agent"),
            ("agent-two/0", "agent"),
        )
    }
    assert len(keys) == 4
    with fleet.serving():
        for number in ("one", "two"):
            fleet.programs(f"agent-{number}/0").run(SEND)
        assert set(fleet.machines()) == {"principal-one/0", "principal-two/0"}
        fleet.remove_unit("principal-one/0")
        fleet.settle()
        states = {name: each["state"] for name, each in fleet.machines().items()}
    assert states == {"principal-one/0": "retired", "principal-two/0": "active"}


def test_the_agents_come_first_and_wait_in_words_until_there_is_an_api(fleet: Fleet) -> None:
    fleet.deploy_agent()
    fleet.deploy_storage()
    fleet.integrate("turku-agent:host", "ubuntu:info")
    fleet.settle()
    assert fleet.statuses()["turku-agent/0"].startswith("blocked: There is no API")
    assert fleet.statuses()["turku-storage/0"].startswith("blocked: There is no API")
    fleet.deploy_api()
    fleet.integrate("turku-agent:api", "turku-api:agents")
    fleet.integrate("turku-storage:api", "turku-api:storages")
    fleet.settle()
    with fleet.serving():
        fleet.programs("turku-agent/0").run(SEND)
        assert list(fleet.machines()) == ["ubuntu/0"]


def test_a_second_unit_of_the_api_says_what_it_lacks_and_disturbs_nobody(joined: Fleet) -> None:
    joined.add_unit("turku-api", storages=frozenset({testing.Storage("data")}))
    joined.settle()
    assert joined.statuses()["turku-api/1"].startswith("blocked: ")
    assert "postgresql" in joined.statuses()["turku-api/1"].lower()
    assert joined.statuses()["turku-api/0"].startswith("active: ")
    joined.remove_unit("turku-api/1")
    joined.settle()
    with joined.serving():
        joined.programs("turku-agent/0").run(SEND)
        assert joined.machines()["ubuntu/0"]["state"] == "active"

"""The relations `agents` and `storages`: keys, announcements, and who is let go when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ops import testing

from tests.support.api_unit import DATA, Api
from turku_charm.programs import Programs
from turku_core.credentials import PublicKey, make_ssh_key_pair
from turku_core.relations import AgentUnit, StorageUnit

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
OTHER_UUID = "7ba7b810-9dad-41d1-80b4-00c04fd430c8"
SSH_KEY = PublicKey.parse(make_ssh_key_pair("")[1])


def agent(uuid: str = UUID, name: str = "web/0") -> dict[str, str]:
    """Return what an agent's unit says."""
    return AgentUnit(uuid, SSH_KEY, name).to_databag()


def agents(**units: dict[str, str]) -> testing.Relation:
    """Return a relation to agents, whose units are given as ``unit0={...}``."""
    return testing.Relation(
        "agents",
        remote_app_name="agent",
        remote_units_data={int(name.removeprefix("unit")): bag for name, bag in units.items()},
    )


def storages(**said: Any) -> testing.Relation:
    """Return a relation to a storage unit of which only some things are of interest."""
    unit = StorageUnit("backup-0", "192.0.2.9", 22, (SSH_KEY,))
    return testing.Relation(
        "storages", remote_app_name="storage", remote_units_data={0: unit.to_databag() | said}
    )


def announced(api: Api) -> set[tuple[str, str, str]]:
    """Return the announcements in the unit's database: key, unit, and who it says it is."""
    printed = api.programs.run(
        "turku-api",
        "shell",
        "-c",
        "from turku_core.api.models import Announcement as A;"
        "print([(a.key.name, a.unit, a.machine_uuid or a.storage_name) for a in A.objects.all()])",
    )
    found: list[tuple[str, str, str]] = eval(printed.splitlines()[-1])
    return set(found)


def make_machine(api: Api, uuid: str = UUID, key: str = "agents-2") -> None:
    """Put a machine into the database that registered with a key."""
    api.programs.run(
        "turku-api",
        "shell",
        "-c",
        "from turku_core.api.models import Machine, RegistrationKey as K;"
        f"Machine.objects.create(uuid='{uuid}', unit_name='web/0', secret_hash='x' * 64,"
        f" ssh_public_key='{SSH_KEY.line}', registration_key=K.objects.get(name='{key}'))",
    )


def machine_states(api: Api) -> dict[str, str]:
    """Return the state of each machine in the database."""
    return {row["uuid"]: row["state"] for row in api.ask("list-machines", "--all")}


def test_a_new_relation_gets_a_key_of_its_own_that_only_it_may_read(serving: Api) -> None:
    relation = agents()
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    access, secret = serving.published(relation), serving.secret_of(relation)
    name = f"agents-{relation.id}"
    assert access.urls == ("https://192.0.2.0:443/v1",)
    assert access.registration_key == name
    assert access.registration_secret_id == secret.id
    assert secret.owner == "app"
    assert secret.remote_grants == {relation.id: {"agent"}}
    assert serving.keys() == {name: "active"}
    ca = serving.root / "var/lib/turku-api/certificates/ca.crt"
    assert access.ca_certificate == ca.read_text()


def test_two_relations_have_two_keys(serving: Api) -> None:
    first, second = agents(), storages()
    serving.run(serving.on.relation_created(first), **serving.with_relations(first))
    serving.run(serving.on.relation_created(second), **serving.with_relations(second))
    contents = {str(serving.content_of(each)) for each in (first, second)}
    assert len(contents) == 2
    kinds = {key["name"]: key["kind"] for key in serving.ask("list-registration-keys")}
    assert kinds == {f"agents-{first.id}": "machine", f"storages-{second.id}": "storage"}


def test_a_unit_that_says_who_it_is_is_announced(serving: Api) -> None:
    relation = agents(unit0={})
    serving.run(
        serving.on.relation_joined(relation, remote_unit=0), **serving.with_relations(relation)
    )
    assert announced(serving) == set()
    relation = replace(serving.relation(relation), remote_units_data={0: agent()})
    serving.run(
        serving.on.relation_changed(relation, remote_unit=0), **serving.with_relations(relation)
    )
    assert announced(serving) == {(f"agents-{relation.id}", "agent/0", UUID)}


def test_a_storage_unit_is_announced_by_its_name(serving: Api) -> None:
    relation = storages()
    serving.run(
        serving.on.relation_changed(relation, remote_unit=0), **serving.with_relations(relation)
    )
    assert announced(serving) == {(f"storages-{relation.id}", "storage/0", "backup-0")}


def test_an_event_of_one_unit_looks_at_that_unit_alone(serving: Api) -> None:
    relation = agents(unit0=agent(), unit1=agent(OTHER_UUID))
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    serving.run(serving.on.relation_changed(serving.relation(relation), remote_unit=1))
    assert {unit for _, unit, _ in announced(serving)} == {"agent/1"}


def test_a_units_event_costs_one_command_however_many_units_there_are(
    serving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    relation = agents(**{f"unit{number}": agent() for number in range(5)}, unit9={})
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    ran: list[str] = []
    run = Programs.run

    def count(self: Programs, name: str, *words: str, **options: Any) -> str:
        ran.append(words[0])
        return run(self, name, *words, **options)

    monkeypatch.setattr(Programs, "run", count)
    serving.run(serving.on.relation_joined(serving.relation(relation), remote_unit=9))
    assert ran == []
    serving.run(serving.on.relation_changed(serving.relation(relation), remote_unit=3))
    assert ran == ["announce"]
    serving.run(serving.on.relation_departed(serving.relation(relation), remote_unit=3))
    assert ran == ["announce", "withdraw"]


def test_a_new_leader_announces_every_unit(serving: Api) -> None:
    relation = agents(unit0=agent(), unit1=agent(OTHER_UUID))
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    serving.run(serving.on.leader_elected())
    assert {unit for _, unit, _ in announced(serving)} == {"agent/0", "agent/1"}


@pytest.mark.parametrize(
    "said",
    [
        {"machine_uuid": "../../etc", "ssh_public_key": SSH_KEY.line},
        {"machine_uuid": UUID},
        {"machine_uuid": UUID, "ssh_public_key": "ssh-rsa nothing"},
    ],
)
def test_a_unit_that_says_nonsense_holds_up_no_other(serving: Api, said: dict[str, str]) -> None:
    relation = agents(unit0=said, unit1=agent())
    serving.run(serving.on.leader_elected(), **serving.with_relations(relation))
    assert {unit for _, unit, _ in announced(serving)} == {"agent/1"}
    assert serving.status[0] == "active"


def test_relations_that_came_before_anything_is_installed_are_served_later(api: Api) -> None:
    relation = agents(unit0=agent())
    api.run(api.on.relation_created(relation), **api.with_relations(relation), storages=[])
    assert api.status[0] == "blocked"
    assert api.relation(relation).local_app_data == {}
    api.run(api.on.config_changed(), storages=[DATA])
    assert announced(api) == {(f"agents-{relation.id}", "agent/0", UUID)}
    assert api.published(relation).registration_key == f"agents-{relation.id}"


def test_a_unit_that_leaves_is_retired(serving: Api) -> None:
    relation = agents(unit0=agent())
    serving.run(
        serving.on.relation_changed(relation, remote_unit=0), **serving.with_relations(relation)
    )
    make_machine(serving, key=f"agents-{relation.id}")
    serving.run(
        serving.on.relation_departed(serving.relation(relation), remote_unit=0, departing_unit=0)
    )
    assert announced(serving) == set()
    assert machine_states(serving)[UUID] == "retired"


def test_our_own_unit_that_leaves_retires_nobody_and_revokes_nothing(serving: Api) -> None:
    relation = agents(unit0=agent())
    serving.run(
        serving.on.relation_changed(relation, remote_unit=0), **serving.with_relations(relation)
    )
    make_machine(serving, key=f"agents-{relation.id}")
    serving.leave(serving.relation(relation))
    serving.run(serving.on.relation_broken(serving.relation(relation)))
    assert machine_states(serving)[UUID] != "retired"
    assert serving.keys() == {f"agents-{relation.id}": "active"}
    assert serving.content_of(relation)["secret"]


def test_a_relation_that_is_gone_has_its_key_revoked(serving: Api) -> None:
    relation, other = agents(), storages()
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation, other))
    serving.run(serving.on.relation_broken(serving.relation(relation)))
    assert serving.keys() == {
        f"agents-{relation.id}": "disabled",
        f"storages-{other.id}": "active",
    }
    assert {secret.label for secret in serving.state.secrets} == {
        "identity", f"storages-{other.id}",
    }  # fmt: skip


def test_a_relation_that_comes_again_gets_a_new_key(serving: Api) -> None:
    first = agents()
    serving.run(serving.on.relation_created(first), **serving.with_relations(first))
    serving.run(serving.on.relation_broken(serving.relation(first)))
    second = agents()
    serving.run(
        serving.on.relation_created(second),
        relations=[
            *(each for each in serving.state.relations if each.id != first.id), second,
        ],
    )  # fmt: skip
    assert serving.keys() == {f"agents-{first.id}": "disabled", f"agents-{second.id}": "active"}


def test_a_unit_that_has_just_come_revokes_nothing_that_it_does_not_see_yet(serving: Api) -> None:
    relation = agents()
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    fresh = [
        replace(each, content={**each.content, "knows_relations": False})
        for each in serving.state.stored_states
        if each.owner_path == "Charm"
    ]
    serving.run(serving.on.install(), **serving.without_relations(relation), stored_states=fresh)
    assert serving.keys() == {f"agents-{relation.id}": "active"}
    assert serving.content_of(relation)["secret"]


def test_a_departure_that_could_not_be_recorded_is_recorded_later(serving: Api) -> None:
    relation = agents(unit0=agent())
    serving.run(
        serving.on.relation_changed(relation, remote_unit=0), **serving.with_relations(relation)
    )
    make_machine(serving, key=f"agents-{relation.id}")
    database = serving.root / "var/lib/turku-api/turku.sqlite3"
    database.rename(database.with_suffix(".away"))
    serving.run(
        serving.on.relation_departed(serving.relation(relation), remote_unit=0, departing_unit=0)
    )
    assert serving.status[0] == "blocked"
    for left in database.parent.glob("turku.sqlite3*"):
        left.unlink()
    database.with_suffix(".away").rename(database)
    gone = replace(serving.relation(relation), remote_units_data={})
    serving.run(serving.on.update_status(), **serving.with_relations(gone))
    assert machine_states(serving)[UUID] == "retired"
    assert serving.status[0] == "active"


def test_a_second_run_changes_nothing(serving: Api) -> None:
    relation = agents(unit0=agent())
    serving.run(
        serving.on.relation_changed(relation, remote_unit=0), **serving.with_relations(relation)
    )
    before, asked = serving.state, list(serving.systemd.asked)
    files = {path: path.stat().st_mtime_ns for path in (serving.root / "etc").rglob("*")}
    serving.run(serving.on.update_status())
    assert serving.systemd.asked == asked
    assert {path: path.stat().st_mtime_ns for path in (serving.root / "etc").rglob("*")} == files
    assert serving.state.relations == before.relations
    assert serving.state.secrets == before.secrets


def test_the_external_url_is_published_alone(serving: Api) -> None:
    relation = agents()
    serving.run(
        serving.on.config_changed(),
        config={"external-url": "https://turku.example.com/"},
        **serving.with_relations(relation),
    )
    assert serving.published(relation).urls == ("https://turku.example.com/v1",)
    assert serving.options["certificate_names"] == ["192.0.2.0", "turku.example.com"]


def test_an_ipv6_address_stands_in_brackets(api: Api) -> None:
    network = testing.Network(
        "agents",
        bind_addresses=[
            testing.BindAddress([testing.Address("2001:db8::10")], interface_name="eth0")
        ],
        ingress_addresses=["2001:db8::10"],
    )
    relation = agents()
    api.run(api.on.config_changed(), networks=[network], **api.with_relations(relation))
    assert api.published(relation).urls == ("https://[2001:db8::10]:443/v1",)
    assert api.options["listen"] == "[::]:443"
    assert api.options["certificate_names"] == ["192.0.2.0", "2001:db8::10"]

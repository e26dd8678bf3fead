"""Keys that come from relations: who was announced registers, and who is withdrawn is gone."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.support.api_world import AgentCaller, UnitCaller, World, make_public_key
from turku_core import credentials
from turku_core.api.announcements import Announced, AnnouncementChanges, announce, withdraw
from turku_core.api.health import State, fleet_health
from turku_core.api.models import Announcement, Backup, KeyKind, Machine, RegistrationKey
from turku_core.api.operations import NotPossible
from turku_core.api.relation_keys import RelationKey, sync_keys
from turku_core.credentials import PublicKey
from turku_core.errors import TryAgainLater
from turku_core.fields import FieldError

SECRET = credentials.make_secret()
STORAGE_SECRET = credentials.make_secret()
MACHINES = RelationKey("agents-1", KeyKind.MACHINE, SECRET)
STORAGES = RelationKey("storages-2", KeyKind.STORAGE, STORAGE_SECRET)
AUTH = {"name": "agents-1", "secret": SECRET}


@pytest.fixture(autouse=True)
def relation_keys(world: World) -> None:
    """The keys of a relation of each kind."""
    sync_keys([MACHINES, STORAGES], world.now)


def says(agent: AgentCaller, unit: str = "agent/0", key: str = "agents-1") -> Announced:
    """What the agent's unit announces."""
    return Announced(
        key, unit, agent.uuid, PublicKey.parse(agent.config["ssh_public_key"]), "web/0"
    )


def announce_all(world: World, *announced: Announced) -> AnnouncementChanges:
    return announce(announced, world.now)


def announced_agent(world: World, unit: str = "agent/0", **config: Any) -> AgentCaller:
    """A machine of the relation, registered."""
    agent = world.agent(register=False, **config)
    announce_all(world, says(agent, unit))
    assert agent.update(auth=AUTH).status == 200
    return agent


def announced_unit(world: World, name: str = "store-1", unit: str = "storage/0") -> UnitCaller:
    """A storage unit of the relation, registered."""
    announce_all(world, Announced("storages-2", unit, storage_name=name))
    caller = world.unit(name, register=False)
    auth = {"name": "storages-2", "secret": STORAGE_SECRET}
    assert caller.update(auth=auth).status == 200
    return caller


# Registering


def test_a_machine_that_was_not_announced_is_told_to_wait(world: World) -> None:
    agent = world.agent(register=False)
    answer = agent.update(auth=AUTH)
    assert answer.status == 503
    assert "has not been announced on its relation yet" in answer.text
    assert not Machine.objects.exists()


def test_a_machine_that_waits_is_nothing_to_worry_about(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        world.agent(register=False).update(auth=AUTH)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_an_announced_machine_registers(world: World) -> None:
    agent = announced_agent(world)
    assert agent.row.registration_key is not None
    assert agent.row.registration_key.name == "agents-1"


def test_another_ssh_key_than_the_announced_one_is_refused(world: World) -> None:
    agent = world.agent(register=False)
    announce_all(world, says(agent))
    assert agent.update(auth=AUTH, ssh_public_key=make_public_key("other")).status == 403
    assert not Machine.objects.exists()


def test_an_announcement_on_another_relation_lets_nobody_in_here(world: World) -> None:
    other = RelationKey("agents-9", KeyKind.MACHINE, credentials.make_secret())
    sync_keys([MACHINES, STORAGES, other], world.now)
    agent = world.agent(register=False)
    announce_all(world, says(agent, key="agents-9"))
    assert agent.update(auth=AUTH).status == 503


def test_a_key_made_by_hand_needs_no_announcement(world: World) -> None:
    assert world.agent().row.active


def test_a_registered_machine_keeps_to_the_announced_ssh_key(world: World) -> None:
    agent = announced_agent(world)
    first = agent.config["ssh_public_key"]
    assert agent.update(ssh_public_key=make_public_key("stolen")).status == 403
    assert agent.row.ssh_public_key == PublicKey.parse(first).line
    agent.config["ssh_public_key"] = make_public_key("renewed")
    announce_all(world, says(agent))
    assert agent.update().status == 200


def test_a_renewed_announcement_keeps_no_machine_from_its_present_key(world: World) -> None:
    agent = announced_agent(world)
    first = agent.config["ssh_public_key"]
    agent.config["ssh_public_key"] = make_public_key("not in use yet")
    announce_all(world, says(agent))
    assert agent.update(ssh_public_key=first).status == 200


def test_a_machine_registered_by_hand_changes_its_key_whatever_a_unit_announces(
    world: World,
) -> None:
    agent = world.agent()
    announce_all(world, says(agent))
    assert agent.update(ssh_public_key=make_public_key("own choice")).status == 200


def test_one_of_two_units_on_a_machine_is_enough(world: World) -> None:
    agent = world.agent(register=False)
    stranger = world.agent("other", register=False)
    stranger.uuid = agent.uuid
    announce_all(world, says(stranger, "agent/7"), says(agent, "agent/0"))
    assert agent.update(auth=AUTH).status == 200


# Announcing


def test_the_same_announcement_again_changes_nothing(world: World) -> None:
    agent = announced_agent(world)
    before = list(Announcement.objects.values())
    world.pass_time(hours=1)
    assert announce_all(world, says(agent)) == AnnouncementChanges()
    assert list(Announcement.objects.values()) == before


def test_a_key_that_is_not_there_yet_is_worth_another_try(world: World) -> None:
    agent = world.agent(register=False)
    with pytest.raises(TryAgainLater, match="no registration key agents-5 yet"):
        announce_all(world, says(agent), says(agent, "agent/1", "agents-5"))
    assert not Announcement.objects.exists()


@pytest.mark.parametrize(
    ("key", "words"), [("machines", "made by hand"), ("storages-2", "lets in a storage")]
)
def test_nobody_is_announced_under_a_key_of_another_sort(
    world: World, key: str, words: str
) -> None:
    with pytest.raises(NotPossible, match=words):
        announce_all(world, says(world.agent(register=False), key=key))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "key"),
        ({"key": "agents-1", "unit": "agent/0"}, "machine_uuid"),
        ({"key": "agents-1", "unit": "agent/0", "machine_uuid": "../.."}, "machine_uuid"),
        ({"key": "agents-1", "unit": "agent/0", "machine_uuid": "x", "storage": "s"}, "not of bo"),
        ({"key": "storages-2", "unit": "", "storage": "s"}, "unit"),
        ({"key": "storages-2", "unit": "storage/0", "storage": "/etc"}, "storage"),
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused_with_its_place(
    said: dict[str, str], words: str
) -> None:
    with pytest.raises(FieldError, match=words):
        Announced.from_json(said, "announcements[0]")


# Withdrawing


def test_a_machine_that_no_unit_announces_is_retired_and_its_backups_stay(world: World) -> None:
    unit = world.unit()
    agent = announced_agent(world)
    world.backed_up(agent, unit)
    world.pass_time(days=3)
    unit.update()
    assert fleet_health(world.now).state is not State.OK
    assert withdraw("agents-1", "agent/0", world.now).retired == [agent.uuid]
    assert agent.row.retired_at == world.now
    assert Backup.objects.filter(machine=agent.row).exists()
    assert fleet_health(world.now).state is State.OK
    assert agent.uuid not in unit.update().json["machines"]


def test_a_machine_that_another_unit_announces_goes_on(world: World) -> None:
    agent = announced_agent(world)
    announce_all(world, says(agent, "agent/1"))
    assert withdraw("agents-1", "agent/0", world.now).retired == []
    assert agent.row.active
    assert withdraw("agents-1", "agent/1", world.now).retired == [agent.uuid]


def test_a_relation_is_withdrawn_with_all_its_units(world: World) -> None:
    first, second = announced_agent(world, "agent/0"), announced_agent(world, "agent/1")
    assert withdraw("agents-1", None, world.now).retired == [first.uuid, second.uuid]
    assert not Announcement.objects.exists()


@pytest.mark.parametrize(("key", "unit"), [("agents-1", "agent/9"), ("nothing", None)])
def test_what_was_never_announced_is_withdrawn_without_a_word(
    world: World, key: str, unit: str | None
) -> None:
    agent = announced_agent(world)
    assert withdraw(key, unit, world.now) == AnnouncementChanges()
    assert agent.row.active


def test_a_machine_registered_by_hand_outlives_its_announcement(world: World) -> None:
    agent = world.agent()
    announce_all(world, says(agent))
    assert withdraw("agents-1", None, world.now).retired == []
    assert agent.row.active


def test_a_unit_that_announces_another_machine_lets_its_former_one_go(world: World) -> None:
    former = announced_agent(world)
    newcomer = world.agent("new", register=False)
    changes = announce_all(world, says(newcomer))
    assert changes.retired == [former.uuid]
    assert newcomer.update(auth=AUTH).status == 200


def test_units_that_swap_their_machines_lose_none(world: World) -> None:
    first, second = announced_agent(world, "agent/0"), announced_agent(world, "agent/1")
    changes = announce_all(world, says(first, "agent/1"), says(second, "agent/0"))
    assert changes.retired == []
    assert first.row.active and second.row.active


# Coming back


def test_a_withdrawn_machine_waits_for_its_next_announcement_and_goes_on(world: World) -> None:
    agent = announced_agent(world)
    withdraw("agents-1", None, world.now)
    assert agent.update(auth=AUTH).status == 503
    assert world.call("agent_ping_checkin", agent.login).status == 403
    assert announce_all(world, says(agent)).reinstated == [agent.uuid]
    assert agent.update(auth=AUTH).status == 200
    assert agent.row.retired_at is None


def test_a_machine_that_an_operator_retired_stays_so(world: World) -> None:
    agent = announced_agent(world)
    withdraw("agents-1", None, world.now)
    agent.row.retire(world.now)
    assert announce_all(world, says(agent)).reinstated == []
    assert not agent.row.active
    assert agent.update(auth=AUTH).status == 403


def test_a_machine_whose_ssh_key_is_anothers_now_is_not_taken_back(world: World) -> None:
    agent = announced_agent(world)
    withdraw("agents-1", None, world.now)
    world.agent("heir", ssh_public_key=agent.config["ssh_public_key"])
    changes = announce_all(world, says(agent))
    assert changes.reinstated == []
    assert [agent.uuid in problem for problem in changes.problems] == [True]
    assert "Another active machine uses this SSH public key" in changes.problems[0]


# Storage units


def test_a_withdrawn_storage_unit_gets_nothing_and_its_sources_go_elsewhere(world: World) -> None:
    gone = announced_unit(world)
    agent = announced_agent(world)
    world.backed_up(agent, gone)
    other = announced_unit(world, "store-2", "storage/1")
    assert withdraw("storages-2", "storage/0", world.now).deactivated == ["store-1"]
    world.pass_time(days=2)
    other.update()
    agent.update()
    other.update()
    assert agent.check_in()["docs"]["storage"]["name"] == "store-2"
    assert Backup.objects.filter(storage=gone.row).exists()


def test_a_storage_unit_that_is_announced_again_is_back_with_its_sources(world: World) -> None:
    unit = announced_unit(world)
    agent = announced_agent(world)
    withdraw("storages-2", None, world.now)
    assert unit.update().status == 503
    again = Announced("storages-2", "storage/0", storage_name="store-1")
    assert announce_all(world, again).reactivated == ["store-1"]
    assert unit.update().status == 200
    assert "docs" in agent.check_in()


def test_a_storage_unit_that_an_operator_deactivated_stays_so(world: World) -> None:
    unit = announced_unit(world)
    unit.row.deactivate()
    again = Announced("storages-2", "storage/3", storage_name="store-1")
    assert announce_all(world, again).reactivated == []
    assert unit.update().status == 403


def test_a_storage_unit_made_by_hand_outlives_its_announcement(world: World) -> None:
    unit = world.unit()
    announce_all(world, Announced("storages-2", "storage/0", storage_name="store-1"))
    assert withdraw("storages-2", None, world.now).deactivated == []
    assert unit.row.active


# The keys


def test_the_same_keys_again_change_nothing(world: World) -> None:
    changes = sync_keys([MACHINES, STORAGES], world.now)
    assert not any(vars(changes).values())


def test_a_key_whose_relation_is_gone_lets_nothing_new_in(world: World) -> None:
    agent, newcomer = announced_agent(world), world.agent("new", register=False)
    announce_all(world, says(newcomer, "agent/1"))
    assert sync_keys([STORAGES], world.now).disabled == ["agents-1"]
    assert agent.update().status == 200
    assert newcomer.update(auth=AUTH).status == 403
    assert sync_keys([MACHINES, STORAGES], world.now).enabled == ["agents-1"]
    assert newcomer.update(auth=AUTH).status == 200


def test_a_changed_secret_is_the_only_one_that_counts(world: World) -> None:
    secret = credentials.make_secret()
    changed = RelationKey("agents-1", KeyKind.MACHINE, secret)
    assert sync_keys([changed, STORAGES], world.now).changed == ["agents-1"]
    agent = world.agent(register=False)
    announce_all(world, says(agent))
    assert agent.update(auth=AUTH).status == 403
    assert agent.update(auth={"name": "agents-1", "secret": secret}).status == 200


def test_keys_made_by_hand_are_never_touched(world: World) -> None:
    before = RegistrationKey.objects.get(name="machines")
    sync_keys([], world.now)
    with pytest.raises(NotPossible, match="made by hand"):
        sync_keys([MACHINES, RelationKey("machines", KeyKind.MACHINE, SECRET)], world.now)
    after = RegistrationKey.objects.get(name="machines")
    assert (after.active, after.secret_hash) == (before.active, before.secret_hash)
    assert not RegistrationKey.objects.get(name="agents-1").active


def test_a_key_never_changes_its_kind(world: World) -> None:
    with pytest.raises(NotPossible, match="can't become one for a storage"):
        sync_keys([RelationKey("agents-1", KeyKind.STORAGE, SECRET)], world.now)


def test_a_secret_is_in_no_text_of_its_key() -> None:
    assert SECRET not in repr(MACHINES)

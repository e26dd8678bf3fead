"""Machines register and send their configuration."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.test import override_settings

from tests.support.api_world import World, make_public_key
from turku_core import credentials
from turku_core.api.models import Backup, FilterSet, Machine, RegistrationKey, Source


def test_a_newcomer_shows_a_registration_key_and_then_its_secret(world: World) -> None:
    agent = world.agent(register=False)
    assert agent.update().status == 400
    assert agent.update(auth=world.auth()).json == {}
    assert agent.update(comment="second time").json == {}
    assert agent.row.comment == "second time"
    assert agent.row.registration_key == RegistrationKey.objects.get(name="machines")


def test_the_oldest_agents_send_the_registration_secret_alone(world: World) -> None:
    agent = world.agent(register=False)
    assert agent.update(auth=world.machine_key).json == {}


@pytest.mark.parametrize("kind", ["name", "secret", "storage key", "disabled", "old string"])
def test_a_wrong_registration_key_lets_nobody_in(world: World, kind: str) -> None:
    auth: Any = world.auth()
    if kind == "name":
        auth["name"] = "others"
    elif kind == "secret":
        auth["secret"] = credentials.make_secret()
    elif kind == "storage key":
        auth = {"name": "storages", "secret": world.storage_key}
    elif kind == "disabled":
        RegistrationKey.objects.get(name="machines").disable(with_machines=False, now=world.now)
    else:
        auth = credentials.make_secret()
    answer = world.agent(register=False).update(auth=auth)
    assert (answer.status, answer.text) == (403, "Bad credentials")
    assert not Machine.objects.exists()


def test_a_known_uuid_with_another_secret_is_refused_even_with_a_registration_key(
    world: World,
) -> None:
    agent = world.agent()
    thief = world.agent("thief/0", register=False)
    thief.uuid = agent.uuid
    assert thief.update(auth=world.auth()).status == 403
    assert agent.row.unit_name == "web/0"


def test_an_unknown_machine_and_a_wrong_secret_are_answered_alike(world: World) -> None:
    agent = world.agent()
    wrong = {"machine": {"uuid": agent.uuid, "secret": credentials.make_secret()}}
    unknown = {"machine": {**wrong["machine"], "uuid": "6ba7b810-9dad-41d1-80b4-00c04fd430c8"}}
    for call in ("agent_ping_checkin", "agent_ping_restore"):
        answers = [world.call(call, request) for request in (wrong, unknown)]
        assert answers[0] == answers[1]
        assert answers[0].status == 403


def test_a_rotated_registration_key_lets_in_with_its_new_secret_alone(world: World) -> None:
    secret = RegistrationKey.objects.get(name="machines").rotate()
    assert world.agent(register=False).update(auth=world.auth()).status == 403
    auth = {"name": "machines", "secret": secret}
    assert world.agent(register=False).update(auth=auth).status == 200


def test_a_registration_key_that_no_machine_could_show_is_not_made(db: None) -> None:
    with pytest.raises(ValidationError, match="letters, digits"):
        RegistrationKey.create_with_secret("my key")
    assert not RegistrationKey.objects.exists()


def test_sources_have_the_defaults_of_the_protocol(world: World) -> None:
    source = world.agent().source()
    assert source.frequency == "daily"
    assert source.retention == "last 5 days, earliest of month"
    assert source.preserve_hard_links
    assert source.filter == source.exclude == []


def test_the_operator_chooses_the_defaults_for_sources_that_say_nothing(world: World) -> None:
    with override_settings(TURKU_DEFAULT_FREQUENCY="weekly", TURKU_DEFAULT_RETENTION="last 9 days"):
        agent = world.agent(
            sources={"a": {"path": "/a"}, "b": {"path": "/b", "frequency": "daily"}}
        )
    assert (agent.source("a").frequency, agent.source("a").retention) == ("weekly", "last 9 days")
    assert agent.source("b").frequency == "daily"


def test_a_source_no_longer_named_is_unpublished_and_comes_back_with_its_history(
    world: World,
) -> None:
    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    pk = agent.source().pk
    agent.update(sources={})
    assert not agent.source().published
    assert agent.restore()["sources"] == {}
    world.pass_time(days=10)
    assert agent.check_in() == {}
    agent.update(sources={"docs": {"path": "/srv/docs"}})
    assert agent.source().pk == pk
    assert Backup.objects.get(source=pk).is_good
    assert list(agent.check_in()) == ["docs"]


def test_a_configuration_without_sources_leaves_them_as_they_are(world: World) -> None:
    agent = world.agent()
    del agent.config["sources"]
    assert agent.update(comment="hello").status == 200
    assert agent.source().published


def test_unknown_fields_are_ignored(world: World) -> None:
    agent = world.agent(colour="green", sources={"docs": {"path": "/srv", "colour": ["red"]}})
    assert agent.source().path == "/srv"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit_name", None),
        ("unit_name", 5),
        ("unit_name", "web\n0"),
        ("ssh_public_key", "ssh-ed25519 nonsense"),
        ("environment_name", ["production"]),
        ("published", "yes"),
        ("comment", "\ud800"),
        ("sources", ["docs"]),
        ("version", "x" * 65),
    ],
)
def test_a_machine_s_field_that_is_not_valid_is_named_and_nothing_is_changed(
    world: World, field: str, value: Any
) -> None:
    agent = world.agent()
    before = Machine.objects.values().get()
    answer = agent.update(**{"sources": {}, field: value})
    assert answer.status == 400
    assert answer.text.startswith(f"machine.{field}")
    assert Machine.objects.values().get() == before
    assert agent.source().published


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"path": "relative"}, "path"),
        ({"path": "/a\u0000b"}, "path"),
        ({"path": "/latin-1/\udce4"}, "path"),
        ({"frequency": "dayly"}, "frequency"),
        ({"frequency": "daily, 2500"}, "frequency"),
        ({"retention": "last few days"}, "retention"),
        ({"filter": ["merge /etc/shadow"]}, "filter[0]"),
        ({"filter": ["merge unheard-of"]}, "filter"),
        ({"filter": "- *.o"}, "filter"),
        ({"exclude": ["\udcff"]}, "exclude"),
        ({"bwlimit": "fast"}, "bwlimit"),
        ({"snapshot_mode": "zfs"}, "snapshot_mode"),
        ({"shared_service": 1}, "shared_service"),
    ],
)
def test_a_source_that_is_not_valid_is_named_and_nothing_else_is_lost(
    world: World, changes: dict[str, Any], place: str
) -> None:
    agent = world.agent()
    bad = {"path": "/srv/other", **changes}
    answer = agent.update(
        comment="new", sources={"docs": bad, "fine": {"path": "/fine"}, "bad": bad}
    )
    assert answer.status == 400
    assert f"machine.sources.docs.{place}: " in answer.text
    assert f"machine.sources.bad.{place}: " in answer.text
    assert agent.row.comment == "new"
    assert agent.source("fine").published
    assert (agent.source().path, agent.source().published) == ("/srv/docs", True)
    assert not Source.objects.filter(name="bad").exists()


def test_a_newcomer_with_a_bad_source_is_registered_with_the_others(world: World) -> None:
    agent = world.agent(register=False, sources={"bad": {"path": "x"}, "fine": {"path": "/fine"}})
    assert agent.update(auth=world.auth()).status == 400
    assert agent.source("fine").path == "/fine"
    agent.config["sources"]["bad"]["path"] = "/x"
    assert agent.update().status == 200


def test_a_long_but_valid_value_fits(world: World) -> None:
    rules = [f"- /{'x' * 1000}/{number}" for number in range(100)]
    agent = world.agent(
        "u" * 200,
        environment_name="e" * 200,
        service_name="s" * 200,
        comment="ä" * 1024,
        sources={
            "n" * 64: {
                "path": "/" + "p" * 4094,
                "frequency": "cron " + ",".join(["1"] * 400) + " * * * *",
                "retention": ", ".join(["last 5 days"] * 75),
                "comment": "é" * 1024,
                "filter": rules,
                "exclude": rules,
                "bwlimit": "123456789.123KiB",
            }
        },
    )
    assert agent.source("n" * 64).filter == rules


def test_another_machine_may_use_the_key_of_one_that_is_not_active(world: World) -> None:
    old, new = world.agent("old/0"), world.agent("new/0", register=False)
    new.config["ssh_public_key"] = old.config["ssh_public_key"]
    assert new.update(auth=world.auth()).status == 400
    old.row.retire(world.now)
    assert new.update(auth=world.auth()).status == 200


def test_a_machine_s_key_can_be_rotated_and_its_comment_is_dropped(world: World) -> None:
    agent = world.agent()
    line = make_public_key("somebody@somewhere")
    assert agent.update(ssh_public_key=line).status == 200
    assert agent.row.ssh_public_key == line.rsplit(" ", 1)[0]


def test_an_unchanged_configuration_writes_nothing_but_when_the_machine_is_due(
    world: World,
) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    unit, agent = world.unit(), world.agent()
    world.backed_up(agent, unit)
    with CaptureQueriesContext(connection) as queries:
        agent.update()
    writes = [
        query["sql"] for query in queries if query["sql"].startswith(("INSERT", "UPDATE", "DELETE"))
    ]
    assert len(writes) == 1
    assert "next_due_at" in writes[0]


def test_a_filter_set_is_spliced_in(world: World) -> None:
    FilterSet.objects.create(name="caches", rules=["- /cache", "merge temporary"])
    FilterSet.objects.create(name="temporary", rules=["- *.tmp"])
    unit = world.unit()
    rules = ["+ /keep", "merge caches", "- *"]
    agent = world.agent(sources={"srv": {"path": "/srv", "filter": rules}})
    unit.update()
    assert agent.check_in()["srv"]["filter"] == ["+ /keep", "- /cache", "- *.tmp", "- *"]


def test_a_circle_of_filter_sets_is_refused_with_its_names(world: World) -> None:
    FilterSet.objects.create(name="a", rules=["merge b"])
    FilterSet.objects.create(name="b", rules=["merge a"])
    agent = world.agent(register=False, sources={"srv": {"path": "/", "filter": ["merge a"]}})
    answer = agent.update(auth=world.auth())
    assert answer.status == 400
    assert "a merges b merges a" in answer.text

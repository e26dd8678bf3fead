"""PostgreSQL under the API: a real cluster, several units, and the move from SQLite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ops import testing

import postgresql_client
from tests.support.api_unit import DATA, Api, Systemd
from tests.support.postgresql import Cluster, running_cluster

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One server for all tests of this file."""
    with running_cluster() as running:
        yield running


@pytest.fixture
def given(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> testing.Relation:
    """A relation over which an empty database was given."""
    return give(cluster, monkeypatch, f"turku{next(NUMBERS)}")


def give(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str) -> testing.Relation:
    """Make a database and return a relation that gives it.

    The cluster listens on a socket alone, whose folder no provider could say, so the URL that is
    made of what was read is replaced; test_postgresql_client.py is about that one.
    """
    cluster.create_database(name)
    monkeypatch.setattr(
        postgresql_client.Postgresql, "url", lambda self, ca_file: cluster.url(self.name)
    )
    said = {"database": name, "endpoints": "192.0.2.5:5432", "username": "u", "password": "p"}
    return testing.Relation("database", remote_app_name="postgresql", remote_app_data=said)


@pytest.fixture
def second(tmp_path_factory: pytest.TempPathFactory, systemd: Systemd) -> Api:
    """Another unit of the application, on a machine of its own, that doesn't lead."""
    root = tmp_path_factory.mktemp("second")
    own = Systemd()
    return Api(root, own, unit=1, state=testing.State(storages=[DATA]))


def shown_to(other: Api, api: Api, **changes: Any) -> dict[str, Any]:
    """Return the change of `other`'s state after which it sees what `api` has said to peers."""
    peers = api.peers
    seen = testing.PeerRelation(
        "cluster",
        local_app_data=peers.local_app_data,
        peers_data={api.unit: dict(peers.local_unit_data)},
    )
    identity = [secret for secret in api.state.secrets if secret.label == "identity"]
    return {"relations": [seen, *changes.pop("relations", [])], "secrets": identity, **changes}


def users(api: Api) -> str:
    """Return the names of the administration site's users in the unit's database."""
    code = (
        "from django.contrib.auth.models import User;"
        "print(list(User.objects.values_list('username', flat=True)))"
    )
    return api.programs.run("turku-api", "shell", "-c", code).splitlines()[-1]


def test_a_fresh_application_serves_from_postgresql_alone(
    api: Api, given: testing.Relation
) -> None:
    asked = replace(given, remote_app_data={})
    api.run(api.on.leader_elected(), **api.with_relations(asked))
    assert api.status == ("waiting", "Waiting for PostgreSQL to give a database.")
    assert api.relation(given).local_app_data["database"].startswith("turku_api_")
    api.run(api.on.relation_changed(given, remote_unit=0), **api.with_relations(given))
    assert api.status == ("active", "https://192.0.2.0:443/v1, PostgreSQL")
    assert api.options["database_url"].startswith("postgresql://")
    assert not (api.root / "var/lib/turku-api/turku.sqlite3").exists()


def test_an_application_that_is_deployed_with_postgresql_never_makes_a_sqlite(
    api: Api, given: testing.Relation
) -> None:
    # As Juju has it: no relation is known before its own hook, which comes after `install`.
    api.run(api.on.storage_attached(DATA))
    api.run(api.on.install())
    asked = replace(given, remote_app_data={})
    api.run(api.on.relation_created(asked), **api.with_relations(asked))
    for event in (api.on.leader_elected(), api.on.config_changed(), api.on.start()):
        api.run(event)
    assert api.status == ("waiting", "Waiting for PostgreSQL to give a database.")
    assert not (api.root / "var/lib/turku-api/turku.sqlite3").exists()


def test_the_second_unit_waits_for_the_leader_and_then_serves_with_its_ca(
    api: Api, second: Api, given: testing.Relation
) -> None:
    second.run(second.on.config_changed(), relations=[testing.PeerRelation("cluster"), given])
    assert second.status == ("waiting", "Waiting for the leader to migrate the database.")
    api.run(api.on.leader_elected(), **api.with_relations(given))
    second.run(second.on.update_status(), **shown_to(second, api, relations=[given]))
    assert second.status[0] == "active"
    for name in ("certificates/ca.crt", "certificates/ca.key", "secret_key"):
        path = Path("var/lib/turku-api", name)
        assert (second.root / path).read_text() == (api.root / path).read_text(), name
    assert "migrate" not in " ".join(second.systemd.asked)


def test_the_urls_of_both_units_are_published(
    api: Api, second: Api, given: testing.Relation
) -> None:
    agents = testing.Relation("agents", remote_app_name="agent")
    api.run(api.on.leader_elected(), **api.with_relations(given, agents))
    peers = api.peers
    other = {"addresses": '{"agents": "192.0.2.77", "storages": "192.0.2.78", "website": "x"}'}
    joined = replace(peers, peers_data={1: other})
    api.run(api.on.relation_changed(joined, remote_unit=1), **api.with_relations(joined))
    assert api.published(agents).urls == (
        "https://192.0.2.0:443/v1", "https://192.0.2.77:443/v1",
    )  # fmt: skip
    left = replace(api.relation(peers), peers_data={})
    api.run(
        api.on.relation_departed(left, remote_unit=1, departing_unit=1), **api.with_relations(left)
    )
    assert api.published(agents).urls == ("https://192.0.2.0:443/v1",)


def test_every_record_comes_along_from_sqlite_to_postgresql(
    serving: Api, given: testing.Relation
) -> None:
    serving.act("create-registration-key", name="by-hand")
    serving.act("create-admin", username="anna")
    serving.run(serving.on.relation_changed(given, remote_unit=0), **serving.with_relations(given))
    assert serving.status == ("active", "https://192.0.2.0:443/v1, PostgreSQL")
    assert serving.keys() == {"by-hand": "active"}
    assert "anna" in users(serving)
    assert serving.systemd.asked[-3:] == [
        "stop turku-api-housekeeping.timer", "stop turku-api.service", "restart turku-api.service",
    ]  # fmt: skip
    assert (serving.root / "var/lib/turku-api/turku.sqlite3").exists()


def test_another_units_copy_is_put_on_record_by_the_leader(
    serving: Api, second: Api, given: testing.Relation
) -> None:
    holder = serving
    holder.run(holder.on.update_status(), leader=False)
    holder.run(holder.on.relation_changed(given, remote_unit=0), **holder.with_relations(given))
    assert holder.status[0] == "active"
    seen = shown_to(second, holder, relations=[given])
    second.run(second.on.update_status(), leader=True, **seen)
    assert second.status == ("active", "https://192.0.2.0:443/v1, PostgreSQL")


def test_data_on_both_sides_is_refused_and_sqlite_goes_on(
    serving: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = give(cluster, monkeypatch, f"turku{next(NUMBERS)}")
    add_storage(serving, "here")
    url = cluster.url(name_of(given))
    theirs = Api(serving.root / "theirs", Systemd(), state=testing.State())
    (theirs.root / "etc/turku-api/config.d").mkdir(parents=True)
    (theirs.root / "etc/turku-api/config.d/a.json").write_text(f'{{"database_url": "{url}"}}')
    theirs.programs.run("turku-api", "migrate")
    add_storage(theirs, "there")
    serving.run(serving.on.relation_changed(given, remote_unit=0), **serving.with_relations(given))
    assert serving.status[0] == "blocked"
    assert "SQLite and PostgreSQL both have" in serving.status[1]
    assert [row["name"] for row in serving.ask("list-storages")] == ["here"]
    assert "database_url" not in serving.options
    asked = list(serving.systemd.asked)
    serving.run(serving.on.update_status())
    assert serving.systemd.asked == asked, "it isn't tried again by itself"
    assert serving.status[0] == "blocked"
    serving.run(serving.on.relation_broken(serving.relation(given)))
    serving.run(serving.on.update_status(), **serving.without_relations(given))
    assert serving.status == ("active", "https://192.0.2.0:443/v1, SQLite")


def test_a_sqlite_that_knows_nobody_gives_way_to_a_postgresql_with_data(
    serving: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = give(cluster, monkeypatch, f"turku{next(NUMBERS)}")
    theirs = Api(serving.root / "theirs", Systemd(), state=testing.State())
    (theirs.root / "etc/turku-api/config.d").mkdir(parents=True)
    url = cluster.url(name_of(given))
    (theirs.root / "etc/turku-api/config.d/a.json").write_text(f'{{"database_url": "{url}"}}')
    theirs.programs.run("turku-api", "migrate")
    add_storage(theirs, "there")
    serving.run(serving.on.relation_changed(given, remote_unit=0), **serving.with_relations(given))
    assert serving.status[0] == "active"
    assert [row["name"] for row in serving.ask("list-storages")] == ["there"]


def test_a_postgresql_that_is_gone_blocks_and_leaves_everything(
    api: Api, given: testing.Relation
) -> None:
    api.run(api.on.leader_elected(), **api.with_relations(given))
    options, asked = api.options, list(api.systemd.asked)
    api.run(api.on.relation_broken(api.relation(given)))
    assert api.status[0] == "blocked"
    assert "juju integrate turku-api:database" in api.status[1]
    api.run(api.on.update_status(), **api.without_relations(given))
    assert api.status[0] == "blocked"
    assert (api.options, api.systemd.asked) == (options, asked)
    assert not (api.root / "var/lib/turku-api/turku.sqlite3").exists()


def test_the_same_postgresql_over_a_new_relation_is_taken(
    api: Api, given: testing.Relation
) -> None:
    api.run(api.on.leader_elected(), **api.with_relations(given))
    api.run(api.on.relation_broken(api.relation(given)))
    again = testing.Relation(
        "database", remote_app_name="postgresql", remote_app_data=given.remote_app_data
    )
    kept = api.without_relations(given)["relations"]
    api.run(api.on.relation_changed(again, remote_unit=0), relations=[*kept, again])
    assert api.status == ("active", "https://192.0.2.0:443/v1, PostgreSQL")


def test_another_postgresql_that_is_empty_is_refused(
    api: Api, given: testing.Relation, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.run(api.on.leader_elected(), **api.with_relations(given))
    api.run(api.on.relation_broken(api.relation(given)))
    other = give(cluster, monkeypatch, f"turku{next(NUMBERS)}")
    kept = api.without_relations(given)["relations"]
    asked = list(api.systemd.asked)
    api.run(api.on.relation_changed(other, remote_unit=0), relations=[*kept, other])
    assert api.status[0] == "blocked"
    assert "The data is in another PostgreSQL" in api.status[1]
    assert api.systemd.asked == asked


def test_a_postgresql_that_does_not_answer_leaves_sqlite_running(
    serving: Api, given: testing.Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        postgresql_client.Postgresql, "url", lambda *_: "postgresql:///x?host=/nowhere"
    )
    serving.run(serving.on.relation_changed(given, remote_unit=0), **serving.with_relations(given))
    assert serving.status[0] == "blocked"
    assert "can't be reached" in serving.status[1]
    assert "turku-api.service" in serving.systemd.running
    assert "stop turku-api.service" not in serving.systemd.asked
    assert "database_url" not in serving.options


def name_of(given: testing.Relation) -> str:
    """Return the name of the database that a relation gives."""
    databag: Any = given.remote_app_data
    return str(databag["database"])


def add_storage(api: Api, name: str) -> None:
    """Put a storage unit into a database."""
    api.programs.run(
        "turku-api",
        "shell",
        "-c",
        f"from turku_core.api.models import StorageUnit as S; S.objects.create(name='{name}',"
        " secret_hash='x' * 64, ssh_ping_host='192.0.2.9', ssh_ping_port=22)",
    )

"""The interface `postgresql_client`: what is asked, what is read, what both forms answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import ops
import pytest
from ops import testing

import postgresql_client
from postgresql_client import Postgresql, database_name
from tests.support.api_unit import content
from turku_charm.statuses import Blocked, NotReady
from turku_core.api.options import database_settings

REQUIRER = {
    "name": "asker",
    "requires": {"database": {"interface": "postgresql_client", "limit": 1}},
}


class Asker(ops.CharmBase):
    """The least that asks for a database."""

    found: Postgresql | None = None
    error: Exception | None = None

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on.database_relation_changed, self._on_changed)
        framework.observe(self.on.database_relation_created, self._on_changed)

    def _on_changed(self, event: ops.RelationEvent) -> None:
        postgresql_client.request(event.relation, self.app, "turku")
        try:
            Asker.found = postgresql_client.read(self.model, event.relation, "turku")
            Asker.error = None
        except (Blocked, NotReady) as error:
            Asker.error = error


def make_provider() -> type[ops.CharmBase]:
    """Return a provider of the interface's second form, as its library has it."""
    with warnings.catch_warnings():
        # pydantic finds fault with how the library's models are written.
        warnings.simplefilter("ignore")
        from dpcharmlibs import interfaces

    class Provider(ops.CharmBase):
        """Gives whoever asks the same database."""

        def __init__(self, framework: ops.Framework) -> None:
            super().__init__(framework)
            self.database = interfaces.ResourceProviderEventHandler(
                self, "database", interfaces.RequirerCommonModel
            )
            framework.observe(self.database.on.resource_requested, self._on_requested)

        def _on_requested(self, event: interfaces.ResourceRequestedEvent[Any]) -> None:
            response = interfaces.ResourceProviderModel(
                salt=event.request.salt,
                request_id=event.request.request_id,
                resource=event.request.resource,
                username="relation-1",
                password="hidden word",
                endpoints="192.0.2.5:5432",
                tls=True,
                tls_ca="PEM",
                version="16.10",
            )
            self.database.set_response(event.relation.id, response)

    return Provider


def ask(relation: testing.Relation, *secrets: testing.Secret) -> Postgresql | None:
    """Return what the asker reads of a relation."""
    context = testing.Context(Asker, meta=REQUIRER)
    Asker.found = None
    context.run(
        context.on.relation_changed(relation, remote_unit=0),
        testing.State(leader=True, relations=[relation], secrets=secrets),
    )
    return Asker.found


def given(**said: str) -> testing.Relation:
    """Return a relation in which a provider of the first form has answered."""
    return testing.Relation("database", remote_app_name="postgresql", remote_app_data=said)


USER = testing.Secret({"username": "relation-3", "password": "p@ss/w:rd", "uris": "x"})
TLS = testing.Secret({"tls": "True", "tls-ca": "PEM"})
NO_TLS = testing.Secret({"tls": "False"})


def test_the_request_is_in_the_form_that_todays_postgresql_charm_reads() -> None:
    context = testing.Context(Asker, meta=REQUIRER)
    relation = testing.Relation("database", remote_app_name="postgresql")
    state = context.run(
        context.on.relation_created(relation), testing.State(leader=True, relations=[relation])
    )
    assert state.get_relation(relation.id).local_app_data == {
        "database": "turku",
        "requested-secrets": '["username", "password", "tls", "tls-ca", "uris"]',
    }


def test_the_answer_of_todays_postgresql_charm_is_read() -> None:
    relation = given(
        **{
            "data": '{"database": "turku"}',
            "database": "turku",
            "endpoints": "192.0.2.5:5432",
            "read-only-endpoints": "192.0.2.6:5432",
            "secret-user": USER.id,
            "secret-tls": TLS.id,
            "version": "16.10",
        }
    )
    assert ask(relation, USER, TLS) == Postgresql(
        relation.id, (("192.0.2.5", 5432),), "turku", "relation-3", "p@ss/w:rd", "PEM"
    )


def test_without_tls_no_certificate_is_expected() -> None:
    relation = given(**{"endpoints": "db:5432", "secret-user": USER.id, "secret-tls": NO_TLS.id})
    found = ask(relation, USER, NO_TLS)
    assert found is not None and found.ca_certificate is None and found.name == "turku"


def test_an_old_provider_without_secrets_is_read() -> None:
    found = ask(given(endpoints="db:5432,[2001:db8::2]:5433", username="u", password="secret"))
    assert found is not None
    assert found.hosts == (("db", 5432), ("2001:db8::2", 5433))
    assert (found.user, found.password, found.ca_certificate) == ("u", "secret", None)


@pytest.mark.parametrize("said", [{}, {"endpoints": "db:5432"}, {"username": "u"}])
def test_half_an_answer_is_none(said: dict[str, str]) -> None:
    assert ask(given(**said)) is None


def test_a_pooler_on_this_machine_counts_from_when_it_is_ready() -> None:
    said = {"subordinated": "true", "endpoints": "localhost:6432", "username": "u", "password": "p"}
    relation = given(**said)
    assert ask(relation) is None
    ready = testing.Relation(
        "database", remote_app_data=said, remote_units_data={0: {"state": "ready"}}
    )
    assert ask(ready) is not None


def test_a_secret_that_is_not_granted_yet_is_waited_for() -> None:
    assert ask(given(**{"endpoints": "db:5432", "secret-user": "secret:unknown"})) is None
    assert isinstance(Asker.error, NotReady)


def test_an_endpoint_that_is_none_blocks_and_names_the_field() -> None:
    assert ask(given(endpoints="db:many", username="u", password="p")) is None
    assert isinstance(Asker.error, Blocked)
    assert "endpoints" in str(Asker.error)


def test_a_provider_of_the_second_form_understands_the_request_and_is_understood() -> None:
    context = testing.Context(
        make_provider(),
        meta={"name": "pg", "provides": {"database": {"interface": "postgresql_client"}}},
    )
    asked = {"database": "turku", "requested-secrets": '["username", "password", "tls", "tls-ca"]'}
    there = testing.Relation("database", remote_app_name="turku-api", remote_app_data=asked)
    state = context.run(
        context.on.relation_changed(there), testing.State(leader=True, relations=[there])
    )
    answer = state.get_relation(there.id).local_app_data
    secrets = [testing.Secret(content(secret), id=secret.id) for secret in state.secrets]
    found = ask(given(**answer), *secrets)
    assert found is not None
    assert (found.user, found.password) == ("relation-1", "hidden word")
    assert (found.hosts, found.ca_certificate) == ((("192.0.2.5", 5432),), "PEM")


def test_the_url_says_all_that_django_needs() -> None:
    database = Postgresql(1, (("2001:db8::2", 5433),), "turku", "u", "p@ss/w:rd%", "PEM")
    settings = database_settings(database.url(Path("/etc/turku-api/postgresql-ca.crt")))
    assert {key: settings[key] for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT")} == {
        "NAME": "turku",
        "USER": "u",
        "PASSWORD": "p@ss/w:rd%",
        "HOST": "2001:db8::2",
        "PORT": "5433",
    }
    assert settings["OPTIONS"] == {
        "sslmode": "verify-full",
        "sslrootcert": "/etc/turku-api/postgresql-ca.crt",
    }


def test_of_several_servers_the_one_that_can_be_written_to_is_used() -> None:
    database = Postgresql(1, (("a", 5432), ("b", 5432)), "turku", "u", "p")
    settings = database_settings(database.url(Path("/ca")))
    assert (settings["HOST"], settings["PORT"]) == ("a,b", "5432,5432")
    assert settings["OPTIONS"] == {"target_session_attrs": "read-write"}


def test_a_password_is_in_no_representation() -> None:
    assert "hidden" not in repr(Postgresql(1, (("a", 5432),), "turku", "u", "hidden", "hidden"))


def test_two_models_ask_the_same_server_for_two_databases() -> None:
    names = {database_name("turku-api", uuid) for uuid in ("1f2e3d4c-0000", "2f2e3d4c-0000")}
    assert names == {"turku_api_1f2e3d4c", "turku_api_2f2e3d4c"}
    assert json.dumps(sorted(names)).isascii()

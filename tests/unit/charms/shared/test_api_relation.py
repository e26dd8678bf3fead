"""What agents and storage units read from the `api` relation, in every order Juju can produce."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import ops
import pytest
from ops import testing

from turku_charm.api_relation import Api, publish, read_api, write_configuration
from turku_charm.statuses import Blocked, NotReady
from turku_core.errors import TurkuError
from turku_core.relations import ApiAccess

META = {"name": "asker", "requires": {"api": {"interface": "turku_agent"}}}
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
KEY = "registration-key-0123456789"
JUJUS = dict.fromkeys(("egress-subnets", "ingress-address", "private-address"), "192.0.2.7")


class Asker(ops.CharmBase):
    """Reads the relation at every event and keeps what came of it."""

    found: Api | None = None
    refused: TurkuError | None = None

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        for event in (self.on.config_changed, self.on.api_relation_changed):
            framework.observe(event, self._read)

    def _read(self, event: ops.EventBase) -> None:
        try:
            Asker.found, Asker.refused = read_api(self.model), None
        except TurkuError as error:
            Asker.found, Asker.refused = None, error


def ask(
    relations: list[testing.Relation], secrets: list[testing.Secret] | None = None
) -> Api | TurkuError:
    """Run the charm once and return what it read, or why it could not."""
    context = testing.Context(Asker, meta=META)
    state = testing.State(relations=relations, secrets=secrets or [])
    context.run(context.on.config_changed(), state)
    result = Asker.found or Asker.refused
    assert result is not None
    return result


def api_relation(databag: dict[str, str]) -> testing.Relation:
    return testing.Relation("api", remote_app_name="turku-api", remote_app_data=databag)


def granted(content: dict[str, str]) -> testing.Secret:
    return testing.Secret(content)


def test_without_a_relation_an_operator_has_to_act() -> None:
    refused = ask([])
    assert isinstance(refused, Blocked)
    assert str(refused) == "There is no API: juju integrate it with turku-api."


def test_while_one_api_goes_and_another_comes_the_new_one_counts() -> None:
    old, new = (
        testing.Relation(
            "api",
            id=number,
            remote_app_name="turku-api",
            remote_app_data=ApiAccess((url,), PEM, None, None).to_databag(),
        )
        for number, url in ((3, "https://192.0.2.1/v1"), (7, "https://192.0.2.2/v1"))
    )
    found = ask([new, old])
    assert isinstance(found, Api)
    assert found.access.urls == ("https://192.0.2.2/v1",)


def test_before_the_api_has_written_time_mends_it() -> None:
    refused = ask([api_relation({})])
    assert isinstance(refused, NotReady)
    assert "turku-api" in str(refused)


def test_a_url_without_a_key_is_enough_for_who_has_registered_before() -> None:
    databag = ApiAccess(("https://192.0.2.1/v1",), PEM, None, None).to_databag()
    assert ask([api_relation(databag)]) == Api(
        ApiAccess(("https://192.0.2.1/v1",), PEM, None, None), None
    )


def test_the_key_comes_out_of_the_secret() -> None:
    secret = granted({"secret": KEY})
    databag = ApiAccess(("https://192.0.2.1/v1",), PEM, "agents-1", secret.id).to_databag()
    found = ask([api_relation(databag)], [secret])
    assert isinstance(found, Api)
    assert found.secret == KEY
    assert KEY not in repr(found)


def test_a_secret_that_is_not_granted_yet_is_waited_for() -> None:
    databag = ApiAccess(("https://192.0.2.1/v1",), PEM, "agents-1", "secret:abc").to_databag()
    refused = ask([api_relation(databag)])
    assert isinstance(refused, NotReady)
    assert "grant the registration key" in str(refused)


@pytest.mark.parametrize("content", [{"other": KEY}, {"secret": "short"}])
def test_a_secret_with_something_else_in_it_is_refused(content: dict[str, str]) -> None:
    secret = granted(content)
    databag = ApiAccess(("https://192.0.2.1/v1",), PEM, "agents-1", secret.id).to_databag()
    refused = ask([api_relation(databag)], [secret])
    assert isinstance(refused, Blocked)
    assert "short" not in str(refused)


def test_a_wrong_databag_names_its_field() -> None:
    refused = ask([api_relation({"api_urls": "nonsense"})])
    assert isinstance(refused, Blocked)
    assert "api_urls: must be JSON" in str(refused)


def make_api(certificate: str | None = PEM, secret: str | None = KEY) -> Api:
    return Api(ApiAccess(("https://192.0.2.1/v1",), certificate, "agents-1", "secret:a"), secret)


def test_the_configuration_is_written_once_and_only_for_root(tmp_path: Path) -> None:
    folder = tmp_path / "config.d"
    assert write_configuration(folder, make_api(), {"unit_name": "db/0"})
    path = folder / "50-juju.json"
    assert json.loads(path.read_text()) == {
        "api_url": ["https://192.0.2.1/v1"],
        "api_ca_certificate": str(folder / "juju-ca.crt"),
        "api_auth_name": "agents-1",
        "api_auth_secret": KEY,
        "unit_name": "db/0",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (folder / "juju-ca.crt").read_text() == PEM
    assert not write_configuration(folder, make_api(), {"unit_name": "db/0"})


def test_a_new_certificate_alone_is_a_change(tmp_path: Path) -> None:
    write_configuration(tmp_path, make_api(), {})
    assert write_configuration(tmp_path, make_api(certificate=PEM + PEM), {})


def test_without_a_certificate_the_systems_authorities_are_trusted(tmp_path: Path) -> None:
    write_configuration(tmp_path, make_api(certificate=None), {})
    assert "api_ca_certificate" not in json.loads((tmp_path / "50-juju.json").read_text())


def test_publishing_takes_out_what_is_no_longer_said_but_nothing_of_jujus() -> None:
    class Publisher(ops.CharmBase):
        """Says one thing of itself."""

        def __init__(self, framework: ops.Framework) -> None:
            super().__init__(framework)
            framework.observe(self.on.config_changed, self._publish)

        def _publish(self, event: ops.EventBase) -> None:
            relation = self.model.get_relation("api")
            assert relation is not None
            publish(relation, self.unit, {"kept": "new"})

    context = testing.Context(Publisher, meta=META)
    relation = testing.Relation("api", local_unit_data={**JUJUS, "kept": "old", "gone": "1"})
    after = context.run(context.on.config_changed(), testing.State(relations=[relation]))
    assert after.get_relation(relation.id).local_unit_data == {**JUJUS, "kept": "new"}

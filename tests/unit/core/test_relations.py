"""The relations' databags: what one side writes the other reads, old content and new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.credentials import PublicKey, make_ssh_key_pair
from turku_core.fields import FieldError
from turku_core.relations import (
    AgentUnit,
    ApiAccess,
    BackupRequest,
    PrincipalSources,
    StorageUnit,
)

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
KEY_LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE2gMUDWqtZQuNwHGKg7ONfQBkKXWJEQmWXo5gYSX6tt"
KEY = PublicKey.parse(KEY_LINE)
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
SECRET_ID = "secret:d5mlcgq4v1mpo1u6og6g"
OTHER_MODELS_SECRET = "secret://3b9a6b1c-7c3b-4c63-8d9c-30e5b6d3c27a/d5mlcgq4v1mpo1u6og6g"


class Databag(Protocol):
    """One of the classes under test."""

    def to_databag(self) -> dict[str, str]: ...

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> Databag | None: ...


VECTORS: dict[str, tuple[Databag, dict[str, str]]] = {
    "the API with its own authority": (
        ApiAccess(
            ("https://192.0.2.10/v1", "https://[2001:db8::1]/v1"), PEM, "agents-3", SECRET_ID
        ),
        {
            "version": "1",
            "api_urls": '["https://192.0.2.10/v1", "https://[2001:db8::1]/v1"]',
            "ca_certificate": PEM,
            "registration_key": "agents-3",
            "registration_secret_id": SECRET_ID,
        },
    ),
    "the API behind a name, with a certificate that everyone trusts": (
        ApiAccess(("https://turku.example.com/v1",), None, "agents-3", OTHER_MODELS_SECRET),
        {
            "version": "1",
            "api_urls": '["https://turku.example.com/v1"]',
            "registration_key": "agents-3",
            "registration_secret_id": OTHER_MODELS_SECRET,
        },
    ),
    "the API before it has made the key": (
        ApiAccess(("https://192.0.2.10/v1",), PEM, None, None),
        {"version": "1", "api_urls": '["https://192.0.2.10/v1"]', "ca_certificate": PEM},
    ),
    "an agent's unit": (
        AgentUnit(UUID, KEY, "postgresql/0"),
        {
            "version": "1",
            "machine_uuid": UUID,
            "ssh_public_key": KEY_LINE,
            "unit_name": "postgresql/0",
        },
    ),
    "a storage unit": (
        StorageUnit("juju-1a2b-0-5f00ba11", "192.0.2.20", 22, (KEY,)),
        {
            "version": "1",
            "name": "juju-1a2b-0-5f00ba11",
            "ssh_host": "192.0.2.20",
            "ssh_port": "22",
            "ssh_host_keys": json.dumps([KEY_LINE]),
        },
    ),
    "a principal's sources": (
        PrincipalSources({"docs": {"path": "/srv/docs", "frequency": "daily"}}),
        {
            "version": "1",
            "sources": '{"docs": {"frequency": "daily", "path": "/srv/docs"}}',
        },
    ),
    "a principal that knows the backup interface": (
        BackupRequest(("/srv/a", "/etc/b.conf"), {"run-before-backup": "/usr/local/bin/dump"}),
        {"fileset": "/srv/a,/etc/b.conf", "run-before-backup": "/usr/local/bin/dump"},
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_what_is_written_is_exactly_this(name: str) -> None:
    value, databag = VECTORS[name]
    assert value.to_databag() == databag


@pytest.mark.parametrize("name", VECTORS)
def test_what_one_side_writes_the_other_reads(name: str) -> None:
    value, databag = VECTORS[name]
    assert type(value).from_databag(databag) == value


@pytest.mark.parametrize("name", VECTORS)
def test_a_newer_side_may_say_more(name: str) -> None:
    value, databag = VECTORS[name]
    newer = {**databag, "version": "9", "something_new": "{]"}
    assert type(value).from_databag(newer) == value


@pytest.mark.parametrize("name", VECTORS)
def test_a_side_that_names_no_schema_is_read_all_the_same(name: str) -> None:
    value, databag = VECTORS[name]
    older = {key: text for key, text in databag.items() if key != "version"}
    assert type(value).from_databag(older) == value


@pytest.mark.parametrize(
    "kind", [ApiAccess, AgentUnit, StorageUnit, PrincipalSources, BackupRequest]
)
def test_an_empty_databag_is_a_side_that_is_not_ready(kind: type[Databag]) -> None:
    assert kind.from_databag({}) is None


def test_a_key_loses_its_comment_on_the_way() -> None:
    unit = AgentUnit.from_databag({"machine_uuid": UUID, "ssh_public_key": f"{KEY_LINE} root@db"})
    assert unit is not None
    assert unit.to_databag()["ssh_public_key"] == KEY_LINE


def test_an_older_agent_without_a_unit_name_is_let_in() -> None:
    unit = AgentUnit.from_databag({"machine_uuid": UUID, "ssh_public_key": KEY_LINE})
    assert unit == AgentUnit(UUID, KEY, None)


WRONG: list[tuple[type[Databag], dict[str, str], str]] = [
    (ApiAccess, {"api_urls": "https://192.0.2.10/v1"}, "api_urls: must be JSON"),
    (ApiAccess, {"api_urls": "[]"}, "api_urls: must list at least one URL"),
    (ApiAccess, {"api_urls": '["http://192.0.2.10/v1"]'}, "must be an https:// URL"),
    (ApiAccess, {"api_urls": '["https://user:pw@h/v1"]'}, "must be an https:// URL"),
    (ApiAccess, {"api_urls": '["https://h/v1"]', "ca_certificate": "no"}, "PEM"),
    (
        ApiAccess,
        {"api_urls": '["https://h/v1"]', "ca_certificate": PEM + "-----BEGIN PRIVATE KEY-----"},
        "ca_certificate: must be certificates",
    ),
    (ApiAccess, {"api_urls": '["https://h/v1"]', "registration_key": "a/b"}, "registration_key"),
    (
        ApiAccess,
        {"api_urls": '["https://h/v1"]', "registration_secret_id": "--owner x"},
        "registration_secret_id",
    ),
    (AgentUnit, {"machine_uuid": "../../root"}, "machine_uuid: must be a UUID"),
    (AgentUnit, {"machine_uuid": UUID}, "ssh_public_key: is missing"),
    (AgentUnit, {"machine_uuid": UUID, "ssh_public_key": "ssh-rsa x"}, "ssh_public_key"),
    (StorageUnit, {"name": "a"}, "ssh_host: is missing"),
    (
        StorageUnit,
        {"name": "a", "ssh_host": "-oProxyCommand=x", "ssh_port": "22", "ssh_host_keys": "[]"},
        "ssh_host: must be a host name",
    ),
    (
        StorageUnit,
        {"name": "a", "ssh_host": "h", "ssh_port": "no", "ssh_host_keys": "[]"},
        "ssh_port: must be JSON",
    ),
    (
        StorageUnit,
        {"name": "a", "ssh_host": "h", "ssh_port": "22", "ssh_host_keys": "[]"},
        "ssh_host_keys: must list at least one",
    ),
    (PrincipalSources, {"sources": "[1]"}, "sources: must be an object"),
    (PrincipalSources, {"sources": '{"../x": {}}'}, "sources, name: must be a name"),
    (PrincipalSources, {"sources": '{"x": 1}'}, "sources.x: must be an object"),
    (PrincipalSources, {"sources": "[" * 100_000}, "sources: must be JSON"),
    (BackupRequest, {"run-before-backup": "/x"}, "fileset: is missing"),
    (BackupRequest, {"fileset": " , ,"}, "fileset: must name at least one absolute path"),
    (BackupRequest, {"fileset": "/a,relative"}, "must be an absolute path"),
    (BackupRequest, {"fileset": "/a/../../etc"}, "must be an absolute path"),
    (BackupRequest, {"fileset": "/a", "run-after-backup": ""}, "run-after-backup"),
    (BackupRequest, {"fileset": "/a", "run-after-restore": "x"}, "run-after-restore"),
]


@pytest.mark.parametrize(("kind", "databag", "words"), WRONG)
def test_a_wrong_value_is_refused_with_its_field(
    kind: type[Databag], databag: dict[str, str], words: str
) -> None:
    with pytest.raises(FieldError) as caught:
        kind.from_databag(databag)
    assert words in str(caught.value)


def test_prior_art_02_a_key_of_two_lines_never_gets_in() -> None:
    two_lines = f"{KEY_LINE}\n{KEY_LINE}"
    with pytest.raises(FieldError, match="ssh_public_key"):
        AgentUnit.from_databag({"machine_uuid": UUID, "ssh_public_key": two_lines})


def test_prior_art_03_a_storage_host_is_never_an_option() -> None:
    databag = {**VECTORS["a storage unit"][1], "ssh_host": "-oProxyCommand=touch /tmp/x"}
    with pytest.raises(FieldError, match="ssh_host"):
        StorageUnit.from_databag(databag)


def test_the_interfaces_commas_and_spaces_are_trimmed() -> None:
    request = BackupRequest.from_databag({"fileset": " /a ,, /b/ "})
    assert request == BackupRequest(("/a", "/b/"), {})


def test_a_private_key_is_never_part_of_what_an_agent_publishes() -> None:
    private, public = make_ssh_key_pair("turku-agent")
    databag = AgentUnit(UUID, PublicKey.parse(public)).to_databag()
    assert not any(line in text for text in databag.values() for line in private.splitlines()[1:-1])


KEYS = sorted({key for _, databag in VECTORS.values() for key in databag})


@given(st.dictionaries(st.sampled_from(KEYS), st.text(), max_size=6))
def test_whatever_comes_in_is_a_value_or_a_refusal_with_words(databag: dict[str, str]) -> None:
    for kind in (ApiAccess, AgentUnit, StorageUnit, PrincipalSources, BackupRequest):
        try:
            value = kind.from_databag(databag)
        except FieldError as error:
            assert str(error)
        else:
            assert value is None or kind.from_databag(value.to_databag()) == value


@pytest.mark.parametrize(("bag", "key"), [(ApiAccess, "api_urls"), (PrincipalSources, "sources")])
def test_a_databag_is_bounded_before_it_is_parsed(bag: Any, key: str) -> None:
    # Not even JSON: whoever parsed it would say so.
    with pytest.raises(FieldError, match="at most"):
        bag.from_databag({key: "[" * 2_000_000})

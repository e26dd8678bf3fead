"""The messages of the v1 protocol: what fielded programs send is taken, anything else is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core import credentials
from turku_core.fields import FieldError
from turku_core.protocol import messages
from turku_core.protocol.messages import (
    AssignedMachine,
    Auth,
    BackupResult,
    MachineConfig,
    Source,
    SourceSettings,
    SourceUpdate,
    StorageConfig,
)

KEY = credentials.make_ssh_key_pair("root@unit")[1]
UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"

MACHINE: dict[str, Any] = {
    "unit_name": "web/0",
    "ssh_public_key": KEY,
    "environment_name": "production",
    "service_name": "",
    "sources": {
        "docs": {"path": "/usr/share/doc", "frequency": "daily, 0200-0400", "exclude": ["*.gz"]},
        "all": {
            "path": "/srv",
            "retention": "last 3 days",
            "comment": "Everything",
            "filter": ["merge standard", "- /cache/"],
            "bwlimit": "10m",
            "snapshot_mode": "attic",
            "preserve_hard_links": False,
            "shared_service": True,
            "large_rotating_files": True,
            "large_modifying_files": False,
            "from_the_future": {"ignored": True},
        },
    },
}
STORAGE: dict[str, Any] = {
    "ssh_ping_host": "storage.example.com",
    "ssh_ping_port": 22,
    "ssh_ping_user": "turku-storage",
    "ssh_ping_host_keys": [KEY],
    "space_total": 1000.5,
    "space_available": 100,
}
RESULT: dict[str, Any] = {
    "success": True,
    "snapshot": "2015-01-01T00:00:00",
    "summary": "line one\nline two",
    "time_begin": 1420070400.5,
    "time_end": 1420070500,
}


def on_the_wire(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_fielded_machine_is_understood_and_what_is_missing_has_the_protocols_defaults() -> None:
    config = MachineConfig.from_json(MACHINE)
    assert config.unit_name == "web/0"
    assert config.service_name is None
    assert config.published
    assert config.sources is not None
    assert config.sources["docs"] == SourceSettings(
        path="/usr/share/doc", frequency="daily, 0200-0400", exclude=("*.gz",)
    )
    assert config.sources["all"].snapshot_mode == "borg"


def test_a_schedule_and_a_policy_that_a_machine_doesnt_name_are_left_to_the_api() -> None:
    docs = SourceSettings.from_json({"path": "/usr/share/doc"}, "docs")
    assert (docs.frequency, docs.retention) == (None, None)
    assert not {"frequency", "retention"} & docs.to_json().keys()


def test_a_machine_that_says_nothing_of_sources_differs_from_one_that_has_none() -> None:
    machine = {key: value for key, value in MACHINE.items() if key != "sources"}
    assert MachineConfig.from_json(machine).sources is None
    assert MachineConfig.from_json({**machine, "sources": {}}).sources == {}


ROUND_TRIPS: list[tuple[Callable[[Any], Any], Any]] = [
    (MachineConfig.from_json, MACHINE),
    (StorageConfig.from_json, {**STORAGE, "slots": 4, "capabilities": ["leases"]}),
    (
        lambda value: StorageConfig.from_json(value),
        {**STORAGE, "running": [{"machine": UUID, "sources": ["docs"]}]},
    ),
    (lambda value: BackupResult.from_json(value, "result"), RESULT),
    (
        lambda value: SourceUpdate.from_json(value, "update"),
        {"snapshots": [{"name": "20261122T102538Z", "state": "expired", "proven_at": 1.5}]},
    ),
    (lambda value: Auth.from_json(value), "an-old-secret"),
    (lambda value: Auth.from_json(value), {"name": "fleet", "secret": "a-secret-of-today"}),
    (
        lambda value: AssignedMachine.from_json(value, "machine"),
        {
            "unit_name": "web/0",
            "environment_name": None,
            "service_name": "web",
            "comment": "",
            "ssh_public_key": KEY,
            "restore_from": {UUID: {"unit_name": "web/1", "until": "2026-12-01T00:00:00+00:00"}},
        },
    ),
    (
        lambda value: Source.from_json(value, "source"),
        {
            "path": "/srv",
            "retention": "last 3 days",
            "filter": ["- *.tmp"],
            "storage": {**STORAGE, "name": "storage-0"},
        },
    ),
]


@pytest.mark.parametrize(("read", "value"), ROUND_TRIPS)
def test_what_is_sent_is_what_is_received(read: Callable[[Any], Any], value: Any) -> None:
    message = read(value)
    assert read(on_the_wire(message.to_json())) == message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"unit_name": None}, "machine.unit_name"),
        ({"ssh_public_key": KEY + "\nssh-ed25519 x"}, "machine.ssh_public_key"),
        ({"sources": {"../x": {"path": "/"}}}, "machine.sources, source name"),
        ({"sources": {"a": {}}}, "machine.sources.a.path"),
        ({"sources": {"a": {"path": "/a", "frequency": "dayly"}}}, "machine.sources.a.frequency"),
        ({"sources": {"a": {"path": "/a", "retention": "last"}}}, "machine.sources.a.retention"),
        (
            {"sources": {"a": {"path": "/a", "filter": ["merge /etc/x"]}}},
            r"machine.sources.a.filter\[0\]",
        ),
        ({"sources": {"a": {"path": "/a", "snapshot_mode": "zfs"}}}, "snapshot_mode"),
        ({"published": "yes"}, "machine.published"),
    ],
)
def test_a_field_that_is_not_valid_is_named_with_its_place(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(FieldError, match=field):
        MachineConfig.from_json({**copy.deepcopy(MACHINE), **change})


def test_a_policy_that_is_not_understood_is_named_once() -> None:
    with pytest.raises(FieldError) as caught:
        Source.from_json({"path": "/srv", "retention": "for ever"}, "docs")
    assert str(caught.value).startswith("docs.retention: 'for ever', column 1: 'for' is not ")


def test_a_machine_has_a_bounded_number_of_sources() -> None:
    sources = {f"s{number}": {"path": "/"} for number in range(1001)}
    with pytest.raises(FieldError, match="at most 1000"):
        MachineConfig.from_json({**MACHINE, "sources": sources})


def test_an_answer_of_the_api_may_not_hold_a_rule_that_reads_a_file() -> None:
    with pytest.raises(FieldError, match="filter"):
        Source.from_json({"path": "/srv", "filter": ["merge standard"]}, "source")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    number=st.integers(0, len(ROUND_TRIPS) - 1),
    key=st.integers(0, 20),
    garbage=ANY_JSON,
)
def test_garbage_in_any_field_is_a_field_error_and_nothing_else(
    number: int, key: int, garbage: Any
) -> None:
    read, value = ROUND_TRIPS[number]
    if isinstance(value, dict):
        keys = sorted(value)
        garbage = {**value, keys[key % len(keys)]: garbage}
    try:
        read(garbage)
    except FieldError as error:
        assert str(error).isprintable()


def test_the_inventory_of_snapshots_needs_no_result() -> None:
    update = messages.source_updates_from_json(
        {"docs": {"snapshots": [{"name": "x", "state": "removed"}]}}, "machine.sources"
    )["docs"]
    assert update.result is None
    assert update.snapshots[0].state == "removed"

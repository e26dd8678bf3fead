"""What comes in is bounded, parsed and checked: nothing that anybody sends is an error of ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core.api import clock
from turku_core.api.restore_orders import order_restore

CALLS = (
    "health",
    "update_config",
    "agent_ping_checkin",
    "agent_ping_restore",
    "agent_restore_report",
    "agent_status",
    "agent_backup_now",
    "storage_update_config",
    "storage_ping_checkin",
    "storage_ping_source_update",
)

some_examples = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

hostile_texts = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.sampled_from(
        [
            "\0",
            "a\0b",
            "\ud800",
            "/\udcff",
            "\U0001f4a9" * 300,
            "x" * 70000,
            "../..",
            "-oProxyCommand=x",
            "'; DROP TABLE turku_api_machine; --",
            "NaN",
            "\u202e",
            "merge a",
            "last 99999999999999999999 days",
            "cron * * * * *",
            "cron H/0 * * * *",
            "daily, 0000-0000",
        ]
    ),
)
hostile_numbers = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 1e308, 253402300799, -0.0]),
)
hostile_values = st.recursive(
    st.one_of(st.none(), st.booleans(), hostile_texts, hostile_numbers),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(hostile_texts, inner, max_size=4)
    ),
    max_leaves=8,
)


def _post(name: str, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
    response = Client().post(f"/v1/{name}", body, content_type=content_type)
    return response.status_code, response.content


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("method", ["get", "put", "delete", "head", "options", "patch"])
def test_another_method_than_post_is_405(world: World, name: str, method: str) -> None:
    response = getattr(Client(), method)(f"/v1/{name}")
    assert response.status_code == 405
    assert response["Allow"] == "POST"


@pytest.mark.parametrize("name", CALLS)
def test_objects_in_objects_in_objects_are_no_error_of_ours(world: World, name: str) -> None:
    # How deep JSON may be differs between versions of Python; it is in a field that nobody reads.
    body = b'{"a": ' * 9000 + b"1" + b"}" * 9000
    status, _ = _post(name, body)
    assert status == 400 or (name, status) == ("health", 200)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "text/plain"),
        (b"{}", "application/x-www-form-urlencoded"),
        (b"{}", ""),
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"null", "application/json"),
        (b"\xff\xfe{}", "application/json"),
        (b'{"a": NaN}', "application/json"),
        (b'{"a": -Infinity}', "application/json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "application/json"),
        (b"[" * 60000, "application/json"),
    ],
)
def test_what_is_not_a_json_object_is_400_in_words(
    world: World, name: str, body: bytes, content_type: str
) -> None:
    status, text = _post(name, body, content_type)
    assert status == 400
    assert b" must be " in text


def test_a_content_type_may_have_parameters(world: World) -> None:
    assert _post("health", b"{}", "application/json; charset=utf-8")[0] == 200


@pytest.mark.parametrize("name", CALLS)
def test_a_body_that_is_too_long_is_not_read(world: World, name: str) -> None:
    for length in (str(9 * 2**20), "9" * 100, "-1", "1e3"):
        response = Client().post(
            f"/v1/{name}", b"{}", content_type="application/json", CONTENT_LENGTH=length
        )
        assert response.status_code == 400
        assert b"bytes long" in response.content


def test_another_name_is_404(world: World) -> None:
    assert _post("drop_tables", b"{}")[0] == 404
    assert _post("health/", b"{}")[0] == 404


def test_the_health_of_the_api_is_its_date_and_counts(world: World) -> None:
    world.unit()
    world.agent()
    assert world.call("health", {}).json == {
        "healthy": True,
        "date": "2026-03-11T12:00:00+00:00",
        "counts": {"machines": 1, "sources": 1, "storage_units": 1},
    }


def _valid_requests(world: World, unit: UnitCaller, agent: AgentCaller) -> dict[str, Any]:
    source = {"path": "/srv", "frequency": "daily", "retention": "last 5 days", "comment": "c"}
    flags = {"shared_service": False, "preserve_hard_links": True, "bwlimit": "5m"}
    rules = {"filter": ["- a"], "exclude": ["b"], "snapshot_mode": "borg"}
    end = world.now.timestamp()
    states = [{"name": "s", "state": "committed", "proven_at": end, "error": "e"}]
    report = {"success": True, "snapshot": "s", "summary": "", "time_begin": end, "time_end": end}
    sizes = {"partial": False, "bytes_stored": 1, "bytes_total": 1, "files_total": 1}
    config = {**agent.config, "version": "1", "published": True, "environment_name": "e"}
    running = [{"machine": agent.uuid, "sources": ["docs"]}]
    more = {"slots": 3, "known_revision": "x", "version": "1", "capabilities": ["leases"]}
    order = order_restore(agent.row, agent.row, {"source": "docs"}, world.now, "root")
    restored = {
        "id": order.uuid,
        "outcome": "done",
        "message": "",
        "snapshot": "s",
        "target": "/r",
        "files": 1,
        "bytes": 1,
        "changes": [">f"],
    }
    return {
        "update_config": {
            "auth": world.auth(),
            "machine": {
                **agent.login["machine"],
                **config,
                "sources": {"docs": {**source, **flags, **rules}},
            },
        },
        "agent_ping_checkin": {
            "machine": {**agent.login["machine"], "running_orders": [order.uuid]}
        },
        "agent_ping_restore": agent.login,
        "agent_restore_report": {**agent.login, "order": restored},
        "agent_status": agent.login,
        "agent_backup_now": {**agent.login, "sources": ["docs"]},
        "storage_update_config": {
            "auth": {"name": "storages", "secret": world.storage_key},
            "storage": {**unit.login["storage"], **unit.config, **more, "running": running},
        },
        "storage_ping_checkin": {
            **unit.login,
            "machine": {"uuid": agent.uuid},
            "action": "checkin",
        },
        "storage_ping_source_update": {
            **unit.login,
            "machine": {
                "uuid": agent.uuid,
                "sources": {"docs": {**report, **sizes, "snapshots": states}},
            },
        },
    }


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the ways to every value inside `value`."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place, *(found for key, each in inside for found in _places(each, (*place, key)))]


def _change(request: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    changed = copy.deepcopy(request)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return changed


@pytest.mark.parametrize("name", CALLS[1:])
@some_examples
@given(data=st.data())
def test_no_value_anywhere_in_a_request_is_an_error_of_ours(
    world: World, name: str, data: st.DataObject
) -> None:
    with transaction.atomic():
        unit, agent = world.unit(), world.agent()
        request = _valid_requests(world, unit, agent)[name]
        assert world.call(name, request).status == 200
        place = data.draw(st.sampled_from([place for place in _places(request) if place]))
        value = data.draw(hostile_values)
        answer = world.call(
            name, _change(request, place, lambda at, key: at.__setitem__(key, value))
        )
        assert answer.status in (200, 400, 403, 404)
        assert answer.text
        transaction.set_rollback(True)


@pytest.mark.parametrize("name", CALLS[1:])
def test_a_field_that_is_missing_or_null_is_no_error_of_ours(world: World, name: str) -> None:
    unit, agent = world.unit(), world.agent()
    request = _valid_requests(world, unit, agent)[name]
    for place in _places(request)[1:]:
        for change in (
            lambda holder, key: holder.pop(key),
            lambda holder, key: holder.__setitem__(key, None),
        ):
            answer = world.call(name, _change(request, place, change))
            assert answer.status in (200, 400, 403, 404), place


@some_examples
@given(name=st.sampled_from(CALLS), payload=hostile_values)
def test_no_json_is_an_error_of_ours(world: World, name: str, payload: Any) -> None:
    assert _post(name, json.dumps(payload).encode())[0] in (200, 400, 403)
    assert _post(name, json.dumps({"machine": payload, "storage": payload}).encode())[0] in (
        200,
        400,
        403,
    )


@some_examples
@given(name=st.sampled_from(CALLS), body=st.binary(max_size=200))
def test_no_bytes_are_an_error_of_ours(world: World, name: str, body: bytes) -> None:
    assert _post(name, body)[0] in (200, 400)


@pytest.mark.parametrize(
    ("sqlstate", "calls"), [("40P01", 3), ("40001", 3), ("53300", 1), (None, 1)]
)
def test_a_database_that_cannot_serve_is_503_after_deadlocks_were_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, sqlstate: str | None, calls: int
) -> None:
    made = []

    def now() -> None:
        made.append(1)
        cause = Exception()
        cause.sqlstate = sqlstate  # type: ignore[attr-defined]  # as psycopg's errors have it
        raise OperationalError("no") from cause

    monkeypatch.setattr(clock, "now", now)
    answer = world.call("health", {})
    assert (answer.status, len(made)) == (503, calls)
    assert "try again" in answer.text


def test_a_database_that_is_away_is_one_line_of_the_log_for_each_call(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def now() -> None:
        raise OperationalError("connection failed: refused\n\tIs the server running?")

    monkeypatch.setattr(clock, "now", now)
    assert world.call("agent_ping_checkin", {"machine": {"uuid": "u"}}).status == 503
    (record,) = caplog.records
    assert record.getMessage() == (
        "/v1/agent_ping_checkin of machine 'u': the database can't serve it: "
        "connection failed: refused Is the server running?"
    )
    assert not record.exc_info

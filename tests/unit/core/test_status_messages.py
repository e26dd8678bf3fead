"""How sources fare, on the wire; and the times and words that it is made of."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core import fields
from turku_core.fields import FieldError
from turku_core.protocol.status import (
    STATES,
    SourceStatus,
    statuses_from_json,
    statuses_to_json,
)

moments = st.none() | st.datetimes(
    datetime(1971, 1, 1),  # noqa: DTZ001  (the strategy adds the zone)
    datetime(9998, 1, 1),  # noqa: DTZ001
    timezones=st.just(timezone.utc),
)


@given(
    state=st.sampled_from(STATES),
    times=st.tuples(moments, moments, moments, moments, moments),
    unproven=st.sampled_from((None, "damaged", "drill-failed", "drill-overdue")),
    failures=st.integers(0, 10**6),
    requested=st.booleans(),
)
def test_what_one_side_writes_the_other_reads(
    state: str,
    times: tuple[Any, Any, Any, Any, Any],
    unproven: str | None,
    failures: int,
    requested: bool,
) -> None:
    last_good, next_due, overdue_since, last_proven, unproven_since = times
    status = SourceStatus(
        state, last_good, next_due, overdue_since, "A sentence.", failures, last_proven, requested,
        "", unproven, unproven_since, "Another sentence.",
    )  # fmt: skip
    assert statuses_from_json(statuses_to_json({"docs": status}), "sources") == {"docs": status}


def test_fields_that_are_missing_or_not_known_are_no_trouble() -> None:
    read = statuses_from_json({"docs": {"state": "ok", "colour": "red"}}, "sources")
    assert read == {"docs": SourceStatus("ok")}


@pytest.mark.parametrize(
    "value",
    [
        5,
        {"../x": {"state": "ok"}},
        {"docs": 5},
        {"docs": {}},
        {"docs": {"state": "a b"}},
        {"docs": {"state": "ok", "problem": "\x1b[2J"}},
        {"docs": {"state": "ok", "next_due": 5}},
        {f"s{number}": {"state": "ok"} for number in range(1001)},
    ],
)
def test_what_is_not_valid_is_refused(value: Any) -> None:
    with pytest.raises(FieldError):
        statuses_from_json(value, "sources")


def test_a_state_says_whether_a_backup_is_lacking() -> None:
    behind = {state for state in STATES if SourceStatus(state).is_behind}
    assert behind == {"overdue", "failing", "missed"}


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("2026-11-22T10:30:00Z", 0),
        ("2026-11-22T10:30:00+00:00", 0),
        ("2026-11-22T12:30:00.000001+02:00", 2),
    ],
)
def test_a_moment_has_its_offset(text: str, offset: int) -> None:
    moment = fields.moment(text, "at")
    assert moment.utcoffset() == timedelta(hours=offset)
    assert moment.astimezone(timezone.utc).replace(microsecond=0) == datetime(
        2026, 11, 22, 10, 30, tzinfo=timezone.utc
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "",
        "soon",
        "2026-11-22T10:30:00",
        "20261122T103000Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2026-11-22T10:30:00+00:00" + " " * 100,
    ],
)
def test_what_is_no_moment_is_refused(value: Any) -> None:
    with pytest.raises(FieldError):
        fields.moment(value, "at")


@pytest.mark.parametrize("value", [None, "", "DEBUG", "loud", 10, ["debug"]])
def test_a_log_level_is_one_of_four_words(value: Any) -> None:
    assert [fields.log_level(level, "log_level") for level in fields.LOG_LEVELS]
    with pytest.raises(FieldError, match="must be one of debug, info, warning, error"):
        fields.log_level(value, "log_level")

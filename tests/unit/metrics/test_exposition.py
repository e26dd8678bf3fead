"""Samples as text; whether Prometheus reads it is in tests/integration/metrics."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.metrics.exposition import Metric, Samples, escaped, written
from turku_core.metrics.table import TABLES

TABLE = (
    Metric("turku_test_a_seconds", "seconds", ("name", "kind"), "One with a \\ and\na break"),
    Metric("turku_test_things", "count", (), "Another"),
    Metric("turku_test_c_bytes", "bytes", (), "One that has no sample"),
)


def test_the_text_is_exactly_this() -> None:
    samples = Samples(TABLE)
    samples.add("turku_test_things", 3)
    samples.add("turku_test_a_seconds", 1.5, kind="x", name='a "b" \\c')
    samples.add("turku_test_a_seconds", None, kind="x", name="never")
    samples.add(
        "turku_test_a_seconds",
        datetime(2026, 11, 22, 10, 30, tzinfo=timezone.utc),
        kind="y",
        name="a",
    )
    assert samples.text() == (
        "# HELP turku_test_a_seconds One with a \\\\ and\\na break.\n"
        "# TYPE turku_test_a_seconds gauge\n"
        'turku_test_a_seconds{name="a \\"b\\" \\\\c",kind="x"} 1.5\n'
        'turku_test_a_seconds{name="a",kind="y"} 1795343400\n'
        "# HELP turku_test_things Another.\n"
        "# TYPE turku_test_things gauge\n"
        "turku_test_things 3\n"
    )


@pytest.mark.parametrize("labels", [{}, {"name": "a"}, {"name": "a", "kind": "b", "more": "c"}])
def test_a_sample_has_exactly_the_labels_of_its_metric(labels: dict[str, str]) -> None:
    with pytest.raises(KeyError, match="has the labels"):
        Samples(TABLE).add("turku_test_a_seconds", 1, **labels)


@given(st.text())
def test_any_label_value_is_read_back_as_it_was(value: str) -> None:
    written_value = escaped(value)
    assert re.fullmatch(r'(?:[^"\\\n]|\\[\\"n])*', written_value)
    back = re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], written_value)
    assert back == value


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (2**53, "9007199254740992"),
        (1795343400.25, "1795343400.25"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
        (True, "1"),
    ],
)
def test_numbers_are_written_as_prometheus_reads_them(number: float, text: str) -> None:
    assert written(number) == text


@pytest.mark.parametrize("program", TABLES)
def test_a_metrics_name_says_whose_it_is_and_ends_in_its_unit(program: str) -> None:
    prefix = program.replace("-", "_")
    for metric in TABLES[program]:
        assert metric.name.startswith(f"{prefix}_")
        assert metric.name.endswith("_bytes") == (metric.unit == "bytes")
        assert metric.name.endswith("_timestamp_seconds") == (metric.unit == "seconds since 1970")
        assert metric.name.endswith("_ratio") == (metric.unit == "0 to 1")


def test_no_label_is_one_that_could_hold_a_secret() -> None:
    labels = {label for table in TABLES.values() for metric in table for label in metric.labels}
    assert labels == {
        "environment", "kind", "loop", "machine", "machine_uuid", "outcome", "service", "source",
        "state", "storage", "version", "volume",
    }  # fmt: skip

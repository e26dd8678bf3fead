"""Samples as Prometheus reads them: its own checker is asked."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.metrics.exposition import Metric, Samples
from turku_core.metrics.table import TABLES

TABLE = (
    Metric("turku_test_a_seconds", "seconds", ("name",), "One with a \\ and\na break"),
    Metric("turku_test_things", "count", (), "Another"),
)


def checked(text: str) -> str:
    """Return what Prometheus' checker says of an answer to a scrape; nothing when it is good."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_the_checker_finds_a_mistake() -> None:
    assert "error while linting" in checked('turku_test_things{a="unended} 3\n')


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5, unique=True))
def test_prometheus_reads_any_label_value(values: list[str]) -> None:
    samples = Samples(TABLE)
    samples.add("turku_test_things", 0.25)
    for value in values:
        samples.add("turku_test_a_seconds", 1, name=value)
    assert checked(samples.text()) == ""


@pytest.mark.parametrize("program", TABLES)
def test_the_metrics_are_named_as_prometheus_asks(program: str) -> None:
    samples = Samples(TABLES[program])
    for metric in TABLES[program]:
        samples.add(metric.name, 1, **dict.fromkeys(metric.labels, "x"))
    assert checked(samples.text()) == ""

"""The reference page of the metrics is made from the table, and names every alert."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from turku_charm.cos_agent import PORTS
from turku_core.metrics.exposition import Metric
from turku_core.metrics.table import TABLES

TREE = Path(__file__).resolve().parents[3]
PAGE = (TREE / "docs/reference/metrics.md").read_text("utf-8")


def section(program: str) -> str:
    """Return what the page says of a program."""
    found = re.search(rf"^## {program}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def table_of(metrics: tuple[Metric, ...]) -> str:
    """Return the page's table of some metrics; a page that differs takes it from here."""
    rows = ["| metric | labels | unit | what |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {labels} | {metric.unit} | {metric.meaning} |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("program", TABLES)
def test_the_page_has_exactly_the_metrics_that_there_are(program: str) -> None:
    table = table_of(TABLES[program])
    assert table in section(program), f"\n{table}"
    named = set(re.findall(rf"`({program.replace('-', '_')}_\w+)`", PAGE))
    assert named == {metric.name for metric in TABLES[program]}


def test_all_metrics_are_of_the_type_that_the_page_says() -> None:
    assert {metric.type for table in TABLES.values() for metric in table} == {"gauge"}
    assert "All are gauges" in PAGE


@pytest.mark.parametrize("program", TABLES)
def test_the_page_has_exactly_the_alerts_that_there_are(program: str) -> None:
    rules = TREE / f"charms/{program}/src/prometheus_alert_rules/{program}.yaml"
    expected = {
        (rule["alert"], rule["labels"]["severity"])
        for group in yaml.safe_load(rules.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    }
    found = re.findall(r"^\| (Turku\w+) \| (\w+) \|", section(program), re.MULTILINE)
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("program", PORTS)
def test_the_page_has_the_ports_that_the_charms_take(program: str) -> None:
    assert f"127.0.0.1:{PORTS[program]}" in section(program)

"""The dashboard: its queries are PromQL, and ask for what there is."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from turku_charm.cos_agent import DASHBOARDS
from turku_core.metrics.table import TABLES

DASHBOARD: dict[str, Any] = json.loads((DASHBOARDS / "turku.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_every_query_is_one_that_prometheus_understands(tmp_path: Path) -> None:
    rules = tmp_path / "queries.yaml"
    group = {
        "name": "queries",
        "rules": [
            {"record": f"query:{number}", "expr": query.replace("$machine", ".*")}
            for number, query in enumerate(QUERIES)
        ],
    }
    rules.write_text(yaml.safe_dump({"groups": [group]}))
    subprocess.run(["promtool", "check", "rules", "--lint=none", str(rules)], check=True)


def test_every_query_asks_for_metrics_that_there_are() -> None:
    known = {metric.name: metric for table in TABLES.values() for metric in table}
    for query in QUERIES:
        names = re.findall(r"turku_\w+", query)
        assert names
        for name in names:
            assert name in known, query
        labels = {label for name in names for label in known[name].labels}
        for by in re.findall(r"by \(([^)]*)\)", query):
            assert set(by.split(", ")) <= labels, query
        for label in re.findall(r"(\w+)=~?\"", query):
            assert label in labels, query


def test_each_panel_has_a_place_of_its_own_and_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"].endswith(".") for panel in PANELS)


def test_whoever_shows_it_chooses_the_data_source() -> None:
    chosen = {"type": "prometheus", "uid": "${prometheusds}"}
    (variable,) = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    assert variable["name"] == "prometheusds"
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_what_the_charms_promise_to_measure_is_on_it() -> None:
    shown = " ".join(QUERIES)
    for name in (
        "turku_api_source_last_success_timestamp_seconds",
        "turku_api_source_failures",
        "turku_api_source_behind_since_timestamp_seconds",
        "turku_api_storage_sessions",
        "turku_api_source_last_backup_bytes",
        "turku_storage_volume_free_bytes",
        "turku_api_source_last_proven_timestamp_seconds",
        "turku_api_source_drills_failed",
    ):
        assert name in shown

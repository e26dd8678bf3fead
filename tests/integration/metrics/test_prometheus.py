"""A real Prometheus scrapes the three programs, takes the rules, and answers the dashboard."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.metrics.exporters import (
    SECONDS,
    free_port,
    listening,
    prepare_agent,
    prepare_api,
    prepare_storage,
)
from turku_charm.cos_agent import DASHBOARDS, alert_rules

CHARMS = Path(__file__).resolve().parents[3] / "charms"
PROGRAMS: dict[str, Callable[[Path], list[str]]] = {
    "turku-api": prepare_api,
    "turku-agent": prepare_agent,
    "turku-storage": prepare_storage,
}
MODEL = {"juju_model": "prod", "juju_model_uuid": "7e6d5c4b-3a29-4817-9605-f4e3d2c1b0a9"}


def topology(program: str) -> dict[str, str]:
    return {**MODEL, "juju_application": program, "juju_charm": program}


class Prometheus:
    """A Prometheus that answers on a port."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, call: str, **parameters: str) -> Any:
        """Return the data of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self._port}/api/v1/{call}?{query}"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]

    def wait_for(self, query: str, count: int) -> list[dict[str, Any]]:
        """Return the samples of a query when there are so many."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                found: list[dict[str, Any]] = self.ask("query", query=query)["result"]
            except OSError:
                found = []
            if len(found) == count:
                return found
            assert time.monotonic() < deadline, (query, found)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus, configured as the collector and its server are by what the charms publish."""
    folder = tmp_path_factory.mktemp("prometheus")
    jobs = []
    with ExitStack() as stack:
        for program, prepare in PROGRAMS.items():
            root = folder / program
            root.mkdir()
            port = stack.enter_context(listening(root, *prepare(root)))
            labels = {**MODEL, "juju_application": program}
            target = {"targets": [f"127.0.0.1:{port}"], "labels": labels}
            jobs.append({"job_name": program, "static_configs": [target]})
            rules = alert_rules(CHARMS / program / "src/prometheus_alert_rules", topology(program))
            (folder / f"{program}.yaml").write_text(yaml.safe_dump(rules))
        # The storage unit's one volume goes away, which is worth an alarm.
        (folder / "turku-storage/main").rename(folder / "turku-storage/away")
        configuration = {
            "global": {
                "scrape_interval": "5s", "scrape_timeout": "5s", "evaluation_interval": "1s",
            },
            "rule_files": [f"{folder}/turku-*.yaml"],
            "scrape_configs": jobs,
        }  # fmt: skip
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        port = free_port()
        server = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb"),
        )  # fmt: skip
        stack.callback(server.wait, SECONDS)
        stack.callback(server.terminate)
        yield Prometheus(port)


def test_it_finds_all_three_up(prometheus: Prometheus) -> None:
    jobs = {each["metric"]["job"] for each in prometheus.wait_for("up == 1", 3)}
    assert jobs == set(PROGRAMS)


def test_it_raises_an_alarm_and_only_that_one(prometheus: Prometheus) -> None:
    (alert,) = prometheus.wait_for("ALERTS", 1)
    labels = alert["metric"]
    assert labels["alertname"] == "TurkuVolumeNotMounted"
    assert labels["volume"] == "main"
    assert labels["juju_application"] == labels["juju_charm"] == "turku-storage"
    rules = prometheus.ask("rules")["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}


def test_it_answers_every_query_of_the_dashboard(prometheus: Prometheus) -> None:
    prometheus.wait_for("up == 1", 3)
    dashboard = json.loads((DASHBOARDS / "turku.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            prometheus.ask("query", query=target["expr"].replace("$machine", ".*"))

"""The `cos-agent` databag, as the collector's charm reads it."""

from __future__ import annotations

import base64
import json
import lzma
import re
from pathlib import Path
from typing import Any

import ops
import pytest
import yaml
from ops import testing

from turku_charm.cos_agent import PORTS, alert_rules, metrics_listen, narrowed, publish_cos_agent

MODEL = testing.Model(name="backups", uuid="7e6d5c4b-3a29-4817-9605-f4e3d2c1b0a9")
TOPOLOGY = {
    "juju_model": MODEL.name,
    "juju_model_uuid": MODEL.uuid,
    "juju_application": "store",
    "juju_charm": "turku-storage",
}
RULES = {
    "groups": [
        {
            "name": "volumes",
            "rules": [
                {
                    "alert": "Full",
                    "expr": "turku_volume_free_bytes < 1",
                    "for": "5m",
                    "labels": {"severity": "critical"},
                }
            ],
        }
    ]
}


class Charm(ops.CharmBase):
    """Publishes on every event, and keeps what the workload's option would be."""

    listen: str | None = None

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on.update_status, self._reconcile)

    def _reconcile(self, _: ops.EventBase) -> None:
        publish_cos_agent(self)
        Charm.listen = metrics_listen(self)


def published(root: Path, *relations: testing.Relation) -> list[dict[str, str]]:
    """Return our unit's databag of each relation, after the charm ran."""
    context = testing.Context(
        Charm,
        meta={"name": "turku-storage", "provides": {"cos-agent": {"interface": "cos_agent"}}},
        app_name="store",
        charm_root=root,
    )
    state = testing.State(relations=relations, model=MODEL)
    after = context.run(context.on.update_status(), state)
    return [dict(after.get_relation(relation.id).local_unit_data) for relation in relations]


def collected(databag: dict[str, str]) -> dict[str, Any]:
    """Decode a databag as the collector's charm does: by what its model demands, no more."""
    config: dict[str, Any] = json.loads(databag["config"])
    assert isinstance(config["metrics_alert_rules"], dict)
    assert isinstance(config["log_alert_rules"], dict)
    assert isinstance(config["metrics_scrape_jobs"], list)
    assert isinstance(config["log_slots"], list)
    config["dashboards"] = [
        json.loads(lzma.decompress(base64.b64decode(text.encode("utf-8"))).decode())
        for text in config["dashboards"]
    ]
    return config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A charm's folder with one file of rules."""
    folder = tmp_path / "src/prometheus_alert_rules"
    folder.mkdir(parents=True)
    (folder / "volumes.yaml").write_text(yaml.safe_dump(RULES), "utf-8")
    return tmp_path


def relation() -> testing.Relation:
    return testing.Relation("cos-agent", remote_app_name="grafana-agent")


def test_the_collector_finds_the_job_the_rules_and_the_dashboard(root: Path) -> None:
    (databag,) = published(root, relation())
    config = collected(databag)
    assert config["metrics_scrape_jobs"] == [
        {
            "job_name": "turku-storage",
            "metrics_path": "/metrics",
            "scrape_interval": "1m",
            "scrape_timeout": "30s",
            "static_configs": [{"targets": ["127.0.0.1:9522"], "labels": {"instance": "store/0"}}],
        }
    ]
    assert config["metrics_alert_rules"] == {
        "groups": [
            {
                "name": "backups_7e6d5c4b_store_volumes_rules",
                "rules": [
                    {
                        "alert": "Full",
                        "expr": 'turku_volume_free_bytes{juju_model="backups",'
                        'juju_model_uuid="7e6d5c4b-3a29-4817-9605-f4e3d2c1b0a9",'
                        'juju_application="store"} < 1',
                        "for": "5m",
                        "labels": {"severity": "critical", **TOPOLOGY},
                    }
                ],
            }
        ]
    }
    (dashboard,) = config["dashboards"]
    assert dashboard["title"] == "Turku backups"


def test_the_dashboards_uid_is_one_that_the_collector_keeps(root: Path) -> None:
    # It replaces one that isn't 40 hexadecimal digits by one made from the charm's name, and then
    # Grafana would show the dashboard once for each of the three charms.
    (databag,) = published(root, relation())
    (dashboard,) = collected(databag)["dashboards"]
    assert re.fullmatch(r"[0-9a-f]{40}", dashboard["uid"])


def test_the_workload_listens_only_while_there_is_a_relation(root: Path) -> None:
    published(root, relation())
    assert Charm.listen == "127.0.0.1:9522"
    assert published(root) == []
    assert Charm.listen is None


def test_every_relation_gets_the_same(root: Path) -> None:
    first, second = published(root, relation(), relation())
    assert first["config"] == second["config"]


def test_what_juju_itself_wrote_stays_in_the_databag(root: Path) -> None:
    (databag,) = published(root, relation())
    assert {"ingress-address", "private-address"} <= set(databag)


def test_each_charm_has_a_port_of_its_own() -> None:
    assert len(set(PORTS.values())) == len(PORTS) == 3


def test_a_charm_without_rules_publishes_none(tmp_path: Path) -> None:
    assert alert_rules(tmp_path, TOPOLOGY) == {}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("turku_a > 0", 'turku_a{m="x"} > 0'),
        ("turku_a{} > 0", 'turku_a{m="x",} > 0'),
        ('turku_a{b="c"} / turku_d', 'turku_a{m="x",b="c"} / turku_d{m="x"}'),
        ("turku_a { b='c' }", "turku_a{m=\"x\", b='c' }"),
        ("sum by (unit) (turku_a[5m])", 'sum by (unit) (turku_a{m="x"}[5m])'),
        ('up{job="turku_a"} == 0', 'up{m="x",job="turku_a"} == 0'),
        ("time() - max without (juju_unit) (turku_a)",
         'time() - max without (juju_unit) (turku_a{m="x"})'),
        ("group_left(up_to) other_turku_a", "group_left(up_to) other_turku_a"),
    ],
)  # fmt: skip
def test_only_our_metrics_are_narrowed(expression: str, expected: str) -> None:
    assert narrowed(expression, {"m": "x"}) == expected


def test_a_label_with_a_quote_stays_one_string() -> None:
    assert narrowed("turku_a", {"m": 'a"b\\c'}) == 'turku_a{m="a\\"b\\\\c"}'

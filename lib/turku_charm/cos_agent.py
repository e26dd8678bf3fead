"""The `cos-agent` relation: what to scrape, when to raise an alarm, and the dashboard.

The other side is the collector's subordinate charm on the same machine. It reads one key of the
unit's databag, ``config``, whose JSON has the fields that `_config` writes; the dashboards in it
are compressed with LZMA and encoded in base64. That form is the whole interface, so it is written
here and not by a library that would bring a dozen packages along.

The rules lie in the charm, ``src/prometheus_alert_rules/*.yaml``, in Prometheus' own form, and
work outside Juju as they are. The dashboard is one for the three charms and lies beside this
module: its ``uid`` is the same wherever it comes from, so Grafana shows it once.
"""

from __future__ import annotations

import base64
import json
import lzma
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ops
import yaml

ENDPOINT = "cos-agent"
PORTS = {"turku-api": 9520, "turku-agent": 9521, "turku-storage": 9522}
"""The loopback port of each charm's metrics, by the charm's name."""

RULES = Path("src/prometheus_alert_rules")
DASHBOARDS = Path(__file__).parent / "grafana_dashboards"

_OUR_METRICS = re.compile(r'(?<![\w:"])(turku_\w+|up)\b(\s*\{)?')
_NOT_IN_GROUP_NAMES = re.compile(r"[^a-zA-Z0-9_:]")


def metrics_listen(charm: ops.CharmBase) -> str | None:
    """Return the workload's option ``metrics_listen``: None while nobody is there to scrape."""
    is_wanted = any(relation.active for relation in charm.model.relations[ENDPOINT])
    return f"127.0.0.1:{PORTS[charm.meta.name]}" if is_wanted else None


def publish_cos_agent(charm: ops.CharmBase) -> None:
    """Write this unit's side of every `cos-agent` relation."""
    for relation in charm.model.relations[ENDPOINT]:
        if not relation.active:
            continue
        databag = relation.data[charm.unit]
        text = json.dumps(_config(charm), sort_keys=True)
        if databag.get("config") != text:
            databag["config"] = text


def _config(charm: ops.CharmBase) -> dict[str, Any]:
    return {
        "metrics_alert_rules": alert_rules(charm.charm_dir / RULES, _topology(charm)),
        "log_alert_rules": {},
        "dashboards": [_encoded(path) for path in sorted(DASHBOARDS.glob("*.json"))],
        "metrics_scrape_jobs": [_scrape_job(charm.meta.name, charm.unit.name)],
        "log_slots": [],
    }


def _scrape_job(charm_name: str, unit: str) -> dict[str, Any]:
    # Each scrape is a process of its own: it may take a moment on a busy machine. Without an
    # instance of our own, every machine's would be the same loopback address.
    return {
        "job_name": charm_name,
        "metrics_path": "/metrics",
        "scrape_interval": "1m",
        "scrape_timeout": "30s",
        "static_configs": [
            {"targets": [f"127.0.0.1:{PORTS[charm_name]}"], "labels": {"instance": unit}}
        ],
    }


def _topology(charm: ops.CharmBase) -> dict[str, str]:
    # No unit: one copy of the rules serves all units of the application.
    return {
        "juju_model": charm.model.name,
        "juju_model_uuid": charm.model.uuid,
        "juju_application": charm.app.name,
        "juju_charm": charm.meta.name,
    }


def alert_rules(folder: Path, topology: Mapping[str, str]) -> dict[str, Any]:
    """Return the rules of a folder, made to speak of one Juju application alone.

    Args:
        folder: It has ``*.yaml`` files of Prometheus rule groups; none: there are no rules.
        topology: The labels ``juju_model``, ``juju_model_uuid``, ``juju_application`` and
            ``juju_charm``. Each alert carries them all, and each of our metrics in an expression
            is narrowed to the first three, which are those that the collector puts on what it
            scrapes.

    Returns:
        ``{"groups": [...]}``, with group names that no other application's have.
    """
    narrowing = {name: value for name, value in topology.items() if name != "juju_charm"}
    prefix = "_".join(
        (topology["juju_model"], topology["juju_model_uuid"][:8], topology["juju_application"])
    )
    groups = []
    for path in sorted(folder.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            name = _NOT_IN_GROUP_NAMES.sub("_", f"{prefix}_{group['name']}_rules")
            rules = [_rule(rule, topology, narrowing) for rule in group["rules"]]
            groups.append({**group, "name": name, "rules": rules})
    return {"groups": groups} if groups else {}


def _rule(
    rule: Mapping[str, Any], topology: Mapping[str, str], narrowing: Mapping[str, str]
) -> dict[str, Any]:
    return {
        **rule,
        "expr": narrowed(rule["expr"], narrowing),
        "labels": {**rule.get("labels", {}), **topology},
    }


def narrowed(expression: str, labels: Mapping[str, str]) -> str:
    """Return a PromQL expression in which each of our metrics, and `up`, must have these labels.

    For example ``turku_overdue > 0`` and ``{"juju_model": "m"}`` give
    ``turku_overdue{juju_model="m"} > 0``.
    """
    matchers = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())

    def narrow(found: re.Match[str]) -> str:
        return f"{found[1]}{{{matchers}," if found[2] else f"{found[1]}{{{matchers}}}"

    return _OUR_METRICS.sub(narrow, expression)


def _encoded(dashboard: Path) -> str:
    compact = json.dumps(json.loads(dashboard.read_text("utf-8")), separators=(",", ":"))
    return base64.b64encode(lzma.compress(compact.encode("utf-8"))).decode("ascii")

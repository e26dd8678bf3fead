"""The alert rules, in Prometheus' own opinion: series that fire, and series that don't."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from turku_charm.cos_agent import alert_rules
from turku_core.metrics.table import TABLES

TREE = Path(__file__).resolve().parents[3]
FILES = {
    program: TREE / f"charms/{program}/src/prometheus_alert_rules/{program}.yaml"
    for program in TABLES
}
HOUR = 60
"""In minutes, as promtool takes the times of its tests."""

DAY_SECONDS = 24 * 3600

SOURCE = 'machine="web/0",machine_uuid="u",environment="",service="",source="docs"'
HELD = 'volume="main",machine="web/0",machine_uuid="u",source="docs"'
TOPOLOGY = {
    "juju_model": "prod",
    "juju_model_uuid": "7e6d5c4b-3a29-4817-9605-f4e3d2c1b0a9",
    "juju_application": "ours",
    "juju_charm": "any",
}


@dataclass(frozen=True)
class Case:
    """An alert, series under which it fires at a time, and series under which it doesn't.

    Attributes:
        fires, silent: Each a mapping of series to the value that they have all along. Times are
            seconds since the test's own beginning; what was before it is negative.
        minutes: When the alert is looked for.
    """

    program: str
    alert: str
    minutes: int
    fires: Mapping[str, float]
    silent: Mapping[str, float]


def behind(kind: str, since: float) -> dict[str, float]:
    labels = f'{SOURCE},kind="{kind}",juju_unit="api/0"'
    return {f"turku_api_source_behind_since_timestamp_seconds{{{labels}}}": since}


def agent_behind(kind: str, since: int) -> dict[str, float]:
    name = "turku_agent_source_behind_since_timestamp_seconds"
    return {f'{name}{{source="docs",kind="{kind}"}}': since}


def agent_unproven(kind: str) -> dict[str, float]:
    name = "turku_agent_source_unproven_since_timestamp_seconds"
    return {f'{name}{{source="docs",kind="{kind}"}}': 0}


def filled(prefix: str, label: str, used: float, mark: float = 0.8) -> dict[str, float]:
    return {
        f"{prefix}_used_ratio{{{label}}}": used,
        f"{prefix}_high_water_ratio{{{label}}}": mark,
    }


API_SPACE = ("turku_api_storage", 'storage="store-1"')
VOLUME_SPACE = ("turku_storage_volume", 'volume="main"')
CHECKIN = "turku_api_machine_last_checkin_timestamp_seconds"
MACHINE = 'machine="web/0",machine_uuid="u",environment="",service=""'
DRILLS = "turku_api_source_drills"
STORAGE_SEEN = 'turku_api_storage_last_checkin_timestamp_seconds{storage="store-1"}'
ROUND = 'turku_storage_worker_round_timestamp_seconds{loop="config"}'
FAILED = 'turku_storage_worker_round_failed{loop="expiry"}'
SNAPSHOTS = f"turku_storage_source_snapshots{{{HELD},state="
API_HELD = f"turku_api_source_held_changed_ratio{{{SOURCE}}}"
STORAGE_HELD = f"turku_storage_source_held_changed_ratio{{{HELD}}}"
AGENT_HELD = 'turku_agent_source_held{source="docs"}'
HELD_UNPROVEN = f'turku_storage_source_unproven_since_timestamp_seconds{{{HELD},instance="s"}}'
HELD_DRILLS = f"turku_storage_source_drills_failed{{{HELD}}}"
INTERVAL = 'turku_storage_verify_interval_seconds{instance="s"}'
LONG_AGO, LATER = -60 * DAY_SECONDS, -59 * DAY_SECONDS

CASES = [
    Case("turku-api", "TurkuBackupOverdue", 3 * HOUR, behind("overdue", 0), behind("failing", 0)),
    Case("turku-api", "TurkuBackupOverdue", 3 * HOUR, behind("missed", 0), behind("missed", 7200)),
    Case("turku-api", "TurkuBackupFailing", 40, behind("failing", 0), behind("overdue", 0)),
    Case("turku-api", "TurkuBackupLacking", 20, behind("failing", -DAY_SECONDS),
         behind("failing", -DAY_SECONDS + 3600)),
    Case("turku-api", "TurkuMachineSilent", 20, {f"{CHECKIN}{{{MACHINE}}}": -DAY_SECONDS},
         {f"{CHECKIN}{{{MACHINE}}}": -DAY_SECONDS + 3600}),
    Case("turku-api", "TurkuSnapshotDamaged", 1,
         {f"turku_api_source_damaged_snapshots{{{SOURCE}}}": 2},
         {f"turku_api_source_damaged_snapshots{{{SOURCE}}}": 0}),
    Case("turku-api", "TurkuSuspiciousChange", 1, {API_HELD: 0.9},
         {f"turku_api_source_damaged_snapshots{{{SOURCE}}}": 0}),
    Case("turku-api", "TurkuDrillFailing", 40, {f"{DRILLS}_failed{{{SOURCE}}}": 1},
         {f"{DRILLS}_failed{{{SOURCE}}}": 0}),
    Case("turku-api", "TurkuSnapshotUnproven", 2 * HOUR, {f"{DRILLS}_overdue{{{SOURCE}}}": 1},
         {f"{DRILLS}_overdue{{{SOURCE}}}": 0}),
    Case("turku-api", "TurkuStorageNearFull", 20, filled(*API_SPACE, 0.8),
         filled(*API_SPACE, 0.79)),
    Case("turku-api", "TurkuStorageNearFull", 20, filled(*API_SPACE, 0.8, 0.7),
         filled(*API_SPACE, 0.8, 0.9)),
    Case("turku-api", "TurkuStorageFull", 20, filled(*API_SPACE, 0.95), filled(*API_SPACE, 0.94)),
    Case("turku-api", "TurkuStorageSilent", 40, {STORAGE_SEEN: 0}, {STORAGE_SEEN: 1200}),
    Case("turku-api", "TurkuApiMetricsMissing", 20, {'up{job="turku-api"}': 0},
         {'up{job="turku-api"}': 1, 'up{job="other"}': 0}),
    Case("turku-agent", "TurkuAgentNotCheckingIn", 2 * HOUR,
         {"turku_agent_last_checkin_timestamp_seconds": 0},
         {"turku_agent_last_checkin_timestamp_seconds": 6000}),
    Case("turku-agent", "TurkuAgentBackupOverdue", 3 * HOUR, agent_behind("overdue", 0),
         agent_behind("failing", 0)),
    Case("turku-agent", "TurkuAgentBackupFailing", 40, agent_behind("failing", 0),
         agent_behind("missed", 0)),
    Case("turku-agent", "TurkuAgentSourcesInvalid", 20, {"turku_agent_sources_invalid": 1},
         {"turku_agent_sources_invalid": 0}),
    Case("turku-agent", "TurkuAgentSuspiciousChange", 1, {AGENT_HELD: 1}, {AGENT_HELD: 0}),
    Case("turku-agent", "TurkuAgentSnapshotDamaged", 1, agent_unproven("damaged"),
         agent_unproven("drill-failed")),
    Case("turku-agent", "TurkuAgentDrillFailing", 40, agent_unproven("drill-failed"),
         agent_unproven("drill-overdue")),
    Case("turku-agent", "TurkuAgentUnproven", 2 * HOUR, agent_unproven("drill-overdue"),
         agent_unproven("drill-failed")),
    Case("turku-agent", "TurkuAgentMetricsMissing", 20, {'up{job="turku-agent"}': 0},
         {'up{job="turku-agent"}': 1}),
    Case("turku-storage", "TurkuVolumeNotMounted", 10,
         {'turku_storage_volume_mounted{volume="main"}': 0},
         {'turku_storage_volume_mounted{volume="main"}': 1}),
    Case("turku-storage", "TurkuVolumeNearFull", 20, filled(*VOLUME_SPACE, 0.81),
         filled(*VOLUME_SPACE, 0.5)),
    Case("turku-storage", "TurkuVolumeFull", 20, filled(*VOLUME_SPACE, 0.99),
         filled(*VOLUME_SPACE, 0.9)),
    Case("turku-storage", "TurkuCommitsFailing", 40, {"turku_storage_commits_failing": 1},
         {"turku_storage_commits_failing": 0}),
    Case("turku-storage", "TurkuWorkerStopped", 30, {ROUND: 0},
         {ROUND: 0, ROUND.replace("config", "reports"): 1500}),
    Case("turku-storage", "TurkuWorkerFailing", 3 * HOUR, {FAILED: 1}, {FAILED: 0}),
    Case("turku-storage", "TurkuReportsRefused", 20, {"turku_storage_reports_refused": 3},
         {"turku_storage_reports_refused": 0}),
    Case("turku-storage", "TurkuStorageSnapshotDamaged", 1, {f'{SNAPSHOTS}"damaged"}}': 1},
         {f'{SNAPSHOTS}"damaged"}}': 0, f'{SNAPSHOTS}"good"}}': 5}),
    Case("turku-storage", "TurkuStorageSuspiciousChange", 1, {STORAGE_HELD: 0.9},
         {f'{SNAPSHOTS}"good"}}': 5}),
    Case("turku-storage", "TurkuStorageDrillFailing", 40, {HELD_DRILLS: 1}, {HELD_DRILLS: 0}),
    Case("turku-storage", "TurkuStorageUnproven", 2 * HOUR,
         {HELD_UNPROVEN: LONG_AGO, INTERVAL: 30 * DAY_SECONDS},
         {HELD_UNPROVEN: LATER, INTERVAL: 30 * DAY_SECONDS}),
    Case("turku-storage", "TurkuStorageUnproven", 2 * HOUR,
         {HELD_UNPROVEN: LATER, INTERVAL: 7 * DAY_SECONDS},
         {HELD_UNPROVEN: LONG_AGO, INTERVAL: 90 * DAY_SECONDS}),
    Case("turku-storage", "TurkuStorageMetricsMissing", 20, {'up{job="turku-storage"}': 0},
         {'up{job="turku-storage"}': 1}),
]  # fmt: skip


def rules_of(file: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alerts_at(case: Case, series: Mapping[str, float], folder: Path, rules: Path) -> list[str]:
    """Return the labels of what fires of the case's alert, at its time, as promtool prints them."""
    test = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": f"{value}x{case.minutes + 1}"}
            for name, value in series.items()
        ],
        # Nothing is expected, so that promtool complains of whatever fires, and shows it.
        "alert_rule_test": [
            {"eval_time": f"{case.minutes}m", "alertname": case.alert, "exp_alerts": []}
        ],
    }
    file = folder / "tests.yaml"
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 or "got:[" in said, said
    assert "<no value>" not in said
    return re.findall(r"Labels:(\{.*\})", said)


@pytest.mark.parametrize("program", FILES)
def test_prometheus_accepts_the_rules_also_when_they_are_narrowed(
    program: str, tmp_path: Path
) -> None:
    narrowed = tmp_path / "rules.yaml"
    narrowed.write_text(yaml.safe_dump(alert_rules(FILES[program].parent, TOPOLOGY)))
    subprocess.run(["promtool", "check", "rules", str(FILES[program]), str(narrowed)], check=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_when_it_should_and_only_then(case: Case, tmp_path: Path) -> None:
    rules = FILES[case.program]
    assert len(alerts_at(case, case.fires, tmp_path, rules)) == 1
    assert alerts_at(case, case.silent, tmp_path, rules) == []


def test_every_rule_is_tried() -> None:
    alerts = {rule["alert"] for file in FILES.values() for rule in rules_of(file)}
    assert alerts == {case.alert for case in CASES}


@pytest.mark.parametrize("program", FILES)
def test_rules_speak_of_metrics_that_there_are_and_say_how_bad_it_is(program: str) -> None:
    known = {metric.name for metric in TABLES[program]}
    for rule in rules_of(FILES[program]):
        names = set(re.findall(r"turku_\w+", rule["expr"]))
        assert names <= known, rule["alert"]
        assert names or "up{" in rule["expr"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_two_api_units_make_one_alert_of_one_trouble(tmp_path: Path) -> None:
    case = Case("turku-api", "TurkuBackupFailing", 40, {}, {})
    (first,) = behind("failing", 0)
    both = {first: 0.0, first.replace("api/0", "api/1"): 0.0}
    assert len(alerts_at(case, both, tmp_path, FILES["turku-api"])) == 1


def test_a_narrowed_rule_fires_for_its_own_application_alone(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(alert_rules(FILES["turku-storage"].parent, TOPOLOGY)))
    case = Case("turku-storage", "TurkuVolumeNotMounted", 10, {}, {})
    for application, count in (("ours", 1), ("theirs", 0)):
        labels = f'juju_model="prod",juju_model_uuid="{TOPOLOGY["juju_model_uuid"]}"'
        series = (
            f'turku_storage_volume_mounted{{volume="main",{labels},'
            f'juju_application="{application}",juju_unit="{application}/0"}}'
        )
        alerts = alerts_at(case, {series: 0}, tmp_path, rules)
        assert len(alerts) == count
        assert all('juju_charm="any"' in alert for alert in alerts)

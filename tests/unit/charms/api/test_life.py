"""A unit's life: storage, options, leadership, upgrades, failures, its neighbours, its end."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ops import testing

from api_config import ApiConfig
from api_service import Service
from tests.support.api_unit import DATA, Api, Systemd, content, first_state
from tests.support.charms import CHARMS
from turku_charm.workload import Workload, WorkloadError
from turku_core.errors import TurkuError

AGENTS = testing.Relation("agents", remote_app_name="agent")


def test_the_file_of_options_is_this(serving: Api) -> None:
    path = serving.root / "etc/turku-api/config.d/50-juju.json"
    assert path.read_text() == (
        "{\n"
        '  "certificate_names": [\n'
        '    "192.0.2.0"\n'
        "  ],\n"
        '  "default_frequency": "daily",\n'
        '  "default_retention": "last 5 days, earliest of month",\n'
        '  "listen": "0.0.0.0:443",\n'
        '  "log_level": "warning",\n'
        '  "migrate_on_start": false,\n'
        '  "record_retention_days": 400,\n'
        '  "session_slots": 0,\n'
        '  "time_zone": "UTC"\n'
        "}\n"
    )
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_database_that_does_not_answer_is_said_until_it_does(
    serving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Service, "has_database", lambda _: False)
        serving.run(serving.on.update_status())
    assert serving.status == ("waiting", "Waiting for SQLite: it doesn't answer the API.")
    serving.run(serving.on.update_status())
    assert serving.status[0] == "active"


def test_every_option_of_the_charm_reaches_the_workload_which_takes_it(serving: Api) -> None:
    serving.run(
        serving.on.config_changed(),
        config={
            "session-slots": 8,
            "time-zone": "Europe/Helsinki",
            "default-schedule": "weekly, 0100-0500",
            "default-retention": "last 14 days",
            "record-retention-days": 30,
            "log-level": "info",
        },
    )
    assert serving.status[0] == "active"
    assert {key: serving.options[key] for key in serving.options if key != "certificate_names"} == {
        "default_frequency": "weekly, 0100-0500",
        "default_retention": "last 14 days",
        "listen": "0.0.0.0:443",
        "log_level": "info",
        "migrate_on_start": False,
        "record_retention_days": 30,
        "session_slots": 8,
        "time_zone": "Europe/Helsinki",
    }
    assert serving.ask("health")["state"] == "OK"
    assert serving.systemd.asked[-1] == "restart turku-api.service"


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("external-url", "http://turku.example.com", "external-url: must be an https:// URL"),
        ("external-url", "https://a b/", "external-url: is no URL"),
        ("external-url", "https://turku.example.com:port", "external-url: is no URL"),
        ("external-url", "https://u@turku.example.com", "external-url: must be an https://"),
        ("session-slots", -1, "session-slots: must be 0"),
        ("time-zone", "Mars/Base", "time-zone: 'Mars/Base' is none; try Europe/Helsinki"),
        ("default-schedule", "sometimes", "default-schedule: "),
        ("default-retention", "for ever", "default-retention: "),
        ("record-retention-days", 0, "record-retention-days: must be 1"),
        ("log-level", "loud", "log-level: must be one of debug, info, warning, error"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_with_its_name_and_an_example(
    option: str, value: Any, says: str
) -> None:
    text = (CHARMS / "turku-api/charmcraft.yaml").read_text("utf-8")
    options = yaml.safe_load(text)["config"]["options"]
    values = {name.replace("-", "_"): each["default"] for name, each in options.items()}
    assert ApiConfig(**values).external_base is None
    with pytest.raises(ValueError, match=re.escape(says)):
        ApiConfig(**{**values, option.replace("-", "_"): value})


def test_an_option_that_makes_no_sense_blocks_and_what_runs_goes_on(serving: Api) -> None:
    options, asked = serving.options, list(serving.systemd.asked)
    serving.run(serving.on.config_changed(), config={"time-zone": "Mars/Base"})
    assert serving.status == (
        "blocked",
        "time-zone: 'Mars/Base' is none; try Europe/Helsinki or UTC.",
    )
    assert (serving.options, serving.systemd.asked) == (options, asked)
    assert serving.act("list-machines")["machines"] == []
    serving.run(serving.on.config_changed(), config={})
    assert serving.status[0] == "active"


def test_the_units_of_systemd_are_those_of_the_workload(serving: Api) -> None:
    text = (serving.root / "etc/systemd/system/turku-api.service").read_text()
    program = serving.programs.folder / "turku-api"
    assert f"ExecStart={program} serve --migrate" in text


def test_the_port_is_open_and_the_version_is_shown(serving: Api) -> None:
    assert serving.state.opened_ports == {testing.TCPPort(443)}
    assert serving.state.workload_version == "1.0.0"


def test_without_storage_nothing_is_made_and_the_status_says_what_to_do(api: Api) -> None:
    api.run(api.on.install(), storages=[])
    assert api.status[0] == "blocked"
    assert api.status[1] == (
        "The storage data isn't attached: juju attach-storage turku-api/0 with the one that it had."
    )
    assert not (api.root / "var/lib/turku-api").exists()
    assert api.systemd.asked == []


def test_a_storage_that_is_detached_stops_the_service_and_one_that_comes_back_starts_it(
    serving: Api,
) -> None:
    serving.run(serving.on.storage_detaching(DATA))
    assert serving.status[0] == "blocked"
    assert serving.systemd.running == set()
    # It is still listed for a while, and must not be written to.
    serving.run(serving.on.update_status())
    assert serving.systemd.running == set()
    serving.run(serving.on.update_status(), storages=[])
    assert serving.status[0] == "blocked"
    serving.run(serving.on.storage_attached(DATA), storages=[DATA])
    assert serving.status[0] == "active"
    assert "turku-api.service" in serving.systemd.running


def test_a_unit_without_its_storage_is_not_among_the_urls(serving: Api) -> None:
    serving.run(serving.on.storage_detaching(DATA))
    assert "addresses" not in serving.peers.local_unit_data


def test_a_storage_that_comes_back_empty_is_not_filled_with_an_empty_database(
    serving: Api,
) -> None:
    serving.run(serving.on.storage_detaching(DATA))
    for path in (serving.root / "var/lib/turku-api").glob("turku.sqlite3*"):
        path.unlink()
    serving.run(serving.on.storage_attached(DATA))
    assert serving.status[0] == "blocked"
    assert "was here and is gone" in serving.status[1]
    assert not (serving.root / "var/lib/turku-api/turku.sqlite3").exists()
    assert serving.systemd.running == set()


def test_a_storage_with_a_database_serves_a_new_application_with_its_data_and_its_ca(
    serving: Api, systemd: Systemd
) -> None:
    serving.act("create-registration-key", name="metal")
    ca = (serving.root / "var/lib/turku-api/certificates/ca.crt").read_text()
    again = Api(serving.root, systemd, state=first_state())
    again.start_up()
    again.run(again.on.relation_created(AGENTS), **again.with_relations(AGENTS))
    assert again.keys() == {"metal": "active", f"agents-{AGENTS.id}": "active"}
    assert again.published(AGENTS).ca_certificate == ca


def test_a_second_unit_on_sqlite_is_blocked_with_the_words_that_say_why(
    serving: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    peers = serving.peers
    seen = testing.PeerRelation(
        "cluster",
        local_app_data=peers.local_app_data,
        peers_data={0: dict(peers.local_unit_data)},
    )
    second = Api(
        tmp_path_factory.mktemp("second"),
        Systemd(),
        unit=1,
        state=testing.State(storages=[DATA], relations=[seen], secrets=serving.state.secrets),
    )
    second.run(second.on.config_changed())
    assert second.status[0] == "blocked"
    assert second.status[1].startswith("This unit doesn't serve: turku-api/0 keeps the data")
    assert not (second.root / "var/lib/turku-api/turku.sqlite3").exists()
    assert second.state.opened_ports == set()
    assert "turku-api/0 keeps the data" in second.failure("health")


def test_leadership_that_moves_to_the_blocked_unit_moves_neither_data_nor_urls(
    serving: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    serving.run(serving.on.relation_created(AGENTS), **serving.with_relations(AGENTS))
    serving.run(serving.on.update_status(), leader=False)
    assert serving.status == ("active", "https://192.0.2.0:443/v1, SQLite")
    peers = serving.peers
    seen = testing.PeerRelation(
        "cluster",
        local_app_data=peers.local_app_data,
        peers_data={0: dict(peers.local_unit_data)},
    )
    second = Api(
        tmp_path_factory.mktemp("second"),
        Systemd(),
        unit=1,
        state=testing.State(
            leader=True, storages=[DATA], relations=[seen, AGENTS], secrets=serving.state.secrets
        ),
    )
    second.run(second.on.leader_elected())
    assert second.status[0] == "blocked"
    assert second.published(AGENTS) == serving.published(AGENTS)


def test_a_unit_without_its_peers_waits(api: Api) -> None:
    api.run(api.on.install(), relations=[])
    assert api.status == ("waiting", "Waiting for the peer relation.")


def test_a_unit_waits_for_the_leader_to_choose(api: Api) -> None:
    api.run(api.on.install(), leader=False)
    assert api.status == ("waiting", "Waiting to hear of this unit's relations.")
    api.run(api.on.config_changed())
    assert api.status[0] == "waiting"
    assert "Waiting for the leader" in api.status[1]


def test_a_service_that_does_not_start_blocks_and_is_tried_again(serving: Api) -> None:
    serving.systemd.fails = "turku-api.service could not be started: see journalctl."
    serving.run(serving.on.config_changed(), config={"log-level": "info"})
    assert serving.status == ("blocked", "turku-api.service could not be started: see journalctl.")
    serving.systemd.fails = None
    serving.run(serving.on.update_status())
    assert serving.status[0] == "active"
    assert serving.systemd.asked[-1] == "restart turku-api.service"


def test_a_service_that_has_died_is_started_again(serving: Api) -> None:
    serving.systemd.running.clear()
    serving.run(serving.on.update_status())
    assert "turku-api.service" in serving.systemd.running


def test_an_older_database_is_migrated_when_the_charm_is_upgraded(serving: Api) -> None:
    database = serving.root / "var/lib/turku-api/turku.sqlite3"
    serving.programs.run("turku-api", "migrate", "turku_api", "0001")
    assert "withdrawn" not in _columns(database)

    def upgrade(workload: Workload, start: Callable[[], None]) -> bool:
        start()
        return True

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Workload, "upgrade", upgrade)
        serving.run(serving.on.upgrade_charm())
    assert "withdrawn" in _columns(database)
    assert serving.status[0] == "active"


def _columns(database: Path) -> set[str]:
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute("PRAGMA table_info(turku_api_machine)").fetchall()
    finally:
        connection.close()
    return {row[1] for row in rows}


def test_an_upgrade_that_was_rolled_back_says_why_and_the_old_version_serves(
    serving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def roll_back(workload: Workload, start: Callable[[], None]) -> bool:
        start()
        raise WorkloadError("turku-api 1.1.0 did not start, so the version before is in use again.")

    monkeypatch.setattr(Workload, "upgrade", roll_back)
    serving.run(serving.on.upgrade_charm())
    assert serving.status[0] == "blocked"
    assert "the version before is in use again" in serving.status[1]
    assert serving.act("list-machines")["machines"] == []


def test_what_else_has_changed_reaches_the_version_that_serves_after_a_roll_back(
    serving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(workload: Workload, start: Callable[[], None]) -> bool:
        raise WorkloadError("turku-api 1.1.0 did not start.")

    monkeypatch.setattr(Workload, "upgrade", refuse)
    serving.run(serving.on.config_changed(), config={"log-level": "info"})
    assert serving.options["log_level"] == "info"
    assert serving.systemd.asked[-1] == "restart turku-api.service"
    assert serving.status == ("blocked", "turku-api 1.1.0 did not start.")


def test_a_start_that_fails_during_an_upgrade_is_told_to_the_workload(
    serving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def upgrade(workload: Workload, start: Callable[[], None]) -> bool:
        try:
            start()
        except TurkuError as error:
            told.append(str(error))
        return True

    serving.systemd.fails = "no"
    monkeypatch.setattr(Workload, "upgrade", upgrade)
    serving.run(serving.on.upgrade_charm())
    assert told == ["no"]


def test_a_load_balancer_is_told_to_pass_tls_through_and_how_to_check(serving: Api) -> None:
    relation = testing.Relation("website", remote_app_name="haproxy")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    said = serving.relation(relation).local_unit_data
    assert (said["hostname"], said["port"]) == ("192.0.2.0", "443")
    assert said["services"] == (
        "- service_name: turku-api\n"
        "  service_host: 0.0.0.0\n"
        "  service_port: 443\n"
        "  service_options:\n"
        "  - mode tcp\n"
        "  - balance leastconn\n"
        "  - option httpchk\n"
        "  - http-check send meth POST uri /v1/health ver HTTP/1.1 hdr Host turku-api hdr "
        "Content-Type application/json body {}\n"
        "  - http-check expect status 200\n"
        "  - timeout client 65s\n"
        "  - timeout server 65s\n"
        "  servers:\n"
        "  - - turku-api-0\n"
        "    - 192.0.2.0\n"
        "    - 443\n"
        "    - check check-ssl verify none inter 10s rise 2 fall 3\n"
    )
    assert yaml.safe_load(said["services"])[0]["servers"][0][1] == "192.0.2.0"


def test_metrics_listen_exactly_while_a_collector_is_related(serving: Api) -> None:
    relation = testing.Relation("cos-agent", remote_app_name="grafana-agent")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    assert serving.options["metrics_listen"] == "127.0.0.1:9520"
    config = json.loads(serving.relation(relation).local_unit_data["config"])
    assert config["metrics_scrape_jobs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:9520"]
    serving.run(serving.on.relation_broken(serving.relation(relation)))
    assert "metrics_listen" not in serving.options


def test_the_secret_key_and_the_ca_stay_from_hook_to_hook(serving: Api) -> None:
    data = serving.root / "var/lib/turku-api"
    before = [(data / name).read_text() for name in ("secret_key", "certificates/ca.key")]
    for event in (serving.on.update_status(), serving.on.config_changed(), serving.on.start()):
        serving.run(event)
    assert [(data / name).read_text() for name in ("secret_key", "certificates/ca.key")] == before
    shared = content(serving.state.get_secret(label="identity"))
    assert shared["secret-key"] == before[0].strip()
    assert shared["ca-key"] == before[1]
    for name in ("secret_key", "certificates/ca.key"):
        assert (data / name).stat().st_mode & 0o777 == 0o600


def test_a_unit_that_leaves_does_nothing_any_more_but_stop(serving: Api) -> None:
    peers = serving.peers
    joined = replace(peers, peers_data={1: {}})
    serving.run(serving.on.update_status(), **serving.with_relations(joined))
    serving.leave(serving.relation(peers))
    asked = list(serving.systemd.asked)
    serving.run(serving.on.config_changed(), config={"log-level": "debug"})
    assert serving.systemd.asked == asked
    assert serving.status == ("maintenance", "Leaving.")
    serving.run(serving.on.stop())
    assert serving.systemd.running == set()


def test_the_end_takes_the_service_away_and_leaves_the_data(serving: Api) -> None:
    serving.run(serving.on.stop())
    serving.run(serving.on.remove())
    assert list((serving.root / "etc/systemd/system").iterdir()) == []
    assert (serving.root / "var/lib/turku-api/turku.sqlite3").exists()

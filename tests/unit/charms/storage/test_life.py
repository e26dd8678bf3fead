"""A unit's life: install, relate, change, upgrade and go, in the orders that Juju can produce."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ops import testing

from tests.support.stand_in_api import StandInApi
from tests.unit.charms.storage.conftest import ACCESS, KEY, WORKER, Systemd, Unit
from turku_charm.workload import Workload, WorkloadError
from turku_core.relations import ApiAccess, StorageUnit

NO_API = "There is no API: juju integrate it with turku-api."


def test_without_an_api_an_operator_has_to_act_and_nothing_is_started(
    unit: Unit, systemd: Systemd
) -> None:
    unit.install()
    assert unit.status == ("blocked", NO_API)
    assert systemd.packages == {"rsync", "openssh-server", "borgbackup", "btrfs-progs"}
    assert systemd.asked == []
    assert not (unit.root / "etc/ssh/sshd_config.d/50-turku-storage.conf").exists()


def test_with_an_api_the_unit_serves_from_a_folder_and_says_so(
    served: Unit, systemd: Systemd
) -> None:
    name, words = served.status
    assert name == "active", words
    assert words.startswith("backups lie on the root disk: attach volumes or data; folder: ")
    assert systemd.asked == [f"restart {WORKER}"]
    assert (served.root / "etc/ssh/sshd_config.d/50-turku-storage.conf").is_file()
    assert (served.root / "etc/systemd/system/turku-storage-worker.service").is_file()


def test_the_configuration_is_exactly_this(served: Unit) -> None:
    folder = served.config_folder
    assert (folder / "40-charm.json").read_text() == (
        "{\n"
        '  "expiry_floor": 3,\n'
        '  "expiry_grace_days": 7,\n'
        '  "log_level": "warning",\n'
        '  "metrics_listen": null,\n'
        '  "slots": 10,\n'
        '  "snapshot_mode": "borg",\n'
        '  "ssh_ping_host": "192.0.2.0",\n'
        '  "verify_interval_days": 30,\n'
        '  "volumes": {\n'
        '    "folder": {\n'
        '      "accept_new": true,\n'
        '      "accept_new_high_water_pct": 80,\n'
        '      "mount_required": false,\n'
        f'      "path": "{served.root}/srv/turku-storage/folder"\n'
        "    }\n"
        "  },\n"
        '  "whole_drill_interval_days": 180\n'
        "}\n"
    )
    assert served.configuration("50-juju.json") == {
        "api_url": ["https://192.0.2.10/v1"],
        "api_ca_certificate": str(folder / "juju-ca.crt"),
        "api_auth_name": "storages-3",
        "api_auth_secret": KEY,
    }
    for name in ("40-charm.json", "50-juju.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o640


def test_the_unit_registers_with_the_relations_key_and_says_over_the_relation_who_it_is(
    served: Unit, api: StandInApi
) -> None:
    first = api.calls("storage_update_config")[0]
    assert first["auth"] == {"name": "storages-3", "secret": KEY}
    said = StorageUnit.from_databag(served.published)
    assert said is not None
    assert (said.name, said.ssh_host, said.ssh_port) == (
        first["storage"]["name"], "192.0.2.0", 22,
    )  # fmt: skip
    key = (served.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    assert [each.line for each in said.ssh_host_keys] == [" ".join(key.split()[:2])]
    assert first["storage"]["ssh_ping_host_keys"] == [each.line for each in said.ssh_host_keys]
    assert served.state.opened_ports == {testing.TCPPort(22)}


def test_a_second_look_changes_nothing(served: Unit, systemd: Systemd, api: StandInApi) -> None:
    def everything() -> dict[Path, int]:
        files = [*served.root.rglob("*")]
        return {path: path.stat().st_mtime_ns for path in files if path.is_file()}

    files, asked, calls = everything(), list(systemd.asked), len(api.requests)
    data = served.published
    served.run(served.on.update_status())
    served.run(served.on.config_changed())
    assert everything() == files
    assert (systemd.asked, len(api.requests)) == (asked, calls)
    assert served.published == data


def test_a_changed_option_reaches_the_worker_which_begins_anew_once(
    served: Unit, systemd: Systemd
) -> None:
    config = {
        "snapshot-mode": "link-dest", "high-water-mark": 70, "slots": 5, "expiry-floor": 4,
        "expiry-grace-days": 0, "public-address": "Storage.Example.com", "log-level": "debug",
        "verify-interval-days": 14, "whole-drill-interval-days": 90,
    }  # fmt: skip
    served.run(served.on.config_changed(), config=config)
    served.run(served.on.update_status())
    written = served.configuration()
    assert written["volumes"]["folder"]["accept_new_high_water_pct"] == 70
    del written["volumes"], written["metrics_listen"]
    assert written == {
        "snapshot_mode": "link-dest", "slots": 5, "expiry_floor": 4, "expiry_grace_days": 0,
        "ssh_ping_host": "Storage.Example.com", "log_level": "debug",
        "verify_interval_days": 14, "whole_drill_interval_days": 90,
    }  # fmt: skip
    assert systemd.asked == [f"restart {WORKER}"] * 2
    assert served.published["ssh_host"] == "storage.example.com"


def test_an_option_that_is_not_valid_is_named_and_the_unit_goes_on_as_before(
    served: Unit, systemd: Systemd
) -> None:
    before = served.configuration()
    served.run(served.on.config_changed(), config={"high-water-mark": 101, "slots": 20})
    name, sentence = served.status
    assert name == "blocked"
    assert sentence == (
        "The option high-water-mark must be a whole number from 1 to 100, not 101; for example "
        "high-water-mark=80."
    )
    assert served.configuration() == before
    assert systemd.running == {WORKER}
    served.run(served.on.config_changed(), config={})
    assert served.status[0] == "active"


def test_one_public_address_is_not_for_two_units(served: Unit) -> None:
    config = {"public-address": "storage.example.com"}
    served.run(served.on.config_changed(), config=config, planned_units=2)
    assert served.status[0] == "blocked"
    assert "public-address is one host, and there are 2 units" in served.status[1]


def test_an_operators_file_comes_before_the_charms(served: Unit, systemd: Systemd) -> None:
    file = served.config_folder / "95-more.yaml"
    file.write_text("ssh_ping_port: 2222\n")
    served.run(served.on.update_status())
    assert served.published["ssh_port"] == "2222"
    assert served.state.opened_ports == {testing.TCPPort(2222)}
    assert systemd.asked == [f"restart {WORKER}"] * 2
    file.write_text("ssh_ping_port: none\n")
    served.run(served.on.update_status())
    assert served.status[0] == "blocked"
    assert "95-more.yaml, line 1: ssh_ping_port" in served.status[1]


# The API, in every order


def test_an_api_that_has_yet_to_write_is_waited_for(unit: Unit) -> None:
    unit.install()
    unit.relate(None)
    assert unit.status == ("waiting", "Waiting for turku-api to say where the API is.")
    unit.say(ACCESS)
    assert unit.configuration("50-juju.json")["api_auth_secret"] == KEY


def test_a_secret_that_is_not_granted_yet_is_waited_for(unit: Unit, systemd: Systemd) -> None:
    unit.install()
    unit.relate(granted=False)
    assert unit.status == ("waiting", "Waiting for turku-api to grant the registration key.")
    assert systemd.asked == []
    secret = testing.Secret({"secret": KEY}, id="secret:abc")
    unit.run(unit.on.relation_changed(unit.relation), secrets=[secret])
    assert unit.configuration("50-juju.json")["api_auth_secret"] == KEY


def test_an_api_that_was_there_before_the_unit_is_used_from_the_start(
    unit: Unit, systemd: Systemd
) -> None:
    relation = testing.Relation(
        "api", interface="turku_storage", remote_app_name="turku-api",
        remote_app_data=ACCESS.to_databag(),
    )  # fmt: skip
    secret = testing.Secret({"secret": KEY}, id="secret:abc")
    unit.run(unit.on.install(), relations=[relation], secrets=[secret])
    assert systemd.running == {WORKER}
    assert unit.published["name"]


def test_a_rotated_key_is_taken_up(served: Unit) -> None:
    rotated = "another-registration-key-0123456789"
    [secret] = served.state.secrets
    changed = testing.Secret(
        {"secret": KEY}, latest_content={"secret": rotated}, id=secret.id,
    )  # fmt: skip
    served.run(served.on.secret_changed(changed), secrets=[changed])
    assert served.configuration("50-juju.json")["api_auth_secret"] == rotated


def test_an_api_that_is_away_is_waited_for_and_told_later(
    served: Unit, api: StandInApi, systemd: Systemd
) -> None:
    api.down()
    served.run(served.on.config_changed(), config={"slots": 3})
    assert served.status[0] == "waiting"
    assert systemd.running == {WORKER}, "what doesn't need the API goes on"
    api.up()
    served.run(served.on.config_changed(), config={"slots": 4})
    assert served.status[0] == "active"


def test_an_api_that_refuses_the_unit_is_said(unit: Unit, api: StandInApi) -> None:
    api.answers["storage_update_config"] = (403, "This registration key is disabled")
    unit.config_folder.mkdir(parents=True)
    (unit.config_folder / "90.json").write_text(json.dumps({"api_url": api.url}))
    unit.install()
    unit.relate()
    assert unit.status[0] == "blocked"
    assert "The API refused the credentials: the registration key" in unit.status[1]
    assert len(api.calls("storage_update_config")) == 1


def test_when_the_api_goes_the_unit_keeps_serving_what_it_has(
    served: Unit, systemd: Systemd
) -> None:
    before = served.configuration("50-juju.json")
    relation = served.relation
    served.run(served.on.relation_broken(relation))
    served.run(served.on.config_changed(), relations=[], config={"slots": 7})
    assert served.status == ("blocked", NO_API)
    assert served.configuration("50-juju.json") == before
    assert served.configuration()["slots"] == 7
    assert systemd.running == {WORKER}


def test_another_api_takes_the_place_of_the_first(served: Unit, api: StandInApi) -> None:
    name = served.published["name"]
    served.run(served.on.relation_broken(served.relation))
    served.state = testing.State(stored_states=served.state.stored_states)
    served.relate(ApiAccess(("https://198.51.100.7/v1",), None, "storages-9", "secret:abc"))
    written = served.configuration("50-juju.json")
    assert (written["api_url"], written["api_auth_name"]) == (
        ["https://198.51.100.7/v1"], "storages-9",
    )  # fmt: skip
    assert "api_ca_certificate" not in written
    assert served.published["name"] == name


def test_what_the_api_says_is_checked(unit: Unit) -> None:
    unit.install()
    unit.relate(None)
    unit.say(None)
    hostile = {**ACCESS.to_databag(), "api_urls": '["file:///etc/shadow"]'}
    relation = testing.Relation(
        "api", interface="turku_storage", remote_app_name="turku-api", remote_app_data=hostile,
        id=unit.relation.id,
    )  # fmt: skip
    unit.run(unit.on.relation_changed(relation), relations=[relation])
    assert unit.status[0] == "blocked"
    assert "must be an https:// URL" in unit.status[1]
    assert not (unit.config_folder / "50-juju.json").exists()


# What changes by itself


def test_changed_host_keys_are_published_and_sent_on_update_status(unit: Unit) -> None:
    unit.install()
    unit.relate()
    before = unit.published["ssh_host_keys"]
    key = unit.make_host_key()
    unit.run(unit.on.update_status())
    after = unit.published["ssh_host_keys"]
    assert after != before
    assert json.loads(after) == [key]


def test_a_changed_address_is_published_and_sent(
    served: Unit, systemd: Systemd, api: StandInApi
) -> None:
    network = testing.Network(
        "api", bind_addresses=[], ingress_addresses=["2001:db8::7", "192.0.2.7"]
    )
    served.run(served.on.config_changed(), networks=[network])
    assert served.published["ssh_host"] == "2001:db8::7"
    last = api.calls("storage_update_config")[-1]
    assert last["storage"]["ssh_ping_host"] == "2001:db8::7"


def test_without_an_address_the_unit_waits(unit: Unit) -> None:
    network = testing.Network("api", bind_addresses=[], ingress_addresses=[])
    unit.install(networks=[network])
    unit.relate()
    assert unit.status == ("waiting", "Waiting for Juju to say which address this unit has.")


# What goes wrong


def test_packages_that_can_not_be_had_are_said_and_tried_again(
    unit: Unit, systemd: Systemd
) -> None:
    systemd.fails = "rsync could not be installed: no network."
    unit.install()
    assert unit.status[0] == "blocked"
    systemd.fails = None
    unit.run(unit.on.update_status())
    assert "rsync" in systemd.packages


def test_a_worker_that_ends_by_itself_is_said(
    unit: Unit, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_service.SETTLED_SECONDS", 5.0)
    systemd.dies = True
    unit.install()
    unit.relate()
    assert unit.status[0] == "blocked"
    assert f"see journalctl -u {WORKER}" in " ".join(unit.status)
    systemd.dies = False
    monkeypatch.setattr("storage_service.SETTLED_SECONDS", 0.0)
    unit.run(unit.on.update_status())
    assert systemd.running == {WORKER}


def test_a_worker_that_is_down_is_started(served: Unit, systemd: Systemd) -> None:
    systemd.running.clear()
    served.run(served.on.update_status())
    assert systemd.running == {WORKER}


def test_a_hook_killed_before_the_restart_lets_the_next_one_restart(
    served: Unit, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(service: str) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("turku_charm.host.restart", killed)
        with pytest.raises(KilledError):
            served.context.run(
                served.on.config_changed(),
                testing.State(
                    config={"slots": 2},
                    relations=served.state.relations,
                    secrets=served.state.secrets,
                    stored_states=served.state.stored_states,
                ),
            )
    assert served.configuration()["slots"] == 2
    served.run(served.on.config_changed(), config={"slots": 2})
    assert systemd.asked == [f"restart {WORKER}"] * 2


def test_sshd_that_refuses_its_part_is_said_and_its_configuration_stays(unit: Unit) -> None:
    file = unit.root / "etc/ssh/sshd_config"
    file.write_text("Nonsense yes\n" + file.read_text())
    unit.install()
    unit.relate()
    assert unit.status[0] == "blocked"
    assert "Nonsense" in unit.status[1]
    assert not (unit.root / "etc/ssh/sshd_config.d/50-turku-storage.conf").exists()


# Metrics, upgrade, removal


def test_metrics_are_listened_for_while_somebody_collects_them(served: Unit) -> None:
    relation = testing.Relation("cos-agent", interface="cos_agent")
    relations = [*served.state.relations, relation]
    served.run(served.on.relation_created(relation), relations=relations)
    assert served.configuration()["metrics_listen"] == "127.0.0.1:9522"
    socket = served.root / "etc/systemd/system/turku-storage-metrics.socket"
    assert socket.is_file()
    published: Any = served.state.get_relation(relation.id).local_unit_data
    assert json.loads(published["config"])["metrics_scrape_jobs"]
    left = [each for each in served.state.relations if each.endpoint == "api"]
    served.run(served.on.update_status(), relations=left)
    assert served.configuration()["metrics_listen"] is None
    assert not socket.exists()


def test_an_upgrade_starts_the_new_version_and_says_when_it_would_not(
    served: Unit, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade(self: Workload, start: object) -> bool:
        assert callable(start)
        start()
        return True

    monkeypatch.setattr(Workload, "upgrade", upgrade)
    served.run(served.on.upgrade_charm())
    assert systemd.asked == [f"restart {WORKER}"] * 2
    assert served.status[0] == "active"

    def refuse(self: Workload, start: object) -> bool:
        raise WorkloadError("turku-storage 2.0.0 did not start.")

    monkeypatch.setattr(Workload, "upgrade", refuse)
    served.run(served.on.upgrade_charm())
    assert served.status == ("blocked", "turku-storage 2.0.0 did not start.")
    assert systemd.running == {WORKER}


def test_what_an_earlier_version_of_the_charm_wrote_is_written_anew(
    served: Unit, systemd: Systemd
) -> None:
    expected = served.configuration()
    earlier = {"volumes": {"folder": {"path": "/elsewhere"}}, "forgotten": 1}
    (served.config_folder / "40-charm.json").write_text(json.dumps(earlier))
    served.state = dataclasses.replace(served.state, stored_states=frozenset())
    served.run(served.on.upgrade_charm())
    assert served.configuration() == expected
    assert systemd.asked == [f"restart {WORKER}"] * 2


def test_an_api_of_a_later_version_may_say_more(served: Unit) -> None:
    data = {**ACCESS.to_databag(), "version": "7", "from_the_future": "{}"}
    changed = dataclasses.replace(served.relation, remote_app_data=data)
    served.run(served.on.relation_changed(changed), relations=[changed])
    assert served.status[0] == "active"


def test_the_workloads_version_is_shown(served: Unit) -> None:
    assert served.state.workload_version == "1.0.0"

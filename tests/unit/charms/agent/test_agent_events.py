"""Every order in which Juju may tell an agent unit what there is, and what comes of it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from ops import testing

from tests.support.agent_unit import KEY, AgentUnit, Host

OPTION = "etc: {path: /etc}\n"


def test_before_anything_is_related_the_machine_has_an_identity_and_no_timers(
    agent: AgentUnit, on_host: Host
) -> None:
    agent.run("install")
    assert isinstance(agent.status, testing.BlockedStatus)
    assert "juju integrate" in agent.status.message
    assert agent.path("var/lib/turku-agent/ssh_key").exists()
    assert not agent.path("etc/systemd").exists()
    assert on_host.started == []


def test_related_and_configured_it_says_who_it_is_and_begins(
    agent: AgentUnit, on_host: Host
) -> None:
    agent.join(sources=OPTION)
    identity = json.loads(agent.path("var/lib/turku-agent/config.d/identity.json").read_text())
    key = agent.path("var/lib/turku-agent/ssh_key.pub").read_text()
    assert agent.published() == {
        "version": "1",
        "machine_uuid": identity["machine_uuid"],
        "ssh_public_key": " ".join(key.split()[:2]),
        "unit_name": "web/0",
    }
    assert agent.path("etc/turku-agent/config.d/50-juju.json").read_text() == (
        "{\n"
        '  "api_auth_name": "agents-7",\n'
        f'  "api_auth_secret": "{KEY}",\n'
        '  "api_url": [\n'
        '    "https://127.0.0.1:9/v1"\n'
        "  ],\n"
        '  "environment_name": "fleet",\n'
        '  "log_level": "warning",\n'
        '  "restore_orders": "restore-folder",\n'
        '  "service_name": "web",\n'
        '  "unit_name": "web/0"\n'
        "}\n"
    )
    assert agent.path("etc/turku-agent/config.d/50-juju.json").stat().st_mode & 0o777 == 0o600
    assert agent.path("etc/turku-agent/sources.d/charm-turku-agent.json").read_text() == (
        '{\n  "etc": {\n    "path": "/etc"\n  }\n}\n'
    )
    timers = sorted(path.name for path in agent.path("etc/systemd/system").glob("*.timer"))
    assert timers == ["turku-agent-ping.timer", "turku-update-config.timer"]
    assert on_host.told() == 1
    assert agent.status == testing.ActiveStatus("No backup yet.")
    assert agent.state.workload_version == "1.0.0"


@pytest.mark.parametrize("event", ["config_changed", "update_status", "start", "upgrade_charm"])
def test_a_second_run_changes_nothing(agent: AgentUnit, on_host: Host, event: str) -> None:
    agent.join(sources=OPTION)
    on_host.told()
    published, content = dict(agent.published()), agent.content()
    agent.run(event)
    again = agent.content()
    for name in (
        "var/lib/turku-agent/units/carried",
        "var/lib/turku-agent/units/turku-agent-0.claim",
    ):
        # An upgrade notes when it was; nothing else does.
        assert (content.pop(name) == again.pop(name)) is (event != "upgrade_charm")
    assert again == content
    assert agent.published() == published
    assert on_host.told() == 0


@pytest.mark.parametrize("api_first", [True, False])
def test_api_and_principal_may_come_in_either_order(
    agent: AgentUnit, on_host: Host, api_first: bool
) -> None:
    agent.run("install", config={"sources": OPTION})
    both = [agent.api_says(), agent.host]
    for relation in both if api_first else both[::-1]:
        assert on_host.told() == 0
        agent.run(
            "relation_created",
            relation,
            relations=[*agent.state.relations, relation],
            secrets=[agent.secret],
        )
    assert agent.configuration()["unit_name"] == "web/0"
    assert agent.published()["unit_name"] == "web/0"
    assert on_host.told() == 1
    assert isinstance(agent.status, testing.ActiveStatus)


def test_the_principal_is_known_from_juju_before_the_relation_shows_it(
    agent: AgentUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUJU_PRINCIPAL_UNIT", "web/4")
    agent.run("install", relations=[agent.api_says()], secrets=[agent.secret])
    assert agent.published()["unit_name"] == "web/4"


def test_an_api_that_has_written_nothing_yet_is_waited_for(agent: AgentUnit) -> None:
    agent.run("install", relations=[agent.host, agent.api], config={"sources": OPTION})
    assert agent.status == testing.WaitingStatus("Waiting for turku-api to say where the API is.")
    # Meanwhile the API can learn who is going to register.
    assert agent.published()["machine_uuid"]
    agent.run("relation_changed", agent.api, relations=[agent.host, agent.api_says()],
              secrets=[agent.secret])  # fmt: skip
    assert isinstance(agent.status, testing.ActiveStatus)


def test_a_secret_that_is_not_granted_yet_is_waited_for(agent: AgentUnit, on_host: Host) -> None:
    agent.run("install", relations=[agent.host, agent.api_says()], config={"sources": OPTION})
    assert agent.status == testing.WaitingStatus(
        "Waiting for turku-api to grant the registration key."
    )
    assert agent.configuration() == {}
    assert on_host.told() == 0
    agent.run("update_status", secrets=[agent.secret])
    assert agent.configuration()["api_auth_secret"] == KEY
    assert on_host.told() == 1


def test_a_key_that_is_rotated_is_taken_over(agent: AgentUnit, on_host: Host) -> None:
    agent.join(sources=OPTION)
    on_host.told()
    rotated = dataclasses.replace(agent.secret, latest_content={"secret": "another-key-altogether"})
    agent.state = dataclasses.replace(agent.state, secrets=frozenset([rotated]))
    agent.state = agent.context.run(agent.context.on.secret_changed(rotated), agent.state)
    assert agent.configuration()["api_auth_secret"] == "another-key-altogether"
    assert on_host.told() == 1


def test_nonsense_from_the_api_is_named_and_what_it_said_before_holds(
    agent: AgentUnit, on_host: Host
) -> None:
    agent.join(sources=OPTION)
    on_host.told()
    before = agent.configuration()
    bad = dataclasses.replace(agent.api, remote_app_data={"api_urls": "ftp://x"})
    agent.run("relation_changed", bad, relations=[agent.host, bad])
    assert isinstance(agent.status, testing.BlockedStatus)
    assert "api_urls" in agent.status.message
    assert agent.configuration() == before
    assert on_host.told() == 0


def test_an_api_that_falls_silent_changes_nothing_that_works(agent: AgentUnit) -> None:
    agent.join(sources=OPTION)
    before = agent.configuration()
    agent.run("relation_changed", agent.api, relations=[agent.host, agent.api])
    assert isinstance(agent.status, testing.WaitingStatus)
    assert agent.configuration() == before


def test_a_relation_that_is_broken_ends_the_check_ins_and_one_made_anew_begins_them_again(
    agent: AgentUnit, on_host: Host
) -> None:
    agent.join(sources=OPTION)
    identity = agent.published()["machine_uuid"]
    agent.run("relation_broken", agent.api)
    assert isinstance(agent.status, testing.BlockedStatus)
    assert agent.configuration() == {}
    assert not list(agent.path("etc/systemd/system").glob("turku-agent-ping*"))
    on_host.told()

    agent.api = testing.Relation("api", remote_app_name="turku-api")
    agent.run("relation_created", agent.api, relations=[agent.host, agent.api_says()])
    assert agent.published()["machine_uuid"] == identity
    assert agent.configuration()["api_url"] == ["https://127.0.0.1:9/v1"]
    assert agent.path("etc/systemd/system/turku-agent-ping.timer").exists()
    assert on_host.told() == 1


def test_several_apis_and_their_authority_are_configured(agent: AgentUnit) -> None:
    agent.run("install")
    certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    urls = ("https://127.0.0.1:9/v1", "https://192.0.2.11/v1")
    relation = agent.api_says(urls=urls, ca_certificate=certificate)
    agent.run("relation_changed", relation, relations=[agent.host, relation],
              secrets=[agent.secret])  # fmt: skip
    path = agent.path("etc/turku-agent/config.d/juju-ca.crt")
    assert path.read_text() == certificate
    assert agent.configuration()["api_url"] == list(urls)
    assert agent.configuration()["api_ca_certificate"] == str(path)


def test_an_older_api_that_has_no_keys_for_relations_and_a_newer_one_that_says_more(
    agent: AgentUnit,
) -> None:
    older = agent.api_says(registration_key=None, registration_secret_id=None)
    agent.run("install", relations=[agent.host, older], config={"sources": OPTION})
    assert "api_auth_secret" not in agent.configuration()
    assert agent.status.name == "active"
    newer = agent.api_says()
    newer = dataclasses.replace(
        newer, remote_app_data={**newer.remote_app_data, "version": "2", "of_later": "1"}
    )
    agent.run("relation_changed", newer, relations=[agent.host, newer], secrets=[agent.secret])
    assert agent.configuration()["api_auth_secret"] == KEY


@pytest.mark.parametrize(
    ("option", "value"), [("restore-orders", "everywhere"), ("log-level", "loud")]
)
def test_an_option_that_is_not_valid_is_named_and_the_former_holds(
    agent: AgentUnit, option: str, value: str
) -> None:
    agent.join(sources=OPTION)
    before = agent.configuration()
    agent.run("config_changed", config={"sources": OPTION, option: value})
    assert isinstance(agent.status, testing.BlockedStatus)
    assert option in agent.status.message and repr(value) in agent.status.message
    assert agent.configuration() == before


def test_options_reach_the_agent(agent: AgentUnit) -> None:
    agent.join(**{"sources": OPTION, "restore-orders": "none", "log-level": "debug"})
    assert agent.configuration()["restore_orders"] == "none"
    assert agent.configuration()["log_level"] == "debug"


def test_metrics_are_offered_as_long_as_somebody_collects_them(
    agent: AgentUnit, on_host: Host
) -> None:
    collector = testing.Relation("cos-agent", remote_app_name="collector")
    agent.join(collector, sources=OPTION)
    assert agent.configuration()["metrics_listen"] == "127.0.0.1:9521"
    assert "config" in agent.written(collector)
    sockets = list(agent.path("etc/systemd/system").glob("*.socket"))
    assert len(sockets) == 1
    agent.run("relation_broken", collector)
    assert "metrics_listen" not in agent.configuration()
    assert not sockets[0].exists()


def test_a_clone_of_another_machine_is_told_what_to_do(agent: AgentUnit) -> None:
    agent.path("etc").mkdir()
    agent.path("etc/machine-id").write_text("0" * 32)
    agent.join(sources=OPTION)
    agent.path("etc/machine-id").write_text("1" * 32)
    agent.run("update_status")
    assert isinstance(agent.status, testing.BlockedStatus)
    assert "clone" in agent.status.message


def test_a_part_of_the_identity_that_is_lost_is_made_again_or_named(agent: AgentUnit) -> None:
    agent.join(sources=OPTION)
    before = agent.published()
    public = agent.path("var/lib/turku-agent/ssh_key.pub")
    public.unlink()
    agent.run("update_status")
    assert agent.published() == before
    assert public.exists()
    agent.path("var/lib/turku-agent/config.d/identity.json").write_text("{")
    agent.run("update_status")
    assert agent.status.name == "blocked"
    assert "identity.json" in agent.status.message
    assert agent.published() == before


def test_packages_that_are_missing_are_installed_and_nothing_else(
    agent: AgentUnit, on_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"rsync": "/bin/rsync", "ssh": "/bin/ssh", "setpriv": "/bin/setpriv"}
    monkeypatch.setattr("agent_workload.shutil", SimpleNamespace(which=programs.get))
    agent.run("install")
    assert on_host.installed == []
    del programs["ssh"]
    agent.run("update_status")
    assert on_host.installed == ["openssh-client"]


def test_an_action_leaves_the_status_as_it_is(agent: AgentUnit) -> None:
    agent.run("install")
    before = agent.status
    with pytest.raises(testing.ActionFailed):
        agent.act("check")
    assert agent.status == before


def removed(agent: AgentUnit) -> None:
    """Run the hooks of a unit's end, as Juju orders them."""
    relations = list(agent.state.relations)
    for relation in relations:
        agent.run("relation_broken", relation)
        rest = [each for each in agent.state.relations if each.id != relation.id]
        agent.state = dataclasses.replace(agent.state, relations=frozenset(rest))
    agent.run("stop")
    agent.run("remove")


def test_the_last_unit_takes_everything_of_ours_and_nothing_of_the_principals(
    agent: AgentUnit, on_host: Host
) -> None:
    theirs = agent.drop("web.yaml", "web: {path: /srv/web}\n")
    agent.join(sources=OPTION)
    run = agent.path("run/turku-agent")
    run.mkdir(parents=True)
    (run / "ping.lock").touch()
    removed(agent)
    assert agent.content() == {"etc/turku-agent/sources.d/web.yaml": theirs.read_text()}
    assert not agent.path("var/lib/turku-agent").exists()
    assert not run.exists()


def test_services_are_stopped_before_their_files_go(agent: AgentUnit, on_host: Host) -> None:
    agent.join(sources=OPTION)
    agent.run("remove")
    assert on_host.stopped == [
        "turku-agent-ping.timer", "turku-update-config.timer",
        "turku-update-config.service", "turku-agent-ping.service",
    ]  # fmt: skip
    assert agent.content() == {}
    assert not agent.path("etc/turku-agent").exists()


def test_a_backup_that_outlived_the_relation_to_the_api_is_stopped_as_well(
    agent: AgentUnit, on_host: Host
) -> None:
    agent.join(sources=OPTION)
    agent.run("relation_broken", agent.api)
    assert on_host.stopped == []
    agent.run("remove", relations=[])
    assert "turku-agent-ping.service" in on_host.stopped
    # systemd doesn't list it as failed for ever after.
    assert on_host.forgotten == ["turku-agent-*", "turku-update-config.*"]


def test_what_was_restored_and_what_an_operator_added_stays(agent: AgentUnit) -> None:
    agent.join(sources=OPTION)
    restored = agent.path("var/lib/turku-agent/restore/etc/20261122T102538Z/hosts")
    restored.parent.mkdir(parents=True)
    restored.write_text("restored")
    own = agent.path("etc/turku-agent/config.d/90-own.json")
    own.write_text("{}")
    removed(agent)
    assert agent.content() == {
        "etc/turku-agent/config.d/90-own.json": "{}",
        "var/lib/turku-agent/restore/etc/20261122T102538Z/hosts": "restored",
    }


def test_a_unit_that_never_came_far_is_removed_as_well(agent: AgentUnit) -> None:
    agent.run("remove")
    assert agent.content() == {}


def test_the_principal_may_be_gone_before_the_rest(agent: AgentUnit) -> None:
    agent.join(sources=OPTION)
    agent.run("relation_broken", agent.host)
    agent.run("relation_broken", agent.api, relations=[agent.api_says()])
    agent.run("stop", relations=[])
    agent.run("remove")
    assert agent.content() == {}

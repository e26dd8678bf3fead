"""Two principals on one machine: two agent units, of one application or of two, and one agent."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from agent_machine import Claim, Machine, carrier, speaker
from tests.support.agent_unit import AgentUnit, Host
from turku_charm.workload import Workload, WorkloadError
from turku_core.errors import TurkuError


@pytest.fixture
def two(machine: Path) -> tuple[AgentUnit, AgentUnit]:
    """Two units of one application beside two principals."""
    first = AgentUnit(machine, "turku-agent/0", "web/0")
    second = AgentUnit(machine, "turku-agent/1", "db/3")
    return first, second


def turns(*units: AgentUnit) -> None:
    """Let each unit look at everything, twice over."""
    for _ in range(2):
        for unit in units:
            unit.run("update_status")


def test_there_is_one_identity_and_the_first_unit_names_the_machine(
    two: tuple[AgentUnit, AgentUnit],
) -> None:
    first, second = two
    first.join(sources="etc: {path: /etc}")
    second.join(sources="etc: {path: /etc}")
    assert first.published()["machine_uuid"] == second.published()["machine_uuid"]
    assert first.published()["ssh_public_key"] == second.published()["ssh_public_key"]
    assert [unit.published()["unit_name"] for unit in two] == ["web/0", "db/3"]
    assert second.configuration()["unit_name"] == "web/0"
    assert [unit.status.name for unit in two] == ["active", "active"]


def test_nothing_goes_to_and_fro(two: tuple[AgentUnit, AgentUnit], on_host: Host) -> None:
    for unit in two:
        unit.join(sources="etc: {path: /etc}")
    turns(*two)
    before = two[0].content()
    on_host.told()
    turns(*two)
    assert two[0].content() == before
    assert on_host.told() == 0


def test_the_first_may_go_first_and_the_second_takes_over_at_once(
    two: tuple[AgentUnit, AgentUnit], on_host: Host
) -> None:
    first, second = two
    first.join(sources="etc: {path: /etc}")
    second.join(sources="etc: {path: /etc}")
    identity = second.published()["machine_uuid"]
    on_host.told()
    first.run("remove")
    assert second.configuration()["unit_name"] == "db/3"
    assert second.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}
    assert on_host.told() == 1
    assert on_host.stopped == []
    second.run("update_status")
    assert second.published()["machine_uuid"] == identity
    assert second.status.name == "active"
    second.run("remove")
    assert second.content() == {}


def test_the_second_may_go_first_and_nothing_changes_for_the_first(
    two: tuple[AgentUnit, AgentUnit], on_host: Host
) -> None:
    first, second = two
    first.join(sources="etc: {path: /etc}")
    second.join(sources="etc: {path: /etc}")
    before = first.configuration()
    on_host.told()
    second.run("remove")
    assert first.configuration() == before
    assert on_host.told() == 0
    first.run("remove")
    assert first.content() == {}


def test_units_of_two_applications_have_their_options_side_by_side(
    machine: Path, on_host: Host
) -> None:
    first = AgentUnit(machine, "turku-agent/0", "web/0")
    second = AgentUnit(machine, "backup/0", "db/3")
    first.join(sources="etc: {path: /etc}")
    second.join(sources="{etc: {path: /etc}, db: {path: /srv/db}}")
    turns(first, second)
    assert first.status.name == "active"
    assert second.sources("charm-backup.json") == {"db": {"path": "/srv/db"}}
    assert second.status.name == "blocked"
    assert second.status.message.startswith(
        "option sources, line 1: source 'etc' is defined in option sources of turku-agent as well:"
    )
    first.run("remove")
    second.run("update_status")
    assert set(second.sources("charm-backup.json")) == {"etc", "db"}
    assert first.sources("charm-turku-agent.json") == {}
    assert second.status.name == "active"


def test_the_one_with_an_api_speaks_for_both(machine: Path) -> None:
    first = AgentUnit(machine, "turku-agent/0", "web/0")
    second = AgentUnit(machine, "backup/0", "db/3")
    first.run("install", relations=[first.host])
    second.join(sources="etc: {path: /etc}")
    first.run("update_status", config={"sources": "web: {path: /srv/web}"})
    assert second.configuration()["unit_name"] == "db/3"
    assert first.sources("charm-turku-agent.json") == {"web": {"path": "/srv/web"}}
    assert first.status.name == "blocked"
    second.run("update_status")
    assert second.status.name == "active"


def test_an_option_that_loses_its_last_unit_goes_and_no_earlier(
    two: tuple[AgentUnit, AgentUnit],
) -> None:
    first, second = two
    third = AgentUnit(first.root, "backup/0", "mail/0")
    for unit in (first, second):
        unit.join(sources="etc: {path: /etc}")
    third.join(sources="mail: {path: /var/mail}")
    first.run("remove")
    assert third.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}
    second.run("remove")
    assert third.sources("charm-turku-agent.json") == {}
    assert third.sources("charm-backup.json") == {"mail": {"path": "/var/mail"}}


def test_a_unit_that_was_removed_by_force_does_not_hold_the_machine(
    two: tuple[AgentUnit, AgentUnit],
) -> None:
    first, second = two
    agents = first.path("var/lib/juju/agents")
    for name in ("unit-turku-agent-0", "unit-turku-agent-1"):
        (agents / name).mkdir(parents=True)
    first.join(sources="etc: {path: /etc}")
    second.join(sources="etc: {path: /etc}")
    (agents / "unit-turku-agent-0").rmdir()
    second.run("update_status")
    assert second.configuration()["unit_name"] == "db/3"
    second.run("remove")
    assert second.content() == {}


def claim(unit: str, since: str, release: str, adopted: str, **more: object) -> Claim:
    """Return a claim."""
    made = Claim(unit, unit.partition("/")[0], since, release, adopted)
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]  # any field's own type


def test_the_newest_workload_is_carried_whoever_came_first() -> None:
    old = claim("a/0", "1", "1.9.0", "5")
    new = claim("b/0", "2", "1.10.0", "2")
    assert carrier([old, new]) == new
    # Of one release, the last that was deployed or refreshed.
    assert carrier([claim("a/0", "1", "1.0.0", "7"), claim("b/0", "2", "1.0.0", "3")]).unit == "a/0"


def test_the_oldest_claim_with_an_api_and_names_speaks() -> None:
    access = {"api_urls": "[]"}
    mute = claim("a/0", "1", "1.0.0", "1", access=access)
    first = claim("b/0", "2", "1.0.0", "1", access=access, values={"unit_name": "web/0"})
    later = claim("c/0", "3", "1.0.0", "1", access=access, values={"unit_name": "db/0"})
    assert speaker([mute, first, later]) == first
    assert speaker([mute]) is None


def test_a_claim_of_another_revision_of_the_charm_can_be_read(machine: Path) -> None:
    shared = Machine(machine)
    mine = claim("a/0", "1", "1.0.0", "1")
    with shared.locked():
        shared.save(mine)
        path = shared.folder / "a-0.claim"
        values = json.loads(path.read_text())
        del values["metrics_listen"]
        path.write_text(json.dumps({**values, "of_later": [1]}))
        assert shared.claims() == [mine]


def test_a_damaged_claim_still_counts_and_is_renewed(
    two: tuple[AgentUnit, AgentUnit],
) -> None:
    first, second = two
    for unit in two:
        unit.join(sources="etc: {path: /etc}")
    path = first.path("var/lib/turku-agent/units/turku-agent-0.claim")
    path.write_text('{"unit"')
    second.run("update_status")
    assert second.status.name == "active"
    second.run("remove")
    assert path.exists()
    first.run("update_status")
    assert first.configuration()["unit_name"] == "web/0"
    assert first.status.name == "active"


class Versions:
    """A stand-in for laying versions down, which needs packed charms: what was wanted of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed: str | None = None
        self.upgrades: list[str] = []
        self.fails = False
        monkeypatch.setattr(Workload, "is_installed", lambda _: self.installed is not None)

        def upgrade(workload: Workload, start: object) -> bool:
            if self.fails:
                raise WorkloadError("turku-agent 2.0.0 did not start, so it was taken back.")
            assert callable(start)
            start()
            self.upgrades.append(workload.charm_dir.name)
            self.installed = workload.charm_dir.name
            return True

        monkeypatch.setattr(Workload, "upgrade", upgrade)


def test_different_revisions_side_by_side_do_not_take_turns(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Versions(monkeypatch)
    old = AgentUnit(machine, "turku-agent/0", "web/0")
    new = AgentUnit(machine, "backup/0", "db/3")
    old.join(sources="etc: {path: /etc}")
    assert len(versions.upgrades) == 1
    new.join()
    assert len(versions.upgrades) == 2
    turns(old, new)
    assert len(versions.upgrades) == 2
    # When the newer one goes, the other's is what there is left.
    new.run("remove")
    turns(old)
    assert len(versions.upgrades) == 3


def test_an_upgrade_that_does_not_start_is_said_and_tried_again(
    agent: AgentUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Versions(monkeypatch)
    agent.join(sources="etc: {path: /etc}")
    identity = dict(agent.published())
    versions.fails = True
    agent.run("upgrade_charm")
    assert agent.status.name == "blocked"
    assert "taken back" in agent.status.message
    assert agent.published() == identity
    versions.fails = False
    agent.run("update_status")
    assert agent.status.name == "active"
    assert len(versions.upgrades) == 2


def test_an_upgrade_keeps_what_there_is_and_stops_no_service(
    agent: AgentUnit, on_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    Versions(monkeypatch)
    agent.join(sources="etc: {path: /etc}")
    kept = {
        name: text
        for name, text in agent.content().items()
        if not name.startswith("var/lib/turku-agent/units")
    }
    on_host.told()
    agent.run("upgrade_charm")
    # A backup that runs goes on: its service is neither stopped nor started again.
    assert on_host.stopped == []
    assert on_host.started == []
    assert kept.items() <= agent.content().items()


def test_what_systemd_does_not_take_away_does_not_keep_a_unit_from_going(
    agent: AgentUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.join(sources="etc: {path: /etc}")

    def fail(service: str) -> None:
        raise TurkuError(f"{service} could not be stopped.")

    monkeypatch.setattr("turku_charm.host.stop", fail)
    agent.run("remove")
    assert agent.content() == {}

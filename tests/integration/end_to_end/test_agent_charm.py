"""turku-agent's charm at work: its hooks and actions, the real agent, API and storage unit.

Juju, apt and systemd are stand-ins: what the service would do, the test does in its place.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ops import testing

from tests.support.agent_unit import AgentUnit, Host, use_stand_in_host
from turku_core.local.layout import program
from turku_core.local.turku import LocalTurku, run_command


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return use_stand_in_host(monkeypatch)


def tell(turku: LocalTurku, command: str, given: Any) -> None:
    """Run a command of the API as its charm does."""
    subprocess.run(
        [program("turku-api"), "--root", str(turku.layout.api), command, "--json"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


class Site:
    """A principal with data, the agent beside it, and what an API's charm does for it."""

    def __init__(self, turku: LocalTurku, folder: Path, name: str, on_host: Host) -> None:
        self.turku = turku
        self.data = folder / "data"
        self.data.mkdir()
        self.log = folder / "log"
        self.principal = name.replace("unit-", "web-u") + "/0"
        self.unit = AgentUnit(folder / "machine", principal=self.principal)
        self.key = f"agents-{self.unit.api.id}"
        self._host = on_host

    def script(self, name: str, body: str = "exit 0") -> str:
        """Write a script of the principal's that says when it runs."""
        path = self.data.parent / name
        path.write_text(f"#!/bin/sh\necho {name} >> {self.log}\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def relate(self, *relations: Any, **config: str) -> None:
        """Do what Juju and the API's charm do until the machine is registered."""
        unit = self.unit
        unit.key_is(self.key, self.turku.running.api_url, self.turku.layout.ca_certificate)
        keys = [{"name": self.key, "kind": "machine", "secret": unit.key}]
        tell(self.turku, "sync-registration-keys", {"keys": keys})
        unit.join(*relations, **config)
        said = {name: value for name, value in unit.published().items() if name != "version"}
        announcement = {"key": self.key, "unit": unit.name, **said}
        tell(self.turku, "announce", {"announcements": [announcement]})
        self.serve()
        self.turku.update_storage()

    def serve(self) -> None:
        """Do what systemd does when the charm asks for the service."""
        if self._host.told():
            unit_file = self.unit.path("etc/systemd/system/turku-update-config.service").read_text()
            line = next(each for each in unit_file.splitlines() if each.startswith("ExecStart="))
            path, *arguments = line.removeprefix("ExecStart=").split()
            run_command([path, "--root", str(self.unit.root), *arguments])

    def ran(self) -> list[str]:
        """Return the scripts that ran since the last time, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def site(turku: LocalTurku, tmp_path: Path, unit_name: str, on_host: Host) -> Site:
    return Site(turku, tmp_path, unit_name, on_host)


def test_a_principal_of_the_backup_interface_is_backed_up_and_restored(site: Site) -> None:
    dump = site.data / "dump.sql"
    (site.data / "passed-over").write_text("not asked for")
    relation = testing.Relation(
        "backup",
        remote_app_name=site.principal.partition("/")[0],
        remote_app_data={
            "fileset": str(dump),
            "run-before-backup": site.script("before-backup", f"echo rows > {dump}"),
            "run-after-backup": site.script("after-backup", f"rm {dump}; exit 1"),
            "run-before-restore": site.script("before-restore"),
            "run-after-restore": site.script("after-restore", f"test -s {dump}"),
        },
    )
    site.relate(relation)
    source = site.principal.replace("/", "-")

    results = site.unit.act("backup-now")
    assert json.loads(results["json"])["sources"][source]["outcome"] == "success"
    assert site.ran() == ["before-backup", "after-backup"]
    assert not dump.exists()
    site.turku.wait_until_committed()

    (snapshot,) = json.loads(site.unit.act("list-snapshots")["json"])["snapshots"]
    assert snapshot["source"] == source

    # What is restored elsewhere is for looking at: nothing imports it.
    said = json.loads(site.unit.act("restore", source=source)["json"])
    target = Path(said["target"])
    assert target.is_relative_to(site.unit.path("var/lib/turku-agent/restore"))
    assert sorted(path.name for path in target.iterdir()) == ["dump.sql"]
    assert (target / "dump.sql").read_text() == "rows\n"
    assert site.ran() == []

    dry = site.unit.act("restore", **{"source": source, "in-place": True, "dry-run": True})
    assert "dump.sql" in dry["result"]
    assert not dump.exists() and site.ran() == []

    site.unit.act("restore", **{"source": source, "in-place": True})
    assert dump.read_text() == "rows\n"
    assert (site.data / "passed-over").read_text() == "not asked for"
    assert site.ran() == ["before-restore", "after-restore"]

    site.unit.run("update_status")
    assert site.unit.status.name == "active"
    assert site.unit.status.message.startswith("Last good backup 20")


def test_a_script_before_that_fails_cancels_and_the_action_says_so(site: Site) -> None:
    (site.data / "file").write_text("content")
    relation = testing.Relation(
        "backup",
        remote_app_name=site.principal.partition("/")[0],
        remote_app_data={
            "fileset": str(site.data),
            "run-before-backup": site.script("before-backup", "exit 3"),
            "run-after-backup": site.script("after-backup"),
        },
    )
    site.relate(relation)
    with pytest.raises(testing.ActionFailed) as caught:
        site.unit.act("backup-now")
    assert "exit code 3" in caught.value.message
    assert site.ran() == ["before-backup", "after-backup"]
    site.turku.wait_until_committed()
    site.unit.run("update_status")
    assert site.unit.status.name == "blocked"
    assert "is failing" in site.unit.status.message
    assert "It failed 1 time: The hook" in site.unit.status.message


def test_one_bad_source_stops_no_good_one_and_an_unknown_snapshot_fails_with_a_sentence(
    site: Site, tmp_path: Path
) -> None:
    (site.data / "file").write_text("content")
    site.unit.drop("broken.yaml", "broken: {path")
    other = tmp_path / "other"
    other.mkdir()
    site.relate(sources=json.dumps({"docs": {"path": str(site.data)}, "bad": {"path": "x"}}))
    assert site.unit.status.name == "blocked"
    assert site.unit.status.message.startswith("2 problems: ")

    results = site.unit.act("backup-now", sources=["docs"])
    assert json.loads(results["json"])["sources"]["docs"]["outcome"] == "success"
    with pytest.raises(testing.ActionFailed) as caught:
        site.unit.act("backup-now", sources=["bad"])
    assert "bad" in caught.value.message
    site.turku.wait_until_committed()
    with pytest.raises(testing.ActionFailed) as caught:
        site.unit.act("restore", source="docs", snapshot="20010101T000000Z")
    assert "20010101T000000Z" in caught.value.message

    # A source that comes later is told and backed up as well.
    sources = {"docs": {"path": str(site.data)}, "other": {"path": str(other)}}
    site.unit.run("config_changed", config={"sources": json.dumps(sources)})
    site.serve()
    results = site.unit.act("backup-now", sources=["other"])
    assert json.loads(results["json"])["sources"]["other"]["outcome"] == "success"


def test_check_finds_all_well(site: Site) -> None:
    (site.data / "file").write_text("content")
    site.relate(sources=json.dumps({"docs": {"path": str(site.data)}}))
    assert json.loads(site.unit.act("check")["json"])["ok"] is True


def test_when_the_last_unit_goes_the_machine_is_as_it_was(site: Site) -> None:
    (site.data / "file").write_text("content")
    dropped = site.unit.drop("theirs.json", json.dumps({"theirs": {"path": str(site.data)}}))
    site.relate()
    site.unit.act("backup-now")
    site.unit.run("remove")
    assert site.unit.content() == {str(dropped.relative_to(site.unit.root)): dropped.read_text()}

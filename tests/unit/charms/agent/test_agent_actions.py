"""The actions' parameters, good and bad, and what they answer; the program is a stand-in here.

`test_agent_charm_at_work.py` has them with the real program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ops import testing

from tests.support.agent_unit import AgentUnit
from turku_charm.workload import Workload

SNAPSHOT = {
    "storage_unit": "storage-0", "machine": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    "source": "etc", "id": "20261122T102538Z", "taken_at": "2026-11-22T10:25:38+00:00",
    "state": "committed", "partial": False, "mode": "borg", "bytes": 2048, "files": 3,
    "expires_for_good_at": None, "proven_at": None, "damaged": None,
}  # fmt: skip


class Ping:
    """A stand-in for turku-agent-ping: says what a test wants, and notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "turku-agent-ping"
        program.write_text(
            f"#!{sys.executable}\n"
            "import json, pathlib, sys\n"
            f"folder = pathlib.Path({str(folder)!r})\n"
            "(folder / 'called').write_text(json.dumps(sys.argv[1:]))\n"
            "says = json.loads((folder / 'says').read_text())\n"
            "print(says['output'])\n"
            "print(says['errors'], file=sys.stderr)\n"
            "sys.exit(says['code'])\n"
        )
        program.chmod(0o755)
        self.says({})

    def says(self, answer: Mapping[str, Any] | None, code: int = 0, errors: str = "") -> None:
        """Say what it is to answer."""
        output = "" if answer is None else json.dumps(answer)
        text = json.dumps({"output": output, "code": code, "errors": errors})
        (self.folder / "says").write_text(text)

    def arguments(self) -> list[str]:
        """Return what it was called with, without the root."""
        called: list[str] = json.loads((self.folder / "called").read_text())
        return called[2:]

    def was_called(self) -> bool:
        """Say whether it was called at all."""
        return (self.folder / "called").exists()


@pytest.fixture
def ping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ping:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(Workload, "bin", property(lambda _: folder))
    return Ping(folder)


def failure(agent: AgentUnit, action: str, **parameters: Any) -> str:
    """Return why an action failed."""
    with pytest.raises(testing.ActionFailed) as caught:
        agent.act(action, **parameters)
    message: str = caught.value.message
    return message


def test_backup_now_says_how_each_source_went(agent: AgentUnit, ping: Ping) -> None:
    said = {"sources": {"etc": {"outcome": "success", "message": ""}}}
    ping.says(said)
    results = agent.act("backup-now", sources=["etc"])
    assert ping.arguments() == ["--backup-now", "--source=etc", "--json"]
    assert results["result"] == "SOURCE  OUTCOME  MESSAGE\netc     success  -"
    assert json.loads(results["json"]) == said


def test_backup_now_without_sources_means_all(agent: AgentUnit, ping: Ping) -> None:
    ping.says({"sources": {}})
    assert agent.act("backup-now")["result"] == "There is nothing to back up."
    assert ping.arguments() == ["--backup-now", "--json"]


@pytest.mark.parametrize("code", [1, 75])
def test_a_source_that_is_not_backed_up_is_a_failure_with_results(
    agent: AgentUnit, ping: Ping, code: int
) -> None:
    ping.says(
        {
            "sources": {
                "etc": {"outcome": "success", "message": ""},
                "web": {"outcome": "failed", "message": "Storage unit s-0 is full."},
            }
        },
        code=code,
    )
    assert failure(agent, "backup-now") == "Source web: failed. Storage unit s-0 is full."
    results = agent.context.action_results
    assert results is not None
    assert json.loads(results["json"])["sources"]["etc"]["outcome"] == "success"


@pytest.mark.parametrize("action", ["backup-now", "list-snapshots", "check"])
def test_what_the_program_says_of_an_error_is_the_failure(
    agent: AgentUnit, ping: Ping, action: str
) -> None:
    ping.says(None, code=1, errors="The API doesn't know source x: run turku-update-config.")
    message = failure(agent, action)
    assert message == "The API doesn't know source x: run turku-update-config."


def test_list_snapshots_is_a_table_with_the_newest_first(agent: AgentUnit, ping: Ping) -> None:
    older = {**SNAPSHOT, "id": "20261121T102538Z", "taken_at": "2026-11-21T10:25:38+00:00",
             "partial": True, "damaged": "Two files differ."}  # fmt: skip
    ping.says({"snapshots": [older, SNAPSHOT]})
    results = agent.act("list-snapshots", source="etc", machine="db/0")
    assert ping.arguments() == ["--list", "--source=etc", "--machine=db/0", "--json"]
    lines = results["result"].splitlines()
    assert lines[0].split("  ")[0] == "SOURCE"
    assert "20261122T102538Z" in lines[1] and "2.0 KiB" in lines[1]
    assert "committed, partial, damaged" in lines[2]
    found = json.loads(results["json"])["snapshots"]
    assert [each["id"] for each in found] == ["20261122T102538Z", "20261121T102538Z"]


def test_no_snapshots_are_said_to_be_none(agent: AgentUnit, ping: Ping) -> None:
    ping.says({"snapshots": []})
    assert agent.act("list-snapshots")["result"] == "There are no snapshots yet."


RESTORED = {
    "source": "etc", "machine": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    "snapshot": "20261122T102538Z", "target": "/srv/restored", "in_place": False,
    "dry_run": False, "files": 3, "bytes": 2048, "changes": [], "message": "",
}  # fmt: skip


def test_restore_hands_everything_on(agent: AgentUnit, ping: Ping) -> None:
    ping.says(RESTORED)
    results = agent.act(
        "restore",
        source="etc",
        machine="db/0",
        snapshot="2026-11-22T10:30",
        paths=["hosts", "/etc/ssh", "-x"],
        target="/srv/restored",
    )
    assert ping.arguments() == [
        "--restore", "--source=etc", "--snapshot=2026-11-22T10:30", "--machine=db/0",
        "--path=hosts", "--path=/etc/ssh", "--path=-x", "--target=/srv/restored", "--json",
    ]  # fmt: skip
    assert results["result"] == (
        "Snapshot 20261122T102538Z of source etc is restored in /srv/restored: 3 files, 2.0 KiB."
    )
    assert json.loads(results["json"]) == RESTORED


def test_a_dry_run_in_place_says_what_would_change(agent: AgentUnit, ping: Ping) -> None:
    changes = [">f+++++++++ hosts", "*deleting   old"]
    ping.says({**RESTORED, "dry_run": True, "target": "/etc", "files": None, "changes": changes})
    results = agent.act("restore", **{"source": "etc", "in-place": True, "dry-run": True})
    assert ping.arguments() == [
        "--restore", "--source=etc", "--snapshot=latest", "--in-place", "--dry-run", "--json",
    ]  # fmt: skip
    assert results["result"].splitlines() == [
        "Snapshot 20261122T102538Z of source etc would be restored in /etc.", *changes,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "parameters", "words"),
    [
        ("backup-now", {"sources": ["../etc"]}, "sources[0]"),
        ("backup-now", {"sources": ["etc", "-v"]}, "sources[1]"),
        ("list-snapshots", {"source": "a/b"}, "source"),
        ("list-snapshots", {"machine": " "}, "machine"),
        ("restore", {"source": ""}, "source"),
        ("restore", {"source": "etc", "snapshot": " "}, "snapshot"),
        ("restore", {"source": "etc", "snapshot": "a\nb"}, "snapshot"),
        ("restore", {"source": "etc", "paths": ["../x"]}, "paths[0]"),
        ("restore", {"source": "etc", "paths": ["/etc/../x"]}, "paths[0]"),
        ("restore", {"source": "etc", "target": "srv"}, "target"),
        ("restore", {"source": "etc", "target": "/srv", "in-place": True}, "target: doesn't go"),
        ("restore", {"source": "etc", "machine": "a\tb"}, "machine"),
    ],
)
def test_a_bad_parameter_fails_with_a_sentence_and_nothing_is_done(
    agent: AgentUnit, ping: Ping, action: str, parameters: dict[str, Any], words: str
) -> None:
    assert words in failure(agent, action, **parameters)
    assert not ping.was_called()


def test_check_says_what_is_wrong_beside_what_is_well(agent: AgentUnit, ping: Ping) -> None:
    well = {"subject": "program ssh", "ok": True, "message": "/usr/bin/ssh"}
    wrong = {"subject": "api", "ok": False, "message": "its name isn't known: mend api_url."}
    ping.says({"ok": True, "findings": [well]})
    assert agent.act("check")["result"] == "ok  program ssh: /usr/bin/ssh"
    ping.says({"ok": False, "findings": [well, wrong]}, code=1)
    assert failure(agent, "check") == "api: its name isn't known: mend api_url."
    assert agent.context.action_results is not None
    assert agent.context.action_results["result"].splitlines() == [
        "ok  program ssh: /usr/bin/ssh", "WRONG  api: its name isn't known: mend api_url.",
    ]  # fmt: skip


def test_without_an_installed_workload_an_action_says_so(
    agent: AgentUnit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workload, "bin", property(lambda _: tmp_path / "nowhere"))
    assert "can't be run" in failure(agent, "check")

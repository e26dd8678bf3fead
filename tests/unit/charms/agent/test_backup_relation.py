"""The `backup` interface, with the real charm: its data, its scripts, and its traps."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ops import testing

from backup_hooks import make_hook
from backup_request import own_path, source_name
from tests.support.agent_unit import AgentUnit, Host
from turku_core.relations import BackupRequest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The principal's data, with scripts."""
    folder = tmp_path / "data"
    (folder / "db").mkdir(parents=True)
    (folder / "db/rows").write_text("rows")
    (folder / "settings.ini").write_text("settings")
    for name in ("before", "after"):
        script(folder / name, "exit 0")
    return folder


def script(path: Path, body: str) -> Path:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def asks(application: str = "web", **keys: str) -> testing.Relation:
    """Return a `backup` relation whose leader wrote these keys; underscores are hyphens."""
    databag = {key.replace("_", "-"): value for key, value in keys.items()}
    return testing.Relation("backup", remote_app_name=application, remote_app_data=databag)


def test_a_fileset_of_several_paths_is_one_source_with_rules_and_hooks(
    agent: AgentUnit, data: Path
) -> None:
    agent.join(
        asks(
            fileset=f" {data}/db ,{data}/settings.ini,",
            run_before_backup=str(data / "before"),
            run_after_restore=str(data / "after"),
            of_a_later_interface="1",
        )
    )
    hooks = agent.path("etc/turku-agent/hooks/turku-agent-0")
    assert agent.sources() == {
        "web-0": {
            "path": str(data),
            "comment": "Asked for by web over the relation backup",
            "filter": ["+ /db/***", "+ /settings.ini", "+ /settings.ini/***", "- *"],
            "run_before_backup": str(hooks / "run-before-backup"),
            "run_after_restore": str(hooks / "run-after-restore"),
        }
    }
    assert sorted(path.name for path in hooks.iterdir()) == [
        "run-after-restore", "run-before-backup",
    ]  # fmt: skip
    assert agent.status == testing.ActiveStatus("No backup yet.")


def test_a_single_folder_is_its_own_source(agent: AgentUnit, data: Path) -> None:
    agent.join(asks(fileset=str(data / "db")))
    assert agent.sources()["web-0"]["path"] == str(data / "db")
    assert "filter" not in agent.sources()["web-0"]


def test_links_on_the_way_are_followed_since_rsync_follows_none(
    agent: AgentUnit, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(data)
    agent.join(asks(fileset=f"{tmp_path}/link/db,{tmp_path}/link/settings.ini"))
    assert agent.sources()["web-0"]["path"] == str(data)


def test_an_empty_databag_is_not_ready_and_not_wrong(agent: AgentUnit, data: Path) -> None:
    agent.join(asks(), sources="etc: {path: /etc}")
    assert agent.sources() == {}
    assert agent.status == testing.ActiveStatus("No backup yet.")


@pytest.mark.parametrize(
    ("databag", "words"),
    [
        ({"fileset": " , "}, "fileset"),
        ({"fileset": "srv/data"}, "fileset"),
        ({"fileset": "/srv/../etc"}, "fileset"),
        ({"run_before_backup": "/bin/true"}, "fileset"),
        ({"fileset": "/etc", "run_before_backup": ""}, "run-before-backup"),
        ({"fileset": "/etc", "run_after_restore": "import.sh"}, "run-after-restore"),
    ],
)
def test_data_that_is_not_valid_blocks_and_names_the_field(
    agent: AgentUnit, databag: dict[str, str], words: str
) -> None:
    agent.join(asks(**databag), sources="etc: {path: /etc}")
    assert agent.status.name == "blocked"
    assert "relation backup of web" in agent.status.message
    assert words in agent.status.message
    # The rest goes on.
    assert agent.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}


def test_only_the_own_principals_relation_counts(agent: AgentUnit, data: Path) -> None:
    agent.join(asks("db", fileset=str(data)), sources="etc: {path: /etc}")
    assert agent.sources() == {}
    assert agent.status.name == "active"


def test_what_is_no_longer_valid_stays_as_it_was_and_what_is_broken_goes(
    agent: AgentUnit, data: Path, on_host: Host
) -> None:
    relation = asks(fileset=str(data / "db"), run_before_backup=str(data / "before"))
    agent.join(relation)
    before = agent.content()
    bad = dataclasses.replace(relation, remote_app_data={"fileset": "nonsense"})
    agent.run("relation_changed", bad, relations=[agent.host, agent.api_says(), bad])
    assert agent.status.name == "blocked"
    assert agent.content() == before
    on_host.told()
    agent.run("relation_broken", bad)
    assert agent.sources() == {}
    assert not agent.path("etc/turku-agent/hooks/turku-agent-0").exists()
    assert on_host.told() == 1


def test_prior_art_34_what_exists_on_the_leaders_machine_only_costs_the_rest_nothing(
    agent: AgentUnit, data: Path
) -> None:
    agent.join(
        asks(
            fileset=f"{data}/db,{data}/on-the-leader",
            run_before_backup="/srv/on-the-leader/before",
            run_after_backup=str(data / "settings.ini"),
        )
    )
    assert agent.sources()["web-0"]["path"] == str(data / "db")
    assert agent.status.name == "blocked"
    for words in (
        f"fileset: {data}/on-the-leader is not there on web/0",
        "run-before-backup: there is no program /srv/on-the-leader/before on web/0",
        f"run-after-backup: there is no program {data}/settings.ini on web/0",
    ):
        assert any(words in str(problem) for problem in problems(agent)), words
    done = subprocess.run([agent.sources()["web-0"]["run_before_backup"]], check=False)
    assert done.returncode == 0


def problems(agent: AgentUnit) -> list[str]:
    """Return what the unit finds wrong, in full: the status has room for a line only."""
    return [entry.message for entry in agent.context.juju_log if entry.level == "WARNING"]


def test_the_units_name_in_a_path_is_mapped_to_this_unit(machine: Path, tmp_path: Path) -> None:
    own = tmp_path / "agents/unit-web-3/dump"
    own.mkdir(parents=True)
    before = script(tmp_path / "agents/unit-web-3/before", "exit 0")
    unit = AgentUnit(machine, "turku-agent/5", "web/3")
    leaders = f"{tmp_path}/agents/unit-web-0"
    unit.join(asks(fileset=f"{leaders}/dump", run_before_backup=f"{leaders}/before"))
    assert unit.sources()["web-3"]["path"] == str(own)
    assert f"script={before}\n" in Path(unit.sources()["web-3"]["run_before_backup"]).read_text()
    assert unit.status.name == "active"


@pytest.mark.parametrize(
    ("path", "mapped"),
    [
        ("/srv/unit-my-app-0", "/srv/unit-my-app-12"),
        ("/srv/unit-my-app-0/x/unit-my-app-1", "/srv/unit-my-app-12/x/unit-my-app-12"),
        ("/srv/unit-app-0", "/srv/unit-app-0"),
        ("/srv/my-unit-my-app-0", "/srv/my-unit-my-app-0"),
        ("/srv/unit-my-app-0x", "/srv/unit-my-app-0x"),
    ],
)
def test_only_the_principals_own_name_is_mapped(path: str, mapped: str) -> None:
    assert own_path(path, "my-app/12") == mapped


def test_a_sources_name_is_the_units_and_always_valid() -> None:
    assert source_name("postgresql/0") == "postgresql-0"
    assert len(source_name("a" * 90 + "/17")) == 64


def test_what_a_script_makes_may_be_missing_until_it_has_run(agent: AgentUnit, data: Path) -> None:
    agent.join(
        asks(fileset=f"{data}/dump.sql", run_before_backup=str(data / "before")),
    )
    assert agent.sources()["web-0"]["path"] == str(data)
    assert agent.sources()["web-0"]["filter"] == ["+ /dump.sql", "+ /dump.sql/***", "- *"]
    assert agent.status == testing.ActiveStatus(
        f"No backup yet. relation backup of web: fileset: {data}/dump.sql is not there yet on "
        "web/0."
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_source_stays_the_same_while_a_script_makes_and_removes_its_data(
    agent: AgentUnit, data: Path, on_host: Host, kind: str
) -> None:
    dump = data / "dump"
    if kind == "folder":
        dump.mkdir()
    else:
        dump.write_text("rows")
    agent.join(asks(fileset=str(dump), run_before_backup=str(data / "before")))
    sources = agent.sources()
    assert (sources["web-0"]["path"] == str(dump)) is (kind == "folder")
    on_host.told()
    dump.rename(data / "away")
    agent.run("update_status")
    assert agent.sources() == sources
    (data / "away").rename(dump)
    agent.run("update_status")
    assert agent.sources() == sources
    assert on_host.told() == 0


def test_when_nothing_is_there_it_says_so_and_a_source_that_was_stays(
    agent: AgentUnit, data: Path
) -> None:
    relation = asks(fileset=str(data / "db"))
    agent.join(relation)
    before = agent.sources()
    (data / "db").rename(data / "away")
    agent.run("update_status")
    assert agent.status.name == "blocked"
    assert f"{data}/db is not there on web/0" in agent.status.message
    assert agent.sources() == before


def test_the_text_of_a_hook() -> None:
    assert make_hook("run-after-restore", "/srv/it's/import", "/srv/a b") == (
        "#!/bin/sh\n"
        "# run-after-restore of the relation backup. The charm turku-agent wrote this, and will "
        "write it again.\n"
        "script='/srv/it'\"'\"'s/import'\n"
        "if [ \"$TURKU_PATH\" != '/srv/a b' ]; then\n"
        '    echo "not run: $script is for what is restored in its place, and this goes to '
        '$TURKU_PATH"\n'
        "    exit 0\n"
        "fi\n"
        'if [ "$TURKU_OUTCOME" != success ]; then\n'
        '    echo "not run: $script is for a restore that went well"\n'
        "    exit 0\n"
        "fi\n"
        'if [ ! -f "$script" ] || [ ! -x "$script" ]; then\n'
        '    echo "not run: there is no program $script on this machine"\n'
        "    exit 0\n"
        "fi\n"
        'exec "$script"\n'
    )


@pytest.mark.parametrize(
    ("key", "environment", "runs"),
    [
        ("run-before-backup", {"TURKU_PATH": "/srv/a"}, True),
        ("run-after-backup", {"TURKU_PATH": "/srv/a", "TURKU_OUTCOME": "failed"}, True),
        ("run-before-restore", {"TURKU_PATH": "/srv/a"}, True),
        ("run-before-restore", {"TURKU_PATH": "/var/lib/turku-agent/restore/x"}, False),
        ("run-after-restore", {"TURKU_PATH": "/srv/a", "TURKU_OUTCOME": "success"}, True),
        ("run-after-restore", {"TURKU_PATH": "/srv/a", "TURKU_OUTCOME": "failed"}, False),
        ("run-after-restore", {"TURKU_PATH": "/elsewhere", "TURKU_OUTCOME": "success"}, False),
    ],
)
def test_a_script_runs_only_when_it_means_what_the_interface_says(
    tmp_path: Path, key: str, environment: dict[str, str], runs: bool
) -> None:
    ran = tmp_path / "ran"
    program = script(tmp_path / "it's $HOME `a script`", f"[ $# = 0 ] && touch '{ran}'; exit 7")
    hook = tmp_path / "hook"
    hook.write_text(make_hook(key, str(program), "/srv/a"))
    done = subprocess.run(
        ["sh", str(hook)], env={"PATH": "/usr/bin:/bin", **environment}, check=False
    )
    assert ran.exists() is runs
    assert done.returncode == (7 if runs else 0)


def test_what_the_interfaces_requirer_writes_is_read(agent: AgentUnit, data: Path) -> None:
    request = BackupRequest((str(data / "db"),), {"run-before-backup": str(data / "before")})
    relation: Any = testing.Relation(
        "backup", remote_app_name="web", remote_app_data=request.to_databag()
    )
    agent.join(relation)
    assert set(agent.sources()["web-0"]) == {"path", "comment", "run_before_backup"}

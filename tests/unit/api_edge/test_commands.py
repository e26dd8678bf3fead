"""The operator's commands: what they do, print and refuse."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.core.management import call_command
from django.db import OperationalError

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core import credentials
from turku_core.api import operations
from turku_core.api.management.utility import Utility
from turku_core.api.models import (
    Backup,
    FilterSet,
    KeyKind,
    Outcome,
    RegistrationKey,
    RestoreGrant,
    Snapshot,
    Source,
)
from turku_core.commandline import human_time
from turku_core.errors import ConfigurationError, TurkuError

Run = Callable[..., str]


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; what it printed on standard output."""

    def run_command(*words: str) -> str:
        capsys.readouterr()
        name = words[0].replace("-", "_")
        command = Utility(["turku-api", name]).fetch_command(name)
        # As run_from_argv does, but it would close the connection that the test's changes are in.
        command._called_from_command_line = True  # type: ignore[attr-defined]  # Django's own word
        options = command.create_parser("turku-api", name).parse_args(list(words[1:]))
        command.execute(**vars(options))
        return capsys.readouterr().out

    return run_command


@pytest.fixture
def unit(world: World) -> UnitCaller:
    """A storage unit."""
    return world.unit()


def table(printed: str) -> list[list[str]]:
    """The rows of a printed table; columns are two blanks apart."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in printed.splitlines()
    ]


# Registration keys


def test_a_new_keys_secret_stands_alone_on_standard_output_and_registers(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("create_registration_key", "web")
    captured = capsys.readouterr()
    secret = captured.out.strip()
    assert "shown this once" in captured.err
    agent = world.agent(register=False)
    assert agent.update(auth={"name": "web", "secret": secret}).status == 200


def test_prior_art_08_a_secret_is_shown_once_hashed_and_never_logged(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        secret = json.loads(run("create-registration-key", "web", "--json"))["secret"]
        rotated = json.loads(run("rotate-registration-key", "web", "--json"))["secret"]
    assert len(secret) >= 43 and secret != rotated
    key = RegistrationKey.objects.get(name="web")
    assert key.secret_hash == credentials.hash_secret(rotated)
    shown = run("list-registration-keys") + run("list-registration-keys", "--json")
    for word in (secret, rotated, key.secret_hash):
        assert word not in shown
        assert word not in caplog.text


def test_a_rotated_key_lets_nobody_in_with_its_old_secret(run: Run, world: World) -> None:
    old = run("create-registration-key", "web").strip()
    new = run("rotate-registration-key", "web").strip()
    agent = world.agent(register=False)
    assert agent.update(auth={"name": "web", "secret": old}).status == 403
    assert agent.update(auth={"name": "web", "secret": new}).status == 200


def test_a_key_for_storage_units_is_of_its_own_kind(run: Run) -> None:
    run("create-registration-key", "stores", "--kind", "storage", "--comment", "cellar")
    key = RegistrationKey.objects.get(name="stores")
    assert (key.kind, key.comment) == (KeyKind.STORAGE, "cellar")


def test_a_key_is_not_made_twice(run: Run) -> None:
    run("create-registration-key", "web")
    with pytest.raises(ConfigurationError, match="The key web can't be made"):
        run("create-registration-key", "web")


def test_prior_art_10_disabling_a_key_stops_newcomers_and_if_asked_its_machines(
    run: Run, world: World
) -> None:
    agent = world.agent("old")
    said = run("disable-registration-key", "machines")
    assert said == "machines is disabled; what registered with it goes on working.\n"
    newcomer = world.agent("new", register=False)
    assert newcomer.update(auth=world.auth()).status == 403
    assert world.call("agent_ping_checkin", agent.login).status == 200

    said = run("disable-registration-key", "machines", "--with-machines")
    assert said == "machines is disabled, and 1 that registered with it are deactivated.\n"
    assert world.call("agent_ping_checkin", agent.login).status == 403

    run("enable-registration-key", "machines")
    assert newcomer.update(auth=world.auth()).status == 200
    assert world.call("agent_ping_checkin", agent.login).status == 403
    run("reinstate", "old")
    assert world.call("agent_ping_checkin", agent.login).status == 200


def test_keys_are_listed_with_what_registered(run: Run, world: World, unit: UnitCaller) -> None:
    world.agent()
    assert [row[:4] for row in table(run("list-registration-keys"))] == [
        ["NAME", "KIND", "STATE", "REGISTERED"],
        ["machines", "machine", "active", "1"],
        ["storages", "storage", "active", "1"],
    ]


# Machines, sources, storage units


def test_machines_are_listed_calmly_or_as_json(run: Run, world: World) -> None:
    agent = world.agent("web/0", environment_name="prod", service_name="web")
    agent.check_in()
    assert table(run("list-machines")) == [
        ["UNIT", "ENVIRONMENT", "SERVICE", "STATE", "SOURCES", "LAST SEEN", "UUID"],
        ["web/0", "prod", "web", "active", "1", str(human_time(world.now)), agent.uuid],
    ]
    (row,) = json.loads(run("list-machines", "--json"))
    assert (row["unit"], row["uuid"], row["sources"]) == ("web/0", agent.uuid, 1)
    assert datetime.fromisoformat(row["last_seen"]) == world.now


def test_retired_machines_are_listed_only_with_all(run: Run, world: World) -> None:
    world.agent("web/0").row.retire(world.now)
    assert run("list-machines").startswith("There is no machine yet")
    assert table(run("list-machines", "--all"))[1][3] == "retired"


def test_a_machine_is_shown_with_its_sources_and_backups(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    world.backed_up(agent, unit)
    said = run("show-machine", "web/0")
    assert agent.uuid in said
    assert ["docs", "active", "daily", "store-1"] in [row[:4] for row in table(said)]
    assert ["docs", "succeeded"] in [row[:2] for row in table(said)]
    shown = json.loads(run("show-machine", agent.uuid, "--json"))
    assert shown["sources"][0]["source"] == "docs"
    assert shown["backups"][0]["outcome"] == "succeeded"
    keys = {*shown, *shown["sources"][0], *shown["backups"][0]}
    assert {"last_seen", "ssh_key", "next_due", "bytes_stored"} < keys
    assert not any(" " in key for key in keys)


def test_a_machine_is_found_by_uuid_or_by_a_name_that_tells(run: Run, world: World) -> None:
    one, two = world.agent("web/0"), world.agent("web/0")
    with pytest.raises(TurkuError, match="Several machines are named web/0") as caught:
        run("show-machine", "web/0")
    assert one.uuid in str(caught.value) and two.uuid in str(caught.value)
    assert one.uuid in run("show-machine", one.uuid)
    two.row.retire(world.now)
    assert one.uuid in run("show-machine", "web/0")


@pytest.mark.parametrize(
    "words",
    [
        ("show-machine", "nobody"),
        ("pause", "machine", "nobody"),
        ("backup-now", "nobody"),
        ("retire", "nobody"),
        ("reinstate", "nobody"),
        ("allow-restore", "nobody", "nobody"),
        ("list-sources", "nobody"),
        ("list-backups", "--machine", "nobody"),
    ],
)
def test_an_unknown_machine_is_said_with_how_to_find_it(run: Run, words: tuple[str, ...]) -> None:
    with pytest.raises(
        TurkuError, match=r"There is no machine nobody; `turku-api list-machines --all` shows them"
    ):
        run(*words)


def test_sources_are_listed_for_the_fleet_or_one_machine(
    run: Run, world: World, unit: UnitCaller
) -> None:
    world.agent("web/0")
    world.agent("web/1", sources={"db": {"path": "/srv/db", "frequency": "weekly"}})
    assert [row[:4] for row in table(run("list-sources"))[1:]] == [
        ["web/0", "docs", "active", "daily"],
        ["web/1", "db", "active", "weekly"],
    ]
    assert len(table(run("list-sources", "web/1"))) == 2


def test_storage_units_are_listed_with_their_space(run: Run, unit: UnitCaller) -> None:
    unit.update(space_total=1000.0, space_available=150.5)
    assert table(run("list-storages"))[1][:6] == [
        *("store-1", "full", "85 %", "150.5 MiB", "1000.0 MiB", "80 %"),
    ]
    (row,) = json.loads(run("list-storages", "--json"))
    assert row["available"] == int(150.5 * 1024 * 1024)


def test_pausing_and_resuming_a_machine_a_source_and_a_unit(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    unit.update()
    for words in (("machine", "web/0"), ("source", "web/0", "docs"), ("storage", "store-1")):
        assert "is paused" in run("pause", *words)
        assert agent.check_in() == {}
        assert "is resumed" in run("resume", *words)
    world.pass_time(days=1)
    assert list(agent.check_in()) == ["docs"]


@pytest.mark.parametrize("words", [("machine", "a", "b"), ("source", "a"), ("storage", "a", "b")])
def test_pausing_with_too_few_or_too_many_names_is_bad_usage(
    run: Run, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError, match=f"Write it as: {words[0]} "):
        run("pause", *words)


def test_a_backup_is_asked_for_outside_its_schedule(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    world.backed_up(agent, unit)
    assert agent.check_in() == {}
    assert "back up: docs." in run("backup-now", "web/0")
    assert list(agent.check_in()) == ["docs"]
    assert json.loads(run("backup-now", "web/0", "docs", "--json"))["sources"] == ["docs"]


def change(agent: AgentCaller, **values: Any) -> None:
    Source.objects.filter(machine=agent.row).update(**values)


@pytest.mark.parametrize(
    ("prepare", "sources", "why"),
    [
        (lambda agent: operations.pause(agent.row), (), "is paused: `turku-api resume machine"),
        (lambda agent: agent.row.retire(agent.world.now), (), "is not active"),
        (lambda agent: change(agent, paused=True), ("docs",), "The source docs of web/0 is paused"),
        (lambda agent: change(agent, paused=True), (), "no source that could be backed up"),
        (lambda agent: change(agent, published=False), ("docs",), "no longer in web/0's"),
        (lambda agent: None, ("nope",), "web/0 has no source nope; its sources: docs"),
    ],
)
def test_a_backup_that_cannot_be_made_is_refused_with_the_reason(
    run: Run,
    world: World,
    prepare: Callable[[AgentCaller], None],
    sources: tuple[str, ...],
    why: str,
) -> None:
    agent = world.agent()
    prepare(agent)
    with pytest.raises(TurkuError, match=why):
        run("backup-now", "web/0", *sources)


def test_retiring_keeps_the_history_and_silences_the_machine(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    world.backed_up(agent, unit)
    assert "is retired; its backups stay" in run("retire", "web/0")
    assert world.call("agent_ping_checkin", agent.login).status == 403
    assert Backup.objects.count() == 1
    world.pass_time(days=9)
    assert run("list-overdue") == "Nothing is overdue.\n"


def test_a_machine_whose_key_is_anothers_by_now_is_not_taken_back(run: Run, world: World) -> None:
    agent = world.agent("web/0")
    agent.row.retire(world.now)
    world.agent("web/1", ssh_public_key=agent.config["ssh_public_key"])
    with pytest.raises(TurkuError, match="Another active machine uses this SSH public key"):
        run("reinstate", "web/0")


# Backups


def test_backups_are_listed_newest_first_and_picked(
    run: Run, world: World, unit: UnitCaller
) -> None:
    one, two = world.agent("web/0"), world.agent("web/1")
    world.backed_up(one, unit)
    world.pass_time(minutes=5)
    two.check_in()
    unit.report_run(two, success=False, snapshot="", summary="went\nwrong")
    rows = table(run("list-backups"))
    assert [row[:3] for row in rows[1:]] == [
        ["web/1", "docs", "failed"],
        ["web/0", "docs", "succeeded"],
    ]
    assert rows[1][-1] == "went"
    assert len(table(run("list-backups", "--failed"))) == 2
    assert len(table(run("list-backups", "--machine", "web/0", "--source", "docs"))) == 2
    assert len(table(run("list-backups", "--limit", "1"))) == 2
    assert len(json.loads(run("list-backups", "--storage", "store-1", "--json"))) == 2
    assert run("list-backups", "--source", "nope") == "There is no such record.\n"


def test_what_is_overdue_is_listed_with_the_reason(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    world.pass_time(hours=3)
    assert table(run("list-overdue"))[1] == [
        *("web/0", "docs", "overdue", str(human_time(agent.source().since)), "-"),
        "The machine has never checked in: run turku-agent-ping there.",
    ]


def test_a_source_whose_drill_failed_is_listed_with_the_overdue_ones(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    world.backed_up(agent, unit)
    name = Snapshot.objects.get().name
    failed = {"name": name, "state": "committed", "error": "There is no room."}
    unit.report(agent, {"docs": {"snapshots": [failed]}})
    [row] = json.loads(run("list-overdue", "--json"))
    assert (row["machine"], row["source"], row["state"]) == ("web/0", "docs", "drill-failed")
    assert row["why"] == f"Snapshot {name}: Its restore drill could not be made: There is no room."
    assert table(run("list-sources"))[1][-1] == "-"


def test_pruning_follows_the_configured_time(run: Run, world: World, unit: UnitCaller) -> None:
    agent = world.agent()
    for _ in range(3):
        unit.report_run(agent)
        world.pass_time(days=1)
    assert Backup.objects.count() == 3
    world.pass_time(days=399)
    assert run("prune", "--dry-run").startswith("Would delete 2 records of backups")
    assert json.loads(run("prune", "--json")) == {
        "backups": 2,
        "snapshots": 0,
        "grants": 0,
        "orders": 0,
        "dry_run": False,
    }
    assert Backup.objects.count() == 1


def test_nothing_is_pruned_by_a_clock_that_jumped_until_an_operator_says_it_is_right(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent()
    for _ in range(3):
        unit.report_run(agent)
        world.pass_time(days=1)
    run("housekeeping")
    world.pass_time(days=3653)
    assert json.loads(run("housekeeping", "--json"))["backups"] == 0
    with pytest.raises(TurkuError, match="Nothing is deleted: the clock jumped ahead"):
        run("prune", "--older-than", "90d")
    # Of backups two, and those of windows that were missed meanwhile, if there were any.
    told = re.match(r"Would delete (\d+) records", run("prune", "--dry-run"))
    assert told is not None and int(told[1]) >= 2
    assert run("prune", "--trust-clock").startswith(f"Deleted {told[1]} records")
    assert Backup.objects.filter(outcome=Outcome.SUCCEEDED).count() == 1


def test_housekeeping_notes_missed_windows_and_prunes(
    run: Run, world: World, unit: UnitCaller
) -> None:
    agent = world.agent(sources={"docs": {"path": "/srv/docs", "frequency": "daily, 1200-1300"}})
    world.backed_up(agent, unit)
    world.pass_time(days=2)
    assert "Looked at 1 late sources" in run("housekeeping")
    assert Backup.objects.filter(outcome=Outcome.MISSED).exists()
    assert json.loads(run("housekeeping", "--json"))["backups"] == 0


# Restore grants


def test_a_restore_is_allowed_for_a_while_listed_and_revoked(run: Run, world: World) -> None:
    new, old = world.agent("new"), world.agent("old")
    old.row.retire(world.now)
    said = run("allow-restore", "new", "old", "--for", "3d")
    assert f"until {human_time(world.now + timedelta(days=3))}" in said
    assert table(run("list-restore-grants"))[1][1:3] == ["new", "old"]
    assert old.uuid in new.restore()["restore_from"]

    grant = RestoreGrant.objects.get()
    assert run("revoke-restore", str(grant.pk)) == f"Grant {grant.pk} has ended.\n"
    assert "restore_from" not in new.restore() or not new.restore()["restore_from"]
    assert run("list-restore-grants").startswith("No machine may restore")
    assert len(table(run("list-restore-grants", "--all"))) == 2


def test_a_grant_ends_by_itself(run: Run, world: World) -> None:
    new, old = world.agent("new"), world.agent("old")
    run("allow-restore", "new", "old", "--for", "90m")
    world.pass_time(minutes=89)
    assert old.uuid in new.restore()["restore_from"]
    world.pass_time(minutes=2)
    assert not new.restore().get("restore_from")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("new", "new"), "without a grant"),
        (("retired", "new"), "is not active"),
        (("new", "retired", "--for", "2y"), "'2y' is no duration: write 90m, 12h, 7d or 2w"),
        (("new", "retired", "--for", "0d"), "is no duration"),
        (("new", "retired", "--for", "90w"), "at most 366 days"),
    ],
)
def test_a_grant_that_means_nothing_is_refused(
    run: Run, world: World, words: tuple[str, ...], why: str
) -> None:
    world.agent("new")
    world.agent("retired").row.retire(world.now)
    with pytest.raises(TurkuError, match=why):
        run("allow-restore", *words)
    assert not RestoreGrant.objects.exists()


def test_an_unknown_grant_is_said(run: Run) -> None:
    with pytest.raises(TurkuError, match="There is no grant 7"):
        run("revoke-restore", "7")


# Filter sets


def test_filter_sets_are_made_shown_replaced_and_deleted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("- *.tmp\n\n# not this\n- /cache/\n"))
    assert run("set-filter-set", "junk", "--comment", "of no use") == (
        "The filter set junk is made: 2.\n"
    )
    assert run("show-filter-set", "junk") == "- *.tmp\n- /cache/\n"
    assert table(run("list-filter-sets"))[1] == ["junk", "2", "of no use"]
    monkeypatch.setattr("sys.stdin", io.StringIO("- *.bak\n"))
    run("set-filter-set", "junk")
    assert json.loads(run("list-filter-sets", "--json")) == [
        {"name": "junk", "rules": ["- *.bak"], "comment": "of no use"}
    ]
    assert run("delete-filter-set", "junk") == "The filter set junk is deleted.\n"
    assert not FilterSet.objects.exists()


@pytest.mark.parametrize("rules", ["merge nowhere\n", "what is this\n", "merge junk\n"])
def test_a_filter_set_that_is_not_valid_is_refused_and_nothing_is_saved(
    run: Run, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(rules))
    with pytest.raises(ConfigurationError, match="The filter set junk is not valid"):
        run("set-filter-set", "junk")
    assert not FilterSet.objects.exists()


def test_a_filter_set_in_use_is_not_deleted(run: Run, world: World) -> None:
    FilterSet.objects.create(name="junk", rules=["- *.tmp"])
    FilterSet.objects.create(name="more", rules=["merge junk"])
    world.agent(sources={"docs": {"path": "/srv/docs", "filter": ["merge junk"]}})
    with pytest.raises(TurkuError, match="junk is used by filter set more, web/0: docs"):
        run("delete-filter-set", "junk")
    assert FilterSet.objects.count() == 2


# The rest


def test_an_administrators_password_is_printed_once_and_works(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    password = run("create-admin").strip()
    user = authenticate(username="admin", password=password)
    assert user is not None and user.is_active
    again = json.loads(run("create-admin", "admin", "--json"))
    assert authenticate(username="admin", password=again["password"]) is not None
    assert authenticate(username="admin", password=password) is None


def test_help_has_a_line_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    Utility(["turku-api", "help"]).execute()
    said = capsys.readouterr().out
    for name in ("serve", "list-machines", "health", "create-registration-key", "prune"):
        assert f"\n  {name} " in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_an_unknown_command_is_bad_usage(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("list-machine")
    assert ended.value.code == 2
    assert "there is no command list-machine" in capsys.readouterr().err


def test_bad_arguments_of_a_command_are_bad_usage(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("list-machines", "--colour")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "usage: turku-api list-machines" in said
    assert "--settings" not in said


def test_a_database_that_fails_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("database is locked")

    monkeypatch.setattr("turku_core.api.management.commands.list_machines.Command.rows", fail)
    with pytest.raises(TurkuError, match=r"The database refused: database is locked\."):
        run("list-machines")


# Relations


def given(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Let a command read JSON from its standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(value)))


def test_a_relations_key_is_made_its_machine_announced_and_withdrawn(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = credentials.make_secret()
    key = {"name": "agents-4", "kind": "machine", "secret": secret}
    given(monkeypatch, {"keys": [key]})
    assert json.loads(run("sync-registration-keys", "--json")) == {
        "created": ["agents-4"], "changed": [], "enabled": [], "disabled": [],
    }  # fmt: skip
    agent = world.agent(register=False)
    auth = {"name": "agents-4", "secret": secret}
    assert agent.update(auth=auth).status == 503
    announcement = {
        "key": "agents-4",
        "unit": "agent/0",
        "machine_uuid": agent.uuid,
        "ssh_public_key": agent.config["ssh_public_key"],
    }
    given(monkeypatch, {"announcements": [announcement]})
    assert json.loads(run("announce", "--json"))["announced"] == ["agent/0"]
    assert agent.update(auth=auth).status == 200
    [row] = [
        row
        for row in json.loads(run("list-registration-keys", "--json"))
        if row["name"] == "agents-4"
    ]
    assert (row["from_relation"], row["announced"], row["registered"]) == (True, 1, 1)
    answer = run("withdraw", "--key", "agents-4", "--unit", "agent/0", "--json")
    assert json.loads(answer) == {"retired": [agent.uuid], "deactivated": []}


def test_a_person_reads_what_was_changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        {"name": f"agents-{n}", "kind": "machine", "secret": credentials.make_secret()}
        for n in (1, 2)
    ]
    given(monkeypatch, {"keys": keys})
    assert run("sync-registration-keys") == "created: agents-1, agents-2\n"
    given(monkeypatch, {"keys": keys})
    assert run("sync-registration-keys") == "Nothing had to be changed.\n"


@pytest.mark.parametrize("command", ["sync-registration-keys", "announce"])
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 1, "announcements": 1}', "[" * 100_000])
def test_a_command_that_reads_json_says_what_it_could_not_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, text: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(ConfigurationError, match=r"(?i)standard input|keys|announcements"):
        run(command)


def test_a_secret_that_is_no_good_is_not_in_the_message(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, {"keys": [{"name": "a", "kind": "machine", "secret": "it's no good"}]})
    with pytest.raises(ConfigurationError) as caught:
        run("sync-registration-keys")
    assert "keys[0].secret" in str(caught.value) and "no good" not in str(caught.value)

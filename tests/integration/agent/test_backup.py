"""Check-ins with sessions: real ssh, sshd and rsync between the stand-ins."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.agent.stand_ins import (
    AgentMachine,
    StandInUnit,
    is_alive,
    running,
    wait_until,
)
from tests.support.stand_in_api import Answer, StandInApi, running_api
from turku_core.agent import checkin
from turku_core.agent.identity import load_identity
from turku_core.agent.processes import Stop
from turku_core.agent.session import SessionFailed, SessionPlan, run_session
from turku_core.agent.settings import Locations
from turku_core.protocol.client import Client
from turku_core.protocol.messages import StorageAddress


def mirror(unit: StandInUnit, source: str) -> Path:
    return unit.folder / "mirrors" / source


def outcomes(machine: AgentMachine) -> tuple[int, dict[str, dict[str, str]]]:
    """Run a check-in and return its exit code and what became of each source."""
    done = machine.run("turku-agent-ping", "--json")
    assert done.output, done
    return done.code, json.loads(done.output)["sources"]


def make_hook(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def hanging(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> Iterator[subprocess.Popen[str]]:
    """An agent in the middle of a session."""
    machine.add_source("docs", tree)
    unit.behave(hang=True)
    agent = machine.start("turku-agent-ping")
    try:
        wait_until(unit.requests, "the session has begun")
        yield agent
    finally:
        agent.kill()
        agent.communicate()


def test_what_is_due_is_pulled_over_the_tunnel(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    assert outcomes(machine) == (0, {"docs": {"outcome": "success", "message": ""}})
    assert (mirror(unit, "docs") / "sub/b").read_text() == "beta"
    assert (mirror(unit, "docs") / "link").readlink() == Path("/etc/hostname")
    (request,) = unit.requests()
    assert request["action"] == "checkin"
    assert set(request["sources"]) == {"docs"}
    assert machine.leftovers() == []
    assert machine.children() == []


def test_on_a_terminal_progress_and_outcomes_are_shown(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    terminal, slave = pty.openpty()
    # A fresh terminal has no columns; tty_ioctl(4).
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    agent = subprocess.Popen(
        machine.command("turku-agent-ping"), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert agent.wait(60) == 0, shown.decode()
    assert b"docs: 1 B, 50 %" in shown
    lines = [line.rpartition("\r")[2] for line in shown.decode().split("\r\n")]
    assert [line.split() for line in lines[-3:-1]] == [
        ["SOURCE", "OUTCOME", "MESSAGE"],
        ["docs", "success", "-"],
    ]


def test_a_check_in_with_nothing_due_is_silent_and_makes_no_session(
    machine: AgentMachine, unit: StandInUnit
) -> None:
    done = machine.run("turku-agent-ping")
    assert (done.code, done.output, done.errors) == (0, "", "")
    assert unit.requests() == []


def test_an_idle_check_in_imports_only_what_it_needs(machine: AgentMachine) -> None:
    code = (
        "import os, sys; from turku_core.agent.commands import agent_ping\n"
        f"sys.argv = ['turku-agent-ping', '--root', {str(machine.root)!r}]\n"
        "os._exit = lambda code: print(f'exit={code}', *sys.modules)\n"
        "agent_ping()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    code, *names = done.stdout.split()
    modules = set(names)
    assert code == "exit=0"
    assert "turku_core.agent.checkin" in modules
    heavy = {
        "asyncio",
        "cryptography",
        "django",
        "jinja2",
        "paramiko",
        "turku_core.agent.backup",
        "turku_core.agent.backup_now",
        "turku_core.agent.check",
        "turku_core.agent.orders",
        "turku_core.agent.restore",
        "turku_core.agent.rsync_daemon",
        "turku_core.agent.session",
        "turku_core.agent.sources",
        "turku_core.agent.status",
        "turku_core.protocol.restore_orders",
        "yaml",
    }
    assert modules & heavy == set()


def test_a_source_of_a_path_with_odd_characters_is_backed_up(
    machine: AgentMachine, unit: StandInUnit, tmp_path: Path
) -> None:
    tree = tmp_path / "a b %HOME% # ; = ü"
    tree.mkdir()
    (tree / "file").write_text("content")
    machine.add_source("odd", tree)
    assert outcomes(machine)[0] == 0
    assert (mirror(unit, "odd") / "file").read_text() == "content"


def test_a_root_whose_own_name_has_odd_characters_works_too(
    tmp_path: Path, api: StandInApi, unit: StandInUnit, tree: Path
) -> None:
    deep = tmp_path / "r %h %d ${HOME} ü" / ("x" * 100)
    machine = AgentMachine(deep, api, unit)
    machine.register()
    machine.add_source("docs", tree)
    assert outcomes(machine)[0] == 0
    assert (mirror(unit, "docs") / "a").read_text() == "alpha"


def test_prior_art_07_a_unit_that_asks_without_filters_doesnt_get_what_is_excluded(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    (tree / "secret.key").write_text("SECRET")
    machine.add_source("docs", tree, exclude=["*.key"], filter=["- /sub/"])
    assert outcomes(machine)[0] == 0
    assert sorted(path.name for path in mirror(unit, "docs").iterdir()) == ["a", "link"]


def test_prior_art_07_the_api_cant_take_back_what_the_machine_excludes(
    machine: AgentMachine, api: StandInApi, unit: StandInUnit, tree: Path
) -> None:
    (tree / "secret.key").write_text("SECRET")
    machine.add_source("docs", tree, exclude=["*.key"])
    announced = machine.scheduled["docs"]
    announced |= {"exclude": [], "filter": ["+ *.key", "!"], "path": "/etc"}
    assert outcomes(machine)[0] == 0
    assert sorted(path.name for path in mirror(unit, "docs").iterdir()) == ["a", "link", "sub"]


def test_a_filter_set_of_the_api_is_enforced_here_too(
    machine: AgentMachine, api: StandInApi, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree, filter=["merge common", "- a"])
    announced = machine.scheduled["docs"]
    announced["filter"] = ["- /sub/", "- a"]
    assert outcomes(machine)[0] == 0
    assert sorted(path.name for path in mirror(unit, "docs").iterdir()) == ["link"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ssh_ping_host", "-oProxyCommand=touch /tmp/turku-was-here"),
        ("ssh_ping_host", "host -oProxyCommand=x"),
        ("ssh_ping_host", "127.0.0.1\nProxyCommand x"),
        ("ssh_ping_user", "-oProxyCommand=x"),
        ("ssh_ping_user", "root;id"),
        ("ssh_ping_port", "22 -oProxyCommand=x"),
        ("ssh_ping_host_keys", ["ssh-ed25519 AAAA\n* ssh-ed25519 BBBB"]),
        ("name", "../../etc/cron.d/x"),
    ],
)
def test_prior_art_03_a_hostile_address_is_refused_and_nothing_runs(
    machine: AgentMachine, unit: StandInUnit, tree: Path, field: str, value: object
) -> None:
    machine.add_source("docs", tree)
    machine.scheduled["docs"]["storage"] = unit.address(**{field: value})
    done = machine.run("turku-agent-ping")
    assert done.code == 1
    assert field in done.errors
    assert unit.requests() == []


def test_one_hostile_source_in_an_answer_doesnt_stop_the_others(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    machine.scheduled["../evil"] = machine.scheduled["docs"]
    machine.scheduled["broken"] = {"path": "/", "storage": None}
    code, done = outcomes(machine)
    assert code == 1
    assert done["docs"]["outcome"] == "success"


def test_a_source_that_isnt_configured_here_is_never_opened(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    machine.scheduled["shadow"] = {**machine.scheduled["docs"], "path": "/etc"}
    done = machine.run("turku-agent-ping")
    assert "shadow" in done.errors
    assert [set(request["sources"]) for request in unit.requests()] == [{"docs"}]


def test_a_host_key_that_wasnt_announced_ends_the_session_before_it_begins(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    other = (machine.state / "ssh_key.pub").read_text().strip()
    machine.add_source("docs", tree)
    machine.scheduled["docs"]["storage"] = unit.address(ssh_ping_host_keys=[other])
    code, done = outcomes(machine)
    assert code == 1
    assert "host key" in done["docs"]["message"]
    assert unit.requests() == []


def test_any_one_of_a_units_host_keys_is_enough(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    address = unit.address(ssh_ping_host_keys=[unit.second_host_key])
    machine.scheduled["docs"]["storage"] = address
    machine.offered["sources"]["docs"]["storage"] = address
    assert outcomes(machine)[0] == 0
    assert machine.run("turku-agent-ping", "--check").code == 0


def test_a_refused_key_and_a_closed_port_are_told_apart(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    (unit.folder / "authorized_keys").write_text("")
    assert "refuses this machine's SSH key" in outcomes(machine)[1]["docs"]["message"]
    unit.stop()
    assert "nothing listens" in outcomes(machine)[1]["docs"]["message"]


def test_a_refused_forward_is_said(machine: AgentMachine, unit: StandInUnit, tree: Path) -> None:
    machine.add_source("docs", tree)
    unit.authorize((machine.state / "ssh_key.pub").read_text().strip(), forwarding=False)
    assert "remote forward" in outcomes(machine)[1]["docs"]["message"]


def test_missing_programs_are_named(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    machine.add_source("docs", tree)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/setpriv").symlink_to("/usr/bin/setpriv")
    done = machine.run("turku-agent-ping", PATH=str(tmp_path / "bin"))
    assert done.code == 1
    assert "The program ssh is missing" in done.errors


def test_a_unit_that_is_busy_is_left_quietly(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    unit.behave(exit_code=75, idle=True)
    done = machine.run("turku-agent-ping")
    assert (done.code, done.output, done.errors) == (75, "", "")


def test_a_unit_of_v1_that_sends_lines_of_text_is_served(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    unit.behave(events=False)
    assert outcomes(machine) == (0, {"docs": {"outcome": "success", "message": ""}})
    unit.behave(events=False, exit_code=1)
    assert outcomes(machine)[1]["docs"]["outcome"] == "failed"


def test_prior_art_36_a_failed_source_reaches_the_exit_code_and_the_log(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    machine.add_source("more", tree)
    unit.behave(outcomes={"docs": "failed"})
    done = machine.run("turku-agent-ping")
    assert done.code == 1
    assert "source docs: failed" in done.errors
    assert "source more" not in done.errors


def test_a_path_that_isnt_there_is_reported_and_the_other_source_is_backed_up(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    machine.add_source("docs", tree)
    machine.add_source("gone", tmp_path / "gone")
    code, done = outcomes(machine)
    assert code == 1
    assert done["docs"]["outcome"] == "success"
    assert done["gone"]["outcome"] == "cancelled"
    assert "isn't there" in done["gone"]["message"]
    (request,) = unit.requests()
    assert set(request["sources"]) == {"docs"}
    assert set(request["cancelled"]) == {"gone"}


def test_a_path_that_is_too_long_for_rsync_stops_no_other_source(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    machine.add_source("long", tree / "/".join(["d" * 200] * 12))
    code, done = outcomes(machine)
    assert code == 1
    assert done["docs"]["outcome"] == "success"
    assert "2000 bytes" in done["long"]["message"]


def test_sources_on_several_units_get_a_session_each(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    with running(StandInUnit(tmp_path / "unit-1", "unit-1")) as second:
        second.authorize((machine.state / "ssh_key.pub").read_text().strip())
        machine.add_source("docs", tree)
        machine.add_source("more", tree)
        machine.scheduled["more"]["storage"] = second.address()
        assert outcomes(machine)[0] == 0
        assert mirror(unit, "docs").is_dir()
        assert mirror(second, "more").is_dir()


def test_two_api_urls_are_tried_in_turn(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    machine.configure(api_url=["http://127.0.0.1:1/v1", machine.api.url])
    assert outcomes(machine)[0] == 0


def test_an_api_that_is_down_is_said_and_means_later(machine: AgentMachine) -> None:
    machine.configure(api_url="http://127.0.0.1:1/v1")
    done = machine.run("turku-agent-ping")
    assert done.code == 75
    assert "http://127.0.0.1:1/v1" in done.errors


def test_a_check_in_before_the_registration_says_what_to_do(
    tmp_path: Path, api: StandInApi, unit: StandInUnit
) -> None:
    done = AgentMachine(tmp_path / "new", api, unit).run("turku-agent-ping")
    assert done.code == 2
    assert "turku-update-config" in done.errors


def test_the_gonogo_program_decides(machine: AgentMachine, api: StandInApi, tmp_path: Path) -> None:
    machine.configure(api_url=api.url, gonogo_program="/bin/false")
    done = machine.run("turku-agent-ping")
    assert (done.code, done.errors) == (75, "")
    assert api.calls("agent_ping_checkin") == []
    machine.configure(api_url=api.url, gonogo_program=["/bin/sh", "-c", "exit 0"])
    assert machine.run("turku-agent-ping").code == 0
    machine.configure(api_url=api.url, gonogo_program="/no/such/program")
    done = machine.run("turku-agent-ping")
    assert done.code == 1
    assert "gonogo_program" in done.errors


def test_a_second_check_in_leaves_quietly_while_the_first_is_at_work(
    machine: AgentMachine, hanging: subprocess.Popen[str]
) -> None:
    done = machine.run("turku-agent-ping")
    assert (done.code, done.output, done.errors) == (75, "", "")
    assert len(machine.api.calls("agent_ping_checkin")) == 1


def test_prior_art_28_the_locks_file_stays_when_the_agent_ends(
    machine: AgentMachine, unit: StandInUnit, hanging: subprocess.Popen[str]
) -> None:
    lock = machine.run_folder / "ping.lock"
    inode = lock.stat().st_ino
    hanging.terminate()
    hanging.wait(20)
    unit.behave()
    assert machine.run("turku-agent-ping").code == 0
    assert lock.stat().st_ino == inode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_prior_art_24_a_signal_ends_everything_and_removes_the_secrets(
    machine: AgentMachine, hanging: subprocess.Popen[str], number: signal.Signals
) -> None:
    children = machine.children()
    assert children
    hanging.send_signal(number)
    assert hanging.wait(20) == 128 + number
    assert machine.leftovers() == []
    assert machine.children() == []
    assert not any(is_alive(child) for child in children)


def test_prior_art_24_a_killed_agent_takes_ssh_and_rsync_along_and_is_swept_later(
    machine: AgentMachine, unit: StandInUnit, hanging: subprocess.Popen[str]
) -> None:
    connection = open_connection(unit)
    try:
        wait_until(lambda: len(machine.children()) >= 2, "ssh and rsync --daemon run")
        hanging.kill()
        wait_until(lambda: machine.children() == [], "ssh and rsync ended")
    finally:
        connection.kill()
        connection.wait()
    assert machine.leftovers() != []
    machine.scheduled.clear()
    assert machine.run("turku-agent-ping").code == 0
    assert machine.leftovers() == []


def open_connection(unit: StandInUnit) -> subprocess.Popen[bytes]:
    """Open a connection to the agent's daemon through the tunnel, and leave it half open."""
    (request,) = unit.requests()
    code = (
        "import socket, time\n"
        f"s = socket.create_connection(('127.0.0.1', {request['port']}))\n"
        "print(s.recv(9), flush=True)\ntime.sleep(600)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert client.stdout is not None and client.stdout.readline() == b"b'@RSYNCD: '\n"
    return client


def test_prior_art_24_no_daemon_is_left_when_the_units_rsync_dies(
    machine: AgentMachine, unit: StandInUnit, hanging: subprocess.Popen[str]
) -> None:
    connection = open_connection(unit)
    wait_until(lambda: len(machine.children()) >= 2, "rsync --daemon runs")
    connection.kill()
    connection.wait()
    wait_until(lambda: len(machine.children()) == 1, "only ssh is left")


def test_prior_art_23_a_session_whose_network_dies_ends_by_itself(
    machine: AgentMachine, unit: StandInUnit, hanging: subprocess.Popen[str]
) -> None:
    pid = int((unit.folder / "pid").read_text())
    session = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(session, signal.SIGKILL)
    _, errors = hanging.communicate(timeout=30)
    assert hanging.returncode == 1
    assert "source docs: failed" in errors


def test_prior_art_23_a_unit_that_is_stuck_is_left_in_the_end(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    unit.behave(hang=True)
    address = StorageAddress.from_json(unit.address(), "storage")
    stop = Stop()
    for action in ("checkin", "list"):
        with pytest.raises(SessionFailed, match="has said nothing for 1 seconds"):
            run_session(
                SessionPlan(address, action, patience=1.0),
                key=machine.state / "ssh_key",
                run_folder=machine.run_folder,
                stop=stop,
                on_event=lambda event: None,
            )
    stop.close()
    assert machine.children() == []
    assert machine.leftovers() == []


def test_hooks_run_around_a_backup_and_know_what_it_is_about(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    before = make_hook(
        tmp_path, "before", f'echo "before $TURKU_SOURCE $TURKU_PATH" >> {log}; touch {tree}/dump'
    )
    after = make_hook(tmp_path, "after", f'echo "after $TURKU_OUTCOME" >> {log}')
    machine.add_source("docs", tree, run_before_backup=str(before), run_after_backup=str(after))
    assert outcomes(machine)[0] == 0
    assert log.read_text() == f"before docs {tree}\nafter success\n"
    assert (mirror(unit, "docs") / "dump").exists()


@pytest.mark.parametrize(
    ("script", "timeout", "said"),
    [
        ("exit 3", 60, "exit code 3"),
        ("kill -9 $$", 60, "signal 9"),
        ("sleep 600 & sleep 600", 1, "after 1 seconds"),
    ],
)
def test_a_failing_hook_cancels_its_source_alone_and_is_reported(
    machine: AgentMachine,
    unit: StandInUnit,
    tree: Path,
    tmp_path: Path,
    script: str,
    timeout: int,
    said: str,
) -> None:
    log = tmp_path / "log"
    before = make_hook(tmp_path, "before", script)
    after = make_hook(tmp_path, "after", f'echo "$TURKU_OUTCOME" >> {log}')
    machine.add_source("docs", tree)
    machine.add_source(
        "db",
        tree,
        run_before_backup=str(before),
        run_after_backup=str(after),
        hook_timeout=timeout,
    )
    code, done = outcomes(machine)
    assert code == 1
    assert done["docs"]["outcome"] == "success"
    assert done["db"]["outcome"] == "cancelled"
    assert said in done["db"]["message"]
    (request,) = unit.requests()
    assert set(request["sources"]) == {"docs"}
    assert said in request["cancelled"]["db"]
    assert log.read_text() == "cancelled\n"


def test_prior_art_34_a_hook_that_isnt_on_this_machine_cancels_only_its_source(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    machine.add_source("docs", tree)
    machine.add_source("db", tree, run_before_backup=str(tmp_path / "not-here"))
    code, done = outcomes(machine)
    assert code == 1
    assert done["docs"]["outcome"] == "success"
    assert "not-here is missing or not executable" in done["db"]["message"]


def test_hooks_come_from_the_machine_alone(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    planted = make_hook(tmp_path, "planted", f"touch {tmp_path}/ran")
    machine.add_source("docs", tree)
    machine.scheduled["docs"] |= {
        "run_before_backup": str(planted),
        "run_after_backup": str(planted),
    }
    assert outcomes(machine)[0] == 0
    assert not (tmp_path / "ran").exists()


def test_the_hook_after_runs_even_when_the_agent_is_stopped(
    machine: AgentMachine, unit: StandInUnit, tree: Path, tmp_path: Path
) -> None:
    after = make_hook(tmp_path, "after", f'echo "$TURKU_OUTCOME" > {tmp_path}/log')
    machine.add_source("docs", tree, run_after_backup=str(after))
    unit.behave(hang=True)
    agent = machine.start("turku-agent-ping")
    wait_until(unit.requests, "the session has begun")
    agent.terminate()
    agent.communicate(timeout=30)
    assert (tmp_path / "log").read_text() == "failed\n"


def test_a_long_backup_doesnt_keep_other_sources_waiting(
    machine: AgentMachine,
    unit: StandInUnit,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkin, "CHECKIN_SECONDS", 0.3)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    before = make_hook(tmp_path, "before", f"read line < {gate}")
    machine.add_source("long", tree, run_before_backup=str(before))
    locations = Locations(machine.root)
    identity = load_identity(locations)
    results = []
    agent = threading.Thread(
        target=lambda: results.append(checkin.ping(locations, identity, Client([machine.api.url])))
    )
    agent.start()
    try:
        wait_until(lambda: len(machine.api.calls("agent_ping_checkin")) > 1, "it checks in again")
        machine.add_source("short", tree)
        wait_until(mirror(unit, "short").is_dir, "the short one is backed up meanwhile")
        assert not mirror(unit, "long").exists()
        machine.scheduled.clear()
    finally:
        gate.write_text("go\n")
        agent.join(30)
    ((code, done),) = results
    assert code == 0
    assert {name: each.word for name, each in done.items()} == {
        "long": "success",
        "short": "success",
    }


@pytest.mark.parametrize("early", [{}, {"docs"}])
def test_an_agent_comes_back_when_the_api_asks_it_to(
    machine: AgentMachine, unit: StandInUnit, tree: Path, early: set[str]
) -> None:
    for name in ("docs", "mail"):
        machine.add_source(name, tree)

    def at_first_only_some(_: object) -> Answer:
        if len(machine.api.calls("agent_ping_checkin")) > 1:
            return {"machine": {"scheduled_sources": machine.scheduled}}
        scheduled = {name: machine.scheduled[name] for name in early}
        return {"machine": {"scheduled_sources": scheduled, "come_back_seconds": 1}}

    machine.api.answers["agent_ping_checkin"] = at_first_only_some
    code, done = outcomes(machine)
    assert code == 0
    assert {name: each["outcome"] for name, each in done.items()} == {
        "docs": "success",
        "mail": "success",
    }
    assert len(machine.api.calls("agent_ping_checkin")) == 2


def test_an_agent_does_not_come_back_for_ever(
    machine: AgentMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkin, "COME_BACK_SECONDS_MAX", 1.5)
    machine.api.answers["agent_ping_checkin"] = {
        "machine": {"scheduled_sources": {}, "come_back_seconds": 1}
    }
    locations = Locations(machine.root)
    result = checkin.ping(locations, load_identity(locations), Client([machine.api.url]))
    assert result == (75, {})
    assert len(machine.api.calls("agent_ping_checkin")) == 3


@pytest.mark.parametrize("pause", [0, -5, 1e9, "soon", True, float("nan")])
def test_a_pause_that_makes_no_sense_is_not_made(machine: AgentMachine, pause: object) -> None:
    machine.api.answers["agent_ping_checkin"] = {
        "machine": {"scheduled_sources": {}, "come_back_seconds": pause}
    }
    done = machine.run("turku-agent-ping")
    assert done.code == 1
    assert "come_back_seconds" in done.errors
    assert len(machine.api.calls("agent_ping_checkin")) == 1


def test_prior_art_08_no_secret_is_in_an_argument_list_or_readable_by_others(
    machine: AgentMachine, unit: StandInUnit, hanging: subprocess.Popen[str]
) -> None:
    (request,) = unit.requests()
    password = request["sources"]["docs"]["password"]
    for pid in [hanging.pid, *machine.children()]:
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert password.encode() not in content
            assert b"a-registration-secret" not in content
    for folder in (machine.state, machine.state / "config.d", machine.run_folder / "sessions"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in [*machine.run_folder.rglob("*"), *machine.state.rglob("*")]:
        if path.is_file() and path.suffix != ".pub" and path.name != "known_hosts":
            assert path.stat().st_mode & 0o077 == 0, path


def test_prior_art_08_a_verbose_run_prints_no_secret(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    done = machine.run("turku-agent-ping", "-v")
    secret = json.loads((machine.state / "config.d/identity.json").read_text())["machine_secret"]
    (request,) = unit.requests()
    for hidden in (secret, request["sources"]["docs"]["password"], "a-registration-secret"):
        assert hidden not in done.errors + done.output


def test_prior_art_22_many_machines_at_once_never_collide_on_a_port(
    tmp_path: Path, unit: StandInUnit, tree: Path
) -> None:
    with contextlib.ExitStack() as stack:
        machines = []
        for number in range(6):
            api = stack.enter_context(running_api())
            machine = AgentMachine(tmp_path / f"machine-{number}", api, unit)
            machine.register()
            machine.add_source(f"docs-{number}", tree)
            machines.append(machine)
        keys = [(each.state / "ssh_key.pub").read_text().strip() for each in machines]
        unit.authorize(*keys)
        unit.behave(hang=True)
        agents = [machine.start("turku-agent-ping") for machine in machines]
        try:
            wait_until(lambda: len(unit.requests()) == len(machines), "all sessions are open")
            ports = {request["port"] for request in unit.requests()}
            assert len(ports) == len(machines)
        finally:
            for agent in agents:
                agent.terminate()
            for agent in agents:
                agent.communicate()

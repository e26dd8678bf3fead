"""Sessions over a real sshd: check-in, what is refused, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.storage.conftest import Machine, Unit, add_machine, wait_for
from tests.support.sshd import running_sshd


def rsyncs_of(unit: Unit) -> list[str]:
    """Return the command lines of the rsyncs that write to the unit's volume."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0] == "rsync" and any(str(unit.volume) in word for word in words):
            found.append(" ".join(words))
    return found


def test_a_due_source_is_pulled_frozen_committed_and_reported(unit: Unit, machine: Machine) -> None:
    spoken = machine.check_in()
    assert (spoken.code, spoken.outcome("docs")) == (0, "received"), spoken
    unit.drain()
    [snapshot] = unit.snapshots(machine)
    [report] = unit.api.reports("docs")
    assert (report["success"], report["snapshot"]) == (True, snapshot)
    tree = unit.volume / "machines" / machine.uuid / "docs/snapshots" / snapshot
    assert (tree / "sub/two").read_text() == "second"


def test_a_volumes_own_mode_comes_before_the_units(unit: Unit, machine: Machine) -> None:
    volume = {"path": str(unit.volume), "accept_new_high_water_pct": 99, "snapshot_mode": "none"}
    unit.configure(volumes={"main": volume}, snapshot_mode="link-dest")
    machine.check_in()
    unit.drain()
    [listed] = unit.run_json("list")["snapshots"]
    assert listed["mode"] == "none"


def test_a_fielded_agent_gets_lines_of_text(unit: Unit, machine: Machine) -> None:
    with machine.daemon():
        connection = machine.connect()
        request = {
            "verbose": True, "action": "checkin", "port": connection.port,
            "sources": machine.logins("docs"), "unheard_of": [1],
        }  # fmt: skip
        connection.send_raw(json.dumps(request) + "\n.\n")
        spoken = connection.finish()
    assert spoken.code == 0
    assert spoken.output.startswith("docs: received")


def test_an_agent_that_keeps_its_side_open_is_let_go_all_the_same(machine: Machine) -> None:
    with machine.daemon():
        request = {"action": "checkin", "sources": machine.logins("docs")}
        spoken = machine.ask(request, half_close=False)
    assert (spoken.code, spoken.outcome("docs")) == (0, "received")


def test_one_source_that_fails_leaves_the_others_alone_and_is_reported(
    unit: Unit, machine: Machine
) -> None:
    machine.schedule(
        docs=machine.source(), gone=machine.source(), strange=machine.source(bwlimit="--daemon")
    )
    with machine.daemon(docs=machine.data, gone=machine.folder / "not-there"):
        sources = machine.logins("docs", "gone", "strange", "undue")
        spoken = machine.ask({"action": "checkin", "sources": sources})
    assert spoken.code == 1
    assert spoken.outcome("docs") == "received"
    assert spoken.outcome("gone") == "failed"
    assert spoken.outcome("strange") == "failed"
    assert spoken.outcome("undue") == "later"
    unit.drain()
    assert [report["success"] for report in unit.api.reports("docs")] == [True]
    assert [report["success"] for report in unit.api.reports("gone")] == [False]
    assert "bwlimit" in unit.api.reports("strange")[0]["summary"]


def test_prior_art_21_a_failed_backup_is_reported_even_when_the_api_was_away(
    unit: Unit, machine: Machine
) -> None:
    machine.data.rename(machine.folder / "moved")
    assert machine.check_in().outcome("docs") == "failed"
    unit.api.down()
    unit.drain()
    assert unit.api.reports("docs") == []
    unit.api.up()
    unit.drain()
    [report] = unit.api.reports("docs")
    assert report["success"] is False
    assert "path" in report["summary"]


def test_prior_art_27_a_report_that_got_no_answer_is_sent_again_and_the_backup_is_not_repeated(
    unit: Unit, machine: Machine
) -> None:
    unit.api.answers["storage_ping_source_update"] = (502, "a proxy gave up")
    machine.check_in()
    unit.drain()
    assert len(unit.snapshots(machine)) == 1
    unit.api.answers["storage_ping_source_update"] = {}
    unit.drain()
    first, second = unit.api.reports("docs")
    assert first == second
    assert len(unit.snapshots(machine)) == 1


def test_a_report_that_the_api_refuses_is_set_aside_and_stops_no_other(
    unit: Unit, machine: Machine
) -> None:
    machine.schedule(docs=machine.source(), other=machine.source())
    unit.api.answers["storage_ping_source_update"] = lambda request: (
        (400, "sources.docs: is not to my taste") if "docs" in request["machine"]["sources"] else {}
    )
    with machine.daemon(docs=machine.data, other=machine.data):
        sources = machine.logins("docs", "other")
        machine.ask({"action": "checkin", "sources": sources})
    unit.drain()
    unit.drain()
    assert len(unit.api.reports("docs")) == 1
    assert len(unit.api.reports("other")) == 1
    assert "reports were refused" in unit.run("turku-storage", "usage", code=1)


def test_prior_art_28_a_full_storage_unit_says_come_back(unit: Unit, machine: Machine) -> None:
    unit.configure(slots=1)
    other = add_machine(unit)
    machine.schedule()
    machine.schedule(docs=machine.source(bwlimit="1"))
    (machine.data / "large").write_bytes(os.urandom(200_000))
    with machine.daemon():
        holding = machine.connect()
        holding.send({"action": "checkin", "sources": machine.logins("docs")})
        wait_for(lambda: rsyncs_of(unit))
        spoken = other.check_in()
        holding.kill()
    assert spoken.code == 75
    assert "come back" in spoken.last["message"]
    wait_for(lambda: not rsyncs_of(unit))
    other.schedule()
    assert other.check_in().code == 0


def test_prior_art_23_a_lost_connection_ends_the_pull_and_frees_the_source(
    unit: Unit, machine: Machine
) -> None:
    (machine.data / "large").write_bytes(os.urandom(300_000))
    machine.schedule(docs=machine.source(bwlimit="1"))
    with machine.daemon():
        connection = machine.connect()
        connection.send({"action": "checkin", "sources": machine.logins("docs")})
        wait_for(lambda: rsyncs_of(unit))
        connection.kill()
        began = time.monotonic()
        wait_for(lambda: not rsyncs_of(unit))
        assert time.monotonic() - began < 10
    wait_for(lambda: "session ends" in unit.log)
    unit.drain()
    [report] = unit.api.reports("docs")
    assert report["success"] is False
    # Whoever notices first says it: the session or its rsync.
    said = ("The agent's SSH connection ended.", "The connection to the machine broke.")
    assert report["summary"].startswith(said)
    machine.schedule()
    assert machine.check_in().code == 0


def test_prior_art_23_a_silent_daemon_does_not_hold_a_session_for_ever(
    unit: Unit, machine: Machine
) -> None:
    unit.configure(io_timeout_seconds=2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        machine.port = mute.getsockname()[1]
        machine.login = {"username": "nobody", "password": "password"}
        connection = machine.connect()
        connection.send({"action": "checkin", "sources": machine.logins("docs")})
        # ssh itself waits for the mute daemon to close its end; the unit has long let go.
        wait_for(lambda: "session ends with 75" in unit.log)
        connection.kill()
    assert "Nothing came from the machine for too long" in unit.log
    assert not rsyncs_of(unit)


def test_prior_art_24_a_killed_session_leaves_no_rsync_behind(unit: Unit, machine: Machine) -> None:
    (machine.data / "large").write_bytes(os.urandom(300_000))
    machine.schedule(docs=machine.source(bwlimit="1"))
    with machine.daemon():
        connection = machine.connect()
        connection.send({"action": "checkin", "sources": machine.logins("docs")})
        wait_for(lambda: rsyncs_of(unit))
        slot = next(path for path in (unit.state / "slots").iterdir() if path.read_text())
        [session] = sessions_with_open(slot)
        os.kill(session, 9)
        # Its output ends, and then the agent ends the connection. Of rsync's two processes here the
        # one that receives would notice by itself when something comes.
        assert connection.process.stdout is not None
        connection.process.stdout.read()
        connection.kill()
        wait_for(lambda: not rsyncs_of(unit), 30)
    machine.schedule()
    assert machine.check_in().code == 0


def sessions_with_open(path: Path) -> list[int]:
    """Return the processes that have a file open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == str(path):
                found.append(int(descriptor.parts[2]))
        except OSError:
            continue
    return sorted(set(found))


def test_prior_art_01_hostile_names_reach_no_file(unit: Unit, machine: Machine) -> None:
    hostile = ["../../../root/.ssh", "..", "a/b", "-e", ".hidden", "a\nb", "\udcff"]
    machine.schedule(**{name: machine.source() for name in hostile}, docs=machine.source())
    before = sorted(unit.root.parent.rglob("*"))
    with machine.daemon():
        sources = machine.logins("docs", *hostile)
        spoken = machine.ask({"action": "checkin", "sources": sources})
    assert spoken.outcome("docs") == "received"
    assert len([e for e in spoken.events if "left out" in e.get("message", "")]) == len(hostile)
    unit.drain()
    folders = [path.name for path in (unit.volume / "machines" / machine.uuid).iterdir()]
    assert [name for name in folders if not name.startswith(".")] == ["docs"]
    new = {path.relative_to(unit.root.parent).parts[0] for path in unit.root.parent.rglob("*")}
    assert new == {path.relative_to(unit.root.parent).parts[0] for path in before}


def test_prior_art_01_a_hostile_restore_reads_no_file(unit: Unit, machine: Machine) -> None:
    machine.check_in()
    unit.drain()
    for wish in (
        {"source": "../docs"},
        {"source": "docs", "snapshot": "../../../../etc"},
        {"source": "docs", "paths": ["../../../../etc/passwd"]},
        {"source": "docs", "paths": ["/etc/passwd"]},
        {"source": "docs", "machine": "../" + machine.uuid},
    ):
        target = machine.folder / "restored"
        target.mkdir(exist_ok=True)
        with machine.daemon(turku_restore=target):
            request = {"action": "restore", "restore": wish}
            spoken = machine.ask({**request, "sources": machine.logins("turku-restore")})
        assert spoken.code == 1, wish
        assert list(target.iterdir()) == [], wish


def test_a_filter_rule_is_data_and_never_an_option(unit: Unit, machine: Machine) -> None:
    (machine.data / "--daemon").write_text("kept out")
    machine.schedule(docs=machine.source(exclude=["--daemon"], filter=["- *.tmp"]))
    (machine.data / "x.tmp").write_text("kept out")
    assert machine.check_in().code == 0
    unit.drain()
    [snapshot] = unit.snapshots(machine)
    tree = unit.volume / "machines" / machine.uuid / "docs/snapshots" / snapshot
    assert sorted(path.name for path in tree.iterdir()) == ["one", "sub"]


@pytest.mark.needs_root
def test_the_port_of_another_users_service_is_refused(unit: Unit, machine: Machine) -> None:
    # The kernel remembers who made the socket.
    os.seteuid(65534)
    try:
        service = socket.create_server(("127.0.0.1", 0))
    finally:
        os.seteuid(0)
    with service, machine.daemon():
        port = service.getsockname()[1]
        request = {"action": "checkin", "sources": machine.logins("docs"), "port": port}
        spoken = machine.ask(request)
    assert spoken.outcome("docs") == "failed"
    assert "belongs to someone else" in spoken.output


def test_a_port_where_nothing_listens_is_refused(machine: Machine) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with machine.daemon():
        request = {"action": "checkin", "sources": machine.logins("docs"), "port": port}
        spoken = machine.ask(request)
    assert "nothing listens there" in spoken.output


@pytest.mark.parametrize(
    "raw", ["", ".\n", "[]\n.\n", "{\n.\n", '{"action": "format"}\n.\n', "[" * 100_000 + "\n.\n"]
)
def test_a_request_that_makes_no_sense_is_refused_with_a_sentence(
    machine: Machine, raw: str
) -> None:
    connection = machine.connect()
    connection.send_raw(raw)
    spoken = connection.finish()
    assert spoken.code == 1
    assert re.fullmatch(r"The request .*\.\n", spoken.output)


def test_the_api_being_down_is_a_reason_to_come_back(unit: Unit, machine: Machine) -> None:
    unit.api.down()
    spoken = machine.check_in()
    assert spoken.code == 75
    assert "can't be reached" in spoken.last["message"]


def test_a_machine_that_the_api_does_not_know_here_is_refused(unit: Unit, machine: Machine) -> None:
    unit.api.answers["storage_ping_checkin"] = (404, "machine")
    spoken = machine.check_in()
    assert spoken.code == 1


def test_no_password_of_a_session_is_in_a_log_or_an_argument(unit: Unit, machine: Machine) -> None:
    (machine.data / "large").write_bytes(os.urandom(100_000))
    machine.schedule(docs=machine.source(bwlimit="50"))
    with machine.daemon():
        connection = machine.connect()
        connection.send({"action": "checkin", "sources": machine.logins("docs")})
        wait_for(lambda: rsyncs_of(unit))
        assert machine.login["password"] not in " ".join(rsyncs_of(unit))
        connection.finish()
    assert machine.login["password"] not in unit.log
    for path in unit.root.rglob("*"):
        if path.is_file():
            assert machine.login["password"].encode() not in path.read_bytes(), path


def test_a_full_state_folder_is_said_and_costs_nothing_but_the_report(
    unit: Unit, machine: Machine
) -> None:
    # A file where a folder belongs fails like a full disk does, for root too.
    (unit.state / "reports").write_text("")
    machine.schedule(docs=machine.source(), gone=machine.source())
    with machine.daemon(docs=machine.data, gone=machine.folder / "not-there"):
        sources = machine.logins("docs", "gone")
        spoken = machine.ask({"action": "checkin", "sources": sources})
    assert (spoken.outcome("gone"), spoken.outcome("docs")) == ("failed", "received"), spoken
    assert "can't be reported" in unit.log


def test_prior_art_23_a_half_open_connection_is_noticed_by_keepalives(
    unit: Unit, machine: Machine
) -> None:
    (machine.data / "large").write_bytes(os.urandom(300_000))
    machine.schedule(docs=machine.source(bwlimit="1"))
    keepalives = "ClientAliveInterval 1\nClientAliveCountMax 3\n"
    keys = unit.state / ".ssh/authorized_keys"
    with running_sshd(keepalives, authorized_keys=keys) as quick, machine.daemon():
        unit.sshd = quick
        connection = machine.connect()
        connection.send({"action": "checkin", "sources": machine.logins("docs")})
        wait_for(lambda: rsyncs_of(unit))
        # A network that is gone says nothing, and neither does a stopped client.
        connection.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: "session ends" in unit.log)
        connection.kill()
    assert rsyncs_of(unit) == []
    assert "connection ended" in unit.log


def test_many_machines_at_once_are_all_backed_up(unit: Unit, machine: Machine) -> None:
    machines = [machine, *(add_machine(unit) for _ in range(5))]
    by_uuid = {each.uuid: each for each in machines}
    unit.api.answers["storage_ping_checkin"] = lambda request: {
        "machine": {
            "uuid": request["machine"]["uuid"],
            "unit_name": "unit",
            "scheduled_sources": {"docs": by_uuid[request["machine"]["uuid"]].source()},
        }
    }
    with ThreadPoolExecutor(len(machines)) as pool:
        spoken = list(pool.map(Machine.check_in, machines))
    assert [each.code for each in spoken] == [0] * len(machines), spoken
    unit.drain()
    assert [len(unit.snapshots(each)) for each in machines] == [1] * len(machines)
    assert len(unit.api.reports("docs")) == len(machines)


def test_one_machines_second_session_is_told_to_come_back(unit: Unit, machine: Machine) -> None:
    (machine.data / "large").write_bytes(os.urandom(200_000))
    machine.schedule(docs=machine.source(bwlimit="1"))
    with machine.daemon():
        request = {"action": "checkin", "sources": machine.logins("docs")}
        first = machine.connect()
        first.send(request)
        wait_for(lambda: rsyncs_of(unit))
        spoken = machine.ask(request)
        first.kill()
    assert (spoken.code, "of this machine" in spoken.last["message"]) == (75, True)

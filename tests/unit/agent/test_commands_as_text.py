"""The programs that the agent runs and the files that it hands them, as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turku_core.agent.processes import make_guarded_command
from turku_core.agent.rsync_daemon import (
    Module,
    make_daemon_command,
    make_daemon_environment,
    make_module,
    make_rules,
    render_configuration,
)
from turku_core.agent.session import SessionPlan, parse_event, session_json
from turku_core.agent.tunnel import (
    allocated_port,
    explain,
    has_aes_instructions,
    known_hosts_text,
    make_ssh_command,
)
from turku_core.credentials import make_ssh_key_pair
from turku_core.protocol.messages import SourceSettings, StorageAddress

KEY = " ".join(make_ssh_key_pair("")[1].split()[:2])


def address(host: str = "storage.example.com", port: int = 22) -> StorageAddress:
    return StorageAddress.from_json(
        {
            "name": "unit-0",
            "ssh_ping_host": host,
            "ssh_ping_host_keys": [KEY],
            "ssh_ping_port": port,
            "ssh_ping_user": "turku-storage",
        },
        "storage",
    )


def test_the_ssh_command_of_a_session() -> None:
    assert " ".join(make_ssh_command(address(port=2222), forward=True)) == (
        "ssh -F /dev/null -o BatchMode=yes -o ClearAllForwardings=no -o ConnectTimeout=30 "
        "-o ConnectionAttempts=1 -o ControlMaster=no -o ControlPath=none "
        "-o ExitOnForwardFailure=yes -o ForwardAgent=no -o ForwardX11=no "
        "-o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none "
        "-o IdentityFile=ssh_key -o LogLevel=INFO -o PasswordAuthentication=no "
        "-o PermitLocalCommand=no -o PreferredAuthentications=publickey -o RequestTTY=no "
        "-o ServerAliveCountMax=4 -o ServerAliveInterval=15 -o StrictHostKeyChecking=yes "
        "-o TCPKeepAlive=yes -o UpdateHostKeys=no -o UserKnownHostsFile=known_hosts "
        "-o VerifyHostKeyDNS=no -R 0:/proc/self/cwd/rsync -p 2222 -l turku-storage "
        "-- storage.example.com turku-ping-remote"
    )


def test_aes_is_wished_for_first_where_the_processor_has_instructions_for_it() -> None:
    plain = make_ssh_command(address(), forward=True)
    wished = make_ssh_command(address(), forward=True, has_aes=True)
    added = "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
    assert added not in plain
    assert [word for word in wished if word not in plain] == [added]


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 aes avx\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd aes\n", True),
        ("processor\t: 0\nflags\t\t: fpu vaesx\n", False),
        ("model name\t: with aes\nflags\t\t: fpu\n", False),
        ("", False),
    ],
)
def test_the_kernel_says_whether_there_are_instructions_for_aes(
    tmp_path: Path, cpuinfo: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert has_aes_instructions(tmp_path / "cpuinfo") is expected
    assert not has_aes_instructions(tmp_path / "nothing")


def test_a_session_without_a_tunnel_forwards_nothing() -> None:
    command = make_ssh_command(address(), forward=False)
    assert "ClearAllForwardings=yes" in command
    assert "-R" not in command


def test_prior_art_23_ssh_notices_a_dead_network_within_a_minute() -> None:
    command = make_ssh_command(address(), forward=True)
    assert "ServerAliveInterval=15" in command
    assert "ServerAliveCountMax=4" in command
    assert "ConnectTimeout=30" in command


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        ("storage.example.com", 22, "storage.example.com"),
        ("storage.example.com", 2222, "[storage.example.com]:2222"),
        ("192.0.2.7", 22, "192.0.2.7"),
        ("2001:db8::7", 22, "2001:db8::7"),
        ("2001:db8::7", 2222, "[2001:db8::7]:2222"),
    ],
)
def test_known_hosts_has_exactly_the_announced_keys(host: str, port: int, name: str) -> None:
    assert known_hosts_text(address(host, port)) == f"{name} {KEY}\n"


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("Allocated port 37575 for remote forward to /proc/self/cwd/rsync", 37575),
        ("Allocated port 0 for remote forward to x", None),
        ("Allocated port 99999 for remote forward to x", None),
        ("banner: Allocated port 22 for remote forward to x", None),
        ("Warning: Permanently added", None),
    ],
)
def test_the_allocated_port_is_read_from_sshs_words(line: str, port: int | None) -> None:
    assert allocated_port(line) == port


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Host key verification failed.", "host key"),
        ("u@h: Permission denied (publickey).", "refuses this machine's SSH key"),
        ("ssh: Could not resolve hostname h: Name or service not known", "can't be resolved"),
        ("ssh: connect to host h port 22: Connection refused", "nothing listens"),
        ("ssh: connect to host h port 22: Connection timed out", "can't be reached"),
        ("Error: remote port forwarding failed for listen port 0", "remote forward"),
        ("Timeout, server h not responding.", "broke off"),
        ("something \x1b[31mnew", "something ?[31mnew"),
    ],
)
def test_sshs_words_become_a_sentence(line: str, words: str) -> None:
    sentence = explain(address(), ["a line before", line])
    assert words in sentence
    assert "unit-0 (storage.example.com, port 22)" in sentence
    assert sentence.endswith(".")


def test_children_are_bound_to_the_agents_life() -> None:
    assert make_guarded_command(["ssh", "host"]) == [
        *("setpriv", "--pdeathsig", "KILL", "--", "ssh", "host"),
    ]
    assert make_daemon_command() == ["rsync", "--daemon", "--no-detach", "--config=rsyncd.conf"]


def test_what_is_said_in_a_session() -> None:
    module = Module("docs", Path("/srv"), "user", "password")
    plan = SessionPlan(address(), "checkin", [module], {"cancelled": {"db": "because"}})
    text = session_json(plan, 40000, verbose=False)
    assert text.endswith("}\n.\n")
    assert text.count("\n") == 2
    assert json.loads(text.removesuffix(".\n")) == {
        "verbose": False,
        "action": "checkin",
        "port": 40000,
        "sources": {"docs": {"username": "user", "password": "password"}},
        "events": True,
        "cancelled": {"db": "because"},
    }


def test_a_list_has_no_port() -> None:
    text = session_json(SessionPlan(address(), "list"), None, verbose=True)
    assert json.loads(text.removesuffix(".\n")) == {
        "verbose": True,
        "action": "list",
        "sources": {},
        "events": True,
    }


def test_a_line_of_a_unit_is_an_event_or_a_message() -> None:
    assert parse_event('{"event": "result", "ok": true}') == {"event": "result", "ok": True}
    for line in ("plain words", "{broken", '{"no": "event"}', '{"event": 1}', "[1]"):
        assert parse_event(line) == {"event": "message", "message": line}


COMMON = """\
# The rsync daemon of one session of turku-agent-ping; gone with the session.
# It serves one connection on its standard input and runs in the session's folder, so the names of
# the files below are relative. Paths come from the environment: rsync expands %NAME% in every
# value and "%%" can't be relied on, and what an expansion gives is not parsed again.
log file = rsyncd.log
lock file = rsyncd.lock
reverse lookup = no
max verbosity = 2
"""

READ = """
[docs]
path = %TURKU_PATH_1%
list = no
read only = yes
auth users = one
secrets file = secrets-1
strict modes = yes
use chroot = yes
munge symlinks = no
uid = 0
gid = 0
numeric ids = yes
fake super = no
max connections = 4
timeout = 3600
filter = merge rules-1
refuse options = copy-links copy-unsafe-links copy-dirlinks keep-dirlinks copy-devices files-from \
remove-source-files fake-super
pre-xfer exec = test "$RSYNC_REQUEST" = "$RSYNC_MODULE_NAME/" || test "$RSYNC_REQUEST" = \
"$RSYNC_MODULE_NAME" || { echo "only the whole module may be read"; exit 1; }
"""

WRITE = """
[turku-restore]
path = %TURKU_PATH_2%
list = no
read only = no
write only = yes
auth users = two
secrets file = secrets-2
strict modes = yes
use chroot = no
munge symlinks = yes
numeric ids = yes
fake super = no
max connections = 4
timeout = 3600
refuse options = delete fake-super keep-dirlinks write-devices
"""


def test_the_daemons_configuration_as_root_and_as_another_user() -> None:
    docs = Module("docs", Path("/srv/a b"), "one", "password-one", ("- *.key",))
    target = Module("turku-restore", Path("/restore"), "two", "password-two", (), True)
    assert render_configuration([docs], as_root=True, chroot=True) == COMMON + READ
    both = render_configuration([docs, target], as_root=False, chroot=False)
    confined = READ.replace("use chroot = yes", "use chroot = no").replace("uid = 0\ngid = 0\n", "")
    assert both == COMMON + confined + WRITE
    environment = make_daemon_environment([docs, target])
    assert environment["TURKU_PATH_1"] == "/srv/a b"
    assert environment["TURKU_PATH_2"] == "/restore"
    assert set(environment) == {"PATH", "LC_ALL", "TURKU_PATH_1", "TURKU_PATH_2"}


def test_prior_art_08_each_sessions_credentials_are_fresh_and_random() -> None:
    made = [make_module("docs", Path("/srv")) for _ in range(50)]
    assert len({module.password for module in made}) == 50
    assert len({module.username for module in made}) == 50
    assert all(len(module.password) >= 43 for module in made)


def source(**settings: object) -> SourceSettings:
    return SourceSettings.from_json({"path": "/srv", **settings}, "source")


@pytest.mark.parametrize(
    ("settings", "announced", "rules"),
    [
        ({}, (), ()),
        ({"exclude": ["*.o", "+ keep", "- x", "# odd"]}, (), ("- *.o", "+ keep", "- x", "- # odd")),
        ({"filter": ["+ /a/", "- /*"], "exclude": ["b"]}, (), ("+ /a/", "- /*", "- b")),
        # Without a set of the API's among them, the API's rules don't count.
        ({"filter": ["- a"]}, ("+ a", "!"), ("- a",)),
        ({"exclude": ["a"]}, ("+ a",), ("- a",)),
        # A set is taken in the place where the machine names it.
        ({"filter": ["- a", "merge x", "- b"]}, ("- a", "+ d", "- b"), ("- a", "+ d", "- b")),
        ({"filter": ["merge x"], "exclude": ["e"]}, ("- c",), ("- c", "- e")),
        ({"filter": ["merge x", "merge y", "- b"]}, ("- c", "- d", "- b"), ("- c", "- d", "- b")),
        # It can't take back the machine's own rules, and can't make them go away.
        ({"filter": ["- a", "merge x", "- b"]}, ("- a", "!", "- c"), ("- a", "- c", "- b")),
        ({"filter": ["- a", "merge x"]}, (), ("- a",)),
    ],
)  # fmt: skip
def test_prior_art_07_the_daemon_enforces_the_machines_own_rules(
    settings: dict[str, object], announced: tuple[str, ...], rules: tuple[str, ...]
) -> None:
    assert make_rules(source(**settings), announced) == rules

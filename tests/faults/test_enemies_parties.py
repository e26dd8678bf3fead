"""A hostile machine, the thief of an identity, and someone on the wire, at a whole real Turku."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults.hostile import NASTY
from tests.faults.tally import Tally, times
from tests.faults.tunnels import tunnels_of
from turku_core.local.turku import LocalTurku, Machine

SECONDS = 60
KEY_GONE_SECONDS = 20
"""What the security page promises, and a loaded host needs some more."""

MARK = b"a-line-that-nobody-else-is-to-read"


def make_machine(turku: LocalTurku, folder: Path, **settings: Any) -> Machine:
    """Make a machine of a new name with one source, ``docs``."""
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "file").write_bytes(MARK * 100)
    source = {"path": str(data), **settings}
    return turku.add_machine(f"unit-{uuid.uuid4().hex[:8]}", {"docs": source})


def backed_up(turku: LocalTurku, folder: Path) -> Machine:
    """Make a machine and one snapshot of it."""
    machine = make_machine(turku, folder)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(SECONDS)
    return machine


@pytest.fixture(scope="module")
def victim(turku: LocalTurku, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with one snapshot, which everybody is after."""
    return backed_up(turku, tmp_path_factory.mktemp("victim") / "m")


@pytest.fixture(scope="module")
def enemy(turku: LocalTurku, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that was broken into; a backup of it is due."""
    return make_machine(turku, tmp_path_factory.mktemp("enemy") / "m")


def login(machine: Machine) -> dict[str, str]:
    """Return what a machine shows to the API."""
    path = machine.root / "var/lib/turku-agent/config.d/identity.json"
    identity = json.loads(path.read_text())
    return {"uuid": identity["machine_uuid"], "secret": identity["machine_secret"]}


def call(turku: LocalTurku, name: str, payload: Any) -> requests.Response:
    """Make a v1 call by hand."""
    return requests.post(
        f"{turku.running.api_url}/{name}",
        json=payload,
        verify=str(turku.layout.ca_certificate),
        timeout=SECONDS,
    )


@dataclass
class Thief:
    """Somebody with the SSH key of a machine and an ssh of their own making."""

    turku: LocalTurku
    key: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *options: str) -> list[str]:
        """Return an ssh command to the storage unit."""
        layout = self.turku.layout
        settings = json.loads(
            (layout.storage / "etc/turku-storage/config.d/10-local.json").read_text()
        )
        known_hosts = self.key.parent / "known_hosts"
        [host_key] = settings["ssh_ping_host_keys"]
        port = settings["ssh_ping_port"]
        known_hosts.write_text(f"[{settings['ssh_ping_host']}]:{port} {host_key}\n")
        return [
            "ssh", "-F", "/dev/null", "-T", "-i", str(self.key), "-p", str(port),
            "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
            "-o", f"UserKnownHostsFile={known_hosts}", "-o", "StrictHostKeyChecking=yes",
            *options, "-l", settings.get("ssh_ping_user", "root"), settings["ssh_ping_host"],
            "turku-ping-remote",
        ]  # fmt: skip

    def ask(self, said: bytes, *options: str) -> tuple[int, str]:
        """Say something in a session; its exit code and all that came back."""
        done = subprocess.run(
            self.command(*options), input=said, capture_output=True, timeout=SECONDS, check=False
        )
        return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")

    def ask_json(self, request: dict[str, Any]) -> tuple[int, str]:
        """Make a request as the protocol has it."""
        return self.ask(json.dumps({"events": True, **request}).encode() + b"\n.\n")


def thief_of(turku: LocalTurku, machine: Machine, folder: Path) -> Thief:
    """Steal a machine's SSH key."""
    folder.mkdir(exist_ok=True)
    key = folder / "stolen"
    shutil.copy(machine.root / "var/lib/turku-agent/ssh_key", key)
    key.chmod(0o600)
    return Thief(turku, key)


def everything_below(folder: Path) -> set[str]:
    """Return the paths below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.only_in_full
def test_a_machine_sees_and_gets_nothing_of_another(
    turku: LocalTurku, victim: Machine, enemy: Machine, tmp_path: Path, tally: Tally
) -> None:
    thief = thief_of(turku, enemy, tmp_path / "keys")
    [snapshot] = victim.snapshots()
    answers = []
    code, said = thief.ask_json({"action": "list"})
    answers.append(said)
    assert code == 0
    for wish in (
        {"machine": victim.uuid, "source": "docs"},
        {"machine": victim.uuid, "source": "docs", "snapshot": snapshot["id"]},
        {"machine": victim.uuid.upper(), "source": "docs"},
        {"source": f"../{victim.uuid}/docs"},
        {"source": "docs", "snapshot": f"../../../{victim.uuid}/docs/snapshots/{snapshot['id']}"},
        {"source": "docs", "paths": [f"../../../../{victim.uuid}"]},
    ):
        module = {"turku-restore": {"username": "u", "password": "12345678"}}
        code, said = thief.ask_json(
            {"action": "restore", "port": 1, "sources": module, "restore": wish}
        )
        assert code != 0
        answers.append(said)
    # Its UUID comes from its key, whatever it calls itself.
    code, said = thief.ask_json({"action": "list", "machine": victim.uuid, "uuid": victim.uuid})
    answers.append(said)
    told = [said for said in answers if snapshot["id"] in said or '"file"' in said]
    told += [said for said in answers[:1] + answers[-1:] if victim.uuid in said]
    # The API, too, knows nothing of the other.
    own = login(enemy)
    for name in ("agent_ping_checkin", "agent_ping_restore", "agent_status"):
        assert victim.uuid not in call(turku, name, {"machine": own}).text
        wrong = {"machine": {"uuid": victim.uuid, "secret": own["secret"]}}
        assert call(turku, name, wrong).status_code == 403
    tally.note("a machine asks for another one's backups", times=len(answers) + 6, lost=len(told))
    assert told == []


def hostile_request(dice: random.Random, victim: str) -> bytes:
    """Return what an agent might say in a session that has nothing good in mind."""
    request: dict[str, Any] = {
        "action": dice.choice(["checkin", "restore", "list"]),
        "port": dice.choice([1, 22, 65535, 0, -1, "22", 2**40, None]),
        "events": dice.choice([True, False, 1]),
        "sources": {
            dice.choice([*NASTY, "docs", "turku-restore"]): {
                "username": dice.choice(["u", *NASTY]),
                "password": dice.choice(["12345678", *NASTY]),
            }
        },
        "restore": {
            "machine": dice.choice([victim, None, "../x"]),
            "source": dice.choice(["docs", *NASTY]),
            "snapshot": dice.choice(["latest", "mirror", *NASTY]),
            "paths": [dice.choice(NASTY)],
        },
        "cancelled": {dice.choice(["docs", *NASTY]): dice.choice(NASTY)},
    }
    for _ in range(dice.randrange(3)):
        request.pop(dice.choice(list(request)), None)
        request = request or {"action": "list"}
    raw = json.dumps(request).encode()
    if dice.random() < 0.3:
        mangled = bytearray(raw)
        for _ in range(3):
            mangled[dice.randrange(len(mangled))] = dice.randrange(256)
        raw = bytes(mangled).replace(b"\n", b" ")
    ending = dice.choice([b"\n.\n", b"\n.\n", b"\n.\n", b"", b"\n"])
    return raw + ending


@pytest.mark.only_in_full
def test_whatever_an_agent_says_in_a_session_is_refused_in_words(
    turku: LocalTurku,
    victim: Machine,
    enemy: Machine,
    tmp_path: Path,
    tally: Tally,
    dice: random.Random,
) -> None:
    thief = thief_of(turku, enemy, tmp_path / "keys")
    volume = turku.layout.volume / "machines"
    before = everything_below(volume)
    beside = {path for path in everything_below(turku.layout.folder) if "/" not in path}
    count = times(4, 150)
    for _ in range(count):
        said = hostile_request(dice, victim.uuid)
        code, answer = thief.ask(said)
        assert code in (0, 1, 75), (said, answer)
        assert "Traceback" not in answer, said
        assert "Unexpected error" not in answer, said
    turku.wait_until_committed(SECONDS)
    # Its own folder has no snapshot more, and nothing appeared anywhere else.
    lost = {
        path
        for path in everything_below(volume) ^ before
        if not path.startswith(enemy.uuid) or "/snapshots/" in path
    }
    after = {path for path in everything_below(turku.layout.folder) if "/" not in path}
    log = (turku.layout.storage / "var/lib/turku-storage/sessions.log").read_text()
    assert "Traceback" not in log
    tally.note("hostile requests in sessions", times=count, lost=len(lost) + len(after - beside))
    assert lost == set()
    assert after - beside == set()
    assert len(victim.snapshots()) == 1


@pytest.mark.only_in_full
def test_who_names_another_machines_tunnel_finds_a_password_at_its_end(
    turku: LocalTurku, tmp_path: Path, tally: Tally
) -> None:
    enemy = make_machine(turku, tmp_path / "enemy")
    other = make_machine(turku, tmp_path / "other", bwlimit="100")
    (tmp_path / "other/data/large").write_bytes(os.urandom(2_000_000))
    thief = thief_of(turku, enemy, tmp_path / "keys")
    # Something has to be due for the enemy, so that the unit pulls at all.
    due = call(turku, "agent_ping_checkin", {"machine": login(enemy)}).json()
    assert list(due["machine"]["scheduled_sources"]) == ["docs"]
    ping = subprocess.Popen(
        other.command("turku-agent-ping"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        mirror = turku.layout.volume / "machines" / other.uuid / "docs"
        wait_for(lambda: bool(tunnels_of(turku)) and bool(list(mirror.rglob("*large*"))))
        [port] = tunnels_of(turku)
        logins = {"docs": {"username": "turku-0123456789abcdef", "password": "x" * 43}}
        code, said = thief.ask_json({"action": "checkin", "port": port, "sources": logins})
    finally:
        ping.terminate()
        ping.wait(SECONDS)
    assert code == 1, said
    assert "password" in said or "auth" in said, said
    own = turku.layout.volume / "machines" / enemy.uuid
    stolen = [path for path in own.rglob("*") if path.is_file() and MARK in path.read_bytes()]
    tally.note("another machine's tunnel is named", times=1, lost=len(stolen))
    assert stolen == []


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't come to pass"
        time.sleep(0.05)


@pytest.mark.only_in_full
def test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired(
    turku: LocalTurku, tmp_path: Path, tally: Tally
) -> None:
    machine = backed_up(turku, tmp_path / "machine")
    thief = thief_of(turku, machine, tmp_path / "keys")
    code, said = thief.ask_json({"action": "list"})
    # The page says so: with the key alone, its snapshots can be seen.
    assert (code, machine.uuid in said) == (0, True)
    open_session = subprocess.Popen(
        thief.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert open_session.stdin is not None
        open_session.stdin.write(b'{"action": "list",')
        open_session.stdin.flush()
        log = turku.layout.logs / "sshd.log"
        seen = len(re.findall("Accepted", log.read_text())) if log.exists() else 0
        time.sleep(0.5 if seen == 0 else 0.2)
        turku.api_run("retire", machine.uuid)
        for name in ("agent_ping_checkin", "agent_ping_restore", "agent_status", "update_config"):
            assert call(turku, name, {"machine": login(machine)}).status_code == 403
        keys = turku.layout.storage / "var/lib/turku-storage/.ssh/authorized_keys"
        wait_for(lambda: machine.uuid not in keys.read_text(), KEY_GONE_SECONDS * 3)
        assert thief.ask_json({"action": "list"})[0] == 255
    finally:
        open_session.kill()
        open_session.communicate()
    # The backups stay.
    kept = list((turku.layout.volume / "machines" / machine.uuid).glob("docs/snapshots/*.json"))
    tally.note("a stolen identity, and its machine retired", times=7, lost=int(not kept))
    assert kept


@pytest.mark.only_in_full
def test_a_stolen_registration_key_shows_nothing_and_changes_nobody(
    turku: LocalTurku, victim: Machine, tally: Tally
) -> None:
    machine = victim
    keys = json.loads(turku.layout.registration_keys.read_text())
    before = turku.api_run("show-machine", "--json", machine.uuid).output
    mine = login(machine)
    wrong = {"uuid": mine["uuid"], "secret": keys["machine"]["secret"]}
    public = (machine.root / "var/lib/turku-agent/ssh_key.pub").read_text().strip()
    body = {"unit_name": "thief", "ssh_public_key": public, "sources": {}}
    tried = 0
    for auth in (keys["machine"], keys["storage"], keys["machine"]["secret"]):
        for name in ("agent_ping_checkin", "agent_ping_restore", "agent_status"):
            assert call(turku, name, {"auth": auth, "machine": wrong}).status_code == 403
            tried += 1
        known = call(turku, "update_config", {"auth": auth, "machine": {**wrong, **body}})
        assert known.status_code == 403
        # Nor does a newcomer get the SSH key of one that is there.
        newcomer = {"uuid": str(uuid.uuid4()), "secret": "a-secret-of-my-own", **body}
        taken = call(turku, "update_config", {"auth": auth, "machine": newcomer})
        assert taken.status_code in (400, 403)
        tried += 2
    # A machines' key makes no storage unit.
    unit = {"name": "mine", "secret": "a-secret-of-my-own", "ssh_ping_host": "h",
            "ssh_ping_port": 22, "ssh_ping_user": "u", "ssh_ping_host_keys": [public],
            "space_total": 1, "space_available": 1}  # fmt: skip
    answer = call(turku, "storage_update_config", {"auth": keys["machine"], "storage": unit})
    assert answer.status_code == 403
    after = turku.api_run("show-machine", "--json", machine.uuid).output
    tally.note("a stolen registration key is shown", times=tried + 1)
    assert re.sub(r"\d", "", before) == re.sub(r"\d", "", after)


@dataclass
class Wire:
    """A relay in the middle of a line, that keeps all it carries and may change a byte."""

    target: tuple[str, int]
    carried: bytearray = field(default_factory=bytearray)
    flip_at: int | None = None
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def port(self) -> int:
        """Where it listens."""
        number: int = self.listener.getsockname()[1]
        return number

    def serve(self) -> None:
        """Carry every connection until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.target, timeout=SECONDS)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                changed = bytearray(block)
                at = self.flip_at
                if at is not None and at < len(self.carried) + len(block):
                    changed[max(0, at - len(self.carried)) % len(block)] ^= 0x20
                    self.flip_at = None
                self.carried += block
                sink.sendall(changed)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tapped(target: tuple[str, int]) -> Iterator[Wire]:
    """Tap a line while the context lasts."""
    wire = Wire(target)
    thread = threading.Thread(target=wire.serve, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        wire.listener.shutdown(socket.SHUT_RDWR)
        wire.listener.close()
        thread.join(SECONDS)


@contextlib.contextmanager
def on_the_wire(turku: LocalTurku, machine: Machine) -> Iterator[tuple[Wire, Wire]]:
    """Tap a machine's lines, to the API and to the storage unit."""
    api = urllib.parse.urlsplit(turku.running.api_url)
    assert api.hostname is not None and api.port is not None
    unit = turku.layout.storage / "etc/turku-storage/config.d"
    settings = json.loads((unit / "10-local.json").read_text())
    sshd = (settings["ssh_ping_host"], settings["ssh_ping_port"])
    with tapped((api.hostname, api.port)) as to_api, tapped(sshd) as to_unit:
        changed = machine.root / "etc/turku-agent/config.d/99-wire.json"
        changed.write_text(json.dumps({"api_url": f"https://127.0.0.1:{to_api.port}{api.path}"}))
        (unit / "99-wire.json").write_text(json.dumps({"ssh_ping_port": to_unit.port}))
        turku.update_storage()
        try:
            yield to_api, to_unit
        finally:
            (unit / "99-wire.json").unlink()
            changed.unlink()
            turku.update_storage()


@pytest.mark.only_in_full
def test_who_listens_on_the_wire_hears_neither_secrets_nor_data_and_changes_none(
    turku: LocalTurku, tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    machine = make_machine(turku, tmp_path / "machine")
    count = times(2, 60)
    flipped = 0
    restore = ("turku-agent-ping", "--restore", "--source", "docs", "--target")
    with on_the_wire(turku, machine) as (to_api, to_unit):
        machine.run("turku-agent-ping")
        turku.wait_until_committed(SECONDS)
        heard = things_heard(machine, to_api, to_unit)
        wrong = []
        for number in range(count):
            wire = dice.choice((to_api, to_unit))
            # Anywhere: in the greetings, the handshake, or the data.
            wire.flip_at = len(wire.carried) + dice.randrange(1200)
            target = tmp_path / str(number)
            done = machine.run(*restore, str(target), check=False)
            assert done.exit_code in (0, 1, 75), done.errors
            assert "Traceback" not in done.errors
            flipped += wire.flip_at is None
            wire.flip_at = None
            there = (target / "file").exists() and (target / "file").read_bytes() != MARK * 100
            if there or (done.exit_code == 0 and not (target / "file").exists()):
                wrong.append(target)
        # All is well again without anybody's doing.
        machine.run(*restore, str(tmp_path / "after"))
    assert (tmp_path / "after/file").read_bytes() == MARK * 100
    tally.note("lines that somebody listens to", times=2, lost=len(heard))
    tally.note("bytes changed on the wire", times=flipped, lost=len(wrong))
    assert heard == []
    assert wrong == []
    assert flipped


def things_heard(machine: Machine, *wires: Wire) -> list[bytes]:
    """Return what of a machine's secrets and data could be heard in the clear."""
    mine = login(machine)
    telling = [mine["secret"].encode(), mine["uuid"].encode(), MARK[:20], b"scheduled_sources",
               b"@RSYNCD", b"BEGIN OPENSSH"]  # fmt: skip
    for wire in wires:
        assert len(wire.carried) > 2000, "nothing went over it"
    return [word for wire in wires for word in telling if word in wire.carried]


@pytest.mark.only_in_full
def test_no_metrics_hold_a_secret(turku: LocalTurku, victim: Machine, tally: Tally) -> None:
    machine = victim
    keys = json.loads(turku.layout.registration_keys.read_text())
    unit = turku.layout.storage / "var/lib/turku-storage/config.d/identity.json"
    secrets = [login(machine)["secret"], json.loads(unit.read_text())["secret"]]
    secrets += [key["secret"] for key in keys.values()]
    printed = [
        turku.api_run("metrics").output,
        turku.storage_run("turku-storage", "metrics").output,
        machine.run("turku-agent-ping", "--metrics").output,
    ]
    assert all("turku_" in text for text in printed)
    telling = [secret for secret in secrets for text in printed if secret in text]
    tally.note("metrics, searched for every secret", times=len(printed), lost=len(telling))
    assert telling == []

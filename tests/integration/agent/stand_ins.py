"""What an agent's own tests need: a machine, and a stand-in for a storage unit.

`StandInUnit` is a real sshd with a forced command that speaks the SSH session protocol and really
pulls and pushes with rsync, but keeps no snapshots by itself. The API is a stand-in too, see
`tests.support.stand_in_api`. The end-to-end tests use the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.support.sshd import Sshd, running_sshd
from tests.support.stand_in_api import StandInApi

_DEADLINE_SECONDS = 60.0

FORCED_COMMAND = '''
"""A stand-in for a storage unit's forced command; see stand_ins.py."""
import json, os, subprocess, sys
from pathlib import Path

folder = Path(sys.argv[1])
lines = []
for line in sys.stdin:
    if line.strip() == ".":
        break
    lines.append(line)
request = json.loads("".join(lines))
with (folder / "requests").open("a") as file:
    file.write(json.dumps(request) + "\\n")
behaviour = json.loads((folder / "behaviour.json").read_text())
(folder / "pid").write_text(str(os.getpid()))

def say(**event):
    text = json.dumps(event) if behaviour["events"] else str(event.get("message", ""))
    print(text, flush=True)

def rsync(login, *arguments):
    environment = dict(os.environ, RSYNC_PASSWORD=login["password"])
    command = ["rsync", "-aHAX", "--numeric-ids", "--timeout=60", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)

def url(login, module):
    return f"rsync://{login['username']}@127.0.0.1:{request['port']}/{module}/"

print(behaviour.get("stderr", ""), file=sys.stderr, end="", flush=True)
code = behaviour["exit_code"]
if behaviour["hang"] in (True, request["action"]):
    say(event="message", message="hanging")
    sys.stdin.read()
    sys.exit("the agent has gone")
if request["action"] == "checkin" and not behaviour["idle"]:
    for name, login in request["sources"].items():
        target = folder / "mirrors" / name
        target.mkdir(parents=True, exist_ok=True)
        done = rsync(login, *behaviour["pull_options"], url(login, name), f"{target}/")
        (folder / "rsync.log").open("a").write(done.stdout + done.stderr)
        say(event="progress", source=name, bytes=1, percent=50)
        outcome = {0: "received", 23: "partial", 24: "partial"}.get(done.returncode, "failed")
        outcome = behaviour["outcomes"].get(name, outcome)
        say(event="source", source=name, outcome=outcome, message=done.stderr.strip()[-200:])
if request["action"] == "list":
    say(event="snapshots", snapshots=behaviour["snapshots"])
if request["action"] == "restore" and "restore" not in request:
    say(event="message", message=f"rsync -a SNAPSHOT/ port {request['port']}")
    sys.stdin.read()
    (folder / "restore-ended").write_text("")
if request["action"] == "restore" and "restore" in request:
    wish = request["restore"]
    login = request["sources"]["turku-restore"]
    source = folder / "snapshots" / wish["snapshot"]
    options = ["--checksum"] * wish["checksum"] + ["-n", "-i"] * wish["dry_run"] + ["--relative"]
    paths = [f"{source}/./{path}" for path in wish["paths"] or [""]]
    done = rsync(login, *options, *paths, url(login, "turku-restore"))
    for line in done.stdout.splitlines() if wish["dry_run"] else []:
        say(event="change", message=line)
    code = code or (1 if done.returncode else 0)
    say(event="result", ok=not done.returncode, message=done.stderr.strip(), **behaviour["counts"])
sys.exit(code)
'''


def wait_until(condition: Any, what: str, seconds: float = _DEADLINE_SECONDS) -> None:
    """Wait until `condition()` is true, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Say whether a process runs; a zombie doesn't."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def snapshot(machine: str, identity: str, taken_at: str, **more: Any) -> dict[str, Any]:
    """Return a snapshot of the source ``docs``, as a storage unit lists it."""
    return {
        "machine": machine,
        "source": "docs",
        "id": identity,
        "taken_at": taken_at,
        "state": "committed",
        "partial": False,
        "mode": "borg",
        "bytes": 2048,
        "files": 3,
        "expires_for_good_at": None,
        "proven_at": None,
        **more,
    }


class StandInUnit:
    """A storage unit's SSH side: a real sshd with keys and a port of its own.

    Attributes:
        folder: Where it keeps what it pulled (``mirrors``), what it was asked (``requests``), and
            the trees it restores (``snapshots``).
    """

    def __init__(self, folder: Path, name: str = "unit-0") -> None:
        self.folder = folder
        self.name = name
        self._sshd: Sshd | None = None
        self._running = contextlib.ExitStack()
        folder.mkdir()
        self.behave()
        (folder / "forced.py").write_text(FORCED_COMMAND)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(folder / "second_key")],
            check=True,
        )

    def behave(self, **behaviour: Any) -> None:
        """Say how the forced command is to behave."""
        known = {
            "counts": {"files": 3, "bytes": 99},
            "events": True,
            "exit_code": 0,
            "hang": False,
            "idle": False,
            "outcomes": {},
            "pull_options": [],
            "snapshots": [],
            "stderr": "",
        }
        (self.folder / "behaviour.json").write_text(json.dumps({**known, **behaviour}))

    @property
    def second_host_key(self) -> str:
        """The public line of its other host key."""
        return " ".join((self.folder / "second_key.pub").read_text().split()[:2])

    def address(self, **changes: Any) -> dict[str, Any]:
        """Return the ``storage`` of a SOURCE, as the API answers it."""
        sshd = self._sshd
        return {
            "name": self.name,
            "ssh_ping_host": "127.0.0.1",
            "ssh_ping_host_keys": [sshd.host_key if sshd else self.second_host_key],
            "ssh_ping_port": sshd.port if sshd else 9,
            "ssh_ping_user": sshd.user if sshd else "nobody",
            **changes,
        }

    def authorize(self, *public_keys: str, forwarding: bool = True) -> None:
        """Let machines in, and no others."""
        command = shlex.join([sys.executable, str(self.folder / "forced.py"), str(self.folder)])
        options = ["restrict", f'command="{command}"']
        if forwarding:
            options += ["port-forwarding", 'permitlisten="localhost:*"']
        (self.folder / "authorized_keys").write_text(
            "".join(f"{','.join(options)} {key}\n" for key in public_keys)
        )

    def requests(self) -> list[dict[str, Any]]:
        """Return what agents asked, session by session."""
        path = self.folder / "requests"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def start(self) -> None:
        """Start sshd."""
        options = (
            f"HostKey {self.folder / 'second_key'}\nPermitRootLogin yes\n"
            "AllowTcpForwarding remote\nAllowStreamLocalForwarding no\n"
        )
        keys = self.folder / "authorized_keys"
        self._sshd = self._running.enter_context(running_sshd(options, authorized_keys=keys))

    def stop(self) -> None:
        """End sshd; its sessions' forced commands end with their agents."""
        self._running.close()


class Place(Protocol):
    """A storage unit as a machine and its API need to know it."""

    def address(self, **changes: Any) -> dict[str, Any]:
        """Return the ``storage`` of a SOURCE, as the API answers it."""

    def authorize(self, *public_keys: str) -> None:
        """Let machines in, and no others."""


class AgentMachine:
    """A machine with an agent, its whole state below one root.

    Attributes:
        scheduled: The sources that the API says are due.
        offered: What the API says may be restored: the ``machine`` of its answer.
    """

    def __init__(self, root: Path, api: StandInApi, unit: Place) -> None:
        self.root = root
        self.api = api
        self.unit = unit
        self.state = root / "var/lib/turku-agent"
        self.run_folder = root / "run/turku-agent"
        self.scheduled: dict[str, Any] = {}
        self.offered: dict[str, Any] = {"sources": {}}
        api.answers["health"] = {"healthy": True}
        api.answers["update_config"] = {}
        api.answers["agent_ping_checkin"] = {"machine": {"scheduled_sources": self.scheduled}}
        api.answers["agent_ping_restore"] = {"machine": self.offered}
        self.configure(
            api_url=api.url,
            api_auth_name="fleet",
            api_auth_secret="a-registration-secret",
            unit_name="machine/0",
        )

    def configure(self, **settings: Any) -> None:
        """Write the configuration."""
        folder = self.root / "etc/turku-agent/config.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "10-test.json").write_text(json.dumps(settings))

    def add_source(self, name: str, path: Path | str, **settings: Any) -> None:
        """Drop a source into sources.d, and let the API hand it out from now on."""
        folder = self.root / "etc/turku-agent/sources.d"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({name: {"path": str(path), **settings}})
        (folder / f"{name}.json").write_text(text)
        announced = {
            "path": str(path),
            "filter": settings.get("filter", []),
            "exclude": settings.get("exclude", []),
            "storage": self.unit.address(),
        }
        self.scheduled[name] = announced
        self.offered["sources"][name] = announced

    @property
    def uuid(self) -> str:
        """The machine's UUID."""
        identity = json.loads((self.state / "config.d/identity.json").read_text())
        uuid: str = identity["machine_uuid"]
        return uuid

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return the command line of one of the agent's programs."""
        program = Path(sys.executable).with_name(name)
        return [str(program), "--root", str(self.root), *arguments]

    def run(self, name: str, *arguments: str, **environment: str) -> Finished:
        """Run one of the agent's programs."""
        done = subprocess.run(
            self.command(name, *arguments),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=90,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one of the agent's programs and return at once."""
        return subprocess.Popen(
            self.command(name, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def register(self) -> None:
        """Make the identity, and let it into the storage unit."""
        done = self.run("turku-update-config")
        assert done.code == 0, done
        self.unit.authorize((self.state / "ssh_key.pub").read_text().strip())

    def children(self) -> list[int]:
        """Return every process that works in a session's folder: ssh, rsync and theirs."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "cwd").startswith(str(self.run_folder)):
                        found.append(int(entry.name))
        return [pid for pid in found if is_alive(pid)]

    def leftovers(self) -> list[str]:
        """Return what is in the folder of sessions beside its lock."""
        folder = self.run_folder / "sessions"
        return (
            sorted(p.name for p in folder.iterdir() if p.name != ".lock") if folder.exists() else []
        )


class Finished:
    """What a program did."""

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.code = code
        self.output = output
        self.errors = errors

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.output}\n{self.errors}"


@contextlib.contextmanager
def running(unit: StandInUnit) -> Iterator[StandInUnit]:
    """Run a storage unit's sshd as long as the block."""
    unit.start()
    try:
        yield unit
    finally:
        unit.stop()

"""A storage unit that is the enemy's: an SSH server of its own make, and all it might try.

It lets every machine in, and does in the session what a test tells it to. The tunnel to the
machine's rsync daemon is open to it as to any storage unit; through it real rsyncs ask for what
isn't theirs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from tests.faults.hostile import NASTY
from turku_core.credentials import make_ssh_key_pair

PORT = 40_404
"""The port that it says its sshd has picked: nobody listens there."""

SECONDS = 30.0


@dataclass
class Visit:
    """One session of an agent, as the enemy sees it.

    Attributes:
        request: What the agent wrote on its standard input.
        folder: Where the enemy keeps what it gets.
        won: What it got that it should not have, by its own account.
    """

    transport: paramiko.Transport
    channel: paramiko.Channel
    request: dict[str, Any]
    folder: Path
    won: list[str] = field(default_factory=list)

    def say(self, said: bytes | dict[str, Any]) -> None:
        """Write to the session's standard output: an event, or anything."""
        raw = said if isinstance(said, bytes) else json.dumps(said).encode() + b"\n"
        with contextlib.suppress(OSError, EOFError):
            self.channel.sendall(raw)

    def complain(self, said: bytes) -> None:
        """Write to the session's standard error."""
        with contextlib.suppress(OSError, EOFError):
            self.channel.sendall_stderr(said)

    def open(self, kind: str, port: int = PORT) -> paramiko.Channel | None:
        """Ask the agent's ssh for a channel; None when it says no."""
        try:
            return self.transport.open_channel(
                kind, ("localhost", port), ("127.0.0.1", 1), timeout=SECONDS
            )
        except paramiko.SSHException:
            return None

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[int]:
        """Give the tunnel a port of this host while the context lasts."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(SECONDS)
            thread = threading.Thread(target=self._relay, args=(listener,), daemon=True)
            thread.start()
            yield listener.getsockname()[1]

    def _relay(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            near, _ = listener.accept()
            far = self.open("forwarded-tcpip")
            if far is None:
                near.close()
                return
            back = threading.Thread(target=_carry, args=(far, near), daemon=True)
            back.start()
            _carry(near, far)
            back.join(SECONDS)
            near.close()
            far.close()

    def rsync(self, *arguments: str, module: str = "docs") -> str:
        """Run a real rsync over the tunnel; ``{M}`` stands for the daemon, with a login.

        Returns:
            All that it said.
        """
        logins = self.request.get("sources", {})
        login = logins.get(module) or next(iter(logins.values()), {"username": "", "password": ""})
        with self.tunnel() as port:
            place = f"rsync://{login['username']}@127.0.0.1:{port}"
            done = subprocess.run(
                ["rsync", *(argument.replace("{M}", place) for argument in arguments)],
                env={**os.environ, "RSYNC_PASSWORD": login["password"]},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=2 * SECONDS,
                check=False,
            )
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        with (self.folder / "rsync.log").open("a") as log:
            log.write(f"{arguments}: {done.returncode}\n{said}\n")
        return said

    @property
    def loot(self) -> Path:
        """A folder for what it reads."""
        folder = self.folder / "loot"
        folder.mkdir(exist_ok=True)
        return folder


def _carry(source: Any, sink: Any) -> None:
    """Copy from one socket or channel to the other, to the end."""
    with contextlib.suppress(OSError, EOFError):
        while block := source.recv(65536):
            sink.sendall(block)
    with contextlib.suppress(OSError, EOFError):
        sink.shutdown(socket.SHUT_WR)


Act = Callable[[Visit, random.Random], "int | None"]
"""What it does in a session; returns the exit code, or None to hang up without one."""


class _Door(paramiko.ServerInterface):
    """Lets everybody in, and grants every forward."""

    def __init__(self) -> None:
        self.began = threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.began.set()
        return True

    def check_port_forward_request(self, address: str, port: int) -> int:
        return PORT


class HostileUnit:
    """The enemy's storage unit, which serves while it is a context.

    Attributes:
        act: What it does in each session.
        greeting: What it says instead of SSH, if anything.
        visits: The sessions that came about.
        errors: What failed in the stand-in itself.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.act: Act = ACTS["what a good one does"]
        self.greeting: bytes | None = None
        self.dice = random.Random(0)
        self.visits: list[Visit] = []
        self.errors: list[BaseException] = []
        private, self._public = make_ssh_key_pair("enemy")
        self._key = paramiko.Ed25519Key.from_private_key(io.StringIO(private))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> HostileUnit:
        self._start(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """End it."""
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)

    def address(self, **changes: Any) -> dict[str, Any]:
        """Return the ``storage`` of a SOURCE, as the API answers it."""
        return {
            "name": "enemy",
            "ssh_ping_host": "127.0.0.1",
            "ssh_ping_host_keys": [self._public],
            "ssh_ping_port": self._listener.getsockname()[1],
            "ssh_ping_user": "anybody",
            **changes,
        }

    def authorize(self, *public_keys: str) -> None:
        """Let machines in: it lets everybody in anyway."""

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._receive, self._listener.accept()[0])

    def _receive(self, connection: socket.socket) -> None:
        with connection:
            if self.greeting is not None:
                with contextlib.suppress(OSError):
                    connection.sendall(self.greeting)
                return
            transport = paramiko.Transport(connection)
            try:
                self._hold(transport)
            except (OSError, EOFError, paramiko.SSHException):
                # The agent has gone, which is its right.
                pass
            except BaseException as error:
                self.errors.append(error)
            finally:
                transport.close()

    def _hold(self, transport: paramiko.Transport) -> None:
        door = _Door()
        transport.add_server_key(self._key)
        transport.start_server(server=door)
        channel = transport.accept(SECONDS)
        if channel is None or not door.began.wait(SECONDS):
            return
        said = b""
        while not said.endswith(b"\n.\n"):
            block = channel.recv(65536)
            if not block:
                return
            said += block
        folder = self.folder / str(len(self.visits))
        folder.mkdir()
        visit = Visit(transport, channel, json.loads(said[:-3]), folder)
        self.visits.append(visit)
        code = self.act(visit, self.dice)
        if code is not None:
            channel.send_exit_status(code)
            channel.close()
            # Who hangs up first may tear away what is still on its way.
            transport.join(SECONDS)


def _honest(visit: Visit, dice: random.Random) -> int:
    for name in visit.request["sources"]:
        visit.rsync("-a", f"{{M}}/{name}/", str(visit.loot), module=name)
    return 0


READS = (
    "docs/../outside/", "docs/sub/", "docs/to-outside", "docs/folder-outside/", "docs/./sub/",
    "docs//etc/", "/etc/", "etc/shadow", "other/", "turku-restore/", "", "docs/*", "docs/{a,b}",
    "%TURKU_PATH_1%/", "docs/%TURKU_PATH_1%", "docs/\n/etc/", "rsyncd.conf", "docs/private.tmp",
)  # fmt: skip

READ_OPTIONS = (
    "--copy-links", "--copy-unsafe-links", "--copy-dirlinks", "--keep-dirlinks", "--copy-devices",
    "--remove-source-files", "--files-from=:/etc/passwd", "--files-from=:docs/a", "-FF",
    "--filter=. /etc/shadow", "--filter=:n /etc/shadow", "--filter=!", "--include=*",
    "-M--copy-links", "-M--fake-super", "-M--log-file={outside}/planted", "-M--daemon",
    "-M--config=/dev/null", "-M--write-batch={outside}/planted", "-M--temp-dir={outside}",
    "-M--backup-dir={outside}", "-M--filter=merge /etc/shadow", "-M--remove-source-files",
    "-M--delete", "-M--no-munge-links", "-M--trust-sender", "-M--old-args", "--iconv=.",
)  # fmt: skip


def _read_elsewhere(visit: Visit, dice: random.Random) -> int:
    for _ in range(3):
        path, option = dice.choice(("docs/", *READS)), dice.choice(READ_OPTIONS)
        visit.rsync("-aH", option, f"{{M}}/{path}", str(visit.loot))
    # Two at once, the first of which is allowed.
    visit.rsync("-aH", "{M}/docs/", f"{{M}}/{dice.choice(READS)}", str(visit.loot))
    return 0


def _write_in_a_backup(visit: Visit, dice: random.Random) -> int:
    planted = visit.folder / "planted"
    (planted / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "new"):
        (planted / name).write_text("planted")
    for place in dice.sample(("docs/", "docs/sub/", "other/", "turku-restore/", "docs/../"), 3):
        options = dice.sample(("--delete", "--inplace", "--write-devices", "--keep-dirlinks"), 1)
        visit.rsync("-a", *options, f"{planted}/", f"{{M}}/{place}")
    return 0


def _open_channels(visit: Visit, dice: random.Random) -> int:
    """Ask the machine's ssh for what only a server of its own would grant."""
    kinds = ["x11", "auth-agent@openssh.com", "auth-agent", "session", "direct-tcpip", "tun",
             "direct-streamlocal@openssh.com", "forwarded-streamlocal@openssh.com",
             *dice.sample(NASTY[11:20], 2)]  # fmt: skip
    visit.won += [kind for kind in kinds if visit.open(kind) is not None]
    # A forward that wasn't agreed on.
    visit.won += [f"port {port}" for port in (22, 80, 0) if visit.open("forwarded-tcpip", port)]
    visit.transport.global_request("hostkeys-00@openssh.com", ["ssh-ed25519 AAAA"], wait=False)
    visit.transport.global_request("tcpip-forward", ["", 4040], wait=False)
    with contextlib.suppress(paramiko.SSHException):
        visit.channel.exec_command("touch planted")
        visit.won.append("a command")
    return 0


def _crowd(visit: Visit, dice: random.Random) -> int:
    """Open more connections than there may be, and leave them without a word."""
    channels = [visit.open("forwarded-tcpip") for _ in range(20)]
    silent = sum(channel is not None and _is_greeted(channel) for channel in channels)
    visit.won += [f"{silent} daemons at once"] if silent > 4 else []
    return 0


def _is_greeted(channel: paramiko.Channel) -> bool:
    channel.settimeout(2)
    try:
        return channel.recv(100).startswith(b"@RSYNCD")
    except TimeoutError:
        return False


def _talk(visit: Visit, dice: random.Random) -> int:
    """Say what no storage unit says."""
    kinds = ("source", "progress", "message", "snapshots", "result", "change", "restore", "order")
    for _ in range(dice.randrange(5, 50)):
        keys = ("source", "message", "outcome", "bytes", "percent", "snapshots", "ok", "machine",
                "path", "paths", "target", "run_before_backup", "restore")  # fmt: skip
        event: dict[str, Any] = {
            key: dice.choice([*NASTY, 10**400, float("nan"), None, [], {}, -1, "docs", "/etc"])
            for key in dice.sample(keys, 5)
        }
        visit.say({"event": dice.choice([*kinds, *NASTY]), **event})
        visit.say(dice.choice([b"[" * 5000, b"\x1b[2J\x07\x9b31m", b"\r\r", b"{}", b"\xff\xfe"]))
        visit.say(b"\n")
    visit.say(dice.randbytes(dice.randrange(100_000)))
    return dice.randrange(256)


def _flood(visit: Visit, dice: random.Random) -> int:
    """Say far too much: in one line, in many, on standard error."""
    kind = dice.randrange(3)
    if kind == 0:
        visit.say(b"x" * (17 * 2**20) + b"\n")
    elif kind == 1:
        visit.say(b'{"event": "message", "message": "again and again"}\n' * 50_000)
    else:
        for _ in range(4):
            visit.complain(b"Allocated port 22 for remote forward to x\n" + b"y" * 2**20 + b"\n")
    return 0


def _hang_up(visit: Visit, dice: random.Random) -> None:
    """End the session in a way that isn't one, with a transfer going on."""
    with visit.tunnel() as port:
        client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        client.recv(100)
        if dice.random() < 0.5:
            visit.transport.close()
        client.close()


def _restore_unasked(visit: Visit, dice: random.Random) -> int:
    """Behave as if a restore had been asked for."""
    wish = {"source": "docs", "paths": ["/etc"], "target": "/etc", "snapshot": "latest"}
    visit.say({"event": "restore", "restore": wish, "in_place": True})
    visit.say({"event": "result", "ok": True, "files": 1, "bytes": 1})
    return _write_in_a_backup(visit, dice)


ACTS: dict[str, Act] = {
    "what a good one does": _honest,
    "reads elsewhere": _read_elsewhere,
    "writes in a backup": _write_in_a_backup,
    "asks for channels": _open_channels,
    "opens many connections": _crowd,
    "talks nonsense": _talk,
    "says too much": _flood,
    "hangs up": _hang_up,
    "restores unasked": _restore_unasked,
}

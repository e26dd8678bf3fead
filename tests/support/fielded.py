"""Programs that speak v1 as the protocol's facts describe them, and nothing of ours.

They stand in for the fielded agents and storage units, which can't be had here: written from
`docs` of the protocol alone, with the standard library, OpenSSH and rsync, they share no code with
`turku_core`. What they leave out (leases, capabilities, events, Unix sockets) the fielded ones
leave out too.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import secrets
import socket
import ssl
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DEADLINE_SECONDS = 60


def call(api_url: str, name: str, payload: Any, ca: Path | None = None) -> tuple[int, bytes]:
    """Send one v1 call; return the HTTP status and the body."""
    url = urllib.parse.urlsplit(f"{api_url}/{name}")
    assert url.hostname is not None
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(url.hostname, url.port, context=context)
    else:
        connection = http.client.HTTPConnection(url.hostname, url.port)
    with contextlib.closing(connection):
        body = json.dumps(payload)
        connection.request("POST", url.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


class FieldedAgent:
    """An agent of 2015: one TCP rsync daemon on its loopback, a port of its own choosing."""

    def __init__(self, folder: Path, api_url: str, ca: Path | None, unit_name: str) -> None:
        self.folder = folder
        self.api_url = api_url
        self.ca = ca
        self.unit_name = unit_name
        self.uuid = str(uuid.uuid4())
        self.secret = secrets.token_hex(20)
        folder.mkdir(parents=True)
        self.key = folder / "ssh_key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(self.key)],
            check=True,
        )

    def update_config(self, auth: Any, sources: dict[str, Any]) -> tuple[int, bytes]:
        """Register, or say what there is to back up."""
        request: dict[str, Any] = {
            "machine": {
                "uuid": self.uuid,
                "secret": self.secret,
                "unit_name": self.unit_name,
                "service_name": "web",
                "environment_name": "field",
                "ssh_public_key": self.key.with_suffix(".pub").read_text().strip(),
                "sources": sources,
            }
        }
        if auth is not None:
            request["auth"] = auth
        return call(self.api_url, "update_config", request, self.ca)

    def ask(self, name: str) -> dict[str, Any]:
        """Send ``agent_ping_checkin`` or ``agent_ping_restore``; return the answered machine."""
        machine = {"uuid": self.uuid, "secret": self.secret}
        status, body = call(self.api_url, name, {"machine": machine}, self.ca)
        assert status == 200, body
        answer = json.loads(body)["machine"]
        assert isinstance(answer, dict)
        return answer

    @contextlib.contextmanager
    def _daemon(self, modules: dict[str, tuple[str, bool]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run an rsync daemon on a random high port with the modules (path, read only)."""
        port = _free_port()
        credentials = {
            name: {"username": secrets.token_hex(8), "password": secrets.token_hex(16)}
            for name in modules
        }
        lines = [
            "address = 127.0.0.1",
            f"port = {port}",
            "use chroot = false",
            "uid = 0",
            "gid = 0",
        ]
        for name, (path, read_only) in modules.items():
            passwords = self.folder / f"rsyncd-{name}.secrets"
            login = credentials[name]
            passwords.write_text(f"{login['username']}:{login['password']}\n")
            passwords.chmod(0o600)
            lines += [
                f"[{name}]",
                f"  path = {path}",
                f"  auth users = {login['username']}",
                f"  secrets file = {passwords}",
                f"  read only = {'true' if read_only else 'false'}",
                "  list = false",
            ]
        configuration = self.folder / "rsyncd.conf"
        configuration.write_text("\n".join(lines) + "\n")
        daemon = subprocess.Popen(["rsync", "--daemon", "--no-detach", f"--config={configuration}"])
        try:
            _wait_for_port(port)
            yield port, credentials
        finally:
            daemon.terminate()
            daemon.wait()

    def _ssh(self, storage: dict[str, Any], port: int) -> subprocess.Popen[bytes]:
        known_hosts = self.folder / "known_hosts"
        host, ssh_port = storage["ssh_ping_host"], storage["ssh_ping_port"]
        known_hosts.write_text(
            "".join(f"[{host}]:{ssh_port} {key}\n" for key in storage["ssh_ping_host_keys"])
        )
        return subprocess.Popen(
            [
                "ssh",
                "-F",
                "/dev/null",
                "-i",
                str(self.key),
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                f"UserKnownHostsFile={known_hosts}",
                "-T",
                "-R",
                f"{port}:127.0.0.1:{port}",
                "-p",
                str(ssh_port),
                "-l",
                storage["ssh_ping_user"],
                host,
                "turku-ping-remote",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def check_in(self, sources: dict[str, str]) -> tuple[int, str]:
        """Check in and let the storage unit pull what is due; return ssh's exit code and words."""
        due = self.ask("agent_ping_checkin")["scheduled_sources"]
        if not due:
            return 0, "nothing is due"
        modules = {name: (sources[name], True) for name in due}
        with self._daemon(modules) as (port, credentials):
            storage = next(iter(due.values()))["storage"]
            session = self._ssh(storage, port)
            message = {"verbose": True, "action": "checkin", "port": port, "sources": credentials}
            output, errors = session.communicate(
                json.dumps(message).encode() + b"\n.\n", timeout=_DEADLINE_SECONDS
            )
        return session.returncode, (output + errors).decode()

    @contextlib.contextmanager
    def restore_session(self, target: Path) -> Iterator[str]:
        """Hold a restore session open; yield what the storage unit printed for its operator."""
        sources = self.ask("agent_ping_restore")["sources"]
        storage = next(iter(sources.values()))["storage"]
        with self._daemon({"turku-restore": (str(target), False)}) as (port, credentials):
            session = self._ssh(storage, port)
            assert session.stdin is not None and session.stdout is not None
            try:
                message = {"verbose": True, "action": "restore", "port": port}
                request = {**message, "sources": credentials}
                session.stdin.write(json.dumps(request).encode() + b"\n.\n")
                session.stdin.flush()
                said = b""
                deadline = time.monotonic() + _DEADLINE_SECONDS
                while b"turku-restore" not in said and time.monotonic() < deadline:
                    line = session.stdout.readline()
                    if not line:
                        break
                    said += line
                yield said.decode()
            finally:
                session.communicate(timeout=_DEADLINE_SECONDS)


def _free_port() -> int:
    """Choose a port as fielded agents do: at random from 49152 to 65535; here, a free one."""
    while True:
        port = random.randint(49152, 65535)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.02)
        else:
            return

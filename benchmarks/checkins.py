"""How many check-ins a second the API takes, with the load generator on the same processors.

Every check-in is a new connection, TLS handshake included, as a real agent's is: it is a new
process each time. The generator is a few threads over raw sockets, bounded in number and in how
much they ask, and it speaks to the loopback address only.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from benchmarks.report import Row
from turku_core.credentials import make_secret
from turku_core.errors import TurkuError
from turku_core.local.layout import STORAGE_UNIT
from turku_core.local.parts import ADDRESS
from turku_core.local.turku import LocalTurku

MACHINES = 5000
_BY_ONE_KEY = 900
"""How many of them register with one key; the API lets in no more than 1,000 in ten minutes."""
_THREADS = 8
_CHECKINS = 5000
_ROUNDS = 3
_ANSWER_SECONDS = 60.0

Call = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Caller:
    """Sends v1 calls to one API, a new connection for each."""

    port: int
    context: ssl.SSLContext

    def call(self, name: str, payload: Mapping[str, Any]) -> None:
        """Send one call and read its answer.

        Raises:
            TurkuError: The answer isn't 200.
        """
        body = json.dumps(payload).encode()
        head = (
            f"POST /v1/{name} HTTP/1.1\r\nHost: {ADDRESS}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        with (
            socket.create_connection((ADDRESS, self.port), _ANSWER_SECONDS) as plain,
            self.context.wrap_socket(plain, server_hostname=ADDRESS) as connection,
        ):
            connection.sendall(head.encode() + body)
            answer = bytearray()
            while chunk := connection.recv(65536):
                answer += chunk
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise TurkuError(f"{name} was answered with {bytes(answer[:500])!r}")

    def call_all(self, calls: Sequence[Call], threads: int = _THREADS) -> float:
        """Send many calls from a few threads, and return how many seconds it took.

        Raises:
            TurkuError: One of them failed.
        """
        waiting = iter(calls)
        lock = threading.Lock()
        problems: list[Exception] = []

        def work() -> None:
            while not problems:
                with lock:
                    call = next(waiting, None)
                if call is None:
                    return
                try:
                    self.call(*call)
                except (OSError, TurkuError) as error:
                    problems.append(error)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if problems:
            raise TurkuError(f"A call of the load generator failed: {problems[0]}")
        return time.monotonic() - began


def measure_checkins(turku: LocalTurku, say: Callable[[str], None]) -> list[Row]:
    """Register 5,000 machines that have been backed up, and measure their check-ins."""
    context = ssl.create_default_context(cafile=str(turku.layout.ca_certificate))
    caller = Caller(turku.running.api_port, context)
    keys = _make_keys(turku, -(-MACHINES // _BY_ONE_KEY))
    logins = [_make_login(number) for number in range(MACHINES)]
    say(f"registering {MACHINES:,} machines")
    caller.call_all(
        [("update_config", _registration(*each)) for each in zip(logins, cycle(keys))], threads=2
    )
    turku.update_storage()
    storage = _storage_login(turku)
    now = time.time()
    caller.call_all(
        [("storage_ping_source_update", _report(login, storage, now)) for login in logins],
        threads=2,
    )
    checkins = [
        ("agent_ping_checkin", {"machine": {"uuid": login["uuid"], "secret": login["secret"]}})
        for login in random.Random(MACHINES).choices(logins, k=_CHECKINS)
    ]
    rates = []
    for _ in range(_ROUNDS):
        rates.append(len(checkins) / caller.call_all(checkins))
        say(f"check-ins: {rates[-1]:.0f} a second")
    return [
        Row.single(
            "check-ins, each a new TLS connection", "a second", rates, bound=300, at_least=True
        )
    ]


def _make_login(number: int) -> dict[str, str]:
    blob = b"".join(
        struct.pack(">I", len(part)) + part
        for part in (b"ssh-ed25519", random.Random(number).randbytes(32))
    )
    return {
        "uuid": str(uuid.uuid4()),
        "secret": make_secret(),
        "unit_name": f"load-{number}",
        "ssh_public_key": f"ssh-ed25519 {base64.b64encode(blob).decode()}",
    }


def _make_keys(turku: LocalTurku, count: int) -> list[dict[str, str]]:
    """Make registration keys, and return what a newcomer shows of each."""
    names = [f"load-{number}" for number in range(count)]
    made = [turku.api_run("create-registration-key", name).output.strip() for name in names]
    return [{"name": name, "secret": secret} for name, secret in zip(names, made, strict=True)]


def _registration(login: Mapping[str, str], key: Mapping[str, str]) -> dict[str, Any]:
    sources = {"data": {"path": "/srv/data", "frequency": "weekly"}}
    return {"auth": key, "machine": {**login, "sources": sources}}


def _report(login: Mapping[str, str], storage: Mapping[str, str], now: float) -> dict[str, Any]:
    report = {
        "success": True,
        "snapshot": "20200101T000000Z",
        "summary": "",
        "time_begin": now - 1,
        "time_end": now,
    }
    return {"storage": storage, "machine": {"uuid": login["uuid"], "sources": {"data": report}}}


def _storage_login(turku: LocalTurku) -> dict[str, str]:
    identity = turku.layout.storage / "var/lib/turku-storage/config.d/identity.json"
    return {"name": STORAGE_UNIT, "secret": json.loads(identity.read_text("utf-8"))["secret"]}

"""Strangers at the API's door, with several real workers behind it."""

from __future__ import annotations

import ast
import json
import random
import socket
import ssl
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

import turku_core
from tests.faults.hostile import NASTY
from tests.faults.tally import Tally, times
from tests.integration.api.server import Server, serving
from turku_core.api import limits
from turku_core.credentials import make_secret, make_ssh_key_pair

WORKERS = 3
SECONDS = 30
FLOOD_SECONDS_MAX = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A served API with three workers."""
    with serving(tmp_path_factory.mktemp("api"), "--workers", str(WORKERS)) as served:
        yield served


def register(server: Server, name: str) -> dict[str, Any]:
    """Register a machine; its login."""
    key = server.command("create-registration-key", f"key-{name}").strip()
    login = {"uuid": str(uuid.uuid4()), "secret": make_secret()}
    machine = {**login, "unit_name": name, "ssh_public_key": make_ssh_key_pair(name)[1]}
    auth = {"name": f"key-{name}", "secret": key}
    answer = server.post("update_config", {"auth": auth, "machine": machine})
    assert answer.status_code == 200, answer.text
    return {"machine": login}


def stranger() -> dict[str, Any]:
    return {"machine": {"uuid": str(uuid.uuid4()), "secret": make_secret()}}


@pytest.mark.only_in_full
def test_a_flood_of_bad_credentials_has_one_budget_for_all_workers_and_keeps_nobody_out(
    server: Server, tally: Tally
) -> None:
    """Everybody here has one address: a fleet behind it, and whoever floods the API."""
    known = [register(server, f"web-{number}") for number in range(4)]
    wanted = times(50, 10_000)
    began = time.monotonic()
    done = threading.Event()
    kept_out: list[int] = []
    answers: Counter[int] = Counter()

    def flood(_: int) -> None:
        with requests.Session() as session:
            while not done.is_set():
                url = f"{server.url}/v1/agent_ping_checkin"
                answers[session.post(url, json=stranger(), timeout=SECONDS).status_code] += 1
                if answers[429] >= wanted or time.monotonic() - began > FLOOD_SECONDS_MAX:
                    done.set()

    def check_in(login: dict[str, Any]) -> int:
        asked = 0
        while not done.is_set():
            answer = server.post("agent_ping_checkin", login)
            asked += 1
            if answer.status_code != 200:
                kept_out.append(answer.status_code)
            done.wait(0.2)
        return asked

    with ThreadPoolExecutor(8) as pool:
        fleet = [pool.submit(check_in, login) for login in known]
        list(pool.map(flood, range(4)))
        asked = sum(each.result() for each in fleet)
    seconds = time.monotonic() - began
    count = answers.total()
    assert set(answers) <= {403, 429}
    # All workers together: each alone would have let through three times as many. A host too slow
    # for a flood stays below, and shows little.
    assert answers[403] <= limits.FAILURES_AT_ONCE + limits.FAILURES_PER_SECOND * seconds
    assert asked >= len(known)
    tally.note("bad credentials from one address, good ones beside", times=count + asked,
               lost=len(kept_out))  # fmt: skip
    assert kept_out == []
    # A newcomer with a good key isn't kept out either, and the log has said it in few lines.
    register(server, "web-after")
    refusals = [line for line in server.log.read_text().splitlines() if "Bad credentials" in line]
    assert len(refusals) == answers[403]
    assert "429: " not in server.log.read_text()


def _speak(server: Server, sent: bytes) -> bytes:
    """Send bytes to the API and return what it says until it, or a second without a word, ends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while block := connection.recv(65536):
                answer += block
        except OSError:
            # It hung up on what it couldn't make sense of.
            pass
        return answer


def _mangled(dice: random.Random) -> bytes:
    """Return an HTTP request with something wrong in it."""
    body = json.dumps(stranger()).encode()
    lines = [
        b"POST /v1/agent_ping_checkin HTTP/1.1",
        b"Host: turku",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
    ]
    kind = dice.randrange(7)
    if kind == 0:
        lines[3] = dice.choice(
            [b"Content-Length: -1", b"Content-Length: 99999999999", b"Content-Length: 1e3",
             b"Content-Length: 0x10", b"Transfer-Encoding: chunked", b"Transfer-Encoding: xyz",
             b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: \xb2",
             b"Transfer-Encoding: chunked\r\nContent-Length: 4"]
        )  # fmt: skip
    elif kind == 1:
        word = dice.choice(NASTY).encode("utf-8", "surrogatepass")
        lines.insert(2, b"X-Forwarded-For: " + word[:300])
        lines.insert(2, b"Cookie: sessionid=" + word[:300])
    elif kind == 2:
        lines[0] = dice.choice(
            [b"POST /v1/../admin/ HTTP/1.1", b"POST //v1/health HTTP/1.1", b"GET / HTTP/9.9",
             b"POST /v1/%00 HTTP/1.1", b"POST /v1/" + b"a" * 9000 + b" HTTP/1.1", b"POST",
             b"POST http://[ HTTP/1.1", b"TRACE /v1/health HTTP/1.1",
             b"GET /static/../../etc/shadow HTTP/1.1",
             b"POST /v1/\xff\xfe HTTP/1.1", b"GET /admin/login/?next=//evil.example HTTP/1.1"]
        )  # fmt: skip
    elif kind == 3:
        lines += [b"X-%d: y" % number for number in range(dice.choice([50, 101, 500]))]
    elif kind == 4:
        body = body[: dice.randrange(len(body))]
    elif kind == 5:
        flipped = bytearray(body)
        for _ in range(3):
            flipped[dice.randrange(len(flipped))] = dice.randrange(256)
        body = bytes(flipped)
    raw = bytearray(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    if kind == 6:
        for _ in range(dice.randrange(1, 8)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
    return bytes(raw)


@pytest.mark.only_in_full
def test_no_request_is_an_error_of_ours_on_the_wire(
    server: Server, tally: Tally, dice: random.Random
) -> None:
    login = register(server, "wire")
    count = times(40, 6000)
    with ThreadPoolExecutor(4) as pool:
        for sent, answer in (
            (sent, answer)
            for batch in range(0, count, 60)
            for requests in [[_mangled(dice) for _ in range(min(60, count - batch))]]
            for sent, answer in zip(
                requests, pool.map(lambda each: _speak(server, each), requests), strict=True
            )
        ):
            status = answer[9:12]
            assert status[:1] != b"5" or status in (b"501", b"505"), (sent, answer[:300])
    assert server.post("agent_ping_checkin", login).status_code == 200
    assert "Traceback" not in server.log.read_text()
    assert len(server.workers()) == WORKERS
    tally.note("mangled HTTP requests", times=count)


@pytest.mark.only_in_full
def test_large_bodies_from_strangers_keep_no_machine_waiting(server: Server, tally: Tally) -> None:
    """The dearest JSON there is, from as many callers as there are threads."""
    login = register(server, "patient")
    dear = b'{"a": [' + b"[]," * (7 * 2**20 // 3) + b"[]]}"
    count = times(1, 48)

    def send(_: int) -> int:
        answer = requests.post(
            f"{server.url}/v1/update_config",
            data=dear,
            headers={"Content-Type": "application/json"},
            timeout=300,
        )
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        sent = pool.map(send, range(count))
        asked = [server.post("agent_ping_checkin", login).status_code for _ in range(20)]
        assert set(sent) == {400}
    assert set(asked) == {200}
    tally.note("8 MiB of empty lists from strangers", times=count)


@pytest.mark.only_in_full
def test_only_tls_of_today_is_spoken_and_a_plain_word_gets_nothing(
    tmp_path: Path, tally: Tally
) -> None:
    with serving(tmp_path, certificate_names=["127.0.0.1"]) as server:
        plain = _speak(server, b"POST /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1 200" not in plain
        # Another authority's client isn't sure of it, and hears nothing.
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):
            with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as raw:
                context.wrap_socket(raw, server_hostname="127.0.0.1")
        assert server.post("health", {}).status_code == 200
    tally.note("plain words and strange authorities at the API's TLS", times=2)


SECRET_WORDS = ("secret", "password")
PUBLIC_WORDS = ("secret_id", "secret_key", "secret_words")


def _names(node: ast.AST) -> list[str]:
    return [
        each.id if isinstance(each, ast.Name) else each.attr
        for each in ast.walk(node)
        if isinstance(each, (ast.Name, ast.Attribute))
    ]


def _is_of_a_secret(name: str) -> bool:
    lowered = name.lower()
    return any(word in lowered for word in SECRET_WORDS) and not any(
        word in lowered for word in PUBLIC_WORDS
    )


def find_comparisons(source: str) -> list[int]:
    """Return the lines on which something that is named like a secret is compared with ``==``.

    A comparison with a constant, such as None or an empty text, tells nothing.
    """
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(operator, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)) for operator in node.ops
        )
        and not any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
        and any(_is_of_a_secret(name) for name in _names(node))
    ]


_LOOKUPS = ("filter", "exclude", "get", "get_or_create", "update_or_create", "Q")


def find_lookups(source: str) -> list[int]:
    """Return the lines on which a database is asked for rows by a secret.

    An index compares from the left, and takes the longer the more of it is right. By the whole
    hash of a secret rows may be asked for: what its time tells is of the hash, from which nothing
    of the secret follows.
    """
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and _names(node.func)[:1]
        and (node.func.attr if isinstance(node.func, ast.Attribute) else _names(node.func)[0])
        in _LOOKUPS
        and any(
            _is_of_a_secret(keyword.arg or "")
            and not (keyword.arg == "secret_hash" and "hash" in ast.unparse(keyword.value))
            for keyword in node.keywords
        )
    ]


def test_no_secret_is_compared_but_in_constant_time(tally: Tally) -> None:
    assert find_comparisons("if secret == given: pass") == [1]
    assert find_comparisons("if row.secret_hash != hash_secret(x): pass") == [1]
    assert find_comparisons("if secret is None or secret == '': pass") == []
    assert find_lookups("Key.objects.filter(secret=x)") == [1]
    assert find_lookups("keys.filter(name=n).get(secret_hash__startswith=secret_hash)") == [1]
    assert find_lookups("keys.filter(secret_hash=hash_secret(secret))") == []
    tree = Path(__file__).parents[2]
    files = [
        path
        for folder in (Path(turku_core.__file__).parent, *tree.glob("charms/*/src"),
                       tree / "lib/turku_charm")
        for path in sorted(folder.rglob("*.py"))
    ]  # fmt: skip
    found = {
        str(path.relative_to(tree)): lines
        for path in files
        for text in [path.read_text("utf-8")]
        if (lines := find_comparisons(text) + find_lookups(text))
    }
    assert found == {}
    tally.note("source files searched for comparisons of secrets", times=len(files))

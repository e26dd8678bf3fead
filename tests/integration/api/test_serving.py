"""The API served by gunicorn, on both databases, over raw HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.api.server import Server, configure, serving, turku_api
from tests.support.postgresql import Cluster
from turku_core import credentials


class Fleet:
    """One storage unit and one machine, as v1 programs would speak for them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.machine_key = server.command("create-registration-key", "machines").strip()
        storage_key = server.command("create-registration-key", "units", "--kind", "storage")
        self.storage_key = storage_key.strip()
        self.unit = {"name": "store-1", "secret": credentials.make_secret()}
        self.machine = {"uuid": str(uuid.uuid4()), "secret": credentials.make_secret()}

    def register_unit(self) -> requests.Response:
        """Register the storage unit."""
        described = {
            **self.unit,
            "ssh_ping_host": "store-1.example.com",
            "ssh_ping_port": 22,
            "ssh_ping_user": "turku-storage",
            "ssh_ping_host_keys": [credentials.make_ssh_key_pair("store-1")[1]],
            "space_total": 1000.5,
            "space_available": 900.25,
        }
        auth = {"name": "units", "secret": self.storage_key}
        return self.server.post("storage_update_config", {"auth": auth, "storage": described})

    def register_machine(self) -> requests.Response:
        """Register the machine with one source."""
        described = {
            **self.machine,
            "unit_name": "web/0",
            "ssh_public_key": credentials.make_ssh_key_pair("web/0")[1],
            "sources": {"docs": {"path": "/srv/docs"}},
        }
        # As the oldest agents do: the secret alone.
        return self.server.post("update_config", {"auth": self.machine_key, "machine": described})

    def check_in(self) -> dict[str, Any]:
        """Check in; the scheduled sources."""
        answer = self.server.post("agent_ping_checkin", {"machine": self.machine})
        assert answer.status_code == 200, answer.text
        scheduled: dict[str, Any] = answer.json()["machine"]["scheduled_sources"]
        return scheduled


def test_a_machine_registers_checks_in_and_its_backup_is_on_the_record(server: Server) -> None:
    fleet = Fleet(server)
    assert fleet.register_unit().status_code == 200
    assert fleet.register_machine().status_code == 200
    # The unit fetches the machine's key; then the machine may come.
    update = server.post(
        "storage_update_config",
        {
            "storage": {
                **fleet.unit,
                "ssh_ping_host": "store-1.example.com",
                "ssh_ping_port": 22,
                "ssh_ping_user": "turku-storage",
                "ssh_ping_host_keys": [credentials.make_ssh_key_pair("store-1")[1]],
                "space_total": 1000.5,
                "space_available": 900.25,
            }
        },
    )
    assert list(update.json()["machines"]) == [fleet.machine["uuid"]]
    assert fleet.check_in()["docs"]["storage"]["ssh_ping_host"] == "store-1.example.com"
    session = server.post(
        "storage_ping_checkin",
        {"storage": fleet.unit, "machine": {"uuid": fleet.machine["uuid"]}},
    )
    assert list(session.json()["machine"]["scheduled_sources"]) == ["docs"]
    now = time.time()
    report = {
        "success": True,
        "snapshot": "20260101T000000Z",
        "summary": "",
        "time_begin": now - 5,
        "time_end": now,
    }
    for _ in range(2):
        answer = server.post(
            "storage_ping_source_update",
            {
                "storage": fleet.unit,
                "machine": {"uuid": fleet.machine["uuid"], "sources": {"docs": report}},
            },
        )
        assert answer.json() == {}
    (record,) = json.loads(server.command("list-backups", "--json"))
    assert (record["machine"], record["snapshot"]) == ("web/0", "20260101T000000Z")
    assert fleet.check_in() == {}
    health = server.post("health", {}).json()
    assert health["healthy"] is True
    assert server.command("health").startswith("TURKU OK: 1 sources of 1 machines")


def test_check_ins_at_once_are_all_answered(server: Server) -> None:
    fleet = Fleet(server)
    fleet.register_unit()
    fleet.register_machine()
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda _: server.post("agent_ping_checkin", {"machine": fleet.machine}), range(200)
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    assert server.log.read_text() == ""


def test_wrong_input_is_refused_and_the_next_call_is_served(server: Server) -> None:
    call = f"{server.url}/v1/agent_ping_checkin"
    assert requests.get(call, timeout=30).status_code == 405
    assert requests.post(call, data="x", timeout=30).status_code == 400
    wrong = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b"\xff", b'{"machine": 5}', b"[" * 100_000):
        assert requests.post(call, data=body, headers=wrong, timeout=30).status_code == 400
    assert server.post("no_such_call", {}).status_code == 404
    unknown = {"uuid": str(uuid.uuid4()), "secret": "x" * 43}
    assert server.post("agent_ping_checkin", {"machine": unknown}).status_code == 403
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert server.post("health", {}).status_code == 200


def test_prior_art_08_a_refusal_is_logged_without_the_secret(server: Server) -> None:
    fleet = Fleet(server)
    fleet.register_machine()
    server.post("agent_ping_checkin", {"machine": {**fleet.machine, "secret": "wrong" * 9}})
    assert server.stop() == 0
    said = server.log.read_text()
    for secret in (fleet.machine["secret"], fleet.machine_key, "wrong" * 9):
        assert secret not in said
    assert "Bad credentials" in said


def test_the_administration_site_is_served_with_its_style_sheets(server: Server) -> None:
    password = server.command("create-admin").strip()
    site = requests.Session()
    login = site.get(f"{server.url}/", timeout=30)
    assert login.url.startswith(f"{server.url}/admin/login/")
    for path in ("admin/css/base.css", "admin/js/nav_sidebar.js"):
        assert f"/static/{path}" in login.text
        assert site.get(f"{server.url}/static/{path}", timeout=30).status_code == 200
    form = {
        "username": "admin",
        "password": password,
        "csrfmiddlewaretoken": site.cookies["csrftoken"],
        "next": "/admin/",
    }
    first = site.post(login.url, data=form, headers={"Referer": login.url}, timeout=30)
    assert "What needs attention" in first.text
    assert "Nothing is overdue." in first.text


def test_sigterm_lets_a_request_end_and_leaves_no_process(server: Server) -> None:
    body = b'{"machine": {}}'
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(
            b"POST /v1/agent_ping_checkin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        # Another request has been served since: the first one is in a thread.
        assert server.post("health", {}).status_code == 200
        workers = server.workers()
        assert workers
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(0.5)
        slow.sendall(body)
        assert slow.recv(100).startswith(b"HTTP/1.1 400")
    assert server.process.wait(timeout=30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1) as server:
        assert server.post("health", {}).status_code == 200
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        assert server.post("health", {}).status_code == 200
        assert server.workers() != [worker]


def test_clients_that_stop_half_way_do_not_hold_the_api_up(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        try:
            began = time.monotonic()
            # More connections than threads, and none has said anything: they are set aside.
            assert server.post("health", {}).status_code == 200
            assert time.monotonic() - began < 20
        finally:
            for connection in slow:
                connection.close()


def test_a_database_that_is_not_migrated_is_refused_with_what_to_do(
    tmp_path: Path, cluster: Cluster
) -> None:
    for url in (None, cluster.create_database("empty")):
        configure(tmp_path, **({"database_url": url} if url else {}))
        for words in (("serve",), ("list-machines",), ("create-registration-key", "web")):
            done = turku_api(tmp_path, *words)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith("turku-api: The database lacks ")
            assert "run `turku-api migrate`" in done.stderr
        done = turku_api(tmp_path, "health")
        assert done.returncode == 3
        assert done.stdout.startswith("TURKU UNKNOWN: The database lacks ")


def test_a_unit_that_is_not_to_migrate_waits_for_the_one_that_is(tmp_path: Path) -> None:
    configure(tmp_path, migrate_on_start=False)
    done = turku_api(tmp_path, "serve", "--migrate")
    assert done.returncode == 75
    assert "as soon as another one has brought the database up to date" in done.stderr
    assert turku_api(tmp_path, "health").returncode == 3
    assert turku_api(tmp_path, "migrate").returncode == 0
    with serving(tmp_path, migrate_on_start=False) as server:
        assert server.post("health", {}).status_code == 200


def test_a_database_that_is_down_is_a_sentence_without_its_password(tmp_path: Path) -> None:
    configure(tmp_path, database_url=f"postgresql://turku:hush-hush@/turku?host={tmp_path}")
    for words in (("serve",), ("serve", "--migrate"), ("migrate",), ("list-machines",)):
        done = turku_api(tmp_path, *words)
        assert done.returncode == 1
        assert done.stderr.startswith("turku-api: The database can't be reached: ")
        assert "hush-hush" not in done.stderr
    done = turku_api(tmp_path, "health")
    assert done.returncode == 3
    assert done.stdout.startswith("TURKU UNKNOWN: The database can't be reached: ")


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = turku_api(tmp_path, "serve", "--migrate", "--listen", address)
    assert done.returncode == 1
    assert done.stderr == f"turku-api: {address} can't be listened on: Address already in use.\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"listen": "nowhere"}, "listen: must be HOST:PORT"),
        ({"certificate": "/no/such/file", "key": "/no/such/file"}, "/no/such/file can't be read"),
        ({"certificate": "/no/such/file"}, "both a certificate and its key"),
        ({"database_url": "mysql://x/y"}, "database_url: expected postgresql://"),
        ({"time_zone": "Turku"}, "time_zone: expected the name of a time zone"),
    ],
)
def test_wrong_configuration_ends_with_2_and_names_the_option(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    configure(tmp_path, **options)
    done = turku_api(tmp_path, "serve", "--migrate")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_of_several_that_start_at_once_one_migrates_and_all_serve(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    options = {}
    if database == "postgresql":
        options["database_url"] = cluster.create_database("at_once")

    def start_and_ask(number: int) -> int:
        root = tmp_path
        if database == "postgresql":
            # Units of their own, with nothing but the database in common.
            root = tmp_path / str(number)
        with serving(root, workers=1, **options) as server:
            return server.post("health", {}).status_code

    configure(tmp_path, workers=1, **options)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(start_and_ask, range(3))) == [200, 200, 200]

"""The three programs, scraped over TCP as systemd lets them be: a process for each connection."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SECONDS = 30


@contextmanager
def listening(folder: Path, *command: str) -> Iterator[int]:
    """Let systemd's own tool take connections for a command, and yield the port."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        activate = subprocess.Popen(
            ["systemd-socket-activate", "--accept", "--inetd", "-l", f"127.0.0.1:{port}", *command],
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin"},
        )
    try:
        yield port
    finally:
        activate.terminate()
        activate.wait(SECONDS)


def scraped(port: int) -> tuple[int, str]:
    """Return the status and the body of a scrape; it waits until someone listens."""
    deadline = time.monotonic() + SECONDS
    while True:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as client:
            try:
                client.request("GET", "/metrics")
                answer = client.getresponse()
                return answer.status, answer.read().decode()
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def prepare_storage(root: Path) -> list[str]:
    folder = root / "etc/turku-storage/config.d"
    folder.mkdir(parents=True)
    (root / "var/lib/turku-storage").mkdir(parents=True)
    (root / "main").mkdir()
    values = {"api_url": "http://127.0.0.1:9/v1", "volumes": {"main": {"path": f"{root}/main"}}}
    (folder / "unit.json").write_text(json.dumps(values))
    return [str(BIN / "turku-storage"), "metrics", "--http", "--root", str(root)]


def prepare_agent(root: Path) -> list[str]:
    return [str(BIN / "turku-agent-ping"), "--metrics", "--http", "--root", str(root)]


def prepare_api(root: Path) -> list[str]:
    turku_api = [str(BIN / "turku-api"), "--root", str(root)]
    subprocess.run([*turku_api, "migrate"], check=True, capture_output=True)
    return [*turku_api, "metrics", "--http"]


@pytest.mark.parametrize(
    ("prepare", "prefix"),
    [
        (prepare_api, "turku_api_"),
        (prepare_agent, "turku_agent_"),
        (prepare_storage, "turku_storage_"),
    ],
    ids=["api", "agent", "storage"],
)
def test_each_program_answers_one_scrape_after_the_other(
    tmp_path: Path, prepare: object, prefix: str
) -> None:
    assert callable(prepare)
    with listening(tmp_path, *prepare(tmp_path)) as port:
        for _ in range(2):
            status, text = scraped(port)
            assert status == 200
            assert f"\n{prefix}info{{version=" in text
            done = subprocess.run(
                ["promtool", "check", "metrics"], input=text, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert done.stdout + done.stderr == ""


def test_what_prints_the_metrics_prints_the_same(tmp_path: Path) -> None:
    command = prepare_agent(tmp_path)
    with listening(tmp_path, *command) as port:
        _, text = scraped(port)
    command.remove("--http")
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == text


def test_a_configuration_that_is_not_valid_is_seen_as_a_target_that_is_down(
    tmp_path: Path,
) -> None:
    command = prepare_storage(tmp_path)
    (tmp_path / "etc/turku-storage/config.d/unit.json").write_text('{"slots": "a-secret"}')
    with listening(tmp_path, *command) as port:
        assert scraped(port) == (500, "The metrics can't be made: see the journal.\n")

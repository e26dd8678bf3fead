"""The three programs, scraped over TCP as systemd lets them be: a process for each connection."""

from __future__ import annotations

import http.client
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.metrics.exporters import (
    SECONDS,
    listening,
    prepare_agent,
    prepare_api,
    prepare_storage,
)


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

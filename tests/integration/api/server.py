"""A real API for tests: `turku-api serve` as a process of its own, on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

PROGRAM = Path(sys.executable).with_name("turku-api")
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 40


def configure(root: Path, **options: Any) -> None:
    """Write options of the API into its configuration below `root`."""
    folder = root / "etc/turku-api/config.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.json").write_text(json.dumps(options))


def turku_api(root: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of the API to its end."""
    return subprocess.run(
        [str(PROGRAM), "--root", str(root), *words],
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
        **options,
    )


@dataclass
class Server:
    """A running API."""

    root: Path
    process: subprocess.Popen[str]
    url: str
    log: Path
    ca_certificate: Path | None = None

    def post(self, call: str, payload: Any, **options: Any) -> requests.Response:
        """Make a v1 call over raw HTTP, with the CA's certificate if there is one."""
        options.setdefault("verify", str(self.ca_certificate) if self.ca_certificate else True)
        return requests.post(f"{self.url}/v1/{call}", json=payload, timeout=30, **options)

    def command(self, *words: str) -> str:
        """Run a command of the same API; what it printed."""
        done = turku_api(self.root, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_SECONDS_MAX)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in children.read_text().split()]


@contextlib.contextmanager
def serving(root: Path, *words: str, **options: Any) -> Iterator[Server]:
    """Configure, migrate and serve; stop everything at the end, also after a failure."""
    configure(root, **options)
    log = root / "log"
    command = [str(PROGRAM), "--root", str(root), "serve", "--migrate"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # A group of its own, so that nothing of it outlives the test.
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"The API listens on (https?://127\.0\.0\.1:\d+)\n", line)
        assert match is not None, log.read_text()
        ca = root / "var/lib/turku-api/certificates/ca.crt"
        yield Server(root, process, match[1], log, ca if ca.exists() else None)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

"""The three programs below roots of their own, and systemd's own tool that takes connections."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
SECONDS = 30


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def listening(folder: Path, *command: str) -> Iterator[int]:
    """Let systemd's own tool take connections for a command, and yield the port."""
    port = free_port()
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

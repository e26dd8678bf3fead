"""The three charms joined, with their real programs below a root for each machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ops
import pytest
from ops import testing

from tests.support.charms import CHARMS, load_charm
from tests.support.joined import Joined
from tests.support.workload import use_this_environment
from turku_charm import host
from turku_charm.programs import Programs

BIN = Path(sys.executable).parent
PRINCIPAL = {"name": "ubuntu", "provides": {"info": {"interface": "juju-info"}}}
START_SECONDS = 30.0


@dataclass
class Services:
    """A stand-in for apt and systemd, which the tests' machines don't have: what is to run."""

    running: set[str] = field(default_factory=set)

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of everything in `turku_charm.host`."""
        monkeypatch.setattr(host, "install_packages", lambda names: None)
        monkeypatch.setattr(host, "is_running", lambda service: service in self.running)
        monkeypatch.setattr(host, "stop", self.running.discard)
        monkeypatch.setattr(host, "forget_failures", lambda services: None)
        for name in ("restart", "start_anew"):
            monkeypatch.setattr(host, name, self.running.add)


class Fleet(Joined):
    """An API, and what a test deploys besides."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = _free_port()

    def deploy_api(self, name: str = "turku-api") -> None:
        """Deploy an API that is reached at a port of this host."""
        self.deploy(
            name,
            load_charm("turku-api").TurkuApiCharm,
            CHARMS / "turku-api",
            config={"external-url": f"https://localhost:{self.port}"},
            storages=frozenset({testing.Storage("data")}),
        )

    def deploy_storage(self, name: str = "turku-storage") -> None:
        """Deploy a storage unit, on a machine that has an sshd's configuration and host key."""
        ssh = self.folder / f"{name}-0/etc/ssh"
        (ssh / "sshd_config.d").mkdir(parents=True)
        key = ssh / "ssh_host_ed25519_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (ssh / "sshd_config").write_text(f"Include {ssh}/sshd_config.d/*.conf\nHostKey {key}\n")
        self.deploy(name, load_charm("turku-storage").TurkuStorageCharm, CHARMS / "turku-storage")

    def deploy_agent(self, name: str = "turku-agent", principal: str = "ubuntu") -> None:
        """Deploy an agent beside a principal of one unit, whose ``/srv/docs`` it backs up."""
        self.deploy(principal, ops.CharmBase, metadata={**PRINCIPAL, "name": principal})
        (self.folder / f"{principal}-0/srv/docs").mkdir(parents=True)
        (self.folder / f"{principal}-0/srv/docs/note").write_text("remember\n")
        self.deploy(
            name,
            load_charm("turku-agent").TurkuAgentCharm,
            CHARMS / "turku-agent",
            config={"sources": f"docs: {{path: {self.folder}/{principal}-0/srv/docs}}"},
        )

    @contextmanager
    def serving(self, unit: str = "turku-api/0") -> Iterator[None]:
        """Serve a unit's API, as its systemd service would with its configuration."""
        root = self.unit(unit).root
        command = [
            *(str(BIN / "turku-api"), "--root", str(root), "serve"),
            *("--listen", f"127.0.0.1:{self.port}"),
        ]
        with (self.folder / "api.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait_for_api(process)
            yield
        finally:
            process.terminate()
            process.wait(30)

    def _wait_for_api(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                said = (self.folder / "api.log").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)

    def programs(self, unit: str) -> Programs:
        """Return the workload's programs on a unit's machine."""
        return Programs(BIN, self.unit(unit).root)

    def copy_of(self, unit: str) -> Path:
        """Copy a machine's agent, its configuration and identity, to a root of its own."""
        own = self.unit(unit).root
        copy = Path(tempfile.mkdtemp(prefix="copy-", dir=self.folder))
        for folder in ("etc/turku-agent", "var/lib/turku-agent"):
            shutil.copytree(own / folder, copy / folder)
        config = copy / "etc/turku-agent/config.d/50-juju.json"
        config.write_text(config.read_text("utf-8").replace(str(own), str(copy)), "utf-8")
        return copy

    def machines(self, api: str = "turku-api/0") -> dict[str, dict[str, Any]]:
        """Return what the API's action lists of machines, by unit name."""
        results = self.run(api, "list-machines", all=True)
        return {each["unit"]: each for each in json.loads(results["json"])["machines"]}

    def config_of(self, unit: str, role: str) -> dict[str, Any]:
        """Return what a charm wrote for its workload."""
        path = self.unit(unit).root / f"etc/turku-{role}/config.d/50-juju.json"
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return values


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A model in which nothing is deployed yet."""
    use_this_environment(monkeypatch)
    Services().put_in_place(monkeypatch)
    return Fleet(tmp_path)


@dataclass(frozen=True)
class AtRest:
    """A fleet that came to rest: it, what runs there, and a copy of its machines' files."""

    fleet: Fleet
    running: frozenset[str]
    files: Path


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory: pytest.TempPathFactory) -> AtRest:
    """An API, a storage unit and an agent beside a principal, all related: made once."""
    folder = tmp_path_factory.mktemp("at-rest")
    fleet, services = Fleet(folder / "fleet"), Services()
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_this_environment(monkeypatch)
        services.put_in_place(monkeypatch)
        fleet.deploy_api()
        fleet.deploy_storage()
        fleet.deploy_agent()
        fleet.integrate("turku-storage:api", "turku-api:storages")
        fleet.integrate("turku-agent:api", "turku-api:agents")
        fleet.integrate("turku-agent:host", "ubuntu:info")
        fleet.settle()
    fleet.folder.rename(folder / "files")
    return AtRest(fleet, frozenset(services.running), folder / "files")


@pytest.fixture
def joined(at_rest: AtRest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A fleet that is as it came to rest, on the machines of the one before it."""
    use_this_environment(monkeypatch)
    Services(set(at_rest.running)).put_in_place(monkeypatch)
    subprocess.run(["cp", "--archive", at_rest.files, at_rest.fleet.folder], check=True)
    yield at_rest.fleet.copy()
    shutil.rmtree(at_rest.fleet.folder)

"""A unit's hooks on ``/``, for a throwaway copy of the host alone: see test_live_unit.

Prints what it found as JSON. Systemd isn't there, so this process runs the worker itself, as the
unit's user; that user, the files and sshd's word on them are real.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ops
import pytest
from scenario import mocking

from tests.support.stand_in_api import running_api
from tests.support.workload import use_this_environment
from tests.unit.charms.storage.conftest import Systemd, Unit
from turku_charm import host
from turku_core.storage.volumes import MARKER

USER = "turku-storage"
DATA = Path("/srv/given")
FORMER_UID = 61234
CONFIG = Path("/etc/turku-storage/config.d")


@dataclass
class Worker(Systemd):
    """Runs the worker as the unit's user, instead of systemd."""

    process: subprocess.Popen[bytes] | None = None

    def is_running(self, service: str) -> bool:
        """Say whether it runs."""
        return self.process is not None and self.process.poll() is None

    def restart(self, service: str) -> None:
        """Start it anew."""
        self.stop(service)
        uid = pwd.getpwnam(USER)
        command = [str(Path(sys.executable).parent / service)]
        self.process = subprocess.Popen(
            command, user=uid.pw_uid, group=uid.pw_gid, extra_groups=[]
        )  # fmt: skip

    def stop(self, service: str) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


def owner(path: Path) -> str:
    """Return a file's owner, group and mode, for people."""
    status = path.stat()
    mode = stat.filemode(status.st_mode)
    return f"{mode} {status.st_uid}:{status.st_gid}".replace(
        f"{pwd.getpwnam(USER).pw_uid}:", f"{USER}:"
    ).replace(f":{pwd.getpwnam(USER).pw_gid}", f":{USER}")


def live(unit: Unit, worker: Worker, requests: list[Any]) -> dict[str, Any]:
    """Let a unit live, and return what was found on the way."""
    unit.install()
    storage = unit.attach("data/0", DATA, hook=False)
    unit.relate()
    found: dict[str, Any] = {
        "status": unit.status,
        "uid": pwd.getpwnam(USER).pw_uid,
        "shown to agents": requests[0][1]["storage"]["ssh_ping_user"],
        "runs": worker.is_running(USER),
        "volume": owner(DATA),
        "folder": owner(CONFIG),
        "secret": owner(CONFIG / "50-juju.json"),
        "state": owner(Path("/var/lib/turku-storage")),
        "usage": unit.act("usage")["problems"],
    }
    session = subprocess.Popen(["sleep", "300"], user=pwd.getpwnam(USER).pw_uid)
    unit.detach(storage)
    found["after detaching"] = [worker.is_running(USER), session.wait(30)]
    unit.run(unit.on.update_status())
    found["later"] = worker.is_running(USER)
    unit.run(unit.on.stop())
    found["left"] = sorted(
        str(path)
        for folder in ("/etc/ssh/sshd_config.d", "/etc/cron.d", "/etc/turku-storage/config.d")
        for path in Path(folder).glob("*")
        if "turku" in path.name or "turku" in folder
    )
    found["home"] = owner(Path("/var/lib/turku-storage"))
    return found


def main() -> None:
    """Prepare the host, and let a unit live on it."""
    DATA.mkdir()
    if "taken-over" in sys.argv:
        (DATA / MARKER).write_text("6ba7b810-9dad-41d1-80b4-00c04fd430c8\n")
        for path in (DATA, DATA / MARKER):
            os.chown(path, FORMER_UID, FORMER_UID)
    patch = pytest.MonkeyPatch()
    use_this_environment(patch)
    worker = Worker()
    for name in ("install_packages", "is_running", "restart", "stop"):
        patch.setattr(host, name, getattr(worker, name))
    unit = Unit(Path("/"), worker)

    def storage_get(_: object, name: str, attribute: str) -> str:
        if name not in unit.locations:
            raise ops.ModelError(f"storage {name} is not provisioned")
        return str(unit.locations[name])

    patch.setattr(mocking._MockModelBackend, "storage_get", storage_get)
    with running_api() as api:
        CONFIG.mkdir(parents=True)
        (CONFIG / "90-operator.json").write_text(json.dumps({"api_url": api.url}))
        found = live(unit, worker, api.requests)
    worker.stop(USER)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""The storage unit's own programs, files and services on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from turku_charm import host
from turku_charm.api_relation import Api, write_configuration, write_if_changed
from turku_charm.programs import Programs
from turku_charm.statuses import Blocked
from turku_charm.workload import Workload
from turku_core.configuration import read_file
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.relations import StorageUnit
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.privileges import Owner, find_owner
from turku_core.storage.settings import HOST_KEYS_FOLDER, Paths, read_host_keys, read_settings
from turku_core.storage.volumes import MARKER, RESERVE, Volumes

WORKER = "turku-storage-worker"
PACKAGES = ("rsync", "openssh-server", "borgbackup", "btrfs-progs")
LVM_PACKAGES = ("lvm2",)

OWN_FILE = "40-charm.json"
API_FILES = ("50-juju.json", "juju-ca.crt")

SETTLED_SECONDS = 3.0
"""A worker that still runs after this long has read its configuration and begun its work."""
ENDING_SECONDS = 15.0


class Service:
    """The storage unit on this machine.

    Args:
        charm_dir: The unpacked charm.
        root: What all paths are below.
    """

    def __init__(self, charm_dir: Path, root: Path) -> None:
        self.root = root
        self.workload = Workload("storage", charm_dir, root)
        self.paths = Paths(root)

    @property
    def programs(self) -> Programs:
        """The unit's programs. Run as root, they become the unit's user by themselves."""
        return self.workload.programs()

    def install_packages(self, *, lvm: bool) -> None:
        """Install what the unit needs of the distribution. Raises TurkuError."""
        host.install_packages([*PACKAGES, *(LVM_PACKAGES if lvm else ())])

    def owner(self) -> Owner | None:
        """Return the unit's user; None before there is one."""
        try:
            return find_owner(self.paths)
        except ConfigurationError:
            return None

    def ensure_owner(self, volumes: Iterable[Path]) -> Owner:
        """Return the unit's user, who is made, with the folders, if there is none.

        On a new unit that has been given the volumes of another one, the user gets the id that
        those backups belong to.

        Raises:
            TurkuError: The user can't be made, or sshd doesn't take its part.
        """
        if self.owner() is None:
            former = [uid for path in volumes if (uid := owner_of_backups(path)) is not None]
            wanted = ["--uid", str(former[0])] if former and not _is_known(former[0]) else []
            self.programs.run("turku-storage", "install-service", *wanted)
        return find_owner(self.paths)

    @property
    def knows_api(self) -> bool:
        """Whether it was ever told where the API is."""
        return (self.paths.configuration / API_FILES[0]).exists()

    @property
    def is_configured(self) -> bool:
        """Whether it has all that it needs to serve."""
        return self.knows_api and (self.paths.configuration / OWN_FILE).exists()

    @property
    def is_registered(self) -> bool:
        """Whether the API has ever answered it."""
        return self.paths.known_machines.exists()

    def own_values(self) -> Mapping[str, Any]:
        """Return what this charm wrote into the configuration before."""
        file = self.paths.configuration / OWN_FILE
        return read_file(file)[0] if file.exists() else {}

    def volumes_in_use(self) -> set[str]:
        """Return the names of the volumes on which sources have their place. Raises."""
        return Catalogue(Volumes((), self.paths.state), self.paths.state).volumes_in_use()

    def write_own(self, values: Mapping[str, Any], owner: Owner) -> None:
        """Write the charm's part of the configuration."""
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        write_if_changed(self.paths.configuration / OWN_FILE, text, 0o640, owner.gid)

    def write_api(self, api: Api, owner: Owner) -> None:
        """Write where the API is, and what to register with."""
        write_configuration(self.paths.configuration, api, {}, owner.gid)

    def give_to(self, owner: Owner, path: Path) -> None:
        """Let the unit's user, and nobody else, use a volume's top.

        Raises:
            Blocked: There are backups of another user.
        """
        path.mkdir(parents=True, exist_ok=True)
        status = path.stat()
        if owner_of_backups(path) not in (None, owner.uid):
            raise Blocked(
                f"{path} has backups of another storage unit, whose user's id is {status.st_uid}; "
                f"here it is {owner.uid}. Attach the storage to a new unit, which takes it over."
            )
        if (status.st_uid, status.st_gid) != (owner.uid, owner.gid):
            os.chown(path, owner.uid, owner.gid)
        if status.st_mode & 0o777 != 0o700:
            path.chmod(0o700)

    def leave(self, path: Path) -> None:
        """Give back the room that the unit has set aside on what is no volume of its any more."""
        (path / RESERVE).unlink(missing_ok=True)

    def digest(self) -> str:
        """Return a word for all that the worker reads when it starts."""
        digest = hashlib.sha256()
        folder = self.paths.configuration
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and not path.name.startswith("."):
                digest.update(b"%s %d " % (os.fsencode(path.name), path.stat().st_size))
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def is_running(self) -> bool:
        """Say whether the worker runs."""
        return host.is_running(WORKER)

    def start(self) -> None:
        """Write the services as this version has them, and let the worker begin anew.

        Raises:
            TurkuError: sshd doesn't take its part, or the worker doesn't stay.
        """
        self.programs.run("turku-storage", "install-service")
        host.restart(WORKER)
        deadline = time.monotonic() + SETTLED_SECONDS
        while time.monotonic() < deadline:
            if not host.is_running(WORKER):
                raise TurkuError(f"{WORKER} ends by itself: see journalctl -u {WORKER}.")
            time.sleep(0.25)

    def stop(self) -> None:
        """End the worker and the sessions, so that nothing uses a volume. Raises TurkuError.

        What they were at is taken up again later: sessions by the machines, commits by the worker.
        """
        if (self.root / f"etc/systemd/system/{WORKER}.service").exists():
            host.stop(WORKER)
        owner = self.owner()
        if owner is not None and owner.uid != 0:
            end_processes_of(owner.uid)

    def remove(self) -> None:
        """Take the services, the programs and the charm's files away; backups and state stay."""
        if self.workload.is_installed():
            self.programs.run("turku-storage", "uninstall-service")
            self.workload.remove()
        for name in (OWN_FILE, *API_FILES):
            (self.paths.configuration / name).unlink(missing_ok=True)

    def register(self) -> None:
        """Tell the API of the unit. Raises TurkuError, TryAgainLater."""
        self.programs.run("turku-storage-update-config")

    def introduction(self) -> StorageUnit | None:
        """Return what the relation says of this unit; None while it has no name. Raises."""
        settings = read_settings(self.root)
        if settings.name is None:
            return None
        keys = self.root / HOST_KEYS_FOLDER.relative_to("/")
        return StorageUnit(
            name=settings.name,
            ssh_host=settings.ssh_ping_host,
            ssh_port=settings.ssh_ping_port,
            ssh_host_keys=settings.ssh_ping_host_keys or read_host_keys(keys),
        )

    def usage(self) -> Mapping[str, Any]:
        """Return how full the volumes are, and what goes on. Raises TurkuError."""
        found: Mapping[str, Any] = self.programs.run_json(
            "turku-storage", "usage", answering=(0, 1)
        )
        return found


def owner_of_backups(path: Path) -> int | None:
    """Return the id of the user whose backups lie on a volume; None: there are none."""
    marker = path / MARKER
    return marker.stat().st_uid if marker.exists() else None


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
        return True
    except KeyError:
        return False


def end_processes_of(uid: int, seconds_max: float = ENDING_SECONDS) -> None:
    """End a user's processes: with a chance to clean up, and after a while without.

    One that waits for a broken disk can't be ended; it is left after twice that while.
    """
    deadline = time.monotonic() + seconds_max
    asked: set[int] = set()
    while (found := _processes_of(uid)) and time.monotonic() < deadline + seconds_max:
        late = time.monotonic() > deadline
        for process in found if late else found - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
        asked |= found
        time.sleep(0.1)


def _processes_of(uid: int) -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if folder.stat().st_uid == uid and state != "Z":
                found.add(int(folder.name))
    return found

"""The one agent of a machine: its packages, its programs, its configuration, its timers."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from agent_machine import Claim, Machine, carrier, speaker
from turku_charm import host
from turku_charm.api_relation import Api, write_configuration, write_if_changed
from turku_charm.workload import Workload
from turku_core.agent.identity import load_identity
from turku_core.agent.settings import Locations
from turku_core.agent.sources import source_files
from turku_core.agent.status import read_status
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.fields import public_key, uuid
from turku_core.relations import AgentUnit, ApiAccess

logger = logging.getLogger(__name__)

PACKAGES = {"rsync": "rsync", "ssh": "openssh-client", "setpriv": "util-linux"}
"""The programs that the agent calls, and the distribution's packages that have them."""

UPDATE_SERVICE = "turku-update-config.service"
SERVICES = (
    "turku-agent-ping.timer",
    "turku-update-config.timer",
    UPDATE_SERVICE,
    "turku-agent-ping.service",
)
STATUS_FRESH = timedelta(minutes=15)
STATUS_SECONDS_MAX = 5.0
"""An API that is down must not hold up the machine's hooks; what it said last is good enough."""


class Agent:
    """The agent that the machine's units share.

    Args:
        root: What all paths are below; ``/`` on a real machine.
        charm_dir: The unpacked charm.
        machine: The units on the machine.
    """

    def __init__(self, root: Path, charm_dir: Path, machine: Machine) -> None:
        self.locations = Locations(root)
        self.workload = Workload("agent", charm_dir, root)
        self.programs = self.workload.programs()
        self.hooks = root / "etc/turku-agent/hooks"
        self._machine = machine
        self._configuration = self.locations.configuration / "50-juju.json"
        self._certificate = self.locations.configuration / "juju-ca.crt"
        self._units = root / "etc/systemd/system"
        self._carried = machine.folder / "carried"
        self._told = machine.folder / "told"

    def install_packages(self) -> None:
        """Install what the agent calls and the machine lacks. Raises TurkuError."""
        missing = [name for program, name in PACKAGES.items() if shutil.which(program) is None]
        if missing:
            host.install_packages(missing)

    def install(self, mine: Claim, claims: Sequence[Claim]) -> None:
        """Install or upgrade the workload, if that is up to this unit.

        An upgrade that doesn't start is taken back. Whatever runs goes on with what it began with.

        Raises:
            TurkuError: It can't be installed, or doesn't start.
        """
        best = carrier(claims)
        if best.unit != mine.unit:
            if not self.workload.is_installed():
                self.workload.install()
            return
        mark = f"{mine.unit} {mine.release} {mine.adopted}\n"
        if self.workload.is_installed() and _read(self._carried) == mark:
            return
        self.workload.upgrade(self._start)
        write_if_changed(self._carried, mark, 0o600)

    def identity(self) -> AgentUnit:
        """Return who the machine is, as its agent says; it becomes somebody the first time.

        Raises:
            TurkuError: The programs aren't there, or the identity is another machine's.
        """
        try:
            identity = load_identity(self.locations)
            return AgentUnit(identity.uuid, identity.public_key())
        except ConfigurationError:
            # There is none, or a part of it is missing; the program makes what can be made.
            said = self.programs.run_json("turku-update-config", "identity")
        return AgentUnit(
            machine_uuid=uuid(said["uuid"], "uuid"),
            ssh_public_key=public_key(said["ssh_public_key"], "ssh_public_key"),
        )

    def configure(self, claims: Sequence[Claim]) -> None:
        """Make the configuration what the machine's units want; without an API there is none."""
        lead = speaker(claims)
        access = None if lead is None else ApiAccess.from_databag(lead.access or {})
        if lead is None or access is None:
            self._stop_checking_in()
            return
        listen = next((claim.metrics_listen for claim in claims if claim.metrics_listen), None)
        metrics = {} if listen is None else {"metrics_listen": listen}
        write_configuration(
            self.locations.configuration, Api(access, lead.secret), {**lead.values, **metrics}
        )

    def is_configured(self) -> bool:
        """Say whether the agent knows an API."""
        return self._configuration.exists()

    def tell(self) -> bool:
        """Let the agent tell the API what has changed, without waiting for it.

        The timers are seen to first. It goes by what the files hold, so a principal's file counts
        as well, and a hook that was broken off leaves nothing untold.

        Returns:
            Whether there was anything to tell.

        Raises:
            TurkuError: The timers can't be installed, or the service can't be started.
        """
        digest = self._digest()
        timer = self._units / "turku-agent-ping.timer"
        if not self.is_configured() or (_read(self._told) == digest and timer.exists()):
            return False
        self._start()
        host.start_anew(UPDATE_SERVICE)
        write_if_changed(self._told, digest, 0o600)
        return True

    def refresh_status(self, now: datetime) -> None:
        """Ask the API how the sources fare, if it answers at once; the agent keeps what it says.

        The agent asks by itself after what it does. For all else a quarter of an hour is soon
        enough: thousands of machines ask one API.

        Args:
            now: The time, aware.
        """
        known = read_status(self.locations)
        is_fresh = known is not None and now - known.asked_at < STATUS_FRESH
        if not self.is_configured() or (is_fresh and not self.locations.status_is_old.exists()):
            return
        try:
            self.programs.run("turku-agent-ping", "--status", seconds_max=STATUS_SECONDS_MAX)
        except TurkuError as error:
            logger.info("how the sources fare can't be asked now: %s", error)

    def remove(self) -> None:
        """Take the agent from the machine: all that the charm and the agent itself have made.

        What was restored stays, and so does all that isn't ours. What can't be removed is logged:
        nobody comes back to try again.
        """
        for service in SERVICES:
            # A backup may still run when its unit's file went with the relation to the API.
            is_known = (self._units / service).exists()
            with _going_on() if is_known else contextlib.suppress(TurkuError):
                host.stop(service)
        if self.workload.is_installed():
            with _going_on():
                self.programs.run("turku-update-config", "uninstall")
        for pattern in ("turku-agent-*", "turku-update-config.*"):
            host.forget_failures(pattern)
        with _going_on():
            self.workload.remove()
        self._forget_configuration()
        shutil.rmtree(self.hooks, ignore_errors=True)
        for folder in (
            self.locations.configuration,
            self.locations.sources,
            self.locations.configuration.parent,
        ):
            _remove_if_empty(folder)
        shutil.rmtree(self.locations.run, ignore_errors=True)
        _remove_if_empty(self.locations.restore)
        for path in self.locations.state.iterdir():
            if path.is_dir() and path != self.locations.restore:
                shutil.rmtree(path, ignore_errors=True)
            elif path != self.locations.restore:
                path.unlink()
        _remove_if_empty(self.locations.state)

    def _start(self) -> None:
        """Have the timers installed, and whatever else the agent's own units are."""
        if self.is_configured():
            self.programs.run("turku-update-config", "install-systemd")

    def _stop_checking_in(self) -> None:
        if self.is_configured():
            self.programs.run("turku-update-config", "uninstall")
            self._forget_configuration()

    def _forget_configuration(self) -> None:
        self._certificate.unlink(missing_ok=True)
        self._configuration.unlink(missing_ok=True)
        self._told.unlink(missing_ok=True)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        configuration = sorted(self.locations.configuration.glob("[!.]*"))
        for path in (*configuration, *source_files(self.locations.sources)):
            content = path.read_bytes() if path.is_file() else b""
            digest.update(b"%s %d " % (path.name.encode(), len(content)))
            digest.update(content)
        return digest.hexdigest()


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    try:
        yield
    except TurkuError as error:
        logger.warning("%s", error)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that is there and has nothing in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

"""The storage unit's charm in tests: real programs below a root of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ops
import pytest
import yaml
from ops import testing
from scenario import mocking

from tests.support.charms import CHARMS, charm_folder, load_charm
from tests.support.stand_in_api import StandInApi, running_api
from tests.support.workload import use_this_environment
from turku_charm import host
from turku_core.errors import TurkuError
from turku_core.relations import ApiAccess

CHARM = load_charm("turku-storage")
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
KEY = "a-registration-key-0123456789"
ACCESS = ApiAccess(("https://192.0.2.10/v1",), PEM, "storages-3", "secret:abc")
WORKER = "turku-storage-worker"


@dataclass
class Systemd:
    """A stand-in for systemd and apt, neither of which runs here: what was asked of them."""

    running: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    packages: set[str] = field(default_factory=set)
    fails: str | None = None
    dies: bool = False

    def install_packages(self, names: list[str]) -> None:
        """Install packages, unless the test says why they can't be."""
        if self.fails is not None:
            raise TurkuError(self.fails)
        self.packages |= set(names)

    def is_running(self, service: str) -> bool:
        """Say whether a service was started and not stopped since."""
        return service in self.running

    def restart(self, service: str) -> None:
        """Start a service; it may end at once, as one with a bad configuration does."""
        self.asked.append(f"restart {service}")
        if not self.dies:
            self.running.add(service)

    def stop(self, service: str) -> None:
        """Stop a service."""
        self.asked.append(f"stop {service}")
        self.running.discard(service)


@dataclass
class Unit:
    """A unit of the charm with a machine of its own, or what of one is needed here.

    Each event's state is kept, so that the next one finds what the last one left.
    """

    root: Path
    systemd: Systemd
    locations: dict[str, Path] = field(default_factory=dict)
    state: testing.State = field(default_factory=testing.State)

    def __post_init__(self) -> None:
        """Make the context with the charm's own metadata, and sshd's configuration."""
        charm_type = type("Charm", (CHARM.TurkuStorageCharm,), {"root": self.root})
        meta = yaml.safe_load((CHARMS / "turku-storage/charmcraft.yaml").read_text("utf-8"))
        self.context: testing.Context[ops.CharmBase] = testing.Context(
            charm_type,
            meta=meta,
            config=meta.pop("config"),
            actions=meta.pop("actions"),
            charm_root=charm_folder("turku-storage", self.root),
            app_name="turku-storage",
        )
        self.on = self.context.on
        sshd = self.root / "etc/ssh"
        (sshd / "sshd_config.d").mkdir(parents=True, exist_ok=True)
        self.make_host_key()
        key = sshd / "ssh_host_ed25519_key"
        (sshd / "sshd_config").write_text(f"Include {sshd}/sshd_config.d/*.conf\nHostKey {key}\n")

    def make_host_key(self) -> str:
        """Make a new host key, and return its public half."""
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        for path in (key, key.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        return " ".join(key.with_suffix(".pub").read_text().split()[:2])

    def run(self, event: Any, **changes: Any) -> testing.State:
        """Run one hook, on the last state with some of it changed."""
        self.state = self.context.run(event, replace(self.state, **changes))
        return self.state

    def install(self, **changes: Any) -> None:
        """Run the hooks of a new unit that has no relation yet."""
        self.run(self.on.install(), **changes)
        self.run(self.on.config_changed())
        self.run(self.on.start())

    def relate(self, access: ApiAccess | None = ACCESS, *, granted: bool = True) -> None:
        """Run the hooks of a new relation to an API that says this."""
        relation = testing.Relation("api", interface="turku_storage", remote_app_name="turku-api")
        secrets = [testing.Secret({"secret": KEY}, id="secret:abc")] if granted else []
        self.run(
            self.on.relation_created(relation),
            relations=[*self.state.relations, relation],
            secrets=[*self.state.secrets, *secrets],
        )
        self.say(access)

    def say(self, access: ApiAccess | None) -> None:
        """Run the hook of a change on the API's side."""
        data = {} if access is None else access.to_databag()
        changed = replace(self.relation, remote_app_data=data)
        self.run(self.on.relation_changed(changed), relations=[*self.others, changed])

    def attach(self, name: str, location: Path, *, hook: bool = True) -> testing.Storage:
        """Attach a storage such as ``volumes/0``, and run its hook."""
        kind, index = name.split("/")
        storage = testing.Storage(kind, index=int(index))
        self.locations[name] = location
        self.state = replace(self.state, storages=frozenset({*self.state.storages, storage}))
        if hook:
            self.run(self.on.storage_attached(storage))
        return storage

    def detach(self, storage: testing.Storage) -> None:
        """Run the hook of a storage that goes, and let it be gone."""
        self.run(self.on.storage_detaching(storage))
        self.state = replace(self.state, storages=self.state.storages - {storage})

    def act(self, name: str, **params: Any) -> Any:
        """Run an action and return what it answered as data; `text` has what people read."""
        named = {key.replace("_", "-"): value for key, value in params.items()}
        self.run(self.on.action(name, params=named))
        return self.results()

    def failure(self, name: str, **params: Any) -> str:
        """Run an action that fails, and return its sentence."""
        named = {key.replace("_", "-"): value for key, value in params.items()}
        with pytest.raises(testing.ActionFailed) as failed:
            self.run(self.on.action(name, params=named))
        return failed.value.message

    def results(self) -> Any:
        """Return what the last action answered as data."""
        results = self.context.action_results or {}
        self.text = str(results.get("result", ""))
        return json.loads(str(results["json"]))

    @property
    def relation(self) -> testing.Relation:
        """The relation to the API as the last hook left it."""
        [found] = self.state.get_relations("api")
        assert isinstance(found, testing.Relation)
        return found

    @property
    def published(self) -> dict[str, str]:
        """What the unit says over the relation to the API."""
        data: Any = self.relation.local_unit_data
        return dict(data)

    @property
    def others(self) -> list[testing.RelationBase]:
        """The other relations."""
        return [each for each in self.state.relations if each.endpoint != "api"]

    @property
    def status(self) -> tuple[str, str]:
        """The unit's status and its words."""
        return self.state.unit_status.name, self.state.unit_status.message

    @property
    def config_folder(self) -> Path:
        """The folder of the storage unit's configuration."""
        return self.root / "etc/turku-storage/config.d"

    def configuration(self, name: str = "40-charm.json") -> Any:
        """Return what the charm wrote for the storage unit."""
        return json.loads((self.config_folder / name).read_text("utf-8"))

    @property
    def paths(self) -> dict[str, str]:
        """The configured volumes' paths, below the root."""
        volumes = self.configuration()["volumes"]
        return {name: values["path"] for name, values in volumes.items()}

    @property
    def state_folder(self) -> Path:
        """The storage unit's own state."""
        return self.root / "var/lib/turku-storage"

    def use(self, volume: str) -> None:
        """Let a source have its place on a volume, as after a session."""
        places = self.state_folder / "places"
        places.mkdir(mode=0o700, exist_ok=True)
        file = places / "6ba7b810-9dad-41d1-80b4-00c04fd430c8.json"
        file.write_text(json.dumps({"sources": {"docs": volume}}))


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """No service is started and no package installed in these tests."""
    made = Systemd()
    for name in ("install_packages", "is_running", "restart", "stop"):
        monkeypatch.setattr(host, name, getattr(made, name))
    monkeypatch.setattr("storage_service.SETTLED_SECONDS", 0.0)
    return made


@pytest.fixture
def unit(tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Unit:
    """A unit on which no hook has run, without an API that answers."""
    use_this_environment(monkeypatch)
    made = Unit(tmp_path / "root", systemd)

    def storage_get(_: object, name: str, attribute: str) -> str:
        assert attribute == "location"
        if name not in made.locations:
            raise ops.ModelError(f"storage {name} is not provisioned")
        return str(made.locations[name])

    # ops.testing gives every storage a folder; ours may be a device, or not there yet.
    monkeypatch.setattr(mocking._MockModelBackend, "storage_get", storage_get)
    return made


@pytest.fixture
def api() -> Iterator[StandInApi]:
    """A stand-in for the API's HTTP side."""
    with running_api() as running:
        yield running


@pytest.fixture
def served(unit: Unit, api: StandInApi) -> Unit:
    """A unit that is installed, related, and registered with a stand-in for the API.

    The relation carries https URLs alone, so an operator's file names the stand-in.
    """
    unit.config_folder.mkdir(parents=True)
    key = (unit.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    operator = {"api_url": api.url, "ssh_ping_host_keys": [key.strip()]}
    (unit.config_folder / "90-operator.json").write_text(json.dumps(operator))
    unit.install()
    unit.relate()
    return unit

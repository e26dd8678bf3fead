"""A model as a test uses it: deploy, integrate, run, wait, status."""

from __future__ import annotations

import re
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.model.runner.commands import MachineError, run
from tests.model.runner.context import Action
from tests.model.runner.entities import (
    Application,
    Charm,
    Endpoint,
    Entities,
    Relation,
    Storage,
    Unit,
)
from tests.model.runner.hooks import ToolServer, install_charm, run_hook, unpack_charm
from tests.model.runner.kernel_machine import KernelImage, KernelMachine
from tests.model.runner.limits import PREFIX, raise_limit, restore_limit
from tests.model.runner.machines import Machine
from tests.model.runner.network import Network
from tests.model.runner.resolver import Hook, next_hook, note
from tests.model.runner.turns import Turns

RETRY_FIRST, RETRY_MAX = 5.0, 300.0
LOG_LINES_KEPT = 4000
PAUSE = 0.05
WAIT_SHARE = 1.5
UNMOUNT_SECONDS = 30.0
MACHINES_MAX = 240
DISK_SIZE = "200G"
"""Of the file on which a model lies; it takes no more room than what is used of it."""

BLOCK_SIZE = "1G"
"""How large a block device is when nobody says, as with Juju."""


OPEN: list[Model] = []
"""The models that are open now, for the report of a test that fails."""


class ActionFailed(Exception):
    """An action failed; the message is its own."""


class Model:
    """Applications on machines of their own; used as a context manager, it leaves nothing behind.

    Args:
        image: The root folder that machines are overlays on.
        store: The packed charm of each name that a test or a bundle may deploy.
        prefix: The first three bytes of the machines' subnet.
    """

    def __init__(
        self,
        image: Path,
        store: Mapping[str, Path] | None = None,
        name: str = "fleet",
        prefix: str = "10.77.1",
    ) -> None:
        self.store = dict(store or {})
        self.folder = Path(tempfile.mkdtemp(prefix="turku-model-"))
        self._disk = self.folder.with_suffix(".disk")
        self.image = image
        self.entities = Entities(name)
        self.network = Network(f"{PREFIX}{uuid.uuid4().hex[:8]}", prefix)
        self.machines: dict[str, Machine] = {}
        self.charms: dict[str, Path] = {}
        self.logs: dict[str, deque[str]] = {}
        self.hooks_run: list[tuple[str, str]] = []
        self._lock = threading.RLock()
        self._machine_locks: dict[str, threading.Lock] = {}
        self._servers: dict[str, ToolServer] = {}
        self._threads: list[threading.Thread] = []
        self._retry_at: dict[str, float] = {}
        self._turns = Turns(image.parent)
        self._has_host = False
        self._closing = False
        self._broken: list[str] = []

    def __enter__(self) -> Model:
        OPEN.append(self)
        self._mount_folder()
        self.network.open()
        raise_limit()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the agents and the machines, and remove everything."""
        if self in OPEN:
            OPEN.remove(self)
        self._closing = True
        for thread in self._threads:
            thread.join()
        with ThreadPoolExecutor() as pool:
            closes = [pool.submit(server.close) for server in self._servers.values()]
            closes += [pool.submit(machine.close) for machine in self.machines.values()]
        for close in closes:
            close.result()  # raises what was raised
        self.network.close()
        restore_limit()
        self._unmount_folder()
        self.folder.rmdir()
        self._disk.unlink()

    def _mount_folder(self) -> None:
        """Mount a disk where all that the model makes lies: to throw it away takes no time.

        nspawn hides the host's mounts from a machine and keeps copies of them. So they lie on a
        shared one: what is unmounted here is unmounted on the machines of other models too
        (mount_namespaces(7)).
        """
        run(["mount", "--bind", "--make-shared", str(self.folder), str(self.folder)])
        run(["truncate", f"--size={DISK_SIZE}", str(self._disk)])
        features = ["-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1"]
        run(["mkfs.ext4", "-q", *features, str(self._disk)])
        run(["mount", "-o", "loop,noatime", str(self._disk), str(self.folder)])

    def _unmount_folder(self) -> None:
        """Take the disk away once the kernel has let go of what the machines had mounted of it."""
        deadline = time.monotonic() + UNMOUNT_SECONDS
        while True:
            try:
                run(["umount", str(self.folder)])
                break
            except MachineError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)
        run(["umount", str(self.folder)])

    # What a test does.

    def deploy(
        self,
        what: Path | str,
        name: str | None = None,
        units: int = 1,
        config: Mapping[str, Any] | None = None,
        storage: Mapping[str, str] | None = None,
        machines: Sequence[str] | None = None,
        overlay: Mapping[str, Any] | None = None,
    ) -> None:
        """Deploy a charm, or a bundle.

        Args:
            what: A packed charm, the name of one in the store, or a bundle (``*.yaml``). A bundle's
                charms, local ones too, are those of the store with the same name.
            name: The application's name; the charm's when left out.
            storage: The directive of each storage that a unit gets, such as ``400M`` or ``2,1G``;
                those that the charm demands are made in any case. One without a size is a folder.
            machines: Where to put the units; new machines when left out.
            overlay: For a bundle: applications whose keys replace the bundle's; one that is None is
                left out with its relations.
        """
        if str(what).endswith(".yaml"):
            self._deploy_bundle(Path(what), overlay or {})
            return
        charm = self.store[what] if isinstance(what, str) else what
        with self._lock:
            unpacked = self._unpack(charm, 1)
            name = name or str(unpacked.metadata["name"])
            application = Application(name, unpacked, dict(config or {}))
            self.entities.applications[name] = application
            for endpoint in application.charm.endpoints.values():
                if endpoint.role == "peers":
                    self._relate({name: endpoint})
        if not application.charm.is_subordinate:
            places: list[str | None] = list(machines) if machines else [None] * units
            with ThreadPoolExecutor(max(len(places), 1)) as pool:
                adds = [pool.submit(self.add_unit, name, storage, place) for place in places]
            for add in adds:
                add.result()  # raises what was raised

    def _deploy_bundle(self, file: Path, overlay: Mapping[str, Any]) -> None:
        bundle = yaml.safe_load(file.read_text("utf-8"))
        applications = bundle["applications"]
        for name, spec in overlay.items():
            applications[name] = None if spec is None else {**applications.get(name, {}), **spec}
        left_out = {name for name, spec in applications.items() if spec is None}
        for name, spec in applications.items():
            if spec is not None:
                charm = Path(spec["charm"]).name.partition("_")[0]
                units = int(spec.get("num_units", 0))
                self.deploy(charm, name, units, spec.get("options"), spec.get("storage"))
        for one, two in bundle.get("relations", []):
            if not {one.partition(":")[0], two.partition(":")[0]} & left_out:
                self.integrate(one, two)

    def add_unit(
        self, name: str, storage: Mapping[str, str] | None = None, machine: str | None = None
    ) -> str:
        """Add a unit, on a machine of its own unless one is named, and return its name."""
        machine = machine or self.add_machine()
        with self._lock:
            return self._make_unit(self.entities.applications[name], machine, None, storage).name

    def add_storage(self, unit_name: str, name: str, directive: str = "") -> list[str]:
        """Attach more of a storage to a unit, and return the new ones' ids."""
        with self._lock:
            unit = self.entities.unit(unit_name)
            spec = self.entities.applications[unit.application].charm.storages[name]
            return self._give_storage(unit, name, spec, directive)

    def remove_storage(self, unit_name: str, identifier: str) -> None:
        """Detach a storage from a unit, with what is on it."""
        with self._lock:
            self.entities.unit(unit_name).storages[identifier].detaching = True

    def elect(self, unit_name: str) -> None:
        """Make a unit its application's leader, as Juju does when the leader's lease runs out."""
        with self._lock:
            unit = self.entities.unit(unit_name)
            application = self.entities.applications[unit.application]
            if application.leader != unit_name:
                application.leader = unit_name
                unit.seen.led = False

    def add_machine(self, kernel: KernelImage | None = None) -> str:
        """Boot a machine, start its agent, and return its name in the model.

        Args:
            kernel: What it boots from if it is to have a kernel of its own.
        """
        with self._lock:
            number = len(self.machines)
            if number >= MACHINES_MAX:
                raise ValueError(f"a model has at most {MACHINES_MAX} machines")
            folder = self.folder / f"machine-{number}"
            machine = (
                Machine(number, folder, self.image, self.network)
                if kernel is None
                else KernelMachine(number, folder, kernel, self.network)
            )
            name = str(number)
            self.machines[name] = machine
            self._machine_locks[name] = threading.Lock()
        self._servers[name] = ToolServer(machine)
        machine.start()
        thread = threading.Thread(target=self._agent, args=(name,), name=machine.name)
        self._threads.append(thread)
        thread.start()
        return name

    def integrate(self, one: str, two: str) -> int:
        """Relate two applications, ``NAME[:ENDPOINT]``, and return the relation's id."""
        with self._lock:
            ends = self._endpoints(one, two)
            relation = self._relate(ends)
            self._place_subordinates()
            return relation.id

    def remove_relation(self, one: str, two: str) -> None:
        """End a relation."""
        with self._lock:
            ends = self._endpoints(one, two)
            for relation in self.entities.relations.values():
                if relation.ends == ends:
                    relation.dying = True

    def remove_unit(self, name: str) -> None:
        """Let a unit go, and those beside it."""
        with self._lock:
            self._let_go(self.entities.unit(name))

    def configure(self, name: str, **options: Any) -> None:
        """Change options; underscores stand for hyphens."""
        with self._lock:
            application = self.entities.applications[name]
            given = {key.replace("_", "-"): value for key, value in options.items()}
            unknown = set(given) - set(application.charm.options)
            if unknown:
                raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}")
            application.config |= given
            application.config_revision += 1

    def upgrade(self, name: str, charm: Path) -> None:
        """Give an application another charm file."""
        with self._lock:
            application = self.entities.applications[name]
            application.charm = self._unpack(charm, application.charm.revision + 1)

    def update_status(self, *units: str) -> None:
        """Let these units run their update-status; none named: every unit."""
        with self._lock:
            for unit in self.entities.units():
                if not units or unit.name in units:
                    unit.update_status_wanted = True

    def run(self, unit_name: str, action: str, **parameters: Any) -> dict[str, Any]:
        """Run an action and return its results.

        Raises:
            ActionFailed: With the action's own words.
        """
        unit = self.entities.unit(unit_name)
        charm = self.entities.applications[unit.application].charm
        if action not in charm.actions:
            raise ValueError(f"{unit_name} has no action {action}")
        spec = charm.actions[action].get("params", {})
        given = {key.replace("_", "-"): value for key, value in parameters.items()}
        unknown = set(given) - set(spec)
        if unknown and not charm.actions[action].get("additionalProperties", True):
            raise ActionFailed(f"additional property {', '.join(sorted(unknown))} is not allowed")
        defaults = {key: each["default"] for key, each in spec.items() if "default" in each}
        made = Action(action, str(uuid.uuid4()), {**defaults, **given})
        with self._machine_locks[unit.machine]:
            well, _ = run_hook(
                self.entities,
                unit,
                self.machines[unit.machine],
                self._servers[unit.machine],
                self._lock,
                self._log_of(unit.name),
                action=made,
            )
        if not well or made.failure is not None:
            raise ActionFailed(made.failure or "the action ended with an error; see the unit's log")
        return made.results

    def settle(self, seconds_max: float = 300.0) -> None:
        """Wait until no hook is left to run. Raises TimeoutError."""
        self.wait(lambda model: model.is_settled(), seconds_max, "to settle")

    def wait(
        self, until: Callable[[Model], bool], seconds_max: float = 300.0, what: str = ""
    ) -> float:
        """Wait until something holds, and return for how many seconds. Raises TimeoutError."""
        began = asked = time.monotonic()
        while not until(self):
            now = time.monotonic()
            if self._broken:
                raise RuntimeError(f"the runner itself failed: {self._broken}")
            if now - began > seconds_max:
                raise TimeoutError(f"waited {seconds_max:.0f} s {what}\n{self.status_text()}")
            # To ask may be work for the machines too; what is waited for gets most of the time.
            time.sleep(max(PAUSE, WAIT_SHARE * (now - asked)))
            asked = time.monotonic()
        return time.monotonic() - began

    @contextmanager
    def host_to_itself(self) -> Iterator[None]:
        """Let no other model's hooks run meanwhile, for a test that is about a time."""
        self.settle()
        with self._turns.alone():
            self._has_host = True
            try:
                yield
            finally:
                self._has_host = False

    def is_settled(self) -> bool:
        """Whether every unit has been told everything."""
        with self._lock:
            return all(
                next_hook(self.entities, unit) is None and not unit.dying
                for unit in self.entities.units()
            )

    def status(self) -> dict[str, tuple[str, str]]:
        """Return each unit's status and its message."""
        with self._lock:
            return {unit.name: unit.status for unit in self.entities.units()}

    def status_text(self) -> str:
        """Return the model's status as a table."""
        with self._lock:
            lines = [
                f"{unit.name:24} {self.machines[unit.machine].address:14} {unit.status[0]:12} "
                f"{unit.status[1]}"
                + (f" (hook failed {unit.failures} times)" * bool(unit.failures))
                for unit in self.entities.units()
            ]
        return "\n".join(lines)

    def report(self) -> str:
        """Return everything that helps to find out what went wrong."""
        parts = [self.status_text()]
        for name, lines in self.logs.items():
            parts += [f"--- {name}", *list(lines)[-120:]]
        for machine in self.machines.values():
            if machine.is_running:
                journal = machine.run(
                    ["journalctl", "--no-pager", "-n", "120", "-o", "short-precise"], check=False
                )
                parts += [f"--- journal of {machine.name}", journal]
        return "\n".join(parts)

    def machine_of(self, unit_name: str) -> Machine:
        """Return the machine that a unit runs on."""
        return self.machines[self.entities.unit(unit_name).machine]

    # The agents.

    def _agent(self, machine_name: str) -> None:
        while not self._closing:
            try:
                if not self._step(machine_name):
                    time.sleep(PAUSE)
            except MachineError as error:
                # The machine was stopped under a hook: the hook is run again.
                self._note_trouble(machine_name, str(error))
            except Exception as error:
                self._broken.append(f"{machine_name}: {error!r}")
                raise

    def _note_trouble(self, machine_name: str, words: str) -> None:
        for unit in self.entities.units():
            if unit.machine == machine_name:
                self._log_of(unit.name)(f"the machine: {words}")
        time.sleep(1)

    def _step(self, machine_name: str) -> bool:
        """Run one hook on a machine; return whether there was one."""
        machine = self.machines[machine_name]
        if not machine.is_running:
            return False
        with self._lock:
            if self._next_on(machine_name) is None:
                return False
        turn = nullcontext() if self._has_host else self._turns.beside_others()
        with turn, self._machine_locks[machine_name]:
            with self._lock:
                found = self._next_on(machine_name)
            if found is None:
                return False
            unit, hook = found
            application = self.entities.applications[unit.application]
            is_new = unit.charm is not application.charm
            if is_new and (unit.charm is None or hook.name in ("install", "upgrade-charm")):
                install_charm(machine, unit, application.charm)
            if hook.storage is not None and hook.name.endswith("-attached"):
                self._mount(machine, hook.storage)
            well, context = run_hook(
                self.entities,
                unit,
                machine,
                self._servers[machine_name],
                self._lock,
                self._log_of(unit.name),
                hook,
            )
        with self._lock:
            self.hooks_run.append((unit.name, hook.name))
            if well:
                note(self.entities, unit, hook, context.versions)
                self._follow(unit, hook)
            else:
                pause = min(RETRY_FIRST * 2**unit.failures, RETRY_MAX)
                unit.failures += 1
                unit.status = ("error", f'hook failed: "{hook.name}"')
                self._retry_at[unit.name] = time.monotonic() + pause
        return True

    def _next_on(self, machine_name: str) -> tuple[Unit, Hook] | None:
        for unit in self.entities.units():
            if unit.machine != machine_name or time.monotonic() < self._retry_at.get(unit.name, 0):
                continue
            if unit.dying and self._beside(unit):
                continue  # a principal goes after its subordinates
            hook = next_hook(self.entities, unit)
            if hook is not None:
                return unit, hook
        return None

    def _follow(self, unit: Unit, hook: Hook) -> None:
        """Do what Juju does once a hook has run."""
        if hook.relation is not None and hook.name.endswith("-created"):
            address = self.machines[unit.machine].address
            settings = {
                "ingress-address": address,
                "private-address": address,
                "egress-subnets": f"{address}/32",
            }
            hook.relation.write(unit.name, settings)
        if hook.storage is not None and hook.name.endswith("-detaching") and not unit.dying:
            self._unmount(self.machines[unit.machine], hook.storage)
        if unit.seen.removed:
            self._forget(unit)
        for relation in [each for each in self.entities.relations.values() if each.dying]:
            if self._is_left(relation):
                self._end(relation)
        self._place_subordinates()

    def _is_left(self, relation: Relation) -> bool:
        return all(
            unit.seen.relations[relation.id].broken
            for unit in self.entities.units()
            if relation.id in unit.seen.relations and unit.seen.relations[relation.id].created
        )

    def _end(self, relation: Relation) -> None:
        del self.entities.relations[relation.id]
        for secret in self.entities.secrets.values():
            secret.grants.pop(relation.id, None)

    def _forget(self, unit: Unit) -> None:
        application = self.entities.applications[unit.application]
        del application.units[unit.name]
        if application.leader == unit.name:
            application.leader = next(iter(application.units), None)
        for relation in self.entities.relations.values():
            relation.data.pop(unit.name, None)
            relation.versions.pop(unit.name, None)

    # Who is where, and beside whom.

    def _make_unit(
        self,
        application: Application,
        machine: str,
        principal: str | None,
        storage: Mapping[str, str] | None = None,
    ) -> Unit:
        name = f"{application.name}/{application.next_number}"
        application.next_number += 1
        unit = Unit(name, application.name, machine, principal)
        for kind, spec in application.charm.storages.items():
            self._give_storage(unit, kind, spec, (storage or {}).get(kind, str(_least(spec))))
        application.units[name] = unit
        application.leader = application.leader or name
        return unit

    def _give_storage(
        self, unit: Unit, name: str, spec: Mapping[str, Any], directive: str
    ) -> list[str]:
        """Give a unit as much of a storage as a directive such as ``2,400M`` says."""
        words = [word for word in str(directive).split(",") if word]
        count = next((int(word) for word in words if word.isdecimal()), 1)
        size = next((word for word in words if re.fullmatch(r"[0-9]+[MGT]", word)), None)
        made = []
        for _ in range(count):
            identifier = f"{name}/{self.entities.next_storage}"
            self.entities.next_storage += 1
            location = spec.get("location", f"/var/lib/juju/storage/{identifier}")
            if "multiple" in spec and "location" in spec:
                location = f"{location}/{identifier.rpartition('/')[2]}"
            unit.storages[identifier] = Storage(identifier, name, spec["type"], location, size)
            made.append(identifier)
        return made

    def _mount(self, machine: Machine, storage: Storage) -> None:
        """Give a machine a storage: where the charm wants it, or where a block device appears."""
        if storage.kind == "block":
            storage.location = machine.attach_block(storage.id, storage.size or BLOCK_SIZE)
            return
        if storage.size is not None:
            if storage.location not in machine.disks:
                machine.attach_disk(storage.location, storage.size)
            return
        behind = f"/var/lib/model-storage/{storage.id}"
        line = f"{behind} {storage.location} none bind 0 0"
        script = (
            f"mkdir -p {behind} {storage.location} && "
            f"(grep -qF '{line}' /etc/fstab || echo '{line}' >>/etc/fstab) && "
            f"(mountpoint -q {storage.location} || mount {storage.location})"
        )
        machine.run(["sh", "-c", script])

    def _unmount(self, machine: Machine, storage: Storage) -> None:
        """Take a storage away again."""
        if storage.kind == "block":
            machine.detach_block(storage.id)
            return
        if storage.size is not None:
            machine.detach_disk(storage.location)
            return
        script = f"umount {storage.location} && sed -i '\\# {storage.location} #d' /etc/fstab"
        machine.run(["sh", "-c", script])

    def _let_go(self, unit: Unit) -> None:
        unit.dying = True
        for other in self._beside(unit):
            other.dying = True

    def _beside(self, principal: Unit) -> list[Unit]:
        return [unit for unit in self.entities.units() if unit.principal == principal.name]

    def _place_subordinates(self) -> None:
        """Have a subordinate beside each principal's unit, and let go of those without relation."""
        wanted = set()
        for relation in self.entities.relations.values():
            if not relation.container or relation.dying:
                continue
            for name in relation.ends:
                application = self.entities.applications[name]
                if not application.charm.is_subordinate:
                    continue
                other = self.entities.applications[relation.remote_application(name)]
                if other.charm.is_subordinate:
                    continue
                for principal in other.units.values():
                    wanted.add((name, principal.name))
                    seen = principal.seen.relations.get(relation.id)
                    is_there = any(
                        unit.principal == principal.name for unit in application.units.values()
                    )
                    if not is_there and not principal.dying and seen is not None and seen.created:
                        self._make_unit(application, principal.machine, principal.name)
        for unit in self.entities.units():
            if unit.principal is not None and (unit.application, unit.principal) not in wanted:
                unit.dying = True  # a relation to another subordinate alone keeps none

    def _relate(self, ends: dict[str, Endpoint]) -> Relation:
        relation = Relation(self.entities.next_relation, ends)
        self.entities.next_relation += 1
        self.entities.relations[relation.id] = relation
        return relation

    def _endpoints(self, one: str, two: str) -> dict[str, Endpoint]:
        """Find the endpoints that two words mean, as `juju integrate` does."""
        (first, _, first_end), (second, _, second_end) = one.partition(":"), two.partition(":")
        pairs = [
            {first: mine, second: theirs}
            for mine in self.entities.applications[first].charm.endpoints.values()
            for theirs in self.entities.applications[second].charm.endpoints.values()
            if mine.interface == theirs.interface
            and {mine.role, theirs.role} == {"provides", "requires"}
            and first_end in ("", mine.name)
            and second_end in ("", theirs.name)
        ]
        if len(pairs) > 1:
            pairs = [pair for pair in pairs if pair[first].interface != "juju-info"] or pairs
        if len(pairs) != 1:
            raise ValueError(f"{one} and {two} have {len(pairs)} endpoints in common")
        return pairs[0]

    def _unpack(self, file: Path, revision: int) -> Charm:
        folder = self.folder / "charms" / f"{file.stem}-{revision}-{uuid.uuid4().hex[:6]}"
        unpack_charm(file, folder)
        return Charm.read(folder, revision)

    def _log_of(self, name: str) -> Callable[[str], None]:
        lines = self.logs.setdefault(name, deque(maxlen=LOG_LINES_KEPT))
        return lambda line: lines.append(f"{time.strftime('%H:%M:%S')} {line}")


def _least(spec: Mapping[str, Any]) -> int:
    """Return how many instances of a storage a unit has at least."""
    multiple = spec.get("multiple")
    if multiple is None:
        return 1
    return int(str(multiple["range"]).partition("-")[0].rstrip("+"))


def active(model: Model) -> bool:
    """Whether every unit has been told everything and says that it is active; for `wait`."""
    return model.is_settled() and all(word == "active" for word, _ in model.status().values())

"""The actions: their parameters, checked before anything is done, and what each one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from registration_keys import is_of_relation
from turku_charm.actions import Result
from turku_charm.programs import SECONDS_MAX, Programs
from turku_core import fields
from turku_core.commandline import human_size
from turku_core.errors import TRY_AGAIN_LATER, ConfigurationError
from turku_core.fields import FieldError

PROGRAM = "turku-api"
HEALTH_CODES = (0, 1, 2, 3)
"""The exit codes of a Nagios plugin, all of which are answers."""

RESTORE_CODES = (0, 1, TRY_AGAIN_LATER)
WAIT_MAX = 86400
LIMIT_MAX = 1000


@dataclass(frozen=True)
class CreateAdmin:
    """Parameters of `create-admin`."""

    username: str = "admin"

    def __post_init__(self) -> None:
        """Check them."""
        fields.name(self.username, "username")


@dataclass(frozen=True)
class ListMachines:
    """Parameters of `list-machines`."""

    all: bool = False


@dataclass(frozen=True)
class ListBackups:
    """Parameters of `list-backups`."""

    machine: str = ""
    source: str | None = None
    limit: int = 20

    def __post_init__(self) -> None:
        """Check them."""
        _machine(self.machine, "machine")
        if self.source is not None:
            fields.name(self.source, "source")
        fields.integer(self.limit, "limit", 1, LIMIT_MAX)


@dataclass(frozen=True)
class Restore:
    """Parameters of `restore`."""

    machine: str = ""
    source: str = ""
    to_machine: str | None = None
    snapshot: str = "latest"
    paths: Sequence[str] = ()
    target: str | None = None
    in_place: bool = False
    dry_run: bool = False
    wait: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        _machine(self.machine, "machine")
        fields.name(self.source, "source")
        if self.to_machine is not None:
            _machine(self.to_machine, "to-machine")
        fields.snapshot_id(self.snapshot, "snapshot")
        fields.items(self.paths, "paths", fields.relative_path)
        if self.target is not None:
            fields.absolute_path(self.target, "target")
            if self.in_place:
                raise FieldError("target", "means nothing together with in-place; give one of them")
        fields.integer(self.wait, "wait", 0, WAIT_MAX)

    def arguments(self) -> list[str]:
        """Return those of `turku-api order-restore`."""
        words = [self.machine, self.source, f"--snapshot={self.snapshot}", f"--wait={self.wait}"]
        words += [f"--to-machine={self.to_machine}"] if self.to_machine is not None else []
        words += [f"--path={path}" for path in self.paths]
        words += [f"--target={self.target}"] if self.target is not None else []
        words += ["--in-place"] if self.in_place else []
        words += ["--dry-run"] if self.dry_run else []
        return words


@dataclass(frozen=True)
class ListRestores:
    """Parameters of `list-restores`."""

    limit: int = 20

    def __post_init__(self) -> None:
        """Check them."""
        fields.integer(self.limit, "limit", 1, LIMIT_MAX)


@dataclass(frozen=True)
class BackupNow:
    """Parameters of `backup-now`."""

    machine: str = ""
    sources: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check them."""
        _machine(self.machine, "machine")
        fields.items(self.sources, "sources", fields.name)


@dataclass(frozen=True)
class Subject:
    """Parameters of `pause` and `resume`."""

    machine: str | None = None
    source: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        """Check them."""
        if (self.machine is None) == (self.storage is None):
            raise FieldError("machine", "say either machine=NAME or storage=NAME")
        if self.machine is not None:
            _machine(self.machine, "machine")
        if self.source is not None:
            fields.name(self.source, "source")
            if self.machine is None:
                raise FieldError("source", "belongs to a machine: say machine=NAME as well")
        if self.storage is not None:
            fields.name(self.storage, "storage")

    def arguments(self) -> list[str]:
        """Return those of `turku-api pause` and `resume`."""
        if self.machine is None:
            return ["storage", str(self.storage)]
        if self.source is None:
            return ["machine", self.machine]
        return ["source", self.machine, self.source]


@dataclass(frozen=True)
class CreateKey:
    """Parameters of `create-registration-key`."""

    name: str = ""
    kind: str = "machine"

    def __post_init__(self) -> None:
        """Check them."""
        fields.name(self.name, "name")
        if is_of_relation(self.name):
            raise FieldError("name", "is kept for a relation's key; take another one")
        if self.kind not in ("machine", "storage"):
            raise FieldError("kind", f"must be machine or storage, not {fields.shown(self.kind)}")


@dataclass(frozen=True)
class RotateKey:
    """Parameters of `rotate-registration-key`."""

    name: str = ""

    def __post_init__(self) -> None:
        """Check them."""
        fields.name(self.name, "name")


@dataclass(frozen=True)
class Health:
    """`health` has no parameters."""


def create_admin(programs: Programs, asked: CreateAdmin) -> Result:
    """Make a user of the administration site, with a password that is shown this once."""
    made = programs.run_json(PROGRAM, "create-admin", asked.username)
    return Result(
        f"The password of {made['name']}, which is shown this once: {made['password']}", made
    )


def list_machines(programs: Programs, asked: ListMachines) -> Result:
    """List the machines and their sources."""
    all_of_them = ["--all"] if asked.all else []
    machines = _both(programs, "list-machines", *all_of_them)
    sources = _both(programs, "list-sources")
    return Result(
        f"{machines.text}\n\n{sources.text}",
        {"machines": machines.values, "sources": sources.values},
    )


def list_backups(programs: Programs, asked: ListBackups) -> Result:
    """List the records of a machine's backups."""
    words = [f"--machine={asked.machine}", f"--limit={asked.limit}"]
    words += [f"--source={asked.source}"] if asked.source is not None else []
    found = _both(programs, "list-backups", *words)
    return Result(found.text, {"backups": found.values})


def restore(programs: Programs, asked: Restore) -> Result:
    """Order a restore, and wait for its outcome as long as is wanted."""
    order = programs.run_json(
        PROGRAM,
        "order-restore",
        *asked.arguments(),
        seconds_max=SECONDS_MAX + asked.wait,
        answering=RESTORE_CODES,
    )
    what = f"Restore order {order['id']}: {order['source']} of {order['of']}"
    if order["state"] == "done":
        verb = "would be restored" if order["dry_run"] else "is restored"
        amount = f": {order['files']} files, {human_size(order['bytes'])}" if order["files"] else ""
        text = (
            f"{what}, snapshot {order['snapshot']}, {verb} on {order['machine']} in "
            f"{order['to']}{amount}."
        )
        return Result("\n".join([*order["changes"], text]), order)
    if order["ended"] is None:
        return Result(
            f"{what} is {order['state']}: {order['machine']} fetches it at its next check-in, "
            f"within 5 minutes. list-restores shows how it goes. {order['message']}".rstrip(),
            order,
        )
    sentence = f"{what} on {order['machine']}: {order['state']}. {order['message']}".rstrip()
    return Result(sentence, order, failure=sentence)


def list_restores(programs: Programs, asked: ListRestores) -> Result:
    """List the restores that were ordered."""
    found = _both(programs, "list-restores", f"--limit={asked.limit}")
    return Result(found.text, {"restores": found.values})


def backup_now(programs: Programs, asked: BackupNow) -> Result:
    """Make sources due at once."""
    done = programs.run_json(PROGRAM, "backup-now", asked.machine, *asked.sources)
    return Result(
        f"{asked.machine} is told at its next check-in, within 5 minutes, to back up: "
        f"{', '.join(done['sources'])}.",
        done,
    )


def pause(programs: Programs, asked: Subject) -> Result:
    """Pause a machine, a source or a storage unit."""
    done = programs.run_json(PROGRAM, "pause", *asked.arguments())
    return Result(
        f"{done['name']} is paused, and silent in health, until resume. Restores go on.", done
    )


def resume(programs: Programs, asked: Subject) -> Result:
    """End a pause."""
    done = programs.run_json(PROGRAM, "resume", *asked.arguments())
    return Result(f"{done['name']} is resumed.", done)


def create_key(programs: Programs, asked: CreateKey) -> Result:
    """Make a registration key for hosts outside Juju."""
    made = programs.run_json(PROGRAM, "create-registration-key", asked.name, f"--kind={asked.kind}")
    return Result(_key_text(made), made)


def rotate_key(programs: Programs, asked: RotateKey) -> Result:
    """Give a key that was made by hand a new secret."""
    known = [key["name"] for key in programs.run_json(PROGRAM, "list-registration-keys")]
    if asked.name not in known:
        raise ConfigurationError(
            f"There is no registration key {asked.name}; there are: {', '.join(known) or 'none'}."
        )
    made = programs.run_json(PROGRAM, "rotate-registration-key", asked.name)
    return Result(_key_text(made), made)


def health(programs: Programs, _: Health) -> Result:
    """Say whether the fleet is backed up."""
    text = programs.run(PROGRAM, "health", answering=HEALTH_CODES)
    values = programs.run_json(PROGRAM, "health", answering=HEALTH_CODES)
    return Result(text.rstrip("\n"), values)


def _both(programs: Programs, command: str, *words: str) -> Result:
    """Ask a listing command twice: for the table that it shows people, and for its data."""
    text = programs.run(PROGRAM, command, *words)
    return Result(text.rstrip("\n"), programs.run_json(PROGRAM, command, *words))


def _key_text(made: dict[str, Any]) -> str:
    return (
        f"The secret of the {made['kind']} registration key {made['name']}, which is shown this "
        f"once: {made['secret']}"
    )


def _machine(value: str, field: str) -> None:
    """Check what names a machine: a UUID or a unit name, never what looks like an option."""
    if fields.label(value, field).startswith("-"):
        raise FieldError(field, f"must be a machine's UUID or unit name, not {fields.shown(value)}")


ACTIONS: dict[str, tuple[type[Any], Callable[[Programs, Any], Result]]] = {
    "create-admin": (CreateAdmin, create_admin),
    "list-machines": (ListMachines, list_machines),
    "list-backups": (ListBackups, list_backups),
    "restore": (Restore, restore),
    "list-restores": (ListRestores, list_restores),
    "backup-now": (BackupNow, backup_now),
    "pause": (Subject, pause),
    "resume": (Subject, resume),
    "create-registration-key": (CreateKey, create_key),
    "health": (Health, health),
}
"""Each action that the workload alone carries out: its parameters, and what it does."""

ROTATE = "rotate-registration-key"
"""A relation's key is a Juju secret, so that one is the charm's."""

"""The unit's place in the fleet: its identity, what it tells the API of itself, and the machines
that the API assigns to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.checked_json import dumps, loads
from turku_core.configuration import ensure_private_folder, read_file, write_durably
from turku_core.credentials import identity_checksum, make_secret
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import AssignedMachine, RunningSession, StorageConfig
from turku_core.storage import authorized_keys
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.links import readable_name
from turku_core.storage.privileges import find_owner
from turku_core.storage.settings import Paths, Settings, read_host_keys

logger = logging.getLogger(__name__)

CALL = "storage_update_config"
CAPABILITIES = ("leases", "inventory", "list")
MACHINES_MAX = 100_000
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.@+-]+")


class AnswerNotValid(TurkuError):
    """The API's answer isn't what the protocol says."""


@dataclass(frozen=True)
class Known:
    """The API's last list of machines, as this unit keeps it.

    Attributes:
        revision: The API's name for this state of the list; None from an API that has none.
        machines: What is known of each machine, by UUID.
    """

    revision: str | None = None
    machines: Mapping[str, AssignedMachine] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as it is stored."""
        return {
            "revision": self.revision,
            "machines": {uuid: each.to_json() for uuid, each in self.machines.items()},
        }


def ensure_identity(settings: Settings) -> Settings:
    """Return the settings with a name and a secret, which are made and stored on the first call.

    The name begins with the host's, for people, and ends at random, so that a host reinstalled
    under its old name isn't taken for an impostor. Programs that start at the same moment get the
    same ones.
    """
    if settings.name is not None and settings.secret is not None:
        return settings
    ensure_private_folder(settings.paths.generated_configuration)
    with _one_at_a_time(settings.paths.generated_configuration / ".lock"):
        file = settings.paths.identity
        made, _ = read_file(file) if file.exists() else ({}, {})
        configured = {"name": settings.name, "secret": settings.secret}
        wanted = [key for key, value in configured.items() if value is None and key not in made]
        if made and wanted:
            raise ConfigurationError(
                f"{file} has no {wanted[0]}: it was in the configuration, and isn't any more. Set "
                f"it again, or remove {file} to be another storage unit."
            )
        if wanted:
            new = {"name": _new_name(socket.gethostname()), "secret": make_secret()}
            made = {key: new[key] for key in wanted}
            made["checksum"] = identity_checksum(made.get("name", ""), made.get("secret", ""))
            write_durably(file, json.dumps(made, indent=2) + "\n")
    return replace(
        settings,
        name=settings.name or fields.name(made["name"], "name"),
        secret=settings.secret or fields.secret(made["secret"], "secret"),
    )


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the file is never removed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _new_name(host: str) -> str:
    stem = _NOT_IN_NAMES.sub("-", host.split(".", 1)[0]).lstrip("-.@+")[:48] or "storage"
    return f"{stem}-{secrets.token_hex(4)}"


def make_request(
    settings: Settings,
    *,
    space_mib: tuple[float, float],
    high_water_mark: int | None,
    running: Sequence[RunningSession],
    known_revision: str | None,
) -> dict[str, Any]:
    """Return the body of the call. `space_mib` is total and available.

    Raises:
        ConfigurationError: The unit has no identity or no host keys.
    """
    login = settings.login
    config = StorageConfig(
        ssh_ping_host=settings.ssh_ping_host,
        ssh_ping_port=settings.ssh_ping_port,
        ssh_ping_user=settings.ssh_ping_user or find_owner(settings.paths).name,
        ssh_ping_host_keys=settings.ssh_ping_host_keys or read_host_keys(),
        space_total=space_mib[0],
        space_available=space_mib[1],
        published=settings.published,
        slots=settings.slots,
        high_water_mark=high_water_mark,
        known_revision=known_revision,
        capabilities=CAPABILITIES,
        running=tuple(running),
        verify_interval_days=settings.cycle.snapshots / timedelta(days=1),
    )
    request: dict[str, Any] = {
        "storage": {"name": login.name, "secret": login.secret, **config.to_json()}
    }
    if settings.registration is not None:
        request["auth"] = settings.registration.to_json()
    return request


def parse_answer(answer: Mapping[str, Any], known: Known) -> tuple[Known, list[str]]:
    """Return the list that the answer makes, and a sentence for each machine it can't have.

    A machine whose values aren't valid is left out alone; it never stops the others.

    Raises:
        AnswerNotValid: The answer has no list of machines.
    """
    try:
        revision = fields.optional(answer, "revision", fields.text, None)
        if answer.get("unchanged") is True and revision == known.revision:
            return known, []
        machines = fields.mapping(fields.required(answer, "machines"), "machines")
        if len(machines) > MACHINES_MAX:
            raise fields.FieldError("machines", f"must have at most {MACHINES_MAX} machines")
    except fields.FieldError as error:
        raise AnswerNotValid(f"The API's answer to {CALL} can't be used: {error}.") from error
    good, problems = _parse_machines(machines)
    return Known(revision, good), problems


def _parse_machines(
    machines: Mapping[str, Any],
) -> tuple[dict[str, AssignedMachine], list[str]]:
    good, problems = {}, []
    for key, value in machines.items():
        try:
            uuid = fields.uuid(key, "machine")
            good[uuid] = AssignedMachine.from_json(value, f"machines.{uuid}")
        except fields.FieldError as error:
            problems.append(f"A machine in the API's list can't be used: {error}.")
    return good, problems


def read_known(path: Path) -> Known:
    """Return the list as it was last stored, or an empty one when none can be read."""
    try:
        values = loads(path.read_bytes(), "known machines")
        machines, _ = _parse_machines(fields.mapping(values.get("machines"), "machines"))
        return Known(fields.optional(values, "revision", fields.text, None), machines)
    except FileNotFoundError:
        return Known()
    except ValueError as error:
        logger.error("%s can't be read and will be fetched anew: %s", path, error)
        return Known()


def session_command(paths: Paths, program: str | None = None) -> list[str]:
    """Return the forced command of the sessions, without the machine.

    It is the script beside the one that runs now, under the path by which that was called, so
    that an upgrade which switches a link switches both.

    Raises:
        ConfigurationError: It isn't there.
    """
    here = Path(program if program is not None else sys.argv[0]).absolute().parent
    for folder in (here, Path(sys.executable).parent):
        script = folder / "turku-storage-ping"
        if script.is_file():
            return [str(script), *([] if paths.root == Path("/") else ["--root", str(paths.root)])]
    raise ConfigurationError(
        f"turku-storage-ping is neither in {here} nor in {Path(sys.executable).parent}: "
        f"install turku-core[storage] whole."
    )


def put_into_effect(settings: Settings, catalogue: Catalogue, known: Known) -> bool:
    """Write the machines' SSH keys, their readable links and the list itself.

    The list comes last: after a crash before it, the same is done again.

    Returns:
        Whether the SSH keys changed.
    """
    changed = authorized_keys.write(
        settings.paths.authorized_keys,
        {uuid: machine.ssh_public_key for uuid, machine in known.machines.items()},
        session_command(settings.paths),
    )
    link_machines(catalogue, known)
    write_durably(settings.paths.known_machines, dumps(known.to_json()))
    return changed


def _lets_in(settings: Settings, known: Known) -> bool:
    """Say whether the SSH keys are as they were written; what isn't is said."""
    path = settings.paths.authorized_keys
    keys = {uuid: machine.ssh_public_key for uuid, machine in known.machines.items()}
    if authorized_keys.is_current(path, keys, session_command(settings.paths)):
        return True
    logger.error("%s is gone or damaged, and is written anew.", path)
    return False


def link_machines(catalogue: Catalogue, known: Known) -> None:
    """Make the readable links of the machines that have a folder here.

    A machine that isn't on the list is retired, or elsewhere now: its snapshots, and the link to
    them, stay.
    """
    for uuid in catalogue.machines():
        if uuid in known.machines:
            link_machine(catalogue, uuid, known.machines[uuid])


def link_machine(catalogue: Catalogue, uuid: str, machine: AssignedMachine) -> None:
    """Make one machine's readable link; that it can't be made is only logged."""
    name = readable_name(machine.environment_name, machine.service_name, machine.unit_name)
    try:
        catalogue.link(uuid, name)
    except (OSError, TurkuError) as error:
        logger.error("machine %s: its readable link can't be made: %s", uuid, error)


def update_config(
    settings: Settings,
    client: Client,
    catalogue: Catalogue,
    known: Known,
    running: Sequence[RunningSession] = (),
) -> Known:
    """Register the unit or bring its record up to date, and put the API's answer into effect.

    Args:
        settings: With an identity; see `ensure_identity`.
        client: The API.
        catalogue: What lies on the volumes.
        known: The list that is in effect. An empty one asks for the whole list, and writes
            everything anew.
        running: The sessions and commits alive, whose leases the API renews.

    Returns:
        The list that is in effect now.

    Raises:
        ApiUnreachable, ApiRefused, ApiInvalid: The API's answer, or none.
        AnswerNotValid: It can't be used; everything stays as it was.
    """
    answer = client.call(
        CALL,
        make_request(
            settings,
            space_mib=catalogue.volumes.totals_mib(),
            high_water_mark=catalogue.volumes.high_water_mark(),
            running=running,
            known_revision=known.revision,
        ),
    )
    received, problems = parse_answer(answer, known)
    for problem in problems:
        logger.error("%s", problem)
    if received != known or not _lets_in(settings, received):
        put_into_effect(settings, catalogue, received)
    return received

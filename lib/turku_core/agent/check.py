"""``turku-agent-ping --check``: what is wrong, precisely, and what to do about each of it."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from turku_core.agent.backup import path_problem
from turku_core.agent.identity import Identity, load_identity
from turku_core.agent.settings import Locations, Settings, load_settings
from turku_core.agent.snapshots import Restorable, restorable
from turku_core.agent.sources import LocalSource, load_sources
from turku_core.commandline import print_json
from turku_core.credentials import PublicKey
from turku_core.errors import DONE, FAILED, TurkuError
from turku_core.protocol.client import ApiRefused, Client
from turku_core.protocol.messages import StorageAddress

if TYPE_CHECKING:
    import paramiko

Value = TypeVar("Value")

CONNECT_SECONDS = 10.0
SSH_SECONDS = 20.0

_PROGRAMS = {
    "rsync": "install the package rsync",
    "ssh": "install the package openssh-client",
    "setpriv": "install the package util-linux",
}


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        subject: What was looked at.
        ok: Whether it is as it should be.
        message: What is wrong and what to do; when all is well, what was found.
    """

    subject: str
    ok: bool
    message: str


def check_command(arguments: argparse.Namespace) -> int:
    """Run ``turku-agent-ping --check``; everything is looked at, however much is wrong."""
    findings = list(check(Locations(arguments.root)))
    problems = [finding for finding in findings if not finding.ok]
    if arguments.json:
        print_json({"ok": not problems, "findings": [asdict(each) for each in findings]})
    else:
        for each in findings:
            if not each.ok:
                print(f"{each.subject}: {each.message}")
            elif arguments.verbose:
                print(f"{each.subject}: all is well; {each.message}")
        if not problems:
            print(f"All is well: {len(findings)} things were looked at.")
    return FAILED if problems else DONE


def check(locations: Locations) -> Iterator[Finding]:
    """Look at everything that a backup needs, from the inside out."""
    yield from _check_programs()
    settings = yield from _attempt(
        "configuration", lambda: load_settings(locations), "the files in config.d are valid"
    )
    own = load_sources(locations.sources)
    for problem in own.problems:
        yield Finding("sources", False, problem)
    for source in own.sources.values():
        yield _check_source(source)
        yield from _check_hooks(source)
    identity = yield from _attempt(
        "identity", lambda: load_identity(locations), "the UUID and the secret are there"
    )
    if identity is not None:
        yield _check_key(identity)
    if settings is None:
        return
    yield from _check_apis(settings)
    if identity is None:
        return
    offer = yield from _check_registration(settings, identity)
    if offer is not None:
        for name in own.sources.keys() - offer.own.keys():
            yield Finding(
                f"source {name}",
                False,
                "the API doesn't know it yet, or has no storage unit for it: run "
                "turku-update-config.",
            )
        for storage in offer.all_storages():
            yield check_storage(storage, identity.ssh_key)


def _check_programs() -> Iterator[Finding]:
    for program, advice in _PROGRAMS.items():
        path = shutil.which(program)
        yield Finding(
            f"program {program}", path is not None, path or f"it isn't installed: {advice}."
        )


def _attempt(
    subject: str, action: Callable[[], Value], fine: str
) -> Generator[Finding, None, Value | None]:
    try:
        value = action()
    except TurkuError as error:
        yield Finding(subject, False, str(error))
        return None
    yield Finding(subject, True, fine)
    return value


def _check_source(source: LocalSource) -> Finding:
    problem = path_problem(source.path)
    return Finding(f"source {source.name}", problem is None, problem or f"{source.path} is there")


def _check_hooks(source: LocalSource) -> Iterator[Finding]:
    hooks = source.hooks
    for hook in (
        hooks.run_before_backup,
        hooks.run_after_backup,
        hooks.run_before_restore,
        hooks.run_after_restore,
    ):
        if hook is not None:
            fine = hook.is_file() and os.access(hook, os.X_OK)
            yield Finding(
                f"source {source.name}",
                fine,
                f"the hook {hook} is there"
                if fine
                else f"the hook {hook} is missing or not executable: put it there, or mend "
                f"{source.origin}.",
            )


def _check_key(identity: Identity) -> Finding:
    path = identity.ssh_key
    try:
        mode = path.stat().st_mode
        key = identity.public_key()
    except OSError as error:
        return Finding(
            "SSH key", False, f"{path}: {error.strerror}; run turku-update-config to make one."
        )
    except TurkuError as error:
        return Finding("SSH key", False, str(error))
    if mode & 0o077:
        return Finding("SSH key", False, f"{path} is readable by others: chmod 600 it.")
    return Finding("SSH key", True, key.fingerprint)


def _check_apis(settings: Settings) -> Iterator[Finding]:
    def ask(url: str) -> None:
        Client([url], settings.api_ca_certificate).call("health", {})

    for url in settings.api_urls:
        yield from _attempt(f"API {url}", functools.partial(ask, url), "it answers")


def _check_registration(
    settings: Settings, identity: Identity
) -> Generator[Finding, None, Restorable | None]:
    client = Client(settings.api_urls, settings.api_ca_certificate)
    try:
        offer = restorable(client, identity)
    except ApiRefused:
        yield Finding(
            "registration",
            False,
            f"the API doesn't know machine {identity.uuid}, or no longer accepts it: run "
            "turku-update-config, with a registration key in config.d if it is new.",
        )
        return None
    except TurkuError as error:
        yield Finding("registration", False, str(error))
        return None
    yield Finding("registration", True, f"the API knows machine {identity.uuid}")
    return offer


def check_storage(storage: StorageAddress, key: Path) -> Finding:
    """Try the whole way to a storage unit, up to a tunnel, and say where it ends."""
    subject = f"storage unit {storage.name}"
    place = f"{storage.ssh_ping_host} port {storage.ssh_ping_port}"
    try:
        _try_storage(storage, key)
    except _Trouble as trouble:
        return Finding(subject, False, f"{place}: {trouble}")
    return Finding(subject, True, f"{place} lets this machine in and opens a tunnel")


class _Trouble(Exception):
    """Where the way to a storage unit ends, and what to do."""


def _try_storage(storage: StorageAddress, key: Path) -> None:
    import paramiko

    connection = _connect(storage)
    transport = paramiko.Transport(connection)
    try:
        _check_host_key(transport, storage)
        _log_in(transport, storage, key)
        _open_tunnel(transport)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise _Trouble(f"the SSH connection broke off ({error}): look into sshd's log.") from error
    finally:
        transport.close()


def _connect(storage: StorageAddress) -> socket.socket:
    host, port = storage.ssh_ping_host, storage.ssh_ping_port
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _Trouble(
            f"the name can't be resolved ({error.strerror}): check the DNS of this machine, or "
            "ssh_ping_host on the storage unit."
        ) from error
    try:
        return socket.create_connection((host, port), CONNECT_SECONDS)
    except ConnectionRefusedError as error:
        raise _Trouble(
            "nothing listens there: check sshd and ssh_ping_port on the storage unit."
        ) from error
    except OSError as error:
        raise _Trouble(
            f"it can't be reached ({error.strerror or 'no answer in time'}): check the network and "
            "the firewalls in between."
        ) from error


def _check_host_key(transport: paramiko.Transport, storage: StorageAddress) -> None:
    import paramiko

    wrong = (
        "its host key is none of those that the API announced: run turku-storage-update-config on "
        "the storage unit if it was installed anew; otherwise someone may be in between."
    )
    _prefer(transport, {key.type for key in storage.ssh_ping_host_keys})
    try:
        transport.start_client(timeout=SSH_SECONDS)
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise _Trouble(wrong) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _Trouble(f"what listens there doesn't speak SSH with us ({error}).") from error
    shown = transport.get_remote_server_key()
    known = {(key.type, key.base64) for key in storage.ssh_ping_host_keys}
    if (shown.get_name(), shown.get_base64()) not in known:
        found = PublicKey.parse(f"{shown.get_name()} {shown.get_base64()}").fingerprint
        raise _Trouble(f"{wrong} It showed {found}.")


def _prefer(transport: paramiko.Transport, types: set[str]) -> None:
    """Ask for host keys of the announced types only, as ssh does by its known_hosts."""
    if "ssh-rsa" in types:
        types = types | {"rsa-sha2-256", "rsa-sha2-512"}
    options = transport.get_security_options()
    usable = [each for each in options.key_types if each in types]
    if usable:
        options.key_types = usable


def _log_in(transport: paramiko.Transport, storage: StorageAddress, key: Path) -> None:
    import paramiko

    try:
        own = paramiko.PKey.from_path(key)
    except (OSError, paramiko.SSHException, ValueError) as error:
        raise _Trouble(f"this machine's SSH key {key} can't be read ({error}).") from error
    try:
        transport.auth_publickey(storage.ssh_ping_user, own)
    except paramiko.AuthenticationException as error:
        raise _Trouble(
            f"it refuses this machine's SSH key for user {storage.ssh_ping_user}: it fetches the "
            "machine list every few minutes; if that is over, run turku-storage-update-config "
            "there, and turku-update-config here."
        ) from error


def _open_tunnel(transport: paramiko.Transport) -> None:
    import paramiko

    try:
        port = transport.request_port_forward("localhost", 0)
    except paramiko.SSHException as error:
        raise _Trouble(
            "it refuses the remote forward: its sshd needs AllowTcpForwarding remote, and the "
            "authorized_keys lines that turku-storage-update-config writes."
        ) from error
    transport.cancel_port_forward("localhost", port)

"""Setting up the parts of a local Turku: the API, the SSH daemon, the storage unit, machines.

Everything is done as an operator would do it by hand: configuration files and console scripts.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from turku_core.api.certificates import ensure_certificates
from turku_core.configuration import ensure_folder, ensure_private_folder, write_durably
from turku_core.errors import TurkuError
from turku_core.local.layout import STORAGE_UNIT, Layout, distribution_program, program

ADDRESS = "127.0.0.1"
ADMIN = "admin"
_COMMAND_SECONDS = 120
_LOCKED = "!"
"""A password field that begins so is a locked account to sshd without PAM (passwd(1))."""


def run_program(name: str, *arguments: str) -> str:
    """Run a console script to its end and return what it printed.

    Raises:
        TurkuError: It failed; the message is its own.
    """
    done = subprocess.run(
        [program(name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_COMMAND_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or "it said nothing"
        raise TurkuError(f"{name} failed with exit code {done.returncode}: {said}")
    return done.stdout


def write_configuration(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write one JSON file into a configuration folder, which is made when it isn't there."""
    ensure_folder(folder)
    write_durably(folder / name, json.dumps(values, indent=2) + "\n", 0o600)


def free_port() -> int:
    """Return a TCP port on the loopback address that nobody listens on at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Say whether a TCP port on the loopback address can be listened on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return False
        return True


def set_up_api(layout: Layout, port: int, now: datetime) -> None:
    """Write the API's configuration and make its certificates.

    Args:
        layout: Where it lies.
        port: Where it is to listen; 0 for a free port.
        now: An aware datetime, for the certificates.
    """
    certificates = ensure_certificates(layout.certificates, [ADDRESS, "localhost"], now)
    write_configuration(
        layout.api / "etc/turku-api/config.d",
        "10-local.json",
        {
            "listen": f"{ADDRESS}:{port}",
            "certificate": str(certificates.certificate),
            "key": str(certificates.key),
            "allowed_hosts": [ADDRESS, "localhost"],
            # For trying it out, whatever room this machine has will do.
            "default_high_water_mark": 100,
        },
    )


def ensure_registration_keys(layout: Layout) -> dict[str, dict[str, str]]:
    """Return the registration keys for machines and for the storage unit, made the first time."""
    try:
        keys: dict[str, dict[str, str]] = json.loads(layout.registration_keys.read_text("utf-8"))
        return keys
    except FileNotFoundError:
        pass
    keys = {}
    for kind in ("machine", "storage"):
        made = json.loads(
            _api(layout, "create-registration-key", "--json", "--kind", kind, f"local-{kind}")
        )
        keys[kind] = {"name": made["name"], "secret": made["secret"]}
    write_durably(layout.registration_keys, json.dumps(keys, indent=2) + "\n", 0o600)
    return keys


def ensure_admin(layout: Layout) -> None:
    """Make the administration site's user, with a password that only its file holds."""
    if layout.admin_password.exists():
        return
    made = json.loads(_api(layout, "create-admin", "--json", ADMIN))
    write_durably(layout.admin_password, made["password"] + "\n", 0o600)


def _api(layout: Layout, *arguments: str) -> str:
    return run_program("turku-api", "--root", str(layout.api), *arguments)


def user_name() -> str:
    """Return the name of the user who runs this, whom the storage unit runs as too.

    Raises:
        TurkuError: The user has no name, so that nobody could log in.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise TurkuError(
            f"The user id {os.geteuid()} has no entry in /etc/passwd, and sshd lets nobody in "
            "without one: run this as a user that has."
        ) from error


def make_sshd_configuration(
    host_key: Path, authorized_keys: Sequence[Path], port: int, user: str, *, use_pam: bool
) -> str:
    """Return the configuration of the private SSH daemon (sshd_config(5)).

    It lets one user in, with keys only, to open remote forwards and run forced commands.
    """
    key_files = " ".join(f'"{path}"' for path in authorized_keys)
    return f"""\
# Written by turku-local; what is changed here is lost.
ListenAddress {ADDRESS}
Port {port}
HostKey "{host_key}"
PidFile none
AuthorizedKeysFile {key_files}
# The folder may lie below one that others may write to, such as /tmp.
StrictModes no
AllowUsers {user}
PermitRootLogin forced-commands-only
AuthenticationMethods publickey
UsePAM {"yes" if use_pam else "no"}
DisableForwarding no
AllowTcpForwarding remote
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PermitTTY no
PermitUserRC no
PrintMotd no
# So that bash takes itself for a shell within a shell and leaves ~/.bashrc alone, which it reads
# when sshd runs it: what that says would break the session, and what it does takes time.
SetEnv SHLVL=1
MaxStartups 100
ClientAliveInterval 30
ClientAliveCountMax 3
"""


def set_up_sshd(layout: Layout, port: int, user: str) -> tuple[Path, str]:
    """Write the SSH daemon's configuration and make its host key the first time.

    Returns:
        The configuration's path, and the host key's public line.
    """
    ensure_private_folder(layout.sshd)
    host_key = layout.sshd / "ssh_host_ed25519_key"
    if not host_key.exists():
        keygen = distribution_program("ssh-keygen", "openssh-client")
        subprocess.run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "turku-local", "-f", str(host_key)],
            check=True,
            timeout=_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    authorized_keys = (
        layout.storage / "var/lib/turku-storage/.ssh/authorized_keys",
        layout.own_authorized_keys,
    )
    path = layout.sshd / "sshd_config"
    text = make_sshd_configuration(
        host_key, authorized_keys, port, user, use_pam=os.geteuid() == 0 and _is_locked(user)
    )
    write_durably(path, text, 0o600)
    if os.geteuid() == 0:
        # Where root's sshd keeps its unprivileged child; the distribution's unit makes it too.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return path, host_key.with_suffix(".pub").read_text("utf-8").strip()


def _is_locked(user: str) -> bool:
    """Say whether an account is locked, which without PAM keeps keys out as well (root only)."""
    for line in Path("/etc/shadow").read_text("utf-8", "surrogateescape").splitlines():
        name, _, rest = line.partition(":")
        if name == user:
            return rest.startswith(_LOCKED)
    return False


def set_up_storage(
    layout: Layout,
    api_url: str,
    key: Mapping[str, str],
    ssh: Mapping[str, Any],
) -> None:
    """Write the storage unit's configuration and make its folders.

    Args:
        layout: Where it lies.
        api_url: The API's base URL.
        key: The registration key's name and secret.
        ssh: The ``ssh_ping_*`` settings.
    """
    ensure_private_folder(layout.volume)
    ensure_private_folder(layout.storage / "var/lib/turku-storage")
    write_configuration(
        layout.storage / "etc/turku-storage/config.d",
        "10-local.json",
        {
            "name": STORAGE_UNIT,
            "api_url": api_url,
            "api_ca_certificate": str(layout.ca_certificate),
            "api_auth_name": key["name"],
            "api_auth_secret": key["secret"],
            "volumes": {"local": {"path": str(layout.volume), "accept_new_high_water_pct": 100}},
            **ssh,
        },
    )


def set_up_machine(
    layout: Layout, name: str, api_url: str, key: Mapping[str, str], extra: Mapping[str, Any]
) -> Path:
    """Write a machine's configuration, and return its root."""
    root = layout.machine(name)
    ensure_folder(root / "etc/turku-agent/sources.d")
    write_configuration(
        root / "etc/turku-agent/config.d",
        "10-local.json",
        {
            "api_url": api_url,
            "api_ca_certificate": str(layout.ca_certificate),
            "api_auth_name": key["name"],
            "api_auth_secret": key["secret"],
            "environment_name": "local",
            "service_name": "local",
            "unit_name": name,
            **extra,
        },
    )
    return root


def sshd_command(configuration: Path) -> Sequence[str]:
    """Return the command of the private SSH daemon, in the foreground, its log on stderr."""
    sshd = distribution_program("sshd", "openssh-server")
    return [sshd, "-D", "-e", "-f", str(configuration)]

"""What a charm does to its machine outside the workload: packages and services."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence

from charmlibs import apt, systemd

from turku_core.errors import TurkuError


def install_packages(names: Sequence[str]) -> None:
    """Install the distribution's packages that aren't there yet.

    Raises:
        TurkuError: The package archive can't be reached or doesn't have them.
    """
    try:
        apt.add_package(list(names), update_cache=False)
    except (apt.PackageNotFoundError, apt.PackageError):
        try:
            apt.add_package(list(names), update_cache=True)
        except (apt.PackageNotFoundError, apt.PackageError) as error:
            raise TurkuError(f"{', '.join(names)} could not be installed: {error}") from error


def is_running(service: str) -> bool:
    """Say whether a systemd service runs."""
    return systemd.service_running(service)


def restart(service: str) -> None:
    """Restart a service, or start it. Raises TurkuError."""
    try:
        systemd.service_restart(service)
    except systemd.SystemdError as error:
        raise TurkuError(f"{service} could not be started: see journalctl -u {service}.") from error


def stop(service: str) -> None:
    """Stop a service and keep it from starting again. Raises TurkuError."""
    try:
        systemd.service_stop(service)
        systemd.service_disable(service)
    except systemd.SystemdError as error:
        raise TurkuError(f"{service} could not be stopped: {error}") from error


def start_anew(service: str) -> None:
    """Let systemd start a oneshot service soon; one that runs already begins again.

    So what it read before a change is not what counts. Raises TurkuError.
    """
    try:
        systemd.service_restart("--no-block", service)
    except systemd.SystemdError as error:
        raise TurkuError(f"{service} could not be started: see journalctl -u {service}.") from error


def forget_failures(pattern: str) -> None:
    """Take services that are gone off systemd's list of failed ones.

    Args:
        pattern: A glob of their names; it may match none.
    """
    with contextlib.suppress(OSError):
        subprocess.run(["systemctl", "reset-failed", pattern], capture_output=True, check=False)

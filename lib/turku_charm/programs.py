"""Running the workload's own programs for a charm."""

from __future__ import annotations

import json
import logging
import os
import pwd
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turku_core.errors import (
    BAD_USAGE,
    DONE,
    TRY_AGAIN_LATER,
    ConfigurationError,
    TryAgainLater,
    TurkuError,
)

logger = logging.getLogger(__name__)

SECONDS_MAX = 300.0
_LINES_KEPT = 5


@dataclass(frozen=True)
class Programs:
    """The console scripts of an installed workload.

    Attributes:
        folder: Where they lie, such as ``/opt/turku-agent/current/bin``.
        root: The root that they are to work below; ``/`` on a real machine.
        user: The Unix user to run them as; None: the charm's own, which is root.
    """

    folder: Path
    root: Path = Path("/")
    user: str | None = None

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return a program's command line.

        Secrets never stand in it: they go to the program's standard input.
        """
        where = [] if self.root == Path("/") else ["--root", str(self.root)]
        # In front: what turku-api is told after its command's name belongs to that command.
        return [str(self.folder / name), *where, *arguments]

    def run(
        self,
        name: str,
        *arguments: str,
        given: str | None = None,
        seconds_max: float = SECONDS_MAX,
        answering: Collection[int] = (DONE,),
    ) -> str:
        """Run a program and return what it printed.

        Args:
            name: The console script.
            arguments: Its arguments.
            given: What it reads from its standard input; it may be secret and is never logged.
            seconds_max: How long it may take.
            answering: The exit codes with which it has answered; some programs tell with theirs
                that what they found is bad.

        Raises:
            ConfigurationError: It says that a configuration or an argument isn't valid (exit code
                2).
            TryAgainLater: It says so (exit code 75).
            TurkuError: It failed otherwise, wasn't there, or took too long.
        """
        command = self.command(name, *arguments)
        entry = None if self.user is None else pwd.getpwnam(self.user)
        logger.debug("running %s", command)
        try:
            done = subprocess.run(
                command,
                input=given if given is not None else "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds_max,
                check=False,
                cwd="/",
                env=_environment(os.environ),
                user=None if entry is None else entry.pw_uid,
                group=None if entry is None else entry.pw_gid,
                extra_groups=None if entry is None else [],
            )
        except subprocess.TimeoutExpired as error:
            raise TurkuError(f"{name} did not end within {seconds_max:.0f} seconds.") from error
        except OSError as error:
            raise TurkuError(f"{command[0]} can't be run: {error.strerror}.") from error
        if done.returncode == DONE or (done.returncode in answering and done.stdout.strip()):
            return done.stdout
        raise _failure(name, done.returncode, done.stderr)

    def run_json(
        self,
        name: str,
        *arguments: str,
        given: str | None = None,
        seconds_max: float = SECONDS_MAX,
        answering: Collection[int] = (DONE,),
    ) -> Any:
        """Run a program with ``--json`` and return what it answered; raises as `run` does."""
        printed = self.run(
            name, *arguments, "--json", given=given, seconds_max=seconds_max, answering=answering
        )
        try:
            return json.loads(printed)
        except ValueError as error:
            raise TurkuError(f"{name} {' '.join(arguments[:1])} answered no JSON.") from error


def _environment(hooks: Mapping[str, str]) -> dict[str, str]:
    """Return a hook's environment without what is the charm's own.

    The programs, and the scripts that they run for others, find the same as when systemd starts
    them: no modules of the charm, and no way to Juju.
    """
    return {
        key: value
        for key, value in hooks.items()
        if not key.startswith(("JUJU_", "PYTHON")) and key != "CHARM_DIR"
    }


def _failure(name: str, code: int, said: str) -> TurkuError:
    lines = [line for line in said.splitlines() if line.strip()][-_LINES_KEPT:]
    sentence = "\n".join(lines) or f"{name} ended with exit code {code} and said nothing."
    if code == BAD_USAGE:
        return ConfigurationError(sentence)
    if code == TRY_AGAIN_LATER:
        return TryAgainLater(sentence)
    return TurkuError(sentence)

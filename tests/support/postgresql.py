"""A private PostgreSQL cluster for tests, from the distribution's ``postgresql`` package.

It lives in a short temporary folder, listens on a Unix socket there and on no TCP port, and is
stopped and removed when the test (or the program below) ends, however it ends. The server runs in
the foreground as a child that the kernel signals when the test process dies, so that even a
killed test run leaves no server behind.

As a program it runs another one against a fresh cluster::

    python -m tests.support.postgresql -- pytest tests/unit/api

which finds the cluster's address in ``TURKU_TEST_DATABASE_URL``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

DATABASE_URL_VARIABLE = "TURKU_TEST_DATABASE_URL"
USER = "turku"
"""The cluster's only role, its superuser."""

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30

_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "50",
    # The cluster is thrown away: nothing of it needs to survive a power cut.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
}


class PostgresqlUnavailable(RuntimeError):
    """The cluster can't be made here; the message says what to install or what the server said."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its programs' folder, its own folder and the folder of its socket."""

    programs: Path
    data: Path
    socket_folder: Path

    def url(self, database: str) -> str:
        """Return the address of a database of the cluster, made or not, as libpq reads it."""
        return f"postgresql://{USER}@/{database}?host={self.socket_folder}"

    def create_database(self, name: str) -> str:
        """Make an empty database and return its address."""
        subprocess.run(
            [
                str(self.programs / "createdb"),
                "--host",
                str(self.socket_folder),
                "--username",
                USER,
                "--",
                name,
            ],
            check=True,
            capture_output=True,
            timeout=START_SECONDS_MAX,
        )
        return self.url(name)


def find_programs(base: Path = Path("/usr/lib/postgresql")) -> Path:
    """Return the folder of the newest installed version's initdb, pg_ctl and postgres.

    Debian's packages put them in ``/usr/lib/postgresql/<version>/bin``, outside the PATH.

    Raises:
        PostgresqlUnavailable: There is none.
    """
    found = {
        int(path.parent.name): path
        for path in base.glob("*/bin")
        if re.fullmatch(r"\d+", path.parent.name)
        and all((path / name).exists() for name in ("initdb", "pg_ctl", "postgres", "createdb"))
    }
    if not found:
        raise PostgresqlUnavailable(
            f"No PostgreSQL server was found in {base}: install the package postgresql."
        )
    return found[max(found)]


def make_privilege_prefix(user_id: int, account: pwd.struct_passwd | None) -> list[str]:
    """Return the words that run a program as a user whom PostgreSQL accepts, dying with us.

    Args:
        user_id: Whom we are; PostgreSQL refuses to run as root.
        account: Whom to become when we are root.
    """
    prefix = ["setpriv", "--pdeathsig", "INT"]
    if user_id == 0:
        if account is None:
            raise PostgresqlUnavailable("root needs an unprivileged account to run PostgreSQL as.")
        prefix += [
            "--reuid",
            str(account.pw_uid),
            "--regid",
            str(account.pw_gid),
            "--clear-groups",
        ]
    return [*prefix, "--"]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Make and start a cluster; stop and remove it at the end, also after a failure.

    Raises:
        PostgresqlUnavailable: It can't be made or doesn't start.
    """
    programs = find_programs()
    account = _unprivileged_account() if os.geteuid() == 0 else None
    prefix = make_privilege_prefix(os.geteuid(), account)
    folder = Path(tempfile.mkdtemp(prefix="turku-pg-"))
    try:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        cluster = Cluster(programs, folder / "data", folder)
        _run_initdb(cluster, prefix)
        with _running_server(cluster, prefix):
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresqlUnavailable("There is neither an account postgres nor nobody to run it as.")


def _run_initdb(cluster: Cluster, prefix: Sequence[str]) -> None:
    answer = subprocess.run(
        [
            *prefix,
            str(cluster.programs / "initdb"),
            *("--pgdata", str(cluster.data)),
            *("--username", USER),
            *("--auth", "trust"),
            *("--encoding", "UTF8"),
            *("--locale", "C"),
            "--no-sync",
        ],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )
    if answer.returncode != 0:
        raise PostgresqlUnavailable(f"initdb failed: {answer.stderr.strip()}")


@contextlib.contextmanager
def _running_server(cluster: Cluster, prefix: Sequence[str]) -> Iterator[None]:
    settings = {**_SETTINGS, "unix_socket_directories": str(cluster.socket_folder)}
    command = [*prefix, str(cluster.programs / "postgres"), "-D", str(cluster.data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    log = cluster.socket_folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd="/", stdout=output, stderr=output)
    try:
        _wait_until_ready(cluster, server, log)
        yield
    finally:
        _stop(cluster, server, prefix)


def _wait_until_ready(cluster: Cluster, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while server.poll() is None and time.monotonic() < deadline:
        answer = subprocess.run(
            [str(cluster.programs / "pg_isready"), "--quiet", "-h", str(cluster.socket_folder)],
            timeout=START_SECONDS_MAX,
            check=False,
        )
        if answer.returncode == 0:
            return
        time.sleep(0.05)
    raise PostgresqlUnavailable(f"PostgreSQL did not start: {log.read_text(errors='replace')}")


def _stop(cluster: Cluster, server: subprocess.Popen[bytes], prefix: Sequence[str]) -> None:
    if server.poll() is None:
        subprocess.run(
            [
                *prefix,
                str(cluster.programs / "pg_ctl"),
                *("stop", "--pgdata", str(cluster.data)),
                *("--mode", "immediate", "--wait", "--timeout", str(STOP_SECONDS_MAX)),
            ],
            cwd="/",
            capture_output=True,
            timeout=STOP_SECONDS_MAX + 5,
            check=False,
        )
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(arguments: Sequence[str]) -> int:
    """Run the command after ``--`` against a fresh cluster and return its exit code."""
    if len(arguments) < 2 or arguments[0] != "--":
        sys.stderr.write("usage: python -m tests.support.postgresql -- COMMAND [ARGUMENT...]\n")
        return 2
    signal.signal(signal.SIGTERM, _leave)
    with running_cluster() as cluster:
        environment = {**os.environ, DATABASE_URL_VARIABLE: cluster.create_database("turku")}
        return subprocess.run(list(arguments[1:]), env=environment, check=False).returncode


def _leave(signal_number: int, frame: object) -> NoReturn:
    """Turn a signal into an ordinary exit, so that the cluster is stopped and removed."""
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Another user of the host: of a machine, of a storage unit, of an API unit, all at once here.

Everything runs with a umask of 0, so that nothing is closed by somebody else's kindness.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.tally import Tally
from tests.faults.tunnels import descendants, ports_of, tunnels_of
from turku_core.local.turku import LocalTurku, Machine

pytestmark = pytest.mark.needs_root

NOBODY = 65534
SECONDS = 60

OPEN = {"ca.crt": "the authority's certificate is what everybody is to have"}
"""Files that anyone may read, wherever they are."""


@dataclass
class Host:
    """A whole Turku with a session going on, whose folders lie open as a real host's would."""

    turku: LocalTurku
    machine: Machine
    ping: subprocess.Popen[bytes]
    tunnels: list[int]

    @property
    def folder(self) -> Path:
        """The folder that stands for the root of all hosts."""
        return self.turku.layout.folder


def wait_for_session(host: Host) -> None:
    """Wait until the storage unit pulls over the tunnel."""
    mirror = host.turku.layout.volume / "machines" / host.machine.uuid / "docs"
    deadline = time.monotonic() + SECONDS
    while not (tunnels_of(host.turku) and list(mirror.rglob("*large*"))):
        assert time.monotonic() < deadline, "no session came about"
        assert host.ping.poll() is None, "the session is over"
        time.sleep(0.05)
    host.tunnels = sorted(tunnels_of(host.turku))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="turku-users-"))
    folder.chmod(0o755)
    umask = os.umask(0)
    try:
        data = folder / "data"
        data.mkdir(mode=0o700)
        (data / "large").write_bytes(os.urandom(3_000_000))
        settings = {"docs": {"path": str(data), "bwlimit": "100", "snapshot_mode": "link-dest"}}
        (folder / "t").mkdir()
        with LocalTurku(folder / "t") as turku:
            machine = turku.add_machine("web", settings)
            turku.backup_now(machine)
            open_up(turku, machine)
            ping = subprocess.Popen(
                machine.command("turku-agent-ping"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            made = Host(turku, machine, ping, [])
            try:
                wait_for_session(made)
                yield made
            finally:
                ping.terminate()
                ping.communicate(timeout=SECONDS)
    finally:
        os.umask(umask)
        shutil.rmtree(folder)


def open_up(turku: LocalTurku, machine: Machine) -> None:
    """Open the folders that a real host's packages and administrators have open.

    The local Turku's own folder is private; on a real host it is the root, below which `etc`, `var`
    and `run` are open to all.
    """
    layout = turku.layout
    for root in (layout.folder, layout.api, layout.storage, machine.root, machine.root.parent):
        root.chmod(0o755)
        for name in ("etc", "var", "var/lib", "run"):
            if (root / name).is_dir():
                (root / name).chmod(0o755)


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program as another user."""
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd="/",
    )


def found_by_nobody(host: Host, *tests: str) -> list[str]:
    """Return what another user finds, relative to the top."""
    said = as_nobody("find", str(host.folder), *tests, "-printf", "%P\\n").stdout
    return [line for line in said.splitlines() if line]


def parts(host: Host) -> list[Path]:
    """Return the folders that hold what is ours, on each host."""
    layout = host.turku.layout
    return [
        layout.api / "var/lib/turku-api",
        layout.storage / "var/lib/turku-storage",
        layout.volume,
        host.machine.root / "var/lib/turku-agent",
        host.machine.root / "run/turku-agent",
    ]


def test_another_user_enters_no_folder_of_ours(host: Host, tally: Tally) -> None:
    for folder in parts(host):
        status = folder.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700, folder
        assert as_nobody("ls", str(folder)).returncode != 0, folder
    inside = [str(folder.relative_to(host.folder)) + "/" for folder in parts(host)]
    found = found_by_nobody(host)
    # The search itself works: it does find what lies open.
    assert any(path.startswith("machines/web/etc") for path in found)
    assert [path for path in found if path.startswith(tuple(inside))] == []
    tally.note("folders of ours that another user tries to enter", times=len(inside))


def test_another_user_writes_nothing_and_reads_no_secret(host: Host, tally: Tally) -> None:
    writable = found_by_nobody(host, "-writable", "!", "-type", "l")
    secrets = all_secrets(host)
    readable = found_by_nobody(host, "-type", "f", "-readable")
    telling = [
        path
        for path in readable
        if Path(path).name not in OPEN
        and any(secret in (host.folder / path).read_bytes() for secret in secrets)
    ]
    tally.note(
        "files of a running Turku, as another user",
        times=sum(1 for _ in host.folder.rglob("*")),
        lost=len(writable) + len(telling),
    )
    assert writable == []
    assert telling == []


def test_every_file_with_a_secret_is_its_owners_alone_also_inside_closed_folders(
    host: Host, tally: Tally
) -> None:
    """So that one folder that somebody opened by mistake opens nothing."""
    secrets = all_secrets(host)
    holders = [
        path
        for folder in (host.turku.layout.api, host.turku.layout.storage, host.machine.root)
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and any(secret in path.read_bytes() for secret in secrets)
    ]
    names = {path.name for path in holders}
    # The ones that the security page names.
    assert {"identity.json", "ssh_key", "ca.key", "secrets-1"} <= names
    open_ones = [path for path in holders if stat.S_IMODE(path.stat().st_mode) & 0o077]
    tally.note("files that hold a secret, and their modes", times=len(holders),
               lost=len(open_ones))  # fmt: skip
    assert open_ones == []


def all_secrets(host: Host) -> list[bytes]:
    """Return every secret that there is now: logins, keys, passwords of the session."""
    layout = host.turku.layout
    identity = host.machine.root / "var/lib/turku-agent/config.d/identity.json"
    unit = layout.storage / "var/lib/turku-storage/config.d/identity.json"
    keys = json.loads(layout.registration_keys.read_text("utf-8"))
    texts = [json.loads(identity.read_bytes())["machine_secret"],
             json.loads(unit.read_bytes())["secret"]]  # fmt: skip
    texts += [key["secret"] if isinstance(key, dict) else key for key in keys.values()]
    for path in (host.machine.root / "run/turku-agent").rglob("secrets-*"):
        texts += path.read_text().strip().split(":")[1:]
    for pem in (host.machine.root / "var/lib/turku-agent/ssh_key", layout.certificates / "ca.key"):
        # Its second line: the first of the key itself.
        texts.append(pem.read_text().splitlines()[1])
    assert len(texts) >= 7
    return [text.encode() for text in texts]


def test_no_secret_is_in_an_argument_or_a_log(host: Host, tally: Tally) -> None:
    secrets = all_secrets(host)
    command_lines = [
        (path.parent.name, path.read_bytes())
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    ]
    assert any(b"rsync" in line for _, line in command_lines)
    logs = [path for path in host.folder.rglob("*log*") if path.is_file()]
    assert logs
    telling: list[object] = [line for line in command_lines if any(s in line[1] for s in secrets)]
    telling += [path for path in logs if any(s in path.read_bytes() for s in secrets)]
    tally.note("argument lists and logs, searched for every secret",
               times=len(command_lines) + len(logs), lost=len(telling))  # fmt: skip
    assert telling == []


def test_sockets_lie_in_folders_that_nobody_else_enters(host: Host, tally: Tally) -> None:
    sockets = [path for path in host.folder.rglob("*") if path.is_socket()]
    assert [path for path in sockets if path.name == "rsync"]
    for path in sockets:
        assert as_nobody("test", "-e", str(path)).returncode != 0, path
    tally.note("Unix sockets that another user looks for", times=len(sockets))


def test_the_machine_opens_no_port(host: Host) -> None:
    """All the ports there are belong to the API, sshd and the tunnel's end on the storage unit."""
    pids = descendants(host.ping.pid)
    assert list(ports_of(pids)) == []
    assert len(pids) > 1


def test_who_reaches_a_tunnel_without_the_sessions_password_hears_nothing(
    host: Host, tally: Tally
) -> None:
    """On the storage unit any local user can connect to a tunnel's end."""
    tried = 0
    for port in host.tunnels:
        for said in (b"\n", b"#list\n", b"docs\n", b"docs\nroot AAAAAAAAAAAAAAAAAAAAAA\n", b"x\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
                connection.settimeout(SECONDS)
                connection.sendall(b"@RSYNCD: 31.0 sha512 sha256 sha1 md5 md4\n" + said)
                connection.shutdown(socket.SHUT_WR)
                answer = b""
                while block := connection.recv(65536):
                    answer += block
            tried += 1
            lines = [line for line in answer.splitlines() if line]
            words = (b"@RSYNCD: 3", b"@RSYNCD: AUTHREQD", b"@RSYNCD: EXIT", b"@ERROR")
            assert all(line.startswith(words) for line in lines), answer
            assert b"docs" not in answer or b"auth failed" in answer
    assert tried
    tally.note("knocks at a tunnel's end without its password", times=tried)

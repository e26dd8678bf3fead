"""The console scripts, each in a process of its own, without waiting for it to load its modules.

Charms run their programs many times in each hook, and starting Python and loading what they import
is nearly all that these take. So one process loads it once, and forks for each run: what runs is
the console script itself, with the arguments, the environment, the folder, the mask and the open
files that it was started with. That the scripts start without it is tested with packed charms.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import marshal
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent

_LOADED = (
    "turku_core.agent.commands",
    "turku_core.storage.commands",
    "cryptography.x509",
    "django.contrib.admin.options",
    "django.core.management",
    "django.urls",
    "psycopg",
)
"""What the programs import, as far as it can be without the configuration of one of them."""

_BYTES_MAX = 1 << 17

# What is run in a console script's place. It loads next to nothing.
_SCRIPT = """\
#!{python} -ISE
import _socket, marshal, os, sys
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
server.connect({address!r})
mask = os.umask(0)
files = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
asked = [{program!r}, *sys.argv[1:]], dict(os.environ), os.getcwd(), mask
server.sendmsg([marshal.dumps(asked)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
code = int(server.recv(16) or 70)
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def quick_programs() -> Path:
    """Return a folder with a stand-in for each console script of this environment.

    They work as long as this process lives.
    """
    folder = Path(tempfile.mkdtemp(prefix="turku-programs-"))
    address = folder / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.quick_programs", str(address)],
        cwd=Path(__file__).parent.parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    # It ends when this process does, however that ends.
    atexit.register(server.communicate)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    for program in BIN.glob("turku-*"):
        script = folder / program.name
        script.write_text(
            _SCRIPT.format(python=sys.executable, address=str(address), program=str(program))
        )
        script.chmod(0o755)
    return folder


@dataclass(frozen=True)
class _Asked:
    """A run of a program, as its stand-in was started."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    mask: int
    files: Sequence[int]

    @classmethod
    def receive(cls, connection: socket.socket) -> _Asked:
        """Take it from the stand-in."""
        text, files, _, _ = socket.recv_fds(connection, _BYTES_MAX, 3)
        arguments, environment, folder, mask = marshal.loads(text)
        return cls(arguments, environment, folder, mask, files)

    def close(self) -> None:
        """Close our ends of its files."""
        for file in self.files:
            os.close(file)

    def take_its_place(self) -> None:
        """Make this process what the program's would be, up to its first line."""
        for number, file in enumerate(self.files):
            os.dup2(file, number)
        self.close()
        os.chdir(self.folder)
        os.umask(self.mask)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv[:] = self.arguments


def _serve(address: str) -> _Asked | None:
    """Fork for each run, until standard input ends; return only the run, in its own process."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while 0 not in select.select([0, listener.fileno()], [], [])[0]:
            with listener.accept()[0] as connection:
                asked = _Asked.receive(connection)
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    child = os.fork()
                    if child == 0:
                        signal.signal(signal.SIGINT, signal.default_int_handler)
                        return asked
                    asked.close()
                    code = _wait(child, connection)
                    with contextlib.suppress(OSError):
                        connection.send(str(code).encode())
                    os._exit(0)
                asked.close()
    return None


def _wait(child: int, connection: socket.socket) -> int:
    """Return the exit code of a process; it is ended when its stand-in is killed."""
    process = os.pidfd_open(child)
    if process not in select.select([process, connection.fileno()], [], [])[0]:
        os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Load what the programs load, and then run one for each that asks."""
    for name in _LOADED:
        importlib.import_module(name)
    asked = _serve(sys.argv[1])
    if asked is None:
        shutil.rmtree(Path(sys.argv[1]).parent)
    else:
        asked.take_its_place()
        runpy.run_path(asked.arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()

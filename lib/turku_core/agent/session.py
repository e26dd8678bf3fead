"""One SSH session with a storage unit: tunnel, rsync daemon, what is said over it, and its end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turku_core.agent.locks import held
from turku_core.agent.processes import (
    LineReader,
    Stop,
    Waiter,
    end,
    printable,
    start,
)
from turku_core.agent.rsync_daemon import Module, RsyncDaemon
from turku_core.agent.tunnel import (
    ALLOCATION_SECONDS,
    KNOWN_HOSTS_NAME,
    allocated_port,
    explain,
    has_aes_instructions,
    known_hosts_text,
    link_key,
    make_ssh_command,
)
from turku_core.commandline import human_size
from turku_core.configuration import ensure_private_folder
from turku_core.errors import DONE, TRY_AGAIN_LATER, TryAgainLater, TurkuError
from turku_core.protocol.messages import StorageAddress

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 12 * 3600.0
"""A unit of v1 may make a snapshot of a large tree for hours without a word, while the agent waits.
A dead network is noticed by ssh within a minute; this is for a unit that is stuck."""

SAID_BYTES_MAX = 2**30
"""Of a storage unit's words in one session. The most that is meant are the names of some ten
million files, from a unit of v1; who says more would only keep this machine busy."""

_SSH_FAILED = 255
_LINES_KEPT = 20
_LINE_CHARACTERS_MAX = 2000
_END_SECONDS = 10.0
_SWEEPING = ".lock"

Event = Mapping[str, Any]


class SessionFailed(TurkuError):
    """The session didn't come about, broke off, or the storage unit says that it failed."""


class ComeBackLater(TryAgainLater):
    """The storage unit asks to come back later: its slots are taken, or it is still committing."""


@dataclass(frozen=True)
class SessionPlan:
    """What a session is for.

    Attributes:
        action: ``checkin``, ``restore`` or ``list``.
        modules: What the rsync daemon offers; empty for a session without a tunnel.
        details: Further optional fields of the session's JSON.
        patience: Seconds that the storage unit may say nothing while no rsync is at work; None is
            for ever, as a restore by hand needs it.
    """

    storage: StorageAddress
    action: str
    modules: Sequence[Module] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    patience: float | None = SILENCE_SECONDS


def session_json(plan: SessionPlan, port: int | None, *, verbose: bool) -> str:
    """Return what the agent writes on the session's standard input: one object, then a dot."""
    message: dict[str, Any] = {
        "verbose": verbose,
        "action": plan.action,
        "sources": {
            module.name: {"username": module.username, "password": module.password}
            for module in plan.modules
        },
        "events": True,
        **plan.details,
    }
    if port is not None:
        message["port"] = port
    return json.dumps(message) + "\n.\n"


def run_session(
    plan: SessionPlan,
    *,
    key: Path,
    run_folder: Path,
    stop: Stop,
    on_event: Callable[[Event], None],
) -> None:
    """Hold one session from beginning to end; nothing of it is left when this returns or raises.

    Args:
        plan: What the session is for.
        key: The machine's private SSH key.
        run_folder: Where the session's private folder is made.
        stop: Ends the session early.
        on_event: Gets each event that the storage unit sends. A unit that knows no events sends
            lines of text; each becomes ``{"event": "message", "message": LINE}``.

    Raises:
        ComeBackLater: The storage unit has no time for it now.
        SessionFailed: Anything else went wrong; the message says what to do.
        Interrupted: The agent was told to stop.
    """
    with session_folder(run_folder) as folder:
        (folder / KNOWN_HOSTS_NAME).write_text(known_hosts_text(plan.storage), "ascii")
        link_key(folder, key)
        conversation = _Conversation(plan, folder, stop, on_event)
        try:
            conversation.hold()
        finally:
            _log_daemon(folder, plan.storage)


def _log_daemon(folder: Path, storage: StorageAddress) -> None:
    """Pass on what the rsync daemon noted, for whoever runs with --verbose."""
    with contextlib.suppress(OSError), (folder / "rsyncd.log").open(errors="replace") as file:
        for line in file:
            logger.debug("storage unit %s: rsyncd: %s", storage.name, printable(line.strip()))


class _Conversation:
    """The ssh process of a session and what comes and goes over it."""

    def __init__(
        self,
        plan: SessionPlan,
        folder: Path,
        stop: Stop,
        on_event: Callable[[Event], None],
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._daemon: RsyncDaemon | None = None
        self._stop = stop
        self._on_event = on_event
        self._said: list[str] = []
        self._port: int | None = None
        self._told = False

    def hold(self) -> None:
        """Start ssh, talk, and wait for the end."""
        # A check-in without modules has a tunnel all the same: a unit of v1 expects a port.
        forward = self._plan.action != "list"
        ssh = start(
            make_ssh_command(self._plan.storage, forward=forward, has_aes=has_aes_instructions()),
            folder=self._folder,
            environment={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            if forward:
                # While ssh is on its way; the other side can't connect before it has the port.
                self._daemon = RsyncDaemon(self._folder, self._plan.modules)
            self._converse(ssh)
            code = ssh.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = _SSH_FAILED
        finally:
            end([ssh])
            if self._daemon is not None:
                self._daemon.close()
            for stream in (ssh.stdin, ssh.stdout, ssh.stderr):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._judge(code)

    def _converse(self, ssh: subprocess.Popen[bytes]) -> None:
        assert ssh.stdout is not None and ssh.stderr is not None
        answers, words = LineReader(ssh.stdout), LineReader(ssh.stderr)
        deadline = time.monotonic() + ALLOCATION_SECONDS
        waiter = Waiter(self._stop)
        try:
            for readable in (answers, words, *([self._daemon] if self._daemon else [])):
                waiter.add(readable)
            if self._daemon is None:
                self._tell(ssh)
            while not (answers.ended and words.ended):
                left = max(0.0, deadline - time.monotonic())
                ready = waiter.wait(self._plan.patience if self._told else left)
                if not ready:
                    self._lose_patience()
                if answers.count + words.count > SAID_BYTES_MAX:
                    raise SessionFailed(
                        f"Storage unit {self._plan.storage.name} says more than "
                        f"{human_size(SAID_BYTES_MAX)} in one session: look at what it does."
                    )
                if words in ready:
                    self._hear(words.read(), ssh)
                if answers in ready:
                    self._answered(answers.read())
                if self._daemon is not None and self._daemon in ready:
                    self._daemon.accept()
                for stream in (answers, words):
                    if stream in ready and stream.ended:
                        waiter.remove(stream)
        finally:
            waiter.close()

    def _lose_patience(self) -> None:
        name = self._plan.storage.name
        if not self._told:
            raise SessionFailed(
                f"Storage unit {name} did not open the tunnel within {ALLOCATION_SECONDS:.0f} "
                "seconds; the next check-in tries again."
            )
        if self._daemon is None or not self._daemon.is_busy():
            raise SessionFailed(
                f"Storage unit {name} has said nothing for {self._plan.patience:.0f} seconds and "
                "transfers nothing: look at what holds it up."
            )

    def _hear(self, lines: Sequence[str], ssh: subprocess.Popen[bytes]) -> None:
        for line in lines:
            port = allocated_port(line)
            if port is not None and not self._told:
                self._port = port
                self._tell(ssh)
            elif line.strip():
                logger.debug("storage unit %s: ssh: %s", self._plan.storage.name, printable(line))
                self._said = [*self._said, line[:_LINE_CHARACTERS_MAX]][-_LINES_KEPT:]

    def _tell(self, ssh: subprocess.Popen[bytes]) -> None:
        """Write the session's JSON. Standard input stays open: in a restore its end is the end."""
        assert ssh.stdin is not None
        text = session_json(self._plan, self._port, verbose=logger.isEnabledFor(logging.DEBUG))
        self._told = True
        # ssh has ended when the pipe is broken, and its exit code says why.
        with contextlib.suppress(BrokenPipeError):
            remaining = memoryview(text.encode("utf-8"))
            while remaining:
                remaining = remaining[ssh.stdin.write(remaining) or 0 :]

    def _answered(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line.strip():
                self._on_event(parse_event(line))

    def _judge(self, code: int) -> None:
        name = self._plan.storage.name
        if code == DONE:
            return
        if code == TRY_AGAIN_LATER:
            raise ComeBackLater(f"Storage unit {name} asks to come back later.")
        if code == _SSH_FAILED or code < 0:
            raise SessionFailed(explain(self._plan.storage, self._said))
        said = f": {printable(self._said[-1])}" if self._said else ""
        raise SessionFailed(f"Storage unit {name} ended the session with exit code {code}{said}.")


def parse_event(line: str) -> Event:
    """Return what a line of the storage unit's output says; a line of text is a message."""
    if line.startswith("{"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return {"event": "message", "message": line}


@contextlib.contextmanager
def session_folder(run_folder: Path) -> Iterator[Path]:
    """Make a private folder that is locked as long as it is in use, and removed in the end."""
    sessions = run_folder / "sessions"
    ensure_private_folder(sessions)
    folder = sessions / secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        # Nobody may sweep it between its making and its locking.
        with held(sessions / _SWEEPING):
            folder.mkdir(mode=0o700)
            stack.enter_context(held(folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def sweep_sessions(run_folder: Path) -> int:
    """Remove the folders of sessions whose agent was killed; return how many there were.

    The lock on each tells: the kernel lets go of it with the process that held it.
    """
    sessions = run_folder / "sessions"
    if not sessions.is_dir():
        return 0
    swept = 0
    with held(sessions / _SWEEPING):
        for folder in sessions.iterdir():
            if not folder.is_dir():
                continue
            with held(folder, wait=False) as abandoned:
                if abandoned:
                    shutil.rmtree(folder, ignore_errors=True)
                    swept += 1
    return swept

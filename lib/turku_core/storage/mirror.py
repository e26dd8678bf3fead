"""The mirror: pulling a source's newest state from the agent's rsync daemon over the tunnel.

Everything that is stored passes through rsync's `--fake-super`: owners, modes, devices, symbolic
links and ACLs become extended attributes of plain files (rsync(1)), so that an unprivileged user
keeps them, and what a hostile agent sends is never more than a file.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from turku_core.storage import hard_links, programs

CONNECT_SECONDS = 30
"""How long to wait for the daemon at the other end of the tunnel."""

IO_SECONDS = 600
"""How long nothing may come: the agent may be reading one large file for its checksums."""

NO_DELAY = "--sockopts=TCP_NODELAY"
"""Without it rsync's greeting and its list of options wait for the other side's late
acknowledgements: 0.07 s a session (tried)."""

NANOSECONDS = "--modify-window=-1"
"""Without it rsync takes files of one size that were changed in the same second for the same."""

_WORDS_LINES_MAX = 20
_PROGRESS = re.compile(rb"([\d,.]+)\s+(\d+)%\s")
_ITEM = (
    rb" (?:(?P<link>h[^d].{9}(?= .* => ))|(?P<folder>[c.]d\+{9})"
    rb"|[^<>*][^L](?:.{8}(?P<attributes>x)|(?:.{3}p.{4}|.{7}a).)) (?P<name>.*)\n"
)
"""Of what rsync itemizes (rsync(1), --itemize-changes): links, new folders, what has another ACL,
mode or attributes."""

ACL = "user.rsync.%aacl"
STATUS = "user.rsync.%stat"
"""What rsync keeps with --fake-super: an ACL; the mode in octal, device and owner."""

_RULES_AT_ONCE = 500
"""How many names one rsync includes: each file beside them is compared with all of them."""

_STATISTICS = {
    "files_total": re.compile(rb"^Number of files: ([\d,.]+)", re.MULTILINE),
    "folders_total": re.compile(rb"^Number of files: .*\bdir: ([\d,.]+)", re.MULTILINE),
    "bytes_total": re.compile(rb"^Total file size: ([\d,.]+)", re.MULTILINE),
    "bytes_transferred": re.compile(rb"^Total transferred file size: ([\d,.]+)", re.MULTILINE),
    "files_transferred": re.compile(
        rb"^Number of (?:regular )?files transferred: ([\d,.]+)", re.MULTILINE
    ),
}
_OURS = re.compile(r"\[(?:receiver|generator)(?:=[^]]*)?\]")


@dataclass(frozen=True)
class Daemon:
    """The rsync daemon at the other end of the tunnel, as seen on this host's loopback."""

    port: int
    module: str
    username: str
    password: str = field(repr=False)
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """The daemon's module for rsync, with a slash at the end: its content."""
        return f"rsync://{self.username}@{self.host}:{self.port}/{self.module}/"


@dataclass(frozen=True)
class PullOptions:
    """What a source says about how it is to be pulled.

    `filter` and `exclude` are rsync rules that `fields` has passed (surrogateescape'd where they
    aren't UTF-8); `bwlimit` is in rsync's form.
    """

    filter: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bwlimit: str | None = None
    preserve_hard_links: bool = True


@dataclass(frozen=True)
class Target:
    """Where to pull to, as a snapshot mode has prepared it.

    `link_dests` are trees to make hard links to, newest first; `has_hard_links` says that a file
    may have several names in them. `checksum` distrusts size and time of what is there (after a
    power cut). Each change of a file is added to `log`, with `log_mark`.
    """

    folder: Path
    link_dests: tuple[Path, ...] = ()
    has_hard_links: bool = True
    checksum: bool = False
    log: Path | None = None
    log_mark: str = ""


class Outcome(Enum):
    """How a pull ended; the values are the words of the session's events."""

    RECEIVED = "received"
    PARTIAL = "partial"
    LATER = "later"
    FAILED = "failed"


@dataclass(frozen=True)
class Statistics:
    """What rsync counted; None where it didn't get that far. Sizes are in bytes."""

    files_total: int | None = None
    folders_total: int | None = None
    bytes_total: int | None = None
    bytes_transferred: int | None = None
    files_transferred: int | None = None


@dataclass(frozen=True)
class Received:
    """What a pull brought.

    `message` is a sentence for the operator with rsync's own words; `later` outcomes (network,
    time-out, cancelled) are worth trying again soon, `failed` ones need somebody to act.
    """

    outcome: Outcome
    code: int
    message: str
    statistics: Statistics = Statistics()

    @property
    def usable(self) -> bool:
        """Whether what came is to be kept as a snapshot."""
        return self.outcome in (Outcome.RECEIVED, Outcome.PARTIAL)


def make_rsync_command(
    daemon: Daemon,
    target: Target,
    options: PullOptions,
    *,
    progress: bool = True,
    io_timeout: int = IO_SECONDS,
    mark: str | None = None,
) -> list[str]:
    """Return the rsync command of a pull; the password isn't in it, and the rules are on stdin.

    With a `mark`, lines that begin with it tell what it did (see `Output`).
    """
    command = _make_command(options, io_timeout)
    command += ["--delete", "--delete-excluded", "--partial"]
    command.append(f"--info=stats2{',progress2' if progress else ''}")
    if mark is not None:
        command += ["--8-bit-output", f"--out-format={mark} %i %n{'%L' * bool(target.link_dests)}"]
        # Of what is linked to a former tree only the second -i tells.
        command += ["-ii"] if target.link_dests else []
    if target.checksum:
        command.append("--checksum")
    if options.filter or options.exclude:
        command.append("--filter=merge -")
    if target.log is not None:
        command += [f"--log-file={target.log}", f"--log-file-format={target.log_mark} %i %n"]
    command += [f"--link-dest={folder}" for folder in target.link_dests]
    return [*command, "--", daemon.url, f"{target.folder}/"]


def make_touch_up_command(
    daemon: Daemon, target: Target, options: PullOptions, *, io_timeout: int = IO_SECONDS
) -> list[str]:
    """Return the rsync command that pulls again what the rules on stdin include, and no more.

    They are rules since a machine's daemon takes no list of names: it would read it from a file.
    """
    command = [*_make_command(options, io_timeout), "--from0", "--filter=merge -"]
    return [*command, "--", daemon.url, f"{target.folder}/"]


def make_inclusions(names: Iterable[bytes]) -> bytes:
    """Return the rules that include these names, as rsync prints them, and nothing else."""
    rules: dict[bytes, None] = {}
    for name in names:
        parts = name.rstrip(b"/").split(b"/")
        for count in range(1, len(parts)):
            rules[b"+ /" + _as_pattern(b"/".join(parts[:count])) + b"/\0"] = None
        rules[b"+ /" + _as_pattern(b"/".join(parts)) + b"\0"] = None
    return b"".join([*rules, b"- *\0"])


def _as_pattern(name: bytes) -> bytes:
    """Return the pattern that matches a name alone: only beside wildcards a backslash escapes."""
    return re.sub(rb"([\\*?\[])", rb"\\\1", name) if re.search(rb"[*?\[]", name) else name


def make_list(names: Iterable[bytes]) -> bytes:
    """Return names as rsync reads them with --files-from and --from0.

    It takes what begins like a comment for one, and says nothing.
    """
    return b"".join((b"./" if name[:1] in (b"#", b";") else b"") + name + b"\0" for name in names)


def _make_command(options: PullOptions, io_timeout: int) -> list[str]:
    command = [
        "rsync",
        "--archive",
        "--acls",
        "--xattrs",
        "--sparse",
        "--numeric-ids",
        NANOSECONDS,
        "--fake-super",
        "--no-human-readable",
        f"--timeout={io_timeout}",
        f"--contimeout={CONNECT_SECONDS}",
        NO_DELAY,
    ]
    if options.preserve_hard_links:
        command.append("--hard-links")
    if options.bwlimit:
        command.append(f"--bwlimit={options.bwlimit}")
    return command


def make_rules(options: PullOptions) -> bytes:
    """Return the source's rules as rsync reads them, one a line: filters first, then excludes."""
    lines = [*options.filter, *(f"- {pattern}" for pattern in options.exclude)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def pull(
    daemon: Daemon,
    target: Target,
    options: PullOptions,
    *,
    on_progress: Callable[[int, float | None], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    hold: Sequence[int] = (),
    io_timeout: int = IO_SECONDS,
) -> Received:
    """Pull a source into `target` and say honestly how it ended.

    Args:
        daemon: The other end of the tunnel.
        target: What a snapshot mode's `prepare` returned.
        options: What the source says.
        on_progress: Is given bytes and percent.
        cancelled: Asked several times a second; True ends rsync's whole process group.
        hold: The descriptor of the source's lock, so that it is held for as long as rsync lives.
        io_timeout: Seconds after which a silent connection is given up.

    Never raises for what rsync or the network did.
    """
    mark = secrets.token_hex(16)
    command = make_rsync_command(
        daemon,
        target,
        options,
        progress=on_progress is not None,
        io_timeout=io_timeout,
        mark=mark,
    )
    output = Output(on_progress, mark)
    env = {"RSYNC_PASSWORD": daemon.password}
    try:
        finished = programs.run(
            command,
            env=env,
            stdin=make_rules(options),
            cancelled=cancelled,
            on_stdout=output.feed,
            hold=hold,
        )
        outcome, message = classify(finished.code, finished.stderr.splitlines())
        statistics = output.statistics()
        if outcome is Outcome.PARTIAL and not statistics.files_total:
            outcome, message = Outcome.FAILED, f"Nothing could be read. {message}"
        received = Received(outcome, finished.code, message, statistics)
        names = sorted(_attributes_lost(target.folder, output)) if received.usable else []
        command = make_touch_up_command(daemon, target, options, io_timeout=io_timeout)
        for first in range(0, len(names), _RULES_AT_ONCE):
            finished = programs.run(
                command,
                env=env,
                stdin=make_inclusions(names[first : first + _RULES_AT_ONCE]),
                cancelled=cancelled,
                hold=hold,
            )
            outcome, message = classify(finished.code, finished.stderr.splitlines())
            if outcome is not Outcome.RECEIVED:
                received = Received(outcome, finished.code, message, statistics)
            if not received.usable:
                break
    except programs.Cancelled:
        return Received(Outcome.LATER, -9, "The session ended before everything had come.")
    if received.usable and target.link_dests and target.has_hard_links:
        hard_links.separate(target.folder, output.links)
    return received


def _attributes_lost(folder: Path, output: Output) -> list[bytes]:
    """Return the names of what may have lost its ACL, or have a wrong one, which is removed.

    With --fake-super an ACL is one of rsync's own attributes. Where rsync sets other attributes, of
    a folder or of a file that it doesn't write anew, it takes those it has just written for
    superfluous. Where it sets the mode, or copies from a former tree, it leaves an ACL in which it
    has left out what was in the former mode. (Tried with 3.5.0.) Pulled again, what has lost its
    ACL gets it.
    """
    top = os.fsencode(folder)
    names = [name for name in output.folders if _has_attributes(os.path.join(top, name))]
    names += (name for name in output.permitted if _remove_acl(os.path.join(top, name)))
    for name in output.changed:
        _remove_acl(os.path.join(top, name))
        names.append(name)
    return names


def _remove_acl(path: bytes) -> bool:
    """Remove the ACL that is kept of something; say whether there was one."""
    try:
        os.removexattr(path, ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOENT):
            raise
        return False
    return True


def _has_attributes(path: bytes) -> bool:
    """Say whether something has attributes of the machine's."""
    return any(not name.startswith("user.rsync.%") for name in os.listxattr(path))


class Output:
    """rsync's standard output as it comes: progress is passed on, the end is kept for counting.

    Attributes:
        changed: What was there already, or in a former tree, and had its attributes set.
        permitted: The same of its mode or its ACL, and of no other attribute.
        folders: Those that are new.
        links: Which name was linked to which other one, as the machine has them.
    """

    def __init__(
        self, on_progress: Callable[[int, float | None], None] | None, mark: str | None = None
    ) -> None:
        """Take who wants to hear of progress (bytes and percent), and what marks rsync's items."""
        self._on_progress = on_progress
        self._tail = b""
        self._rest = b""
        self._item = None if mark is None else re.compile(mark.encode() + _ITEM)
        self.changed: list[bytes] = []
        self.permitted: list[bytes] = []
        self.folders: list[bytes] = []
        self.links: set[bytes] = set()

    def feed(self, block: bytes) -> None:
        """Take a block of output."""
        self._tail = (self._tail + block)[-8192:]
        if self._item is not None:
            lines, end, self._rest = (self._rest + block).rpartition(b"\n")
            for found in self._item.finditer(lines + end):
                name = hard_links.unescaped(found["name"])
                if found["link"]:
                    self.links.add(name)
                elif found["folder"]:
                    self.folders.append(name)
                elif found["attributes"]:
                    self.changed.append(name)
                else:
                    self.permitted.append(name)
        if self._on_progress is not None:
            last = None
            for last in _PROGRESS.finditer(block):  # noqa: B007 - only the last one matters
                pass
            if last is not None:
                self._on_progress(_count(last[1]), float(last[2]))

    def statistics(self) -> Statistics:
        """Return the counts that rsync printed at its end, after all that the machine says."""
        found = {name: pattern.findall(self._tail) for name, pattern in _STATISTICS.items()}
        return Statistics(
            **{name: _count(matches[-1]) for name, matches in found.items() if matches}
        )


def _count(digits: bytes) -> int:
    return int(re.sub(rb"\D", b"", digits))


_MEANINGS = {
    1: (Outcome.FAILED, "rsync refused its options; this is a mistake of the storage unit's."),
    2: (Outcome.FAILED, "The two rsyncs speak no common protocol; update the older one."),
    3: (Outcome.FAILED, "The folder to pull into could not be used."),
    4: (Outcome.FAILED, "The machine's rsync doesn't support what is asked; update it."),
    5: (Outcome.FAILED, "The machine's rsync daemon refused; see the agent's configuration."),
    6: (Outcome.FAILED, "The rsync daemon could not write its log."),
    10: (Outcome.LATER, "The connection to the machine's rsync daemon failed."),
    11: (Outcome.FAILED, "Files could not be written on the storage unit."),
    12: (Outcome.LATER, "The connection to the machine broke."),
    13: (Outcome.FAILED, "rsync failed."),
    14: (Outcome.FAILED, "The storage unit could not start rsync's processes."),
    19: (Outcome.LATER, "The transfer was ended by a signal."),
    20: (Outcome.LATER, "The transfer was ended by a signal."),
    21: (Outcome.FAILED, "rsync's processes failed."),
    22: (Outcome.FAILED, "The storage unit ran out of memory."),
    23: (Outcome.PARTIAL, "Some files could not be read; the rest is kept."),
    24: (Outcome.PARTIAL, "Some files vanished while they were read; the rest is kept."),
    25: (Outcome.FAILED, "rsync stopped deleting at its limit."),
    30: (Outcome.LATER, "Nothing came from the machine for too long."),
    35: (Outcome.LATER, "The machine's rsync daemon didn't answer in time."),
}


_IN_A_RESTORE = {
    3: (Outcome.FAILED, "The folder to restore to could not be used."),
    11: (Outcome.FAILED, "Files could not be written where they are restored to."),
}
"""What another side's writing makes of these codes."""


def classify(
    code: int, stderr: Sequence[str], *, in_a_restore: bool = False
) -> tuple[Outcome, str]:
    """Return what rsync's exit code means, and a sentence with rsync's own words.

    The codes are those of rsync(1). Errors on this side are told from those of the machine by the
    role that rsync names (`[receiver]`, `[generator]`, `[sender]`).
    """
    words = _words(stderr)
    if code == 0:
        return Outcome.RECEIVED, words
    meanings = {**_MEANINGS, **_IN_A_RESTORE} if in_a_restore else _MEANINGS
    outcome, meaning = meanings.get(code, (Outcome.FAILED, f"rsync ended with code {code}."))
    if code < 0:
        outcome, meaning = Outcome.LATER, f"rsync was ended by signal {-code}."
    ours = [line for line in stderr if _OURS.search(line)]
    if any(_says_full(line) for line in ours):
        outcome = Outcome.FAILED
        meaning = "The volume is full; make room, or let snapshots expire."
        if in_a_restore:
            meaning = "The disk that is restored to is full: make room there, or restore elsewhere."
    elif any("%stat" in line and "not supported" in line for line in ours):
        outcome = Outcome.FAILED
        meaning = "The volume keeps no extended attributes (user_xattr), and backups need them."
    elif code == 5 and any("did not see server greeting" in line for line in stderr):
        outcome = Outcome.LATER
        meaning = "The connection ended before the machine's rsync daemon said anything."
    elif code == 5:
        meaning = _refusal(stderr) or meaning
    return outcome, f"{meaning} {words}".strip()


def _says_full(line: str) -> bool:
    """Say whether a line of ours means a full volume; one attribute too large for ext4 doesn't."""
    full = "No space left on device" in line or "Disk quota exceeded" in line
    return full and "xattr" not in line


def _refusal(stderr: Sequence[str]) -> str | None:
    """Return what a daemon's `@ERROR` means."""
    text = "\n".join(stderr)
    if "chdir failed" in text or "chroot failed" in text:
        return "The source's path isn't there, or can't be entered, on the machine."
    if "auth failed" in text:
        return "The machine's rsync daemon didn't take the session's password."
    if "Unknown module" in text:
        return "The machine's rsync daemon doesn't offer this source."
    return None


def _words(stderr: Sequence[str]) -> str:
    """Return rsync's own words, printable, without those that only repeat the code."""
    lines = [
        line.strip().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for line in stderr
        if line.strip() and not line.startswith(("rsync error:", "rsync warning:"))
    ]
    if not lines:
        lines = [line.strip() for line in stderr if line.strip()][-1:]
    shown = lines[:_WORDS_LINES_MAX]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} more such lines")
    return "\n".join(
        "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
        for line in shown
    )

"""The mirror: pulling a source's newest state from the agent's rsync daemon over the tunnel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


@dataclass(frozen=True)
class Daemon:
    """The rsync daemon at the other end of the tunnel, as seen on this host's loopback."""

    port: int
    module: str
    username: str
    password: str = field(repr=False)
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class PullOptions:
    """What a source says about how it is to be pulled.

    `filter` and `exclude` are rsync rules, `bwlimit` is in rsync's form, `bytes` may follow raw.
    """

    filter: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bwlimit: str | None = None
    preserve_hard_links: bool = True


@dataclass(frozen=True)
class Target:
    """Where to pull to, as a snapshot mode has prepared it.

    `link_dests` are trees to make hard links to, `inplace` allows writing into existing files (only
    where nothing shares their inodes), `checksum` distrusts size and time.
    """

    folder: Path
    link_dests: tuple[Path, ...] = ()
    inplace: bool = False
    checksum: bool = False


class Outcome(Enum):
    """How a pull ended; the values are the words of the session's events."""

    RECEIVED = "received"
    PARTIAL = "partial"
    LATER = "later"
    FAILED = "failed"


@dataclass(frozen=True)
class Received:
    """What a pull brought.

    `message` is a sentence for the operator with rsync's own words; `later` outcomes (network,
    time-out, cancelled) are worth trying again soon, `failed` ones need somebody to act.
    """

    outcome: Outcome
    code: int
    message: str
    files_total: int | None = None
    bytes_total: int | None = None
    bytes_transferred: int | None = None

    @property
    def usable(self) -> bool:
        """Whether what came is to be kept as a snapshot."""
        return self.outcome in (Outcome.RECEIVED, Outcome.PARTIAL)


def make_rsync_command(
    daemon: Daemon, target: Target, options: PullOptions, *, io_timeout: int = 600
) -> list[str]:
    """Return the rsync command of a pull; the password isn't in it."""
    raise NotImplementedError


def pull(
    daemon: Daemon,
    target: Target,
    options: PullOptions,
    *,
    on_progress: Callable[[int, float | None], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    io_timeout: int = 600,
) -> Received:
    """Pull a source into `target` and say honestly how it ended.

    `on_progress` is given bytes and percent; `cancelled` is asked several times a second, and
    ends rsync's whole process group (it goes with this process too). Never raises for what
    rsync or the network did.
    """
    raise NotImplementedError


def classify(code: int, stderr: Sequence[str]) -> tuple[Outcome, str]:
    """Return what rsync's exit code means, and a sentence with rsync's own words (rsync(1))."""
    raise NotImplementedError

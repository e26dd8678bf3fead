"""From errors to what an operator reads in `juju status`, in one place."""

from __future__ import annotations

import ops

from turku_core.errors import TryAgainLater, TurkuError

CHARACTERS_MAX = 250
"""A longer message is cut: `juju status` is a table."""


class NotReady(TurkuError):
    """Something that others do has yet to happen; nobody needs to act."""


class Blocked(TurkuError):
    """An operator has to act; the message says what to do."""


def status_of(error: TurkuError) -> ops.StatusBase:
    """Return the status that an error amounts to: waiting when time mends it, else blocked."""
    if isinstance(error, (NotReady, TryAgainLater)):
        return ops.WaitingStatus(one_line(str(error)))
    return ops.BlockedStatus(one_line(str(error)))


def one_line(text: str) -> str:
    """Return a text as one line of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= CHARACTERS_MAX else line[: CHARACTERS_MAX - 3] + "..."

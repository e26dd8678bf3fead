"""The errors that a person may see, and the exit codes that a program may read."""

from __future__ import annotations

DONE = 0
FAILED = 1
BAD_USAGE = 2
TRY_AGAIN_LATER = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, the same call may succeed later."""


class TurkuError(Exception):
    """Something went wrong; the message is a sentence: what, where and what to do."""

    exit_code = FAILED


class ConfigurationError(TurkuError):
    """A configuration file, an option or an argument is not valid; nothing was done."""

    exit_code = BAD_USAGE


class TryAgainLater(TurkuError):
    """Nothing is wrong, but not now: the other side is busy, paused or not ready yet."""

    exit_code = TRY_AGAIN_LATER

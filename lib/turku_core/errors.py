"""The errors that a person may see, and the exit codes that a program may read."""

from __future__ import annotations

from typing import ClassVar

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


class LanguageError(ValueError):
    """A text that isn't of the language that it should be of: a schedule, a retention policy.

    `text` is the whole of it, `column` (from 1) where it can't be read any further, `expected`
    says what should have been there, and `detail` is the message after the language's name.
    """

    language: ClassVar[str]
    """What the text should have been, as the message begins."""

    def __init__(self, text: str, column: int, found: str, expected: str) -> None:
        self.text = text
        self.column = column
        self.expected = expected
        what = f"{_shortened(found)} is not understood" if found else "something is missing"
        self.detail = f"{_shortened(text)}, column {column}: {what}; expected {expected}"
        super().__init__(f"{self.language} {self.detail}")


def _shortened(text: str) -> str:
    """`text` in quotes, and no longer than a line of a terminal bears."""
    return repr(text if len(text) <= 60 else text[:57] + "...")

"""Cron expressions with Jenkins' H, for the schedule language.

Five fields: minute, hour, day of the month, month, day of the week. A field is a list, with commas
between them, of `*`, values, ranges such as `1-5`, and `H`, `H(0-7)` or `H/15`, which stand for a
value (or, with a step, a first value) that a key's hash picks: always the same for one key, evenly
spread for many. A bare `H` in the day of the month picks from 1 to 28, as Jenkins does. Months and
days of the week may be named by three letters.

When an expression fires is cronsim's answer, and so Debian cron's, through both clock changes:
one that names its hours and minutes fires once for a local time that comes twice, and right after
the gap for one that is skipped; one with a `*` first in its minute or hour follows the clock.
What Jenkins or cronsim read otherwise than cron does (seconds, L, W, #, a step after a single
value, a step longer than its range) is refused rather than guessed.

cronsim is imported where it is needed only: the agent's check-in has no use for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from functools import partial

UTC = timezone.utc

FIELDS = (
    # name, lowest, highest, highest for a bare H
    ("minute", 0, 59, 59),
    ("hour", 0, 23, 23),
    ("day of the month", 1, 31, 28),
    ("month", 1, 12, 12),
    ("day of the week", 0, 7, 6),
)
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS_OF_THE_WEEK = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
NAMES: dict[str, dict[str, int]] = {
    "month": {name: number for number, name in enumerate(MONTHS, 1)},
    "day of the week": {name: number for number, name in enumerate(DAYS_OF_THE_WEEK)},
}
TERM = re.compile(
    r"(?: (?P<any>\*) | (?P<hash>H) (?: \( (?P<from>\w+) - (?P<to>\w+) \) )?"
    r" | (?P<low>\w+) (?: - (?P<high>\w+) )? ) (?: / (?P<step>[0-9]{1,4}) )?",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Term:
    """One of the comma-separated terms of a cron field.

    `kind` is `*`, `H` or `-` (a range, or a single value); `step` is 1 when none is given.
    """

    kind: str
    low: int
    high: int
    step: int

    def without_hash(self, pick: Callable[[int, int], int]) -> str:
        """The term without H, for cronsim; `pick(low, high)` chooses in its place.

        Steps are written out, because cronsim continues a range of a single value to the end of
        the field.
        """
        if self.kind == "*":
            return "*" if self.step == 1 else f"*/{self.step}"
        if self.kind == "-":
            values = range(self.low, self.high + 1, self.step)
        elif self.step == 1:
            return str(pick(self.low, self.high))
        else:
            first = pick(self.low, self.low + self.step - 1)
            values = range(first, self.high + 1, self.step)
        return ",".join(str(value) for value in values)


class CronError(ValueError):
    """A text that isn't a cron expression.

    `index` is where in the text `found` stands, and `expected` what should have been there.
    """

    def __init__(self, index: int, found: str, expected: str) -> None:
        self.index = index
        self.found = found
        self.expected = expected
        super().__init__(f"{found!r} at {index} is not understood; expected {expected}")


@dataclass(frozen=True)
class CronExpression:
    """A cron expression; `str` gives its canonical text, with H still in it."""

    _text: str
    _fields: tuple[tuple[_Term, ...], ...]

    @classmethod
    def parse(cls, text: str) -> CronExpression:
        """Read an expression; CronError when it isn't one, or when it would never fire."""
        words = [(found.start(), found[0]) for found in re.finditer(r"\S+", text)]
        if len(words) != len(FIELDS):
            raise _wrong_number_of_fields(len(text), words)
        fields = tuple(
            _parse_field(index, word, number) for number, (index, word) in enumerate(words)
        )
        expression = cls(" ".join(word.upper() for _, word in words), fields)
        if not expression._always_fires():
            raise CronError(*words[2], "a day of the month that comes in the months given")
        return expression

    def __str__(self) -> str:
        return self._text

    def without_hash(self, pick: Callable[[int, int, int, int], int]) -> str:
        """The expression as cronsim reads it.

        `pick(field, term, low, high)` is the value, from `low` to `high`, to put in the place of
        the H that is that term of that field (both counted from 0).
        """
        return " ".join(
            ",".join(
                term.without_hash(partial(pick, field, number)) for number, term in enumerate(terms)
            )
            for field, terms in enumerate(self._fields)
        )

    def _always_fires(self) -> bool:
        """Whether the expression fires some day, whatever is picked for H.

        What may never come is a day late in the month, so the latest is tried, with each of the
        months that an H might pick.
        """
        from cronsim import CronSim, CronSimError

        for month in range(12):

            def pick(field: int, term: int, low: int, high: int, month: int = month) -> int:
                return min(low + month, high) if FIELDS[field][0] == "month" else high

            try:
                CronSim(self.without_hash(pick), datetime(2000, 1, 1, tzinfo=UTC))
            except CronSimError:
                return False
        return True


AROUND_CHANGE = timedelta(hours=2)
"""Longer than any time zone's clock is moved at once."""


def next_firing(expression: str, after: datetime, zone: tzinfo) -> datetime:
    """The first instant, in UTC, later than `after` at which an expression without H fires."""
    from cronsim import CronSim

    for fires in CronSim(expression, _start(after, zone)):
        if fires.astimezone(UTC) > after:
            return fires.astimezone(UTC)
    raise AssertionError(f"{expression} fires no more, which parsing should have found out")


def _start(after: datetime, zone: tzinfo) -> datetime:
    """Where cronsim is to begin looking for a firing around `after`, in local time.

    Near a clock change what it finds depends on where it begins, since it goes by the clock on the
    wall (a half hour that comes twice is even left out the second time). So there it always begins
    well before the change.
    """
    before, behind = ((after + hours).astimezone(zone) for hours in (-AROUND_CHANGE, AROUND_CHANGE))
    if before.utcoffset() == behind.utcoffset():
        return after.astimezone(zone)
    return (after - 3 * AROUND_CHANGE).astimezone(zone)


def firings_around(expression: str, at: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """The last firing that isn't later than `at`, and the one after it, in UTC."""
    fires = _earlier_firing(expression, at, zone)
    following = next_firing(expression, fires, zone)
    while following <= at:
        fires, following = following, next_firing(expression, following, zone)
    return fires, following


def _earlier_firing(expression: str, at: datetime, zone: tzinfo) -> datetime:
    """A firing before `at`: the last, or, around a clock change, perhaps one before it."""
    from cronsim import CronSim

    for fires in CronSim(expression, _start(at, zone), reverse=True):
        if fires.astimezone(UTC) <= at:
            return fires.astimezone(UTC)
    raise AssertionError(f"{expression} never fired, which parsing should have found out")


# Reading an expression


def _wrong_number_of_fields(end: int, words: list[tuple[int, str]]) -> CronError:
    expected = (
        "five fields, minute, hour, day of the month, month and day of the week; "
        f"there are {len(words)}"
    )
    if words and words[0][1].startswith("@"):
        return CronError(*words[0], f"{expected} (instead of @daily write daily without cron)")
    if len(words) > len(FIELDS):
        return CronError(*words[len(FIELDS)], expected)
    return CronError(end, "", expected)


def _parse_field(index: int, word: str, number: int) -> tuple[_Term, ...]:
    terms = []
    for term in word.split(","):
        try:
            terms.append(_parse_term(term.upper(), number))
        except _TermError as error:
            expected = f"in the field for the {FIELDS[number][0]} {error}"
            raise CronError(index, term, expected) from None
        index += len(term) + 1
    return tuple(terms)


class _TermError(Exception):
    """What was expected instead of a term of a cron field."""


def _parse_term(term: str, number: int) -> _Term:
    """Read one term, in capitals, of the field with that number; _TermError when it isn't one."""
    _, lowest, highest, highest_hash = FIELDS[number]
    found = TERM.fullmatch(term)
    if found is None:
        raise _TermError(
            "*, a value, a range such as 1-5, H, or H(0-7), with a step such as /2 after *, a "
            "range or H (L, W, #, ? and ~ are not supported)"
        )
    step = 1 if found["step"] is None else int(found["step"])
    if found["any"]:
        kind, low, high = "*", lowest, highest
    elif found["hash"]:
        kind, low, high = "H", lowest, highest_hash
        if found["from"] is not None:
            low, high = (_value(found[group], number) for group in ("from", "to"))
    else:
        kind, low = "-", _value(found["low"], number)
        high = low if found["high"] is None else _value(found["high"], number)
        if found["step"] is not None and found["high"] is None:
            raise _TermError(f"a range before the step, such as {low}-{highest}/{step}")
    if high < low:
        raise _TermError("a range that runs forwards (two ranges can be joined with a comma)")
    if found["step"] is not None and not 1 <= step <= high - low + 1:
        raise _TermError(f"a step from 1 to {high - low + 1}")
    if kind == "H" and found["step"] is not None and step == 1:
        raise _TermError("a step from 2 after H (* means every value, and H alone means one)")
    return _Term(kind, low, high, step)


def _value(word: str, number: int) -> int:
    name, lowest, highest, _ = FIELDS[number]
    names = NAMES.get(name, {})
    if word in names:
        return names[word]
    if re.fullmatch(r"[0-9]{1,2}", word) and lowest <= int(word) <= highest:
        return int(word)
    hint = f" or a name from {' '.join(names)}" if names else ""
    raise _TermError(f"a number from {lowest} to {highest}{hint}")

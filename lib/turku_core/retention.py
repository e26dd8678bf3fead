"""The retention language: which snapshots a source keeps.

A policy is a list of rules with commas between them. It keeps what any of its rules keeps, and
always the newest snapshot::

    last N days           every snapshot of today and the N-1 days before
    last N snapshots      the N newest
    earliest of [N] UNIT  the earliest since the beginning of the unit N-1 units ago

where UNIT is day, week, fortnight, month, quarter or year; every word may be singular or plural,
and a missing N is 1.

Days, and what is made of them, are those of the calendar in the time zone of `now`. A week
begins on Monday. Fortnights are fixed pairs of weeks: one began on Monday 5 January 1970, and
another every 14 days since.

Everything here is pure. What is never removed whatever the policy says (the storage unit's floor,
the grace period, a clock that has jumped) is not the policy's business, but expiry's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from difflib import get_close_matches
from typing import Protocol

from turku_core.errors import LanguageError

UTC = timezone.utc

UNITS = ("day", "week", "fortnight", "month", "quarter", "year")
MONTHS_IN = {"month": 1, "quarter": 3, "year": 12}
DAYS_IN = {"day": 1, "week": 7, "fortnight": 14}

# A Monday, so that weeks and fortnights counted from it begin on one.
FIRST_FORTNIGHT = date(1970, 1, 5)

LARGEST_NUMBER = 99_999


class RetentionError(LanguageError):
    """A text that isn't a retention policy."""

    language = "retention policy"


class _Rule(Protocol):
    """One rule of a policy."""

    def keep(self, times: Sequence[datetime], now: datetime) -> Sequence[datetime]:
        """Those of `times` (in order, none later than `now`) that the rule keeps."""


@dataclass(frozen=True)
class _LastDays:
    """`last N days`."""

    number: int

    def __str__(self) -> str:
        return f"last {_counted(self.number, 'day')}"

    def keep(self, times: Sequence[datetime], now: datetime) -> Sequence[datetime]:
        first_day = _beginning("day", self.number, now.date())
        return [time for time in times if _day(time, now) >= first_day]


@dataclass(frozen=True)
class _LastSnapshots:
    """`last N snapshots`."""

    number: int

    def __str__(self) -> str:
        return f"last {_counted(self.number, 'snapshot')}"

    def keep(self, times: Sequence[datetime], now: datetime) -> Sequence[datetime]:
        return times[-self.number :]


@dataclass(frozen=True)
class _EarliestOf:
    """`earliest of N units`."""

    number: int
    unit: str

    def __str__(self) -> str:
        return f"earliest of {_counted(self.number, self.unit)}"

    def keep(self, times: Sequence[datetime], now: datetime) -> Sequence[datetime]:
        first_day = _beginning(self.unit, self.number, now.date())
        return [time for time in times if _day(time, now) >= first_day][:1]


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _day(time: datetime, now: datetime) -> date:
    """The day of `time` on the calendar of `now`."""
    return time.astimezone(now.tzinfo).date()


def _beginning(unit: str, number: int, today: date) -> date:
    """The first day of the unit that was `number - 1` units before that of `today`.

    For more units than the calendar has, the calendar's first day.
    """
    if unit in DAYS_IN:
        days = DAYS_IN[unit]
        ordinal = today.toordinal()
        ordinal -= (ordinal - FIRST_FORTNIGHT.toordinal()) % days + (number - 1) * days
        return date.fromordinal(max(ordinal, 1))
    months = MONTHS_IN[unit]
    month = today.year * 12 + today.month - 1
    month -= month % months + (number - 1) * months
    return date(month // 12, month % 12 + 1, 1) if month >= 12 else date.min


@dataclass(frozen=True)
class Policy:
    """Which snapshots a source keeps. `str` gives the policy's canonical text."""

    _rules: tuple[_Rule, ...]

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy; RetentionError says where it isn't one, and what was expected."""
        rules = []
        start = 0
        for part in text.split(","):
            rules.append(_parse_rule(text, start, part))
            start += len(part) + 1
        return cls(tuple(dict.fromkeys(rules)))

    def __str__(self) -> str:
        return ", ".join(str(rule) for rule in self._rules)

    def keep(self, times: Sequence[datetime], now: datetime) -> set[datetime]:
        """Those of `times` that the policy keeps, judged at `now`.

        All are aware (a ValueError otherwise), and the calendar is that of the zone of `now`.
        Two times that Python takes for the same are one: so prefer times in UTC, because in a
        local zone the two comings of an hour are.

        The newest is always kept, whatever the rules say: no policy means to have nothing of
        today. A snapshot from the future, made when a clock was ahead, is kept until its time has
        come, and until then doesn't count as the newest, one of the last or the earliest.
        """
        for time in (now, *times):
            if time.utcoffset() is None:
                raise ValueError(f"{time!r} has no time zone; retention needs aware datetimes")
        instants = {time: time.astimezone(UTC) for time in times}
        present = now.astimezone(UTC)
        kept = {time for time, instant in instants.items() if instant > present}
        past = sorted(instants.keys() - kept, key=instants.__getitem__)
        kept.update(past[-1:])
        for rule in self._rules:
            kept.update(rule.keep(past, now))
        return kept


def _parse_rule(text: str, start: int, part: str) -> _Rule:
    """Read one rule, which stands in `text` from index `start`."""
    words = [(start + found.start(), found[0]) for found in re.finditer(r"\S+", part)]
    words.append((start + len(part), ""))
    index, word = words.pop(0)
    if word.lower() == "last":
        number = _parse_number(text, *words.pop(0))
        unit = _parse_unit(text, *words.pop(0), ("day", "snapshot"))
        rule: _Rule = _LastDays(number) if unit == "day" else _LastSnapshots(number)
    elif word.lower() == "earliest":
        index, word = words.pop(0)
        if word.lower() != "of":
            raise RetentionError(text, index + 1, word, "of after earliest")
        number = _parse_number(text, *words.pop(0)) if words[0][1][:1].isdigit() else 1
        rule = _EarliestOf(number, _parse_unit(text, *words.pop(0), UNITS))
    else:
        expected = "last N days, last N snapshots, or earliest of [N] months or the like"
        raise RetentionError(text, index + 1, word, expected)
    index, word = words.pop(0)
    if word:
        raise RetentionError(text, index + 1, word, f"a comma or nothing after {rule}")
    return rule


def _parse_number(text: str, index: int, word: str) -> int:
    if re.fullmatch("[0-9]{1,9}", word) and 1 <= int(word) <= LARGEST_NUMBER:
        return int(word)
    raise RetentionError(text, index + 1, word, f"a number from 1 to {LARGEST_NUMBER}")


def _parse_unit(text: str, index: int, word: str, units: Sequence[str]) -> str:
    """The singular of a unit that is written as singular or plural."""
    singulars = {**{unit: unit for unit in units}, **{unit + "s": unit for unit in units}}
    if word.lower() in singulars:
        return singulars[word.lower()]
    guesses = get_close_matches(word.lower(), singulars, n=1)
    hint = f" (did you mean {guesses[0]}?)" if guesses else ""
    expected = ", ".join(f"{unit}s" for unit in units[:-1]) + f" or {units[-1]}s"
    raise RetentionError(text, index + 1, word, expected + hint)

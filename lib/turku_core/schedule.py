"""The schedule language: when a source is to be backed up.

A schedule is one of::

    hourly | daily | weekly | monthly | monday ... sunday      (mon ... sun)
    the same, HHMM             from that time to the end of the day
    the same, HHMM-HHMM        an end before the start runs past midnight
    cron MINUTE HOUR DAY MONTH WEEKDAY      with Jenkins' H

Three words explain everything below.

*Period*: the hour, day, week (from Monday), month or named weekday that gets exactly one
successful run; for cron, the time from one firing to the next. Periods are those of the local
calendar. With hours, a period begins when its first window opens, so that a window past midnight
is one piece.

*Window*: the time in which a run of that period may begin. Without hours it is the whole period.
With hours, `daily` and a weekday have one window a period; `weekly` and `monthly` have one
on every day of the period, and `hourly` has the part of the hour that lies within the hours.

*Moment*: where in its period a key (the source's id) falls due. It comes from a hash of the key,
so that it is always the same local time for one source, and evenly spread over the windows for
many. `weekly` and `monthly` keys have a day of their own as well (of a month, one of the first
28); the later days' windows are there for those who missed theirs.

Everything here is pure: times are passed in, aware, and the time zone is the one they carry.
Answers come back in that zone. Inside, all instants are in UTC, because Python compares two times
of one zone by what the clock on the wall shows, and adds to them in the same way.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from typing import Protocol

from turku_core import cron
from turku_core.errors import LanguageError

UTC = timezone.utc

Interval = tuple[datetime, datetime]

DAY = 24 * 60 * 60
CALENDAR_NAMES = ("hourly", "daily", "weekly", "monthly")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

# The days over which the keys are spread. Of a month it is 28, as with Jenkins' H, so that a
# source keeps its day in every month.
DAYS_TO_SPREAD_OVER = {"weekly": 7, "monthly": 28}

# No moment lies in the last part of a window, or a machine that asks every five minutes would
# often ask too late: a quarter of an hour, or half of a window shorter than half an hour.
LONGEST_ROOM_AT_THE_END = 15 * 60

FIRST_PAUSE = timedelta(minutes=5)
LONGEST_PAUSE = timedelta(hours=1)


class ScheduleError(LanguageError):
    """A text that isn't a schedule."""

    language = "schedule"


# Instants and the local calendar


def _zone_of(moment: datetime) -> tzinfo:
    """The time zone of an aware datetime; ValueError for a naive one."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(f"{moment!r} has no time zone; schedules need aware datetimes")
    return moment.tzinfo


def _to_utc(moment: datetime) -> datetime:
    """The same instant in UTC; ValueError for a naive datetime."""
    _zone_of(moment)
    return moment.astimezone(UTC)


def _first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """The first instant at which a clock in `zone` shows `wall` (naive) or later, in UTC.

    A time that comes twice means its first coming; one that is skipped, the end of the gap.
    """
    instant = _instant(wall, zone)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    # In a gap, fold=0 names an instant after it and fold=1 one before it (PEP 495).
    before, after = wall.replace(tzinfo=zone, fold=1).astimezone(UTC), instant
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).replace(tzinfo=None) >= wall:
            after = middle
        else:
            before = middle
    return after


def _instant(wall: datetime, zone: tzinfo) -> datetime:
    """The instant of the local time `wall` (naive), in UTC.

    A time that comes twice means its first coming; one that is skipped, as much later as the
    clocks were moved.
    """
    return wall.replace(tzinfo=zone).astimezone(UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


def _hash(*words: object) -> int:
    """A number from 0 to 2**64 - 1 that is always the same for the same words."""
    text = "\0".join(str(word) for word in words)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _room_for_moments(seconds: int) -> int:
    """How many seconds of a window of that length can be somebody's moment."""
    return seconds - min(LONGEST_ROOM_AT_THE_END, seconds // 2)


def _part_of(interval: Interval, seconds: int, of: int) -> datetime:
    """The whole second that lies `seconds` / `of` into the interval."""
    opens, closes = interval
    return (opens + (closes - opens) * seconds / of).replace(microsecond=0)


# Calendars: each lays periods side by side on the line of time


@dataclass(frozen=True)
class _Period:
    """A period as it is for one key. Instants are in UTC.

    `mark` is what the calendar that made it knows it by. `windows` are in order, and `due`
    is in one of them. The period ends when the next begins.
    """

    mark: int
    due: datetime
    windows: tuple[Interval, ...]

    @property
    def begins(self) -> datetime:
        return self.windows[0][0]

    @property
    def last_window(self) -> Interval:
        return self.windows[-1]


class _Calendar(Protocol):
    """What a schedule needs to know of its periods, for one key in one time zone."""

    @property
    def has_hours(self) -> bool:
        """Whether runs are restricted to hours, so that what is missed isn't run late."""

    def around(self, key: str, instant: datetime, zone: tzinfo) -> _Period:
        """The last period that has begun at `instant`."""

    def after(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        """The period after `period`."""

    def before(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        """The period before `period`."""


@dataclass(frozen=True)
class _Hours:
    """Hours of the day: `start` in minutes after midnight, `length` in minutes."""

    start: int
    length: int

    def __str__(self) -> str:
        end = (self.start + self.length) % (24 * 60)
        start_text = f"{self.start // 60:02}{self.start % 60:02}"
        return start_text if end == 0 else f"{start_text}-{end // 60:02}{end % 60:02}"

    def window_on(self, day: date, zone: tzinfo) -> Interval | None:
        """The window that opens on `day`; None when the zone skipped the whole day."""
        return _window_on(self.start, self.length, day, zone)


@lru_cache(maxsize=4096)
def _window_on(start: int, length: int, day: date, zone: tzinfo) -> Interval | None:
    """See `_Hours`. Kept, because a fleet on one schedule asks for the same few windows.

    Hours that a clock change swallows whole come right after it.
    """
    wall = _midnight(day) + timedelta(minutes=start)
    opens = _first_instant(wall, zone)
    if opens.astimezone(zone).date() != day:
        begins = _first_instant(_midnight(day), zone)
        if begins.astimezone(zone).date() != day:
            return None
    closes = _first_instant(wall + timedelta(minutes=length), zone)
    if closes <= opens:
        closes = opens + timedelta(minutes=length)
    return opens, closes


@dataclass(frozen=True)
class _DayCalendar:
    """Periods made of days: `daily`, `weekly`, `monthly` or a weekday's name.

    The mark of a period is the ordinal of its first day.
    """

    name: str
    hours: _Hours | None

    def __str__(self) -> str:
        return self.name if self.hours is None else f"{self.name}, {self.hours}"

    @property
    def has_hours(self) -> bool:
        return self.hours is not None

    def around(self, key: str, instant: datetime, zone: tzinfo) -> _Period:
        # Where clocks go back over midnight they show yesterday when today has begun.
        day = (instant.astimezone(zone).replace(tzinfo=None) + timedelta(hours=2)).date()
        first = self._first_day(day)
        period = self._period(key, first, zone)
        while period is None or period.begins > instant:
            first = self._first_day(first - timedelta(days=1))
            period = self._period(key, first, zone)
        return period

    def after(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        first = date.fromordinal(period.mark)
        while True:
            first = self._next_first_day(first)
            found = self._period(key, first, zone)
            if found is not None:
                return found

    def before(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        first = date.fromordinal(period.mark)
        while True:
            first = self._first_day(first - timedelta(days=1))
            found = self._period(key, first, zone)
            if found is not None:
                return found

    def _first_day(self, day: date) -> date:
        """The first day of the last period that begins on or before `day`."""
        if self.name == "daily":
            return day
        if self.name == "monthly":
            return day.replace(day=1)
        weekday = 0 if self.name == "weekly" else WEEKDAYS.index(self.name)
        return day - timedelta(days=(day.weekday() - weekday) % 7)

    def _next_first_day(self, first: date) -> date:
        if self.name == "daily":
            return first + timedelta(days=1)
        if self.name == "monthly":
            return (first + timedelta(days=31)).replace(day=1)
        return first + timedelta(days=7)

    def _end_day(self, first: date) -> date:
        """The day after the last of the period."""
        if self.name in WEEKDAYS:
            return first + timedelta(days=1)
        return self._next_first_day(first)

    def _period(self, key: str, first: date, zone: tzinfo) -> _Period | None:
        """The period that begins on the day `first`; None when the zone skipped all of it."""
        days = DAYS_TO_SPREAD_OVER.get(self.name, 1)
        if self.hours is None:
            return self._whole_period(key, first, zone, days)
        windows = {}
        for number in range((self._end_day(first) - first).days):
            day = first + timedelta(days=number)
            window = self.hours.window_on(day, zone)
            if window is not None:
                windows[day] = window
        if not windows:
            return None
        length = self.hours.length * 60
        day_number, seconds = divmod(
            _hash("moment", key) % (days * _room_for_moments(length)), _room_for_moments(length)
        )
        own_day = first + timedelta(days=day_number)
        day = min((day for day in windows if day >= own_day), default=max(windows))
        wall = _midnight(day) + timedelta(minutes=self.hours.start, seconds=seconds)
        due = _instant(wall, zone)
        opens, closes = windows[day]
        if not opens <= due < closes:
            due = _part_of((opens, closes), seconds, length)
        return _Period(first.toordinal(), due, tuple(windows.values()))

    def _whole_period(self, key: str, first: date, zone: tzinfo, days: int) -> _Period | None:
        opens = _first_instant(_midnight(first), zone)
        closes = _first_instant(_midnight(self._end_day(first)), zone)
        if closes <= opens:
            return None
        seconds = _hash("moment", key) % (days * DAY)
        due = _instant(_midnight(first) + timedelta(seconds=seconds), zone)
        if not opens <= due < closes:
            due = _part_of((opens, closes), seconds, days * DAY)
        return _Period(first.toordinal(), due, ((opens, closes),))


@dataclass(frozen=True)
class _HourCalendar:
    """Periods that are hours of the local clock: `hourly`.

    An hour that comes twice is two periods; where clocks move by half an hour, one is longer or
    shorter. The mark of a period is the beginning of its hour in seconds since the epoch.
    """

    hours: _Hours | None

    def __str__(self) -> str:
        return "hourly" if self.hours is None else f"hourly, {self.hours}"

    @property
    def has_hours(self) -> bool:
        return self.hours is not None

    def around(self, key: str, instant: datetime, zone: tzinfo) -> _Period:
        begins = self._hour_around(instant, zone)
        period = self._period(key, begins, zone)
        while period is None or period.begins > instant:
            begins = self._hour_around(begins - timedelta(seconds=1), zone)
            period = self._period(key, begins, zone)
        return period

    def after(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        begins = datetime.fromtimestamp(period.mark, UTC)
        while True:
            begins = self._next_hour(begins, zone)
            found = self._period(key, begins, zone)
            if found is not None:
                return found

    def before(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        begins = datetime.fromtimestamp(period.mark, UTC)
        return self.around(key, begins - timedelta(seconds=1), zone)

    @staticmethod
    def _hour_around(instant: datetime, zone: tzinfo) -> datetime:
        """When the local hour of `instant` began."""
        local = instant.astimezone(zone).replace(minute=0, second=0, microsecond=0)
        begins = local.astimezone(UTC)
        if begins <= instant and begins.astimezone(zone) == local:
            return begins
        return _first_instant(local.replace(tzinfo=None), zone)

    def _next_hour(self, begins: datetime, zone: tzinfo) -> datetime:
        probe = begins
        while True:
            probe += timedelta(hours=1)
            found = self._hour_around(probe, zone)
            if found > begins:
                return found

    def _period(self, key: str, begins: datetime, zone: tzinfo) -> _Period | None:
        """The period of the hour that begins then; None when it lies outside the hours."""
        ends = self._next_hour(begins, zone)
        mark = int(begins.timestamp())
        seconds = _hash("moment", key)
        if self.hours is None:
            hour = (begins, ends)
            return _Period(mark, _part_of(hour, seconds % 3600, 3600), (hour,))
        today = begins.astimezone(zone).date()
        windows = []
        for day in (today - timedelta(days=1), today):
            window = self.hours.window_on(day, zone)
            if window is not None and window[0] < ends and begins < window[1]:
                windows.append((max(window[0], begins), min(window[1], ends)))
        if not windows:
            return None
        length = int((windows[0][1] - windows[0][0]).total_seconds())
        due = _part_of(windows[0], seconds % _room_for_moments(length), length)
        return _Period(mark, due, tuple(windows))


@dataclass(frozen=True)
class _CronCalendar:
    """Periods from one firing of a cron expression to the next; their moment is the beginning.

    The mark of a period is its beginning in seconds since the epoch.
    """

    expression: cron.CronExpression

    def __str__(self) -> str:
        return f"cron {self.expression}"

    @property
    def has_hours(self) -> bool:
        return False

    def around(self, key: str, instant: datetime, zone: tzinfo) -> _Period:
        return self._period(*cron.firings_around(self._expression_of(key), instant, zone))

    def after(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        fires = period.last_window[1]
        return self._period(fires, cron.next_firing(self._expression_of(key), fires, zone))

    def before(self, key: str, period: _Period, zone: tzinfo) -> _Period:
        return self.around(key, period.begins - timedelta(seconds=1), zone)

    @staticmethod
    def _period(fires: datetime, following: datetime) -> _Period:
        return _Period(int(fires.timestamp()), fires, ((fires, following),))

    def _expression_of(self, key: str) -> str:
        """The expression with what the key's hash picks in the place of every H."""
        return self.expression.without_hash(
            lambda field, term, low, high: low + _hash("cron", field, term, key) % (high - low + 1)
        )


# Reading the language


def _parse_plain(text: str) -> _DayCalendar | _HourCalendar:
    """Read everything that isn't cron."""
    before_comma, comma, _ = text.partition(",")
    name = _full_name(text, before_comma)
    hours = _parse_hours(text, len(before_comma) + 1) if comma else None
    return _HourCalendar(hours) if name == "hourly" else _DayCalendar(name, hours)


def _full_name(text: str, words: str) -> str:
    """The canonical name of a calendar; `words` is what stands before the comma."""
    found = re.match(r"\s*(\S*)", words)
    assert found is not None, "this expression matches everything"
    word = found[1].lower()
    names = (*CALENDAR_NAMES, *WEEKDAYS)
    short_names = {weekday[:3]: weekday for weekday in WEEKDAYS}
    name = short_names.get(word, word)
    expected = "hourly, daily, weekly, monthly, a day's name such as monday, or cron"
    if name not in names:
        guesses = get_close_matches(word, names, n=1)
        hint = f" (did you mean {guesses[0]}?)" if guesses else ""
        raise ScheduleError(text, found.start(1) + 1, found[1], expected + hint)
    rest = words[found.end() :]
    if rest.strip():
        column = found.end() + len(rest) - len(rest.lstrip()) + 1
        raise ScheduleError(text, column, rest.strip(), f"nothing or a comma after {name}")
    return name


def _parse_hours(text: str, start: int) -> _Hours:
    """Read `HHMM` or `HHMM-HHMM`, which stands in `text` from index `start`."""
    rest = text[start:]
    found = re.fullmatch(r"\s*([0-9]{4})(?:\s*-\s*([0-9]{4}))?\s*", rest)
    if found is None:
        column = start + len(rest) - len(rest.lstrip()) + 1
        expected = "a time of day such as 2200, or two such as 2200-0600"
        raise ScheduleError(text, column, rest.strip(), expected)
    opens = _parse_time(text, start + found.start(1), found[1])
    if found[2] is None:
        return _Hours(opens, 24 * 60 - opens)
    closes = _parse_time(text, start + found.start(2), found[2])
    if closes == opens:
        raise ScheduleError(
            text, start + found.start(2) + 1, found[2], f"another time than the start, {found[1]}"
        )
    return _Hours(opens, (closes - opens) % (24 * 60))


def _parse_time(text: str, index: int, digits: str) -> int:
    """The minutes after midnight of `HHMM`, which stands in `text` at `index`."""
    hour, minute = int(digits[:2]), int(digits[2:])
    if hour > 23 or minute > 59:
        expected = "HHMM with an hour from 00 to 23 (midnight is 0000) and a minute from 00 to 59"
        raise ScheduleError(text, index + 1, digits, expected)
    return hour * 60 + minute


# What the rest of Turku asks


@dataclass(frozen=True)
class Schedule:
    """When a source is to be backed up.

    `key` is everywhere what decides the source's moment, usually its id. All datetimes are
    aware (a ValueError otherwise); the schedule's time zone is that of `after`, `at` or
    `now`, and answers are in it. `str` gives the schedule's canonical text.
    """

    _calendar: _DayCalendar | _HourCalendar | _CronCalendar

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read a schedule; ScheduleError says where it isn't one, and what was expected."""
        found = re.match(r"\s*cron(?!\S)", text, re.IGNORECASE)
        if found is None:
            return cls(_parse_plain(text))
        try:
            expression = cron.CronExpression.parse(text[found.end() :])
        except cron.CronError as error:
            column = found.end() + error.index + 1
            raise ScheduleError(text, column, error.found, error.expected) from None
        return cls(_CronCalendar(expression))

    def __str__(self) -> str:
        return str(self._calendar)

    def next_due(self, key: str, after: datetime) -> datetime:
        """The first moment at which `key` falls due, strictly later than `after`."""
        zone, instant = _zone_of(after), _to_utc(after)
        period = self._calendar.around(key, instant, zone)
        while period.due <= instant:
            period = self._calendar.after(key, period, zone)
        return period.due.astimezone(zone)

    def window(self, key: str, at: datetime) -> Interval | None:
        """The window that is open at `at`, as its first instant and the first after it, or None.

        Without hours there is always one, but for a weekday's name, whose window is that day.
        For cron it is the time from one firing to the next.
        """
        zone, instant = _zone_of(at), _to_utc(at)
        for opens, closes in self._calendar.around(key, instant, zone).windows:
            if opens <= instant < closes:
                return opens.astimezone(zone), closes.astimezone(zone)
        return None

    def due_at(
        self, key: str, *, last_success: datetime | None, since: datetime, now: datetime
    ) -> datetime:
        """When the next run should begin; `now` or earlier means now.

        `last_success` is when the last successful run began (None: never), and `since` when
        the source was made. A `last_success` that lies in a later period than `now` comes from
        a clock that was wrong, and counts for nothing.

        - A source without a run is due at once when a window is open, or when the next one opens.
        - With hours, a period's run is due at its moment, or in any later window of the same
          period. When those are over it isn't run any more.
        - Without hours it is due from its moment on until it has run, however late.

        Which period a run counts for: see `_next_unfilled`.
        """
        zone, instant, made = _zone_of(now), _to_utc(now), _to_utc(since)
        current = self._calendar.around(key, instant, zone)
        unfilled = self._next_unfilled(key, last_success, made, current, zone)
        if unfilled is None:
            due = self._first_due(key, current, min(made, instant), instant, zone)
        elif self._calendar.has_hours:
            due = self._due_within_hours(key, current, unfilled, instant, zone)
        else:
            due = self._due_at_any_time(key, current, unfilled, instant, zone)
        return due.astimezone(zone)

    def missed(
        self, key: str, *, last_success: datetime | None, since: datetime, now: datetime
    ) -> Interval | None:
        """The last window of the last period that is wholly over and had no successful run.

        None when that period had one, or its window opened before `since`. The parameters are
        those of `due_at`.
        """
        zone, instant, made = _zone_of(now), _to_utc(now), _to_utc(since)
        current = self._calendar.around(key, instant, zone)
        unfilled = self._next_unfilled(key, last_success, made, current, zone)
        over = current
        if over.last_window[1] > instant:
            over = self._calendar.before(key, over, zone)
        opens, closes = over.last_window
        if opens < made or (unfilled is not None and unfilled.begins > over.begins):
            return None
        return opens.astimezone(zone), closes.astimezone(zone)

    def _next_unfilled(
        self,
        key: str,
        last_success: datetime | None,
        made: datetime,
        current: _Period,
        zone: tzinfo,
    ) -> _Period | None:
        """The period after the one that the last successful run counts for; None without a run.

        A run counts for the period it began in. The exception is for what catches up: a run
        before the moment of its own period is the late run of the period before, when the source
        existed then, unless it is so late (three quarters of the way to the next moment) that one
        run has to do for both. Otherwise a key whose moment is shortly before midnight, or in the
        night when its machine is off, would run every other day.
        """
        if last_success is None:
            return None
        ran = _to_utc(last_success)
        period = self._calendar.around(key, ran, zone)
        if period.begins > current.begins:
            return None
        if not self._calendar.has_hours and ran < period.due:
            before = self._calendar.before(key, period, zone)
            late, apart = ran - before.due, period.due - before.due
            if before.last_window[1] > made and late < apart * 3 / 4:
                return period
        return self._calendar.after(key, period, zone)

    def _first_due(
        self, key: str, current: _Period, made: datetime, instant: datetime, zone: tzinfo
    ) -> datetime:
        """When a source without a run is due."""
        for opens, closes in current.windows:
            if instant < closes or (not self._calendar.has_hours and made < closes):
                return max(opens, made)
        return self._calendar.after(key, current, zone).begins

    def _due_within_hours(
        self, key: str, current: _Period, unfilled: _Period, instant: datetime, zone: tzinfo
    ) -> datetime:
        if unfilled.begins > instant:
            return unfilled.due
        for opens, closes in current.windows:
            if max(instant, current.due) < closes:
                return max(opens, current.due)
        return self._calendar.after(key, current, zone).due

    def _due_at_any_time(
        self, key: str, current: _Period, unfilled: _Period, instant: datetime, zone: tzinfo
    ) -> datetime:
        if unfilled.due > instant:
            return unfilled.due
        latest = current if current.due <= instant else self._calendar.before(key, current, zone)
        return max(unfilled.due, latest.due)


def retry_at(failures: int, failed_at: datetime) -> datetime:
    """When to try again after so many failures in a row (1 or more), the last at `failed_at`.

    The pause is 5 minutes, doubled with each further failure, up to an hour.
    """
    if failures < 1:
        raise ValueError(f"{failures} failures: a retry needs at least one")
    pause = min(FIRST_PAUSE * (1 << min(failures - 1, 10)), LONGEST_PAUSE)
    return (_to_utc(failed_at) + pause).astimezone(_zone_of(failed_at))

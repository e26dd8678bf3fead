"""What schedules do over simulated years: check-ins, downtime, failures and clock changes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turku_core.schedule import WEEKDAYS, Schedule, retry_at

UTC = timezone.utc
ZONES = (
    "Europe/Helsinki",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "Africa/Casablanca",  # four changes a year, around Ramadan
    "Pacific/Apia",  # skipped 30 December 2011
    "America/Nuuk",  # springs forward over midnight
    "UTC",
)
CHECK_IN = timedelta(minutes=5)
SLACK = timedelta(minutes=6)

zones = st.sampled_from(ZONES).map(ZoneInfo)
keys = st.integers(1, 10**6).map(str)
hours = st.sampled_from(
    ("2200-0200", "0200-0300", "0130-0500", "0000", "1800", "2330", "0900-0800")
)
day_names = st.sampled_from(("daily", "weekly", "monthly", *WEEKDAYS))


def starts(first_year: int = 2009, last_year: int = 2035) -> st.SearchStrategy[datetime]:
    return st.datetimes(datetime(first_year, 1, 1), datetime(last_year, 1, 1)).map(  # noqa: DTZ001
        lambda moment: moment.replace(tzinfo=UTC)
    )


@dataclass
class World:
    """A machine that checks in, sometimes not, and an API that runs what is due.

    `away` are the stretches of time without check-ins. Each attempt fails with the probability
    `failing`. Check-ins are as far apart as a real timer's.
    """

    schedule: Schedule
    key: str
    zone: ZoneInfo
    start: datetime
    away: list[tuple[datetime, datetime]] = field(default_factory=list)
    failing: float = 0.0
    seed: int = 0

    def run(self, length: timedelta) -> tuple[list[datetime], list[datetime]]:
        """When runs that succeeded began, and those that failed; in UTC."""
        chance = random.Random(self.seed)
        successes: list[datetime] = []
        failures: list[datetime] = []
        failed_since_success = 0
        now = self.start
        while now < self.start + length:
            due = self.due_at(successes[-1] if successes else None, now)
            if failed_since_success:
                due = max(due, retry_at(failed_since_success, failures[-1]))
            if due > now:
                # The API need not ask before that time: the answer wouldn't be another.
                now = self.next_check_in(due.astimezone(UTC), chance)
                continue
            if chance.random() < self.failing:
                failures.append(now)
                failed_since_success += 1
            else:
                successes.append(now)
                failed_since_success = 0
            now = self.next_check_in(now + timedelta(seconds=1), chance)
        return successes, failures

    def due_at(self, last_success: datetime | None, now: datetime) -> datetime:
        return self.schedule.due_at(
            self.key, last_success=last_success, since=self.start, now=now.astimezone(self.zone)
        )

    def next_check_in(self, earliest: datetime, chance: random.Random) -> datetime:
        for begins, ends in sorted(self.away):
            if begins <= earliest < ends:
                earliest = ends
        return earliest + CHECK_IN * chance.random()

    def moments(self, length: timedelta) -> list[datetime]:
        """The key's moments in that time, in UTC."""
        found = []
        moment = self.schedule.next_due(self.key, self.start.astimezone(self.zone))
        while moment.astimezone(UTC) < self.start + length:
            found.append(moment.astimezone(UTC))
            moment = self.schedule.next_due(self.key, moment)
        return found

    def is_away(self, begins: datetime, ends: datetime) -> bool:
        return any(begins < over and left < ends for left, over in self.away)


@st.composite
def stretches(draw: st.DrawFn, start: datetime) -> list[tuple[datetime, datetime]]:
    """Times of downtime: nights, weekends and holidays, or a few at random."""
    if draw(st.booleans()):
        hour, hours_away = draw(st.integers(0, 23)), draw(st.integers(1, 20))
        begins = start + timedelta(hours=hour)
        return [
            (begins + timedelta(days=n), begins + timedelta(days=n, hours=hours_away))
            for n in range(400)
        ]
    return [
        (start + timedelta(hours=after), start + timedelta(hours=after + hours_away))
        for after, hours_away in draw(
            st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 900)), max_size=12)
        )
    ]


def days_between(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += timedelta(days=1)


def period_of(name: str, day: date) -> tuple[int, ...] | None:
    """The period that a local day is in, found without the code under test."""
    if name == "weekly":
        return day.isocalendar()[:2]
    if name == "monthly":
        return day.year, day.month
    if name in WEEKDAYS and WEEKDAYS[day.weekday()] != name:
        return None
    return (day.toordinal(),)


def opening_day(schedule: Schedule, key: str, zone: ZoneInfo, instant: datetime) -> date:
    """The day whose window is open at that instant."""
    window = schedule.window(key, instant.astimezone(zone))
    assert window is not None
    opened = window[0]
    if zone.key == "America/Nuuk" and opened.hour == 0 and str(schedule).endswith("2330"):
        return opened.date() - timedelta(days=1)  # swallowed by the change, so right after it
    return opened.date()


@settings(max_examples=60, deadline=None)
@given(day_names, st.one_of(st.none(), hours), zones, keys, starts())
def test_every_calendar_period_has_exactly_one_moment(
    name: str, hours: str | None, zone: ZoneInfo, key: str, start: datetime
) -> None:
    schedule = Schedule.parse(name if hours is None else f"{name}, {hours}")
    length = timedelta(days=400 if name != "monthly" else 1200)
    moments = World(schedule, key, zone, start).moments(length)
    if hours is None:
        days = [moment.astimezone(zone).date() for moment in moments]
    else:
        days = [opening_day(schedule, key, zone, moment) for moment in moments]
    found = Counter(period_of(name, day) for day in days)
    first, last = days[0], days[-1]
    skipped = {date(2011, 12, 30)} if zone.key == "Pacific/Apia" else set()
    expected = {period_of(name, day) for day in days_between(first, last) if day not in skipped} - {
        None
    }
    assert set(found) == expected
    assert set(found.values()) == {1}


@settings(max_examples=30, deadline=None)
@given(zones, keys, starts())
def test_every_hour_of_the_local_clock_has_exactly_one_moment(
    zone: ZoneInfo, key: str, start: datetime
) -> None:
    world = World(Schedule.parse("hourly"), key, zone, start)
    found: Counter[tuple[datetime, int]] = Counter()
    for moment in world.moments(timedelta(days=70)):
        local = moment.astimezone(zone)
        # An hour that comes twice is two, unless the clock was set back by half an hour.
        twice = local.fold if zone.key != "Australia/Lord_Howe" else 0
        found[local.replace(minute=0, second=0, tzinfo=None), twice] += 1
    assert set(found.values()) == {1}
    gaps = {after - before for (before, _), (after, _) in pairwise(found)}
    assert gaps <= {timedelta(0), timedelta(hours=1), timedelta(hours=2), timedelta(hours=25)}


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(day_names, st.just("hourly"), st.builds("{}, {}".format, day_names, hours)),
    zones,
    keys,
    starts(),
    st.integers(),
)
def test_a_machine_that_is_always_there_runs_once_for_each_of_its_moments(
    text: str, zone: ZoneInfo, key: str, start: datetime, seed: int
) -> None:
    world = World(Schedule.parse(text), key, zone, start, seed=seed)
    length = timedelta(days=40 if text == "hourly" else 800 if "monthly" in text else 380)
    runs, _ = world.run(length)
    # The first is a new source's, at once or when a window opens; then it follows its moments.
    due_after_the_first = world.due_at(runs[0], runs[0]).astimezone(UTC)
    moments = [moment for moment in world.moments(length) if moment >= due_after_the_first]
    runs = runs[1:]
    assert abs(len(runs) - len(moments)) <= 1
    for run, moment in zip(runs, moments, strict=False):
        assert moment <= run <= moment + SLACK


@settings(max_examples=100, deadline=None)
@given(st.data(), day_names, zones, keys, starts(), st.sampled_from((0.0, 0.3, 0.9)))
def test_without_hours_no_period_gets_two_runs_and_none_is_forgotten(
    data: st.DataObject, name: str, zone: ZoneInfo, key: str, start: datetime, failing: float
) -> None:
    away = data.draw(stretches(start))
    world = World(Schedule.parse(name), key, zone, start, away, failing, seed=1)
    length = timedelta(days=380)
    runs, failures = world.run(length)
    moments = world.moments(length)
    # A moment lies between any two runs: so no two are for the same period of the key.
    for before, after in pairwise(runs):
        assert any(before < moment <= after for moment in moments)
    if failures:
        return
    # Where the machine was there, its moment was used, unless a catch-up came shortly before it.
    for before, moment in pairwise(moments):
        if moment + SLACK < start + length and not world.is_away(moment, moment + SLACK):
            early = (moment - before) / 4
            assert any(moment - early <= run <= moment + SLACK for run in runs)


@settings(max_examples=100, deadline=None)
@given(st.data(), day_names, hours, zones, keys, starts(), st.sampled_from((0.0, 0.3, 0.9)))
def test_with_hours_no_period_gets_two_runs_and_none_begins_outside(
    data: st.DataObject,
    name: str,
    hours: str,
    zone: ZoneInfo,
    key: str,
    start: datetime,
    failing: float,
) -> None:
    away = data.draw(stretches(start))
    schedule = Schedule.parse(f"{name}, {hours}")
    world = World(schedule, key, zone, start, away, failing, seed=2)
    runs, failures = world.run(timedelta(days=380))
    for run in failures:
        assert schedule.window(key, run.astimezone(zone)) is not None
    periods = Counter(period_of(name, opening_day(schedule, key, zone, run)) for run in runs)
    assert None not in periods
    assert all(number == 1 for number in periods.values())


@settings(max_examples=50, deadline=None)
@given(st.data(), day_names, hours, zones, keys, starts())
def test_with_hours_a_machine_that_is_back_in_the_window_runs_as_soon_as_it_is(
    data: st.DataObject, name: str, hours: str, zone: ZoneInfo, key: str, start: datetime
) -> None:
    schedule = Schedule.parse(f"{name}, {hours}")
    world = World(schedule, key, zone, start, data.draw(stretches(start)))
    runs, _ = world.run(timedelta(days=200))
    periods = [period_of(name, opening_day(schedule, key, zone, run)) for run in runs]
    for moment in world.moments(timedelta(days=200)):
        window = schedule.window(key, moment.astimezone(zone))
        assert window is not None
        closes = window[1].astimezone(UTC)
        back = moment
        for begins, ends in sorted(world.away):
            if begins <= back < ends:
                back = ends
        if back + SLACK < min(closes, start + timedelta(days=200)):
            run = runs[periods.index(period_of(name, opening_day(schedule, key, zone, moment)))]
            assert run <= back + SLACK


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        day_names,
        st.just("hourly"),
        st.just("hourly, 0915-1640"),
        st.builds("{}, {}".format, day_names, hours),
        st.sampled_from(("cron H H * * *", "cron H/20 1-3 * * *", "cron 30 2 * * 0")),
    ),
    zones,
    keys,
    starts(),
    st.one_of(st.none(), st.integers(0, 60 * 24 * 70)),
    st.integers(0, 60 * 24 * 70),
    st.floats(0, 1),
)
def test_what_is_not_due_yet_stays_so_until_then(
    text: str,
    zone: ZoneInfo,
    key: str,
    now: datetime,
    minutes_since_success: int | None,
    minutes_since_made: int,
    part: float,
) -> None:
    schedule = Schedule.parse(text)
    since = now - timedelta(minutes=minutes_since_made)
    last_success = (
        None
        if minutes_since_success is None
        else now - timedelta(minutes=min(minutes_since_success, minutes_since_made))
    )

    def due_at(when: datetime) -> datetime:
        return schedule.due_at(
            key, last_success=last_success, since=since, now=when.astimezone(zone)
        ).astimezone(UTC)

    due = due_at(now)
    if due > now:
        assert due_at(now + (due - now) * part) == due
        assert due_at(due) == due
    elif schedule.window(key, now.astimezone(zone)) is None:
        # Only a weekday without hours catches up outside of its window.
        assert text in WEEKDAYS


def simulate_four_weeks(text: str, key: str, *, after_days: int) -> list[datetime]:
    """Four weeks of check-ins every five minutes, as the API asks at each of them.

    The period before, `after_days` earlier, had its run.
    """
    zone = ZoneInfo("Europe/Helsinki")
    schedule = Schedule.parse(text)
    start = datetime(2026, 3, 9, tzinfo=zone).astimezone(UTC)
    before = start - timedelta(days=after_days)
    runs = [schedule.next_due(key, before.astimezone(zone)).astimezone(UTC)]
    for number in range(28 * 24 * 12):
        now = start + number * CHECK_IN
        due = schedule.due_at(
            key, last_success=runs[-1], since=start - timedelta(days=90), now=now.astimezone(zone)
        )
        if due <= now:
            runs.append(now)
    return [run for run in runs if run >= start]


@pytest.mark.parametrize("name", WEEKDAYS)
def test_prior_art_12_a_weekdays_job_runs_four_times_in_four_weeks(name: str) -> None:
    runs = simulate_four_weeks(name, "7", after_days=7)
    local = [run.astimezone(ZoneInfo("Europe/Helsinki")) for run in runs]
    assert [WEEKDAYS[run.weekday()] for run in local] == [name] * 4


def near_midnight() -> str:
    """A key whose moment on plain `daily` is in the last five minutes of the day."""
    schedule = Schedule.parse("daily")
    day = datetime(2026, 6, 1, tzinfo=UTC)
    return next(
        key
        for key in map(str, range(100_000))
        if schedule.next_due(key, day) >= day + timedelta(hours=23, minutes=57)
    )


@pytest.mark.parametrize(
    "text", ["daily", "daily, 2200-0200", "daily, 2355-0005", "daily, 2350", "daily, 0000-0010"]
)
@pytest.mark.parametrize("key", ["7", near_midnight()])
def test_prior_art_13_jobs_near_or_past_midnight_run_every_day(text: str, key: str) -> None:
    runs = simulate_four_weeks(text, key, after_days=1)
    assert 27 <= len(runs) <= 29
    for before, after in pairwise(runs):
        assert timedelta(hours=22) < after - before < timedelta(hours=26)


def test_prior_art_13_a_machine_that_is_off_at_its_moment_still_runs_every_day() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    nights = [
        (start + timedelta(days=n, hours=18), start + timedelta(days=n + 1, hours=8))
        for n in range(-1, 365)
    ]
    for key in map(str, range(12)):
        world = World(Schedule.parse("daily"), key, ZoneInfo("UTC"), start, nights)
        runs, _ = world.run(timedelta(days=365))
        days = Counter(run.date() for run in runs)
        assert len(days) >= 364
        assert max(days.values()) <= 2
        assert len(runs) <= 366


def test_prior_art_15_a_failing_backup_is_tried_again_with_growing_pauses() -> None:
    zone = ZoneInfo("Europe/Helsinki")
    start = datetime(2026, 6, 1, 12, tzinfo=zone).astimezone(UTC)
    world = World(Schedule.parse("daily, 2200-0200"), "7", zone, start, failing=1.0)
    runs, failures = world.run(timedelta(days=2))
    assert runs == []
    tonight = [attempt for attempt in failures if attempt < start + timedelta(days=1)]
    pauses = [after - before for before, after in pairwise(tonight)]
    assert len(tonight) <= 8
    for pause, minutes in zip(pauses, (5, 10, 20, 40, 60, 60, 60), strict=False):
        assert timedelta(minutes=minutes) <= pause <= timedelta(minutes=minutes) + CHECK_IN
    for attempt in failures:
        assert attempt.astimezone(zone).hour in (22, 23, 0, 1)

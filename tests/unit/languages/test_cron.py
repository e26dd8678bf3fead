"""Cron expressions with Jenkins' H: what is read, what is refused, and when they fire."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turku_core.cron import CronExpression, firings_around, next_firing
from turku_core.schedule import Schedule, ScheduleError

UTC = timezone.utc
HELSINKI = ZoneInfo("Europe/Helsinki")
ZONES = tuple(
    map(
        ZoneInfo,
        (
            "Europe/Helsinki",
            "America/New_York",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "America/Nuuk",
            "UTC",
        ),
    )
)
EXPRESSIONS = (
    "* * * * *",
    "*/15 * * * *",
    "7,37 * * * *",
    "*/20 2 * * *",
    "30 * * * *",
    "0 0 * * *",
    "30 1 * * *",
    "30 2 * * *",
    "0,30 1-3 * * *",
    "0 */2 * * *",
    "15 3 * * 0",
    "15 3 1 * *",
    "0 3 1,15 * 1",
    "59 23 31 * *",
)
# In UTC: of Helsinki and Nuuk, New York, Lord Howe and Casablanca.
CLOCK_CHANGES = (
    "2026-03-29 01:00",
    "2026-10-25 01:00",
    "2026-03-08 07:00",
    "2026-11-01 06:00",
    "2026-04-04 15:00",
    "2026-10-03 15:30",
    "2026-02-15 02:00",
    "2026-03-22 02:00",
)
moments = st.one_of(
    st.datetimes(datetime(2023, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001
    st.builds(
        lambda change, minutes: datetime.fromisoformat(change) + timedelta(minutes=minutes),
        st.sampled_from(CLOCK_CHANGES),
        st.integers(-200, 200),
    ),
).map(lambda moment: moment.replace(tzinfo=UTC))


def firings(text: str, begin: str, number: int, key: str = "7") -> list[str]:
    schedule = Schedule.parse(f"cron {text}")
    moment = datetime.fromisoformat(begin).replace(tzinfo=HELSINKI)
    found = []
    for _ in range(number):
        moment = schedule.next_due(key, moment)
        found.append(f"{moment:%a %d %b %H:%M}")
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 3 * * *", ["Mon 01 Jun 03:30", "Tue 02 Jun 03:30"]),
        ("0 8-18/5 * * *", ["Mon 01 Jun 08:00", "Mon 01 Jun 13:00"]),
        ("0 3 * * SUN", ["Sun 07 Jun 03:00", "Sun 14 Jun 03:00"]),
        ("0 3 * * 7", ["Sun 07 Jun 03:00", "Sun 14 Jun 03:00"]),
        ("0 3 * * mon-wed", ["Mon 01 Jun 03:00", "Tue 02 Jun 03:00"]),
        ("0 3 31 * *", ["Fri 31 Jul 03:00", "Mon 31 Aug 03:00"]),
        ("0 3 1 jan,jul *", ["Wed 01 Jul 03:00", "Fri 01 Jan 03:00"]),
        ("0 3 15 * 1", ["Mon 01 Jun 03:00", "Mon 08 Jun 03:00"]),  # either, as in every cron
        ("0 3 5-5/1 * *", ["Fri 05 Jun 03:00", "Sun 05 Jul 03:00"]),
        ("0 0 29 2 *", ["Tue 29 Feb 00:00", "Sun 29 Feb 00:00"]),
    ],
)
def test_an_expression_fires_at(text: str, expected: list[str]) -> None:
    assert firings(text, "2026-06-01", 2) == expected


@pytest.mark.parametrize(
    ("text", "first", "steps"),
    [
        ("H * * * *", range(60), 60),
        ("H/15 * * * *", range(15), 15),
        ("H(0-29)/10 * * * *", range(10), 10),
        ("H(10-20) * * * *", range(10, 21), 60),
    ],
)
def test_an_h_in_the_minutes_is_picked_by_the_key(text: str, first: range, steps: int) -> None:
    seen = set()
    for key in map(str, range(500)):
        minutes = [int(moment[-2:]) for moment in firings(text, "2026-05-31 23:59", 3, key)]
        seen.add(minutes[0])
        assert (minutes[1] - minutes[0]) % 60 in (steps % 60, 10)
    assert seen == set(first)


def test_an_h_in_each_field_stays_in_its_range_and_is_picked_apart_from_the_others() -> None:
    schedule = Schedule.parse("cron H H(0-7) H H *")
    after = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=1)
    found = [schedule.next_due(str(key), after) for key in range(3000)]
    assert {moment.hour for moment in found} == set(range(8))
    assert {moment.day for moment in found} == set(range(1, 29))
    assert {moment.month for moment in found} == set(range(1, 13))
    assert len({(moment.minute, moment.hour) for moment in found}) > 0.95 * 60 * 8
    assert len({(moment.day, moment.month) for moment in found}) > 0.95 * 28 * 12


def test_an_h_in_the_day_of_the_week_is_one_of_seven_days() -> None:
    schedule = Schedule.parse("cron 0 3 * * H")
    after = datetime(2026, 6, 1, tzinfo=UTC)
    days = [schedule.next_due(str(key), after).weekday() for key in range(700)]
    assert set(days) == set(range(7))


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("cron", 5, "five fields, minute, hour, day of the month, month and day of the week"),
        ("cron 0 3 * *", 13, "something is missing"),
        ("cron 0 0 3 * * *", 16, "there are 6"),
        ("cron @daily", 6, "write daily"),
        ("cron 60 * * * *", 6, "in the field for the minute a number from 0 to 59"),
        ("cron 0 24 * * *", 8, "in the field for the hour a number from 0 to 23"),
        ("cron 0 0 0 * *", 10, "in the field for the day of the month a number from 1 to 31"),
        ("cron 0 0 * 13 *", 12, "a number from 1 to 12 or a name from JAN"),
        ("cron 0 0 * * 8", 14, "a number from 0 to 7 or a name from SUN"),
        ("cron 0 0 * * monday", 14, "a name from SUN"),
        ("cron 1,,2 * * * *", 8, "something is missing"),
        ("cron 1,2,x * * * *", 10, "'x'"),
        ("cron 5/15 * * * *", 6, "a range before the step, such as 5-59/15"),
        ("cron */0 * * * *", 6, "a step from 1 to 60"),
        ("cron */90 * * * *", 6, "a step from 1 to 60"),
        ("cron 0-10/12 * * * *", 6, "a step from 1 to 11"),
        ("cron H/1 * * * *", 6, "H alone means one"),
        ("cron H(0-7 * * * *", 6, "'H(0-7' is not understood"),
        ("cron H(7-0) * * * *", 6, "runs forwards"),
        ("cron H(0-60) * * * *", 6, "a number from 0 to 59"),
        ("cron H-5 * * * *", 6, "'H-5'"),
        ("cron 0 22-4 * * *", 8, "runs forwards (two ranges can be joined with a comma)"),
        ("cron 0 0 L * *", 10, "'L'"),
        ("cron 0 0 15W * *", 10, "'15W'"),
        ("cron 0 0 * * FRI#2", 14, "L, W, #, ? and ~ are not supported"),
        ("cron 0 0 ? * *", 10, "'?'"),
        ("cron 0~30 0 * * *", 6, "'0~30'"),
        ("cron 0 0 31 2 *", 10, "a day of the month that comes in the months given"),
        ("cron 0 0 31 4,6,9,11 *", 10, "a day of the month that comes"),
        ("cron 0 0 30-31 H(1-2) *", 10, "a day of the month that comes"),
        ("cron 0 0 H(29-31) 4 *", 10, "a day of the month that comes"),
    ],
)
def test_prior_art_14_what_cron_libraries_read_differently_is_refused_and_named(
    text: str, column: int, words: str
) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(text)
    assert caught.value.column == column
    assert words in str(caught.value)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), moments)
def test_backwards_and_forwards_agree_through_every_clock_change(
    text: str, zone: ZoneInfo, moment: datetime
) -> None:
    fires, following = firings_around(text, moment, zone)
    assert fires <= moment < following
    assert next_firing(text, moment, zone) == following
    assert next_firing(text, fires, zone) == following
    assert next_firing(text, fires - timedelta(microseconds=1), zone) == fires
    assert firings_around(text, fires, zone) == (fires, following)


@pytest.mark.parametrize("zone", ZONES, ids=str)
@pytest.mark.parametrize("text", EXPRESSIONS[1:10])
def test_around_a_clock_change_an_expression_goes_on_firing(text: str, zone: ZoneInfo) -> None:
    for day in (datetime(2026, 3, 7, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)):
        found = [next_firing(text, day, zone)]
        while found[-1] < day + timedelta(days=30):
            found.append(next_firing(text, found[-1], zone))
        # The longest time without one is what it is all year long, and the hour of the change.
        usual = [next_firing(text, datetime(2026, 6, 1, tzinfo=UTC), zone)]
        for _ in range(200):
            usual.append(next_firing(text, usual[-1], zone))
        longest = max(after - before for before, after in pairwise(usual))
        if text.startswith("*/20 2"):
            longest += timedelta(days=1)  # with a * in the minute, 02:00 to 03:00 may not come
        if zone.key == "Australia/Lord_Howe" and "*/2" in text:
            longest *= 2  # cronsim goes by whole hours, and passes one where half an hour is moved
        longest += timedelta(hours=1)
        assert max(after - before for before, after in pairwise(found)) <= longest


def test_a_firing_in_a_skipped_hour_comes_right_after_it_and_in_a_repeated_one_once() -> None:
    assert firings("30 3 * * *", "2026-03-28 12:00", 2) == ["Sun 29 Mar 04:00", "Mon 30 Mar 03:30"]
    assert firings("0,30 3 * * *", "2026-03-29", 2) == ["Sun 29 Mar 04:00", "Mon 30 Mar 03:00"]
    assert firings("30 3 * * *", "2026-10-25", 2) == ["Sun 25 Oct 03:30", "Mon 26 Oct 03:30"]
    assert firings("30 * * * *", "2026-10-25 02:00", 4)[1:3] == ["Sun 25 Oct 03:30"] * 2


def test_in_the_second_coming_of_an_hour_the_first_is_over() -> None:
    second = datetime(2026, 10, 25, 3, 10, tzinfo=HELSINKI, fold=1).astimezone(UTC)
    first = datetime(2026, 10, 25, 3, 30, tzinfo=HELSINKI).astimezone(UTC)
    following = datetime(2026, 10, 26, 3, 30, tzinfo=HELSINKI).astimezone(UTC)
    assert firings_around("30 3 * * *", second, HELSINKI) == (first, following)
    assert next_firing("30 3 * * *", second, HELSINKI) == following


def test_the_text_of_an_expression_keeps_its_h() -> None:
    assert str(CronExpression.parse(" h/15  H(0-7) * * mon ")) == "H/15 H(0-7) * * MON"


def test_cronsim_is_not_imported_for_a_schedule_without_cron() -> None:
    program = (
        "import sys; from turku_core.schedule import Schedule; Schedule.parse('daily, 0300'); "
        "sys.exit('cronsim' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0

"""The schedule language: what it reads, what it refuses, and when each schedule falls due."""

from __future__ import annotations

import string
from collections import Counter
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from turku_core.schedule import WEEKDAYS, Schedule, ScheduleError, retry_at

UTC = timezone.utc
HELSINKI = ZoneInfo("Europe/Helsinki")
NEW_YORK = ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

times_of_day = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(
    lambda t: f"{t[0]:02}{t[1]:02}"
)
names = st.sampled_from(("hourly", "daily", "weekly", "monthly", *WEEKDAYS))
spans = st.tuples(times_of_day, times_of_day).filter(lambda span: span[0] != span[1]).map("-".join)
cron_texts = st.sampled_from(
    (
        "cron 0 3 * * *",
        "cron H H * * *",
        "cron H/15 * * * *",
        "cron H(0-29)/10 H(0-7) * * mon-fri",
        "cron 0,30 8-18/2 1,15 JAN-NOV *",
        "cron H H 1 * *",
    )
)
schedule_texts = st.one_of(
    names, st.builds("{}, {}".format, names, st.one_of(times_of_day, spans)), cron_texts
)


def at(text: str, zone: ZoneInfo = HELSINKI) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def window_text(schedule: str, moment: datetime) -> str | None:
    window = Schedule.parse(schedule).window("7", moment)
    return None if window is None else " - ".join(f"{end:%a %d %H:%M}" for end in window)


# Reading


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("daily", "daily"),
        ("  Daily ", "daily"),
        ("SUN", "sunday"),
        ("Wednesday", "wednesday"),
        ("thu,0300", "thursday, 0300"),
        ("daily,2200-0600", "daily, 2200-0600"),
        ("daily ,\t2200 - 0600 ", "daily, 2200-0600"),
        ("monthly, 2200-0000", "monthly, 2200"),
        ("cron  H  h(0-7) * jan mon", "cron H H(0-7) * JAN MON"),
        ("CRON 0 3 * * *", "cron 0 3 * * *"),
    ],
)
def test_case_and_white_space_do_not_matter_and_short_names_are_names(
    written: str, canonical: str
) -> None:
    assert str(Schedule.parse(written)) == canonical


@given(schedule_texts)
def test_a_schedule_written_out_is_read_as_the_same_schedule(text: str) -> None:
    schedule = Schedule.parse(text)
    assert Schedule.parse(str(schedule)) == schedule
    assert hash(Schedule.parse(str(schedule))) == hash(schedule)


@settings(max_examples=500)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text(string.ascii_lowercase + string.digits + " ,-*/()H", max_size=30),
        st.text(string.digits + " ,-*/()HLW#?", max_size=30).map("cron ".__add__),
        st.builds("daily, {}".format, st.text(max_size=10)),
    )
)
@example("daily, ²²²²")
@example("daily, ٠٣٠٠")
@example("cron ٣ * * * *")
@example("daily, 0300-0400-0500")
@example("daily, 0300, 0400")
@example("cron " + "9" * 5000 + " * * * *")
def test_whatever_is_not_a_schedule_is_refused_with_the_one_error(text: str) -> None:
    try:
        schedule = Schedule.parse(text)
    except ScheduleError as error:
        assert 1 <= error.column <= len(text) + 1
        assert error.expected in str(error)
        assert "\n" not in str(error)
    else:
        assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "something is missing; expected hourly, daily, weekly"),
        ("dayly", 1, "'dayly' is not understood"),
        ("dayly", 1, "did you mean daily?"),
        ("  thurs", 3, "did you mean thursday?"),
        ("every day", 1, "'every' is not understood"),
        ("daily at 3", 7, "'at 3' is not understood; expected nothing or a comma after daily"),
        ("daily,", 7, "something is missing; expected a time of day such as 2200"),
        ("daily, 3am", 8, "'3am' is not understood; expected a time of day"),
        ("daily, 2400", 8, "midnight is 0000"),
        ("daily, 0060", 8, "a minute from 00 to 59"),
        ("daily, 0300-2560", 13, "'2560' is not understood"),
        ("daily, 0300-", 8, "'0300-' is not understood"),
        ("daily, 0300-0300", 13, "another time than the start, 0300"),
        ("daily, 0300, 0500", 8, "'0300, 0500' is not understood"),
        ("crond * * * * *", 1, "'crond' is not understood"),
    ],
)
def test_prior_art_14_a_typo_is_refused_and_named_and_never_means_daily(
    text: str, column: int, words: str
) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(text)
    assert isinstance(caught.value, ValueError)
    assert caught.value.column == column
    assert f"column {column}" in str(caught.value)
    assert words in str(caught.value)


def test_prior_art_14_a_cron_schedule_works() -> None:
    schedule = Schedule.parse("cron 30 3 * * *")
    assert schedule.next_due("7", at("2026-06-01 12:00")) == at("2026-06-02 03:30")


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("daily, 0300-0301", "2026-06-01 03:00", "2026-06-02 03:00"),
        ("monday, 0300-0301", "2026-06-01 03:00", "2026-06-08 03:00"),
        ("tue, 2359", "2026-06-02 23:59", "2026-06-09 23:59"),
        ("hourly, 0300-0301", "2026-06-01 03:00", "2026-06-02 03:00"),
        ("cron 0 3 * * 2", "2026-06-02 03:00", "2026-06-09 03:00"),
        ("cron 0 3 1 * *", "2026-06-01 03:00", "2026-07-01 03:00"),
    ],
)
def test_prior_art_16_the_schedule_that_is_written_is_the_one_that_runs(
    text: str, first: str, second: str
) -> None:
    schedule = Schedule.parse(text)
    due = schedule.next_due("7", at("2026-06-01 00:00"))
    assert timedelta(0) <= due - at(first) < timedelta(minutes=1)
    due = schedule.next_due("7", due)
    assert timedelta(0) <= due - at(second) < timedelta(minutes=1)


@pytest.mark.parametrize("key", ["7", "8", "9"])
def test_prior_art_16_weekly_and_monthly_run_once_a_week_and_once_a_month(key: str) -> None:
    for text, days in (("weekly", {7}), ("monthly", {28, 29, 30, 31})):
        due = Schedule.parse(text).next_due(key, at("2026-01-01 00:00"))
        for _ in range(30):
            following = Schedule.parse(text).next_due(key, due)
            assert (following.date() - due.date()).days in days
            assert following.time() == due.time() or due.dst() != following.dst()
            due = following


def test_a_time_without_a_zone_is_refused() -> None:
    naive = datetime(2026, 6, 1)  # noqa: DTZ001
    schedule = Schedule.parse("daily")
    aware = at("2026-06-01 00:00")
    for call in (
        lambda: schedule.next_due("7", naive),
        lambda: schedule.window("7", naive),
        lambda: schedule.due_at("7", last_success=naive, since=aware, now=aware),
        lambda: schedule.due_at("7", last_success=None, since=naive, now=aware),
        lambda: schedule.missed("7", last_success=None, since=aware, now=naive),
        lambda: retry_at(1, naive),
    ):
        with pytest.raises(ValueError, match="no time zone"):
            call()


# Moments


@settings(max_examples=200, deadline=None)
@given(schedule_texts, st.text(), st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)))  # noqa: DTZ001
def test_the_next_moment_is_later_and_in_its_window_and_in_the_zone_that_was_given(
    text: str, key: str, moment: datetime
) -> None:
    schedule = Schedule.parse(text)
    for zone in (HELSINKI, NEW_YORK, LORD_HOWE, UTC):
        after = moment.replace(tzinfo=zone)
        due = schedule.next_due(key, after)
        assert due.tzinfo is zone
        assert due.astimezone(UTC) > after.astimezone(UTC)
        window = schedule.window(key, due)
        assert window is not None
        opens, closes = (end.astimezone(UTC) for end in window)
        assert opens <= due.astimezone(UTC) < closes
        # There is none in between: not from the instant before it, either.
        just_before = due.astimezone(UTC) - timedelta(microseconds=1)
        assert schedule.next_due(key, just_before.astimezone(zone)) == due


def chi_square(counts: Counter[int], bins: int) -> float:
    expected = counts.total() / bins
    return sum((counts[number] - expected) ** 2 / expected for number in range(bins))


@pytest.mark.parametrize(
    ("text", "bins", "bound"),
    # The bounds are exceeded by chance once in a hundred thousand fleets.
    [
        ("hourly", 12, 42),
        ("daily", 24, 65),
        ("daily, 2200-0200", 15, 48),
        ("weekly", 7 * 24, 252),
        ("monthly", 28, 71),
        ("saturday", 24, 65),
        ("cron H * * * *", 60, 120),
        ("cron H H * * *", 24, 65),
    ],
)
def test_a_fleet_of_ten_thousand_spreads_evenly(text: str, bins: int, bound: float) -> None:
    begins = {
        "daily, 2200-0200": at("2026-06-01 22:00"),
        "saturday": at("2026-06-06 00:00"),
    }.get(text, at("2026-06-01 00:00"))
    length = {
        "hourly": timedelta(hours=1),
        "cron H * * * *": timedelta(hours=1),
        "weekly": timedelta(days=7),
        "monthly": timedelta(days=28),
        "daily, 2200-0200": timedelta(hours=3, minutes=45),
    }.get(text, timedelta(days=1))
    schedule = Schedule.parse(text)
    just_before = begins - timedelta(seconds=1)
    places = [schedule.next_due(str(key), just_before) - begins for key in range(10_000)]
    assert all(timedelta(0) <= place < length for place in places)
    assert chi_square(Counter(int(place / length * bins) for place in places), bins) < bound


def test_a_key_keeps_its_moment_from_release_to_release() -> None:
    assert [
        Schedule.parse(text).next_due("7", at("2026-06-01 00:00")).isoformat()
        for text in ("hourly", "daily", "weekly, 2200-0200", "monthly", "cron H H(0-7) H * *")
    ] == [
        "2026-06-01T00:24:14+03:00",
        "2026-06-01T21:24:14+03:00",
        "2026-06-01T22:24:14+03:00",
        "2026-06-01T21:24:14+03:00",
        "2026-06-08T06:56:00+03:00",
    ]


# Windows


@pytest.mark.parametrize(
    ("schedule", "moment", "expected"),
    [
        ("hourly", "2026-06-03 12:34", "Wed 03 12:00 - Wed 03 13:00"),
        ("daily", "2026-06-03 12:34", "Wed 03 00:00 - Thu 04 00:00"),
        ("weekly", "2026-06-03 12:34", "Mon 01 00:00 - Mon 08 00:00"),
        ("monthly", "2026-06-03 12:34", "Mon 01 00:00 - Wed 01 00:00"),
        ("wednesday", "2026-06-03 12:34", "Wed 03 00:00 - Thu 04 00:00"),
        ("wednesday", "2026-06-04 12:34", None),
        ("daily, 1200", "2026-06-03 12:34", "Wed 03 12:00 - Thu 04 00:00"),
        ("daily, 1200", "2026-06-03 11:59", None),
        ("daily, 2200-0200", "2026-06-03 22:00", "Wed 03 22:00 - Thu 04 02:00"),
        ("daily, 2200-0200", "2026-06-04 01:59", "Wed 03 22:00 - Thu 04 02:00"),
        ("daily, 2200-0200", "2026-06-04 02:00", None),
        ("wednesday, 2200-0200", "2026-06-04 01:59", "Wed 03 22:00 - Thu 04 02:00"),
        ("wednesday, 2200-0200", "2026-06-03 01:59", None),
        ("weekly, 2200-0200", "2026-06-04 01:59", "Wed 03 22:00 - Thu 04 02:00"),
        ("weekly, 2200-0200", "2026-06-08 01:59", "Sun 07 22:00 - Mon 08 02:00"),
        ("monthly, 2200-0200", "2026-07-01 01:59", "Tue 30 22:00 - Wed 01 02:00"),
        ("hourly, 0915-1645", "2026-06-03 09:14", None),
        ("hourly, 0915-1645", "2026-06-03 09:15", "Wed 03 09:15 - Wed 03 10:00"),
        ("hourly, 0915-1645", "2026-06-03 16:44", "Wed 03 16:00 - Wed 03 16:45"),
        ("hourly, 0930-0910", "2026-06-03 09:05", "Wed 03 09:00 - Wed 03 09:10"),
        ("hourly, 0930-0910", "2026-06-03 09:35", "Wed 03 09:30 - Wed 03 10:00"),
        ("cron 0 3 * * *", "2026-06-03 12:34", "Wed 03 03:00 - Thu 04 03:00"),
    ],
)
def test_the_window_at_a_time_is(schedule: str, moment: str, expected: str | None) -> None:
    assert window_text(schedule, at(moment)) == expected


@settings(max_examples=300)
@given(
    st.sampled_from(("daily", "weekly", "monthly", "hourly", *WEEKDAYS)),
    times_of_day,
    times_of_day,
    st.datetimes(datetime(2026, 4, 3), datetime(2026, 10, 20)),  # noqa: DTZ001
)
def test_a_window_is_open_exactly_when_the_clock_on_the_wall_says_so(
    name: str, opens: str, closes: str, wall: datetime
) -> None:
    assume(opens != closes)
    clock = f"{wall:%H%M}"
    past_midnight = closes < opens
    if past_midnight:
        expected = clock >= opens or clock < closes
    else:
        expected = opens <= clock < closes
    if name in WEEKDAYS:
        opening = wall - timedelta(days=1) if past_midnight and clock < closes else wall
        expected = expected and WEEKDAYS[opening.weekday()] == name
    schedule = Schedule.parse(f"{name}, {opens}-{closes}")
    assert (schedule.window("7", wall.replace(tzinfo=HELSINKI)) is not None) == expected


# Clock changes: 29 March 2026 03:00 -> 04:00 and 25 October 2026 04:00 -> 03:00 in Helsinki


@pytest.mark.parametrize(
    ("schedule", "moment", "expected"),
    [
        ("daily", "2026-03-29 12:00", 23),
        ("daily", "2026-10-25 12:00", 25),
        ("daily, 0200-0330", "2026-03-29 02:30", 1),  # 03:00 to 04:00 are skipped
        ("daily, 0330-0500", "2026-03-29 04:30", 1),  # opens at 04:00
        ("daily, 0300-0400", "2026-03-29 04:30", 1),  # swallowed whole: right after the gap
        ("daily, 0200-0330", "2026-10-25 02:30", 1.5),  # closes at the first 03:30
        ("daily, 0330-0500", "2026-10-25 04:30", 2.5),  # opens at the first 03:30
    ],
)
def test_through_clock_changes_a_window_follows_the_local_time(
    schedule: str, moment: str, expected: float
) -> None:
    window = Schedule.parse(schedule).window("7", at(moment))
    assert window is not None
    length = window[1].astimezone(UTC) - window[0].astimezone(UTC)
    assert length == timedelta(hours=expected)


def test_a_day_with_a_clock_change_has_as_many_hourly_runs_as_hours() -> None:
    schedule = Schedule.parse("hourly")
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        due, number = schedule.next_due("7", at(f"{day} 00:00")), 0
        while str(due.date()) == day:
            number += 1
            due = schedule.next_due("7", due)
        assert number == hours


def test_a_skipped_moment_comes_as_much_later_and_a_repeated_one_comes_once() -> None:
    schedule = Schedule.parse("daily")
    early = [
        key for key in map(str, range(2000)) if schedule.next_due(key, at("2026-06-01")).hour == 3
    ]
    assert len(early) > 50
    for key in early:
        usual = schedule.next_due(key, at("2026-06-01"))
        spring = schedule.next_due(key, at("2026-03-29"))
        assert (spring.hour, spring.minute) == (4, usual.minute)
        autumn = schedule.next_due(key, at("2026-10-25"))
        assert (autumn.hour, autumn.minute, autumn.fold) == (3, usual.minute, 0)
        assert schedule.next_due(key, autumn).day == 26


@pytest.mark.parametrize(
    ("schedule", "zone", "opens", "closes"),
    [
        ("daily, 0200-0330", "Europe/Helsinki", "2026-03-29 02:00", "2026-03-29 04:00"),
        ("daily, 0300-0430", "Europe/Helsinki", "2026-03-29 04:00", "2026-03-29 04:30"),
        ("daily, 0300-0400", "Europe/Helsinki", "2026-03-29 04:00", "2026-03-29 05:00"),
        ("daily", "America/Nuuk", "2026-03-28 00:00", "2026-03-29 00:00"),  # 23 hours long
    ],
)
def test_a_window_that_a_clock_change_cuts_has_room_for_every_moment(
    schedule: str, zone: str, opens: str, closes: str
) -> None:
    first, end = (at(text, ZoneInfo(zone)).astimezone(UTC) for text in (opens, closes))
    just_before = (first - timedelta(seconds=1)).astimezone(ZoneInfo(zone))
    for key in map(str, range(1000)):
        assert first <= Schedule.parse(schedule).next_due(key, just_before).astimezone(UTC) < end


def test_where_clocks_go_back_over_midnight_the_day_goes_on() -> None:
    # Until 2011 those of Newfoundland went from 00:01 back to 23:01.
    st_johns = ZoneInfo("America/St_Johns")
    again = datetime(2010, 11, 6, 23, 30, tzinfo=st_johns, fold=1)
    assert window_text("daily", again) == "Sun 07 00:00 - Mon 08 00:00"


def test_a_day_that_the_zone_skipped_has_no_period() -> None:
    apia = ZoneInfo("Pacific/Apia")
    friday = Schedule.parse("friday, 1000-1200")
    assert friday.next_due("7", datetime(2011, 12, 24, tzinfo=apia)).day == 6
    daily = Schedule.parse("daily, 1000-1200")
    due = daily.next_due("7", datetime(2011, 12, 29, 13, tzinfo=apia))
    assert (due.day, due.hour // 2) == (31, 5)


# When a run should begin


def due_at(
    schedule: str, now: datetime, last_success: datetime | None, since: datetime = LONG_AGO
) -> datetime:
    return Schedule.parse(schedule).due_at("7", last_success=last_success, since=since, now=now)


@pytest.mark.parametrize("schedule", ["hourly", "daily", "weekly", "monthly", "cron 0 3 1 1 *"])
def test_a_new_source_is_due_at_once(schedule: str) -> None:
    now = at("2026-06-03 12:34")
    assert due_at(schedule, now, None, since=now) == now


def test_a_new_source_waits_for_its_window_and_is_due_when_it_opens() -> None:
    noon = at("2026-06-03 12:00")
    assert due_at("daily, 2200-0200", noon, None, since=noon) == at("2026-06-03 22:00")
    assert due_at("saturday", noon, None, since=noon) == at("2026-06-06 00:00")
    assert due_at("weekly, 2200-0200", noon, None, since=noon) == at("2026-06-03 22:00")
    midnight = at("2026-06-04 00:00")
    assert due_at("daily, 2200-0200", midnight, None, since=midnight) == midnight


def test_a_new_source_that_ran_is_not_due_again_in_the_same_period() -> None:
    for hour in range(24):
        made = at(f"2026-06-03 {hour:02}:30")
        assert due_at("daily", made + timedelta(minutes=1), made, since=made).day == 4
        assert due_at("weekly", made + timedelta(minutes=1), made, since=made) >= at("2026-06-08")
        assert due_at("monthly", made + timedelta(minutes=1), made, since=made) >= at("2026-07-01")


def test_without_hours_a_missed_moment_is_caught_up_however_late() -> None:
    moment = Schedule.parse("daily").next_due("7", at("2026-06-03"))
    ran = moment - timedelta(days=1)
    assert due_at("daily", moment - timedelta(hours=1), ran) == moment
    for late in (timedelta(hours=1), timedelta(hours=12), timedelta(hours=23)):
        assert due_at("daily", moment + late, ran) == moment
    # After weeks it is one run that is due, not one for each day.
    assert due_at("daily", moment + timedelta(days=20, hours=1), ran) == moment + timedelta(days=20)


def test_a_weekday_without_hours_is_caught_up_on_the_days_after() -> None:
    moment = Schedule.parse("sunday").next_due("7", at("2026-06-01"))
    assert moment.date() == at("2026-06-07").date()
    wednesday = at("2026-06-10 12:00")
    assert due_at("sunday", wednesday, moment - timedelta(days=7)) == moment
    # That run does not stand in for the next Sunday's.
    assert due_at("sunday", at("2026-06-10 13:00"), wednesday) == moment + timedelta(days=7)
    # A source that was made after Sunday waits for the next.
    made = at("2026-06-09 12:00")
    assert due_at("sunday", wednesday, None, since=made) == at("2026-06-14 00:00")
    # One that was there on Sunday, and never ran, doesn't.
    assert due_at("sunday", wednesday, None, since=at("2026-06-06")) <= wednesday


def test_a_late_run_leaves_the_next_moment_where_it_is() -> None:
    moment = Schedule.parse("daily").next_due("7", at("2026-06-03"))  # 21:24
    late = at("2026-06-04 08:00")
    assert due_at("daily", at("2026-06-04 08:30"), late) == moment + timedelta(days=1)
    # So late that the next moment is near, one run does for both.
    very_late = at("2026-06-04 20:00")
    assert due_at("daily", at("2026-06-04 22:30"), very_late) == moment + timedelta(days=2)


def test_with_hours_a_window_that_is_over_is_not_run_late() -> None:
    ran = at("2026-06-01 23:00")
    moment = Schedule.parse("daily, 2200-0200").next_due("7", at("2026-06-04 12:00"))
    assert due_at("daily, 2200-0200", at("2026-06-04 12:00"), ran) == moment
    assert due_at("daily, 2200-0200", at("2026-06-05 01:59"), ran) == moment
    assert due_at("daily, 2200-0200", at("2026-06-05 02:00"), ran) == moment + timedelta(days=1)


def test_with_hours_a_week_goes_on_after_the_keys_own_day() -> None:
    schedule = "weekly, 2200-0200"
    ran = at("2026-05-29 23:00")
    moment = Schedule.parse(schedule).next_due("7", at("2026-06-01 12:00"))
    assert f"{moment:%A}" == "Monday"
    assert due_at(schedule, at("2026-06-01 22:10"), ran) == moment
    assert due_at(schedule, at("2026-06-02 01:59"), ran) == moment
    assert due_at(schedule, at("2026-06-02 12:00"), ran) == at("2026-06-02 22:00")
    assert due_at(schedule, at("2026-06-08 01:59"), ran) <= at("2026-06-08 01:59")
    assert due_at(schedule, at("2026-06-08 02:00"), ran) == moment + timedelta(days=7)


def test_a_run_begun_by_hand_outside_the_hours_does_not_stand_in_for_the_next_window() -> None:
    moment = Schedule.parse("daily, 2200-2300").next_due("7", at("2026-06-03"))
    assert due_at("daily, 2200-2300", at("2026-06-03 13:00"), at("2026-06-03 12:00")) == moment


def test_a_run_from_the_future_counts_for_nothing() -> None:
    now = at("2026-06-03 12:00")
    assert due_at("daily", now, now + timedelta(days=400)) <= now
    # A clock that is a little ahead of another is no reason to run twice.
    assert due_at("daily", now, now + timedelta(seconds=30)) > now


# Missed windows


def missed(schedule: str, now: str, last_success: str | None, since: str = "2026-01-01") -> str:
    window = Schedule.parse(schedule).missed(
        "7",
        last_success=None if last_success is None else at(last_success),
        since=at(since),
        now=at(now),
    )
    return "" if window is None else " - ".join(f"{end:%a %d %H:%M}" for end in window)


def test_the_last_window_without_a_run_is_missed_once_it_is_over() -> None:
    hours = "daily, 2200-0200"
    assert missed(hours, "2026-06-04 02:00", "2026-06-02 23:00") == "Wed 03 22:00 - Thu 04 02:00"
    assert missed(hours, "2026-06-04 01:59", "2026-06-02 23:00") == ""
    assert missed(hours, "2026-06-04 12:00", "2026-06-04 01:59") == ""
    assert missed(hours, "2026-06-04 23:00", None) == "Wed 03 22:00 - Thu 04 02:00"
    # A week is missed with its last window.
    weekly = "weekly, 2200-0200"
    assert missed(weekly, "2026-06-07 12:00", "2026-05-29 23:00") == ""
    assert missed(weekly, "2026-06-08 12:00", "2026-05-29 23:00") == "Sun 07 22:00 - Mon 08 02:00"
    # Without hours, the period is what is missed, until it has been caught up.
    assert missed("daily", "2026-06-04 12:00", "2026-06-02 22:00") == "Wed 03 00:00 - Thu 04 00:00"
    assert missed("daily", "2026-06-04 12:00", "2026-06-04 08:00") == ""
    assert missed("sunday", "2026-06-10 12:00", "2026-05-31 22:00") == "Sun 07 00:00 - Mon 08 00:00"
    assert missed("sunday", "2026-06-10 12:00", "2026-06-09 22:00") == ""
    assert missed("cron 0 3 * * *", "2026-06-04 12:00", "2026-06-02 02:00") == (
        "Wed 03 03:00 - Thu 04 03:00"
    )


def test_a_window_that_opened_before_the_source_was_made_is_not_missed() -> None:
    hours = "daily, 2200-0200"
    assert missed(hours, "2026-06-04 12:00", None, since="2026-06-03 22:30") == ""
    assert missed(hours, "2026-06-04 12:00", None, since="2026-06-03 21:30") != ""


# Trying again


def test_the_pause_after_a_failure_doubles_from_five_minutes_up_to_an_hour() -> None:
    failed = at("2026-10-25 02:50")
    pauses = [
        (retry_at(failures, failed).astimezone(UTC) - failed.astimezone(UTC)).seconds // 60
        for failures in (1, 2, 3, 4, 5, 6, 1000)
    ]
    assert pauses == [5, 10, 20, 40, 60, 60, 60]


def test_a_retry_without_a_failure_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        retry_at(0, at("2026-06-01"))

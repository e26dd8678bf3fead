"""The retention language: what it reads, what it refuses, and what a policy keeps."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turku_core.retention import UNITS, Policy, RetentionError

UTC = timezone.utc
HELSINKI = ZoneInfo("Europe/Helsinki")
ZONES = tuple(map(ZoneInfo, ("Europe/Helsinki", "America/New_York", "Pacific/Apia", "UTC")))
NOW = datetime(2026, 12, 15, 18, tzinfo=HELSINKI)


def numbers(largest: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 12), st.integers(1, largest))


def counted(unit: str, number: int, plural: bool) -> str:
    return f"{number} {unit}{'s' if plural else ''}"


last_rules = st.builds(
    lambda unit, number, plural: f"last {counted(unit, number, plural)}",
    st.sampled_from(("day", "snapshot")),
    numbers(99_999),
    st.booleans(),
)
earliest_rules = st.one_of(
    st.builds(
        lambda unit, number, plural: f"earliest of {counted(unit, number, plural)}",
        st.sampled_from(UNITS),
        numbers(99_999),
        st.booleans(),
    ),
    st.sampled_from(UNITS).map("earliest of {}".format),
)
rule_lists = st.lists(st.one_of(last_rules, earliest_rules), min_size=1, max_size=5)
moments = st.datetimes(
    datetime(2019, 1, 1),  # noqa: DTZ001
    datetime(2027, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
histories = st.one_of(
    st.lists(moments, max_size=40),
    # One a day or so, as they come.
    st.builds(
        lambda end, gaps: [end - timedelta(hours=sum(gaps[:n])) for n in range(len(gaps))],
        moments,
        st.lists(st.integers(1, 60), max_size=60),
    ),
)
nows = st.builds(lambda moment, zone: moment.astimezone(zone), moments, st.sampled_from(ZONES))


def daily(days: int, *, until: datetime = NOW) -> list[datetime]:
    """A backup at 03:00 on each of so many days, the last on the day of `until`."""
    newest = until.replace(hour=3)
    return [(newest - timedelta(days=n)) for n in range(days)]


def kept(policy: str, times: Sequence[datetime], now: datetime = NOW) -> list[str]:
    return [f"{time:%Y-%m-%d}" for time in sorted(Policy.parse(policy).keep(times, now))]


# Reading


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("last 5 days, earliest of month", "last 5 days, earliest of 1 month"),
        ("  LAST\t1  days ", "last 1 day"),
        ("last 3 snapshot", "last 3 snapshots"),
        ("earliest of 2 fortnight,Earliest Of quarters", None),
        ("last 5 days,last 5 day, last 5 days", "last 5 days"),
    ],
)
def test_case_white_space_plural_and_repetition_do_not_matter(
    written: str, canonical: str | None
) -> None:
    expected = canonical or "earliest of 2 fortnights, earliest of 1 quarter"
    assert str(Policy.parse(written)) == expected


@given(rule_lists)
def test_a_policy_written_out_is_read_as_the_same_policy(rules: list[str]) -> None:
    policy = Policy.parse(", ".join(rules))
    assert Policy.parse(str(policy)) == policy
    assert hash(Policy.parse(str(policy))) == hash(policy)


@settings(max_examples=500)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text(string.ascii_lowercase + string.digits + " ,", max_size=30),
        st.lists(
            st.sampled_from(
                ("last", "earliest", "of", "5", "0", "-1", "days", "snapshots", "month", ",", "")
            ),
            max_size=8,
        ).map(" ".join),
    )
)
@example("last " + "9" * 5000 + " days")
@example("last ² days")
@example("last ٣ days")
def test_whatever_is_not_a_policy_is_refused_with_the_one_error(text: str) -> None:
    try:
        policy = Policy.parse(text)
    except RetentionError as error:
        assert 1 <= error.column <= len(text) + 1
        assert error.expected in str(error)
        assert "\n" not in str(error)
    else:
        assert Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", 1, "something is missing; expected last N days"),
        ("last", 5, "something is missing; expected a number from 1 to 99999"),
        ("last five days", 6, "'five' is not understood; expected a number from 1"),
        ("last 0 days", 6, "'0' is not understood; expected a number from 1"),
        ("last -1 days", 6, "'-1' is not understood"),
        ("last 100000 days", 6, "a number from 1 to 99999"),
        ("last 5", 7, "something is missing; expected days or snapshots"),
        ("last 5 weeks", 8, "'weeks' is not understood; expected days or snapshots"),
        ("last 5 days,", 13, "something is missing"),
        ("last 5 days earliest of month", 13, "a comma or nothing after last 5 days"),
        ("last 5 days; earliest of month", 8, "'days;' is not understood"),
        ("earliest month", 10, "'month' is not understood; expected of after earliest"),
        ("earliest of", 12, "expected days, weeks, fortnights, months, quarters or years"),
        ("earliest of 2", 14, "something is missing"),
        ("earliest of 2 snapshots", 15, "'snapshots' is not understood"),
        ("last 5 days, earliest of 2 fortnigth", 28, "did you mean fortnight?"),
        ("first of month", 1, "'first' is not understood"),
    ],
)
def test_prior_art_17_a_typo_is_refused_and_named_and_never_ignored(
    text: str, column: int, words: str
) -> None:
    with pytest.raises(RetentionError) as caught:
        Policy.parse(text)
    assert isinstance(caught.value, ValueError)
    assert caught.value.column == column
    assert f"column {column}" in str(caught.value)
    assert words in str(caught.value)


def test_a_time_without_a_zone_is_refused() -> None:
    naive = datetime(2026, 12, 15)  # noqa: DTZ001
    policy = Policy.parse("last 5 days")
    for times, now in (([naive], NOW), ([], naive)):
        with pytest.raises(ValueError, match="no time zone"):
            policy.keep(times, now)


# What is kept


def test_on_15_december_the_example_of_the_design_keeps_exactly_seven() -> None:
    policy = "last 5 days, earliest of 1 month, earliest of 2 months"
    assert kept(policy, daily(200)) == [
        "2026-11-01",
        "2026-12-01",
        "2026-12-11",
        "2026-12-12",
        "2026-12-13",
        "2026-12-14",
        "2026-12-15",
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("last 1 day", ["2026-12-15"]),
        ("last 2 snapshots", ["2026-12-14", "2026-12-15"]),
        ("earliest of day", ["2026-12-15"]),
        ("earliest of 3 days", ["2026-12-13"]),
        ("earliest of week", ["2026-12-14"]),  # a Monday
        ("earliest of 2 weeks", ["2026-12-07"]),
        ("earliest of fortnight", ["2026-12-07"]),
        ("earliest of 2 fortnights", ["2026-11-23"]),
        ("earliest of month", ["2026-12-01"]),
        ("earliest of 12 months", ["2026-01-01"]),
        ("earliest of 13 months", ["2025-12-01"]),
        ("earliest of quarter", ["2026-10-01"]),
        ("earliest of 2 quarters", ["2026-07-01"]),
        ("earliest of 5 quarters", ["2025-10-01"]),
        ("earliest of year", ["2026-01-01"]),
        ("earliest of 2 years", ["2025-01-01"]),
        ("earliest of 99999 years", ["2024-03-21"]),
        ("earliest of 99999 days", ["2024-03-21"]),
    ],
)
def test_of_a_thousand_daily_backups_a_rule_keeps_beside_the_newest(
    policy: str, expected: list[str]
) -> None:
    assert kept(policy, daily(1000)) == sorted({*expected, "2026-12-15"})


def test_last_days_keeps_all_snapshots_of_a_day_and_last_snapshots_counts_each() -> None:
    hourly = [NOW - timedelta(hours=n) for n in range(100)]
    assert len(Policy.parse("last 2 days").keep(hourly, NOW)) == 18 + 1 + 24
    assert len(Policy.parse("last 7 snapshots").keep(hourly, NOW)) == 7


@pytest.mark.parametrize("days_later", range(60))
def test_prior_art_17_earliest_of_2_weeks_is_never_three_weeks_old(days_later: int) -> None:
    now = NOW + timedelta(days=days_later)
    times = daily(200, until=now)
    found = min(Policy.parse("earliest of 2 weeks").keep(times, now))
    assert now - found < timedelta(days=14)
    assert found.weekday() == 0


@pytest.mark.parametrize("days_later", range(60))
def test_prior_art_17_fortnights_are_pairs_of_weeks_since_5_january_1970(days_later: int) -> None:
    now = NOW + timedelta(days=days_later)
    times = daily(200, until=now)
    found = min(Policy.parse("earliest of fortnight").keep(times, now))
    assert (found.date() - datetime(1970, 1, 5, tzinfo=UTC).date()).days % 14 == 0
    assert now - found < timedelta(days=14)


def test_prior_art_18_after_40_days_offline_the_newest_is_still_there() -> None:
    before = daily(30, until=NOW - timedelta(days=40))
    newest = f"{max(before):%Y-%m-%d}"
    # Expiry has a clock of its own, and may come before the first new backup.
    assert kept("last 5 days", before) == [newest]
    assert kept("last 5 days, earliest of month", before) == [newest]
    # What counts snapshots doesn't care how long the machine was away.
    assert kept("last 3 snapshots", [*before, NOW - timedelta(hours=1)]) == [
        *kept("last 2 snapshots", before),
        "2026-12-15",
    ]


def test_prior_art_18_a_clock_that_was_ahead_pushes_nothing_out() -> None:
    real = daily(10)
    ahead = [NOW + timedelta(days=400 + n) for n in range(5)]
    for policy in ("last 3 snapshots", "last 3 days", "earliest of week", "last 1 day"):
        # Those from the future can't be judged yet: they stay, and don't count.
        assert Policy.parse(policy).keep([*real, *ahead], NOW) == (
            Policy.parse(policy).keep(real, NOW) | set(ahead)
        )


def test_prior_art_18_with_a_clock_that_is_ahead_the_newest_stays() -> None:
    assert kept("last 5 days", daily(10), NOW + timedelta(days=400)) == ["2026-12-15"]


def test_days_are_those_of_the_zone_of_now() -> None:
    # 00:30 on the 15th in Helsinki is 22:30 on the 14th in UTC.
    early = datetime(2026, 12, 14, 22, 30, tzinfo=UTC)
    later = datetime(2026, 12, 15, 6, tzinfo=UTC)
    policy = Policy.parse("last 1 day")
    assert policy.keep([early, later], NOW) == {early, later}
    assert policy.keep([early, later], NOW.astimezone(UTC)) == {later}


def test_equal_times_are_one() -> None:
    time = NOW - timedelta(hours=1)
    older = NOW - timedelta(hours=2)
    policy = Policy.parse("last 2 snapshots")
    assert policy.keep([time, time, time.astimezone(UTC), older], NOW) == {time, older}


@given(rule_lists, nows)
def test_of_nothing_nothing_is_kept(rules: list[str], now: datetime) -> None:
    assert Policy.parse(", ".join(rules)).keep([], now) == set()


@given(rule_lists, histories, nows)
def test_what_is_kept_is_some_of_what_there_is(
    rules: list[str], times: list[datetime], now: datetime
) -> None:
    assert Policy.parse(", ".join(rules)).keep(times, now) <= set(times)


@given(rule_lists, rule_lists, histories, nows)
def test_a_further_rule_removes_nothing_and_a_policy_is_the_union_of_its_rules(
    rules: list[str], more: list[str], times: list[datetime], now: datetime
) -> None:
    def keep(rules: list[str]) -> set[datetime]:
        return Policy.parse(", ".join(rules)).keep(times, now)

    assert keep(rules) <= keep(rules + more)
    assert keep(rules + more) == keep(rules) | keep(more)
    assert keep(rules + more) == keep(more + rules + more)


@given(
    rule_lists, histories, nows, st.lists(st.integers(1, 10**7).map(lambda n: timedelta(seconds=n)))
)
def test_newer_snapshots_bring_nothing_back(
    rules: list[str], times: list[datetime], now: datetime, gaps: list[timedelta]
) -> None:
    policy = Policy.parse(", ".join(rules))
    newest = max(times, default=now)
    newer = [newest + gap for gap in gaps]
    assert policy.keep([*times, *newer], now) & set(times) <= policy.keep(times, now)


@given(rule_lists, histories, nows)
def test_keeping_twice_is_keeping_once(
    rules: list[str], times: list[datetime], now: datetime
) -> None:
    policy = Policy.parse(", ".join(rules))
    once = policy.keep(times, now)
    assert policy.keep(list(once), now) == once


@given(rule_lists, histories, nows)
def test_no_policy_loses_the_newest(rules: list[str], times: list[datetime], now: datetime) -> None:
    found = Policy.parse(", ".join(rules)).keep(times, now)
    past = [time for time in times if time <= now]
    assert not times or max(times) in found
    assert not past or max(past) in found


@given(rule_lists, histories, nows, st.randoms())
def test_the_order_of_the_snapshots_does_not_matter(
    rules: list[str], times: list[datetime], now: datetime, chance: random.Random
) -> None:
    policy = Policy.parse(", ".join(rules))
    shuffled = sorted(times, key=lambda _: chance.random())
    assert policy.keep(times, now) == policy.keep(shuffled + times, now)

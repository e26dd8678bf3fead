"""What expiry decides, and what it never does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.expiry import carried_out
from turku_core.clock import ClockState, Reading, judge_clock
from turku_core.retention import Policy
from turku_core.storage.expiry import Decision, decide
from turku_core.storage.records import Record

DAY = timedelta(days=1)
GRACE = timedelta(days=7)
START = datetime(2026, 1, 1, 3, 0, tzinfo=timezone.utc)
DEFAULT = Policy.parse("last 5 days, earliest of month")


def make_record(taken_at: datetime, **values: object) -> Record:
    """Return a committed snapshot of that time."""
    return replace(
        Record(
            machine="6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            source="docs",
            id=taken_at.strftime("%Y%m%dT%H%M%SZ"),
            taken_at=taken_at,
            time_end=taken_at,
            mode="borg",
        ),
        **values,  # type: ignore[arg-type] # the fields are checked by the dataclass
    )


class History:
    """A source over simulated days: what a worker does after each backup, and daily."""

    def __init__(self, policy: Policy, floor: int = 3, grace: timedelta = GRACE) -> None:
        self.policy, self.floor, self.grace = policy, floor, grace
        self.records: list[Record] = []

    def back_up(self, at: datetime, **values: object) -> None:
        previous = max((record.taken_at for record in self.records), default=None)
        self.records.append(make_record(at, previous_at=previous, **values))

    def expire(self, now: datetime, *, full: bool = False, problem: str | None = None) -> Decision:
        decision = decide(
            self.records,
            self.policy,
            now,
            floor=self.floor,
            grace=self.grace,
            clock_problem=problem,
        )
        self.records = carried_out(decision, self.records, now, is_full=full)
        return decision

    def days(self, count: int, begin: datetime) -> datetime:
        for number in range(count):
            self.back_up(begin + number * DAY)
            self.expire(begin + number * DAY + timedelta(hours=1))
        return begin + count * DAY

    def alive(self) -> list[datetime]:
        return sorted(record.taken_at for record in self.records if record.expired_at is None)


def test_daily_backups_leave_exactly_what_the_policy_keeps() -> None:
    history = History(Policy.parse("last 5 days, earliest of 1 month, earliest of 2 months"))
    begin = datetime(2026, 9, 1, 3, tzinfo=timezone.utc)
    history.days(106, begin)
    assert [time.date().isoformat() for time in history.alive()] == [
        "2026-11-01",
        "2026-12-01",
        "2026-12-11",
        "2026-12-12",
        "2026-12-13",
        "2026-12-14",
        "2026-12-15",
    ]


def test_daily_backups_on_a_full_volume_leave_what_the_policy_keeps() -> None:
    history = History(Policy.parse("last 5 days, earliest of month"), grace=timedelta(0))
    history.days(106, datetime(2026, 9, 1, 3, tzinfo=timezone.utc))
    assert len(history.records) == 6


def test_an_expired_snapshot_is_removed_after_the_grace_period_and_not_before() -> None:
    history = History(DEFAULT)
    now = history.days(20, START + 5 * DAY)
    expired = [record for record in history.records if record.expired_at is not None]
    assert expired
    for record in expired:
        assert record.expired_at is not None
        assert now - record.expired_at <= GRACE + DAY


def test_a_volume_over_its_mark_offers_what_has_expired_oldest_first() -> None:
    history = History(DEFAULT)
    now = history.days(12, START)
    decision = history.expire(now)
    offered = [record.taken_at for record in decision.remove_when_full]
    assert offered == sorted(offered)
    assert all(record.expired_at is not None for record in decision.remove_when_full)


def test_prior_art_04_a_policy_cut_short_removes_nothing_before_the_grace_period() -> None:
    history = History(Policy.parse("last 30 days"))
    now = history.days(25, START)
    before = len(history.records)
    history.policy = Policy.parse("last 1 snapshots")
    history.back_up(now)
    history.expire(now)
    assert len(history.records) == before + 1
    assert len(history.alive()) == 3
    history.policy = Policy.parse("last 30 days")
    decision = history.expire(now + 3 * DAY)
    assert len(decision.unexpire) == len(history.records) - 3
    assert len(history.alive()) == len(history.records)


def test_prior_art_18_after_40_days_offline_the_first_backup_expires_nothing() -> None:
    history = History(DEFAULT)
    now = history.days(20, START)
    before = set(history.alive())
    back = now + 40 * DAY
    for _ in range(40):
        now += DAY
        history.expire(now)
    assert before <= set(history.alive())
    history.back_up(back)
    decision = history.expire(back)
    assert decision.expire == ()
    assert before <= set(history.alive())
    assert "away" in decision.held[0]


def test_prior_art_18_a_source_that_is_back_for_a_week_follows_its_policy_again() -> None:
    history = History(DEFAULT)
    now = history.days(20, START) + 40 * DAY
    now = history.days(7, now)
    assert len(history.alive()) > 7
    history.days(1, now)
    assert len(history.alive()) <= 7


def test_prior_art_18_a_clock_400_days_ahead_expires_nothing() -> None:
    history = History(DEFAULT)
    now = history.days(20, START)
    before = len(history.records)
    history.back_up(now + 400 * DAY)
    decision = history.expire(now + 400 * DAY, problem="the clock jumped.")
    assert decision.expire == () == decision.remove
    assert len(history.records) == before + 1


def test_a_source_that_is_not_backed_up_any_more_keeps_its_history_for_ever() -> None:
    history = History(DEFAULT)
    now = history.days(20, START)
    alive = history.alive()
    for number in range(400):
        history.expire(now + number * DAY)
    assert history.alive() == alive


def test_a_monthly_source_is_not_taken_for_one_that_was_away() -> None:
    history = History(Policy.parse("last 4 snapshots"))
    for number in range(12):
        now = START + number * 30 * DAY
        history.back_up(now)
        history.expire(now)
    assert len(history.alive()) == 4


def test_snapshots_from_the_future_stay_and_do_not_displace_others() -> None:
    history = History(Policy.parse("last 3 snapshots"))
    now = history.days(3, START)
    for number in range(5):
        history.back_up(now + 400 * DAY + number * DAY)
    decision = history.expire(now)
    assert decision.expire == ()
    assert "future" in decision.held[0]


def test_damaged_and_partial_snapshots_do_not_count_as_good() -> None:
    history = History(Policy.parse("last 1 snapshot"), floor=1)
    history.back_up(START)
    history.back_up(START + DAY, partial=True)
    history.back_up(START + 2 * DAY, damaged="bad")
    history.expire(START + 2 * DAY)
    kept = [record.id for record in history.records if record.expired_at is None]
    assert make_record(START).id in kept
    assert make_record(START + DAY).id in kept


def test_where_there_are_only_partial_snapshots_they_are_the_floor() -> None:
    history = History(Policy.parse("last 1 snapshot"))
    for number in range(6):
        history.back_up(START + number * DAY, partial=True)
    history.expire(START + 5 * DAY)
    assert len(history.alive()) == 3


def test_an_operator_removes_at_once_but_never_the_floor() -> None:
    history = History(Policy.parse("last 1 snapshot"))
    for number in range(6):
        history.back_up(START + number * DAY)
    decision = decide(history.records, history.policy, START + 5 * DAY, remove_now=True)
    assert [record.taken_at for record in decision.remove] == [
        START,
        START + DAY,
        START + 2 * DAY,
    ]


def test_what_an_administrator_protected_never_expires() -> None:
    history = History(Policy.parse("last 1 snapshot"))
    history.back_up(START, protected=True)
    for number in range(1, 6):
        history.back_up(START + number * DAY)
    history.expire(START + 5 * DAY)
    assert START in history.alive()


@given(
    gaps=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    kinds=st.lists(st.sampled_from(["good", "partial", "damaged"]), min_size=40, max_size=40),
    policy=st.sampled_from(
        [
            "last 1 snapshot",
            "last 5 days, earliest of month",
            "earliest of 3 weeks",
            "earliest of 2 years",
        ]
    ),
    floor=st.integers(0, 5),
    full=st.booleans(),
    later=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_newest_good_snapshots_stay(
    gaps: Sequence[int], kinds: Sequence[str], policy: str, floor: int, full: bool, later: int
) -> None:
    history = History(Policy.parse(policy), floor=floor)
    now = START
    good: list[datetime] = []
    for gap, kind in zip(gaps, kinds, strict=False):
        now += gap * DAY + timedelta(hours=1)
        history.back_up(
            now, partial=kind == "partial", damaged="bad" if kind == "damaged" else None
        )
        if kind == "good":
            good.append(now)
        history.expire(now, full=full)
    for _ in range(3):
        now += later * DAY
        history.expire(now, full=full)
    assert set(good[-max(floor, 1) :]) <= set(history.alive())
    times = [record.taken_at for record in history.records if record.damaged is None]
    assert not times or max(times) in history.alive()


@given(days=st.integers(1, 120), away=st.integers(15, 2000), back=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_no_absence_however_long_expires_what_was_kept_before_it(
    days: int, away: int, back: int
) -> None:
    history = History(DEFAULT)
    now = history.days(days, START)
    before = set(history.alive())
    history.days(back, now + away * DAY)
    assert before <= set(history.alive())


def reading(days: float, *, uptime_days: float, boot: str = "a") -> Reading:
    return Reading(START + days * DAY, boot, uptime_days * 86400)


def judged(*readings: Reading) -> ClockState:
    state: ClockState | None = None
    for each in readings:
        state = judge_clock(state, each)
    assert state is not None
    return state


def test_a_clock_that_goes_evenly_is_trusted() -> None:
    assert judged(*(reading(n, uptime_days=n) for n in range(30))).problem is None


def test_a_restart_within_a_week_is_no_jump() -> None:
    state = judged(reading(0, uptime_days=5), reading(6, uptime_days=0.1, boot="b"))
    assert state.problem is None


def test_prior_art_18_a_clock_that_jumped_ahead_is_not_trusted_until_it_is_back() -> None:
    ahead = [reading(0, uptime_days=0), reading(400.1, uptime_days=0.1)]
    assert "ahead" in (judged(*ahead).problem or "")
    assert judged(*ahead, reading(0.2, uptime_days=0.2)).problem is None


def test_a_clock_that_jumped_is_trusted_after_a_week_of_going_evenly() -> None:
    readings = [reading(0, uptime_days=0)]
    readings += [reading(400 + n / 2, uptime_days=n / 2) for n in range(1, 30)]
    states = [judged(*readings[: end + 1]).problem for end in range(len(readings))]
    assert states[1] is not None
    assert states[14] is not None
    assert states[-1] is None


def test_a_unit_that_was_off_for_40_days_waits() -> None:
    state = judged(reading(0, uptime_days=5), reading(40, uptime_days=0.1, boot="b"))
    assert "wasn't running" in (state.problem or "")


def test_a_clock_that_starts_in_the_past_is_forgiven_once_it_is_set() -> None:
    past = [reading(0, uptime_days=5), reading(-9000, uptime_days=0.001, boot="b")]
    assert "back" in (judged(*past).problem or "")
    assert judged(*past, reading(0.1, uptime_days=0.002, boot="b")).problem is None


def test_of_a_held_source_nothing_expires_or_is_removed_and_what_is_wanted_comes_back() -> None:
    history = History(Policy.parse("last 1 snapshots"))
    end = history.days(20, START)
    assert [record for record in history.records if record.expired_at]
    for full in (False, True):
        for now in (end, end + 1000 * DAY):
            decision = decide(history.records, history.policy, now, hold="All changed.", floor=15)
            assert (decision.expire, decision.remove, decision.remove_when_full) == ((), (), ())
            assert decision.held[-1] == "All changed."
            assert decision.unexpire
            assert (
                decide(
                    history.records, history.policy, now, hold="All changed.", remove_now=full
                ).remove
                == ()
            )

"""Clocks that jump, on each part alone, clock changes, leap days: nothing is lost or done twice."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from django.test.utils import override_settings

from tests.faults.tally import FULL, Tally, times
from tests.support import api_django  # noqa: F401  (chooses Django's settings)
from tests.support.api_world import AgentCaller, UnitCaller, World
from tests.support.expiry import carried_out
from turku_core.retention import Policy
from turku_core.schedule import Schedule
from turku_core.storage.clock import ClockState, Reading, judge_clock
from turku_core.storage.expiry import decide
from turku_core.storage.records import Record

UTC = timezone.utc
STEP = timedelta(minutes=30)
"""Between the check-ins of these machines."""

START = datetime(2026, 3, 11, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TEN_YEARS = timedelta(days=3653)
ALL_JUMPS = (HOUR, DAY, TEN_YEARS, -HOUR, -DAY, -TEN_YEARS)
JUMPS = ALL_JUMPS if FULL else (DAY, -DAY, -TEN_YEARS)
SCHEDULES = {
    "day": "daily",
    "night": "daily, 0200-0430",
    "hours": "hourly",
    "office": "hourly, 0900-1700",
    "cron": "cron H 3 * * *",
}


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """An API whose clock a test sets."""
    return World(START, monkeypatch)


@dataclass
class Run:
    """A backup: when it truly was, and by the API's clock."""

    source: str
    true: datetime
    api: datetime


@dataclass
class Fleet:
    """A machine and a storage unit, each with a clock of its own that may be off."""

    world: World
    agent: AgentCaller
    unit: UnitCaller
    true: datetime
    off: dict[str, timedelta] = field(
        default_factory=lambda: {"api": timedelta(), "unit": timedelta()}
    )
    runs: list[Run] = field(default_factory=list)
    began: datetime = START
    dates: set[date] = field(default_factory=set)
    """The days that the API's clock has shown."""

    def go_on(self, duration: timedelta, *, zone: ZoneInfo | None = None) -> None:
        """Let time go by, with a check-in and what follows from it every half hour."""
        end = self.true + duration
        while self.true < end:
            self.true += STEP
            self.step(zone)

    def step(self, zone: ZoneInfo | None = None) -> None:
        """Check in, and back up what is due."""
        now = self.world.now = self.true + self.off["api"]
        self.dates.add(now.astimezone(zone or UTC).date())
        self.unit.update()
        scheduled = self.agent.check_in()
        if not scheduled:
            return
        session = self.unit.open_session(self.agent).json["machine"]["scheduled_sources"]
        clock = (self.true + self.off["unit"]).timestamp()
        for name in scheduled:
            assert name in session
            self.runs.append(Run(name, self.true, now))
            result = {
                "success": True,
                "snapshot": f"snapshot-{len(self.runs)}",
                "summary": "",
                "time_begin": clock,
                "time_end": clock + 30,
            }
            machine = {"uuid": self.agent.uuid, "sources": {name: result}}
            storage = {**self.unit.login["storage"], "time": clock + 31}
            request = {"storage": storage, "machine": machine}
            for _ in range(2):  # as when the answer was lost
                assert self.world.call("storage_ping_source_update", request).status == 200
            row = self.agent.source(name)
            assert row.lease_until is None, "the slot is not given back"
            assert row.failures == 0

    def count(self, since: datetime | None = None) -> Counter[str]:
        """Return how often each source was backed up."""
        return Counter(run.source for run in self.runs if since is None or run.true > since)


def make_fleet(world: World, schedules: dict[str, str], start: datetime = START) -> Fleet:
    world.now = start
    unit = world.unit()
    sources = {
        name: {"path": f"/srv/{name}", "frequency": frequency}
        for name, frequency in schedules.items()
    }
    agent = world.agent(sources=sources)
    return Fleet(world, agent, unit, start, began=start)


def made_twice(fleet: Fleet, schedules: dict[str, str], zone: ZoneInfo | None = None) -> int:
    """Return how many runs were made in a window that had one, after the source was made.

    A window is told by the API's clock. Where that was a day ahead, it comes a second time, and
    truly is another one. Without hours a window may have two: the late run of the one before, and
    its own.
    """
    found = Counter(
        (run.source, run.api - run.true >= DAY, window[0].astimezone(UTC))
        for run in fleet.runs
        if run.api > fleet.began and (window := window_of(run, schedules, zone)) is not None
    )
    return sum(
        max(0, count - (1 if "," in schedules[source] else 2))
        for (source, _, _), count in found.items()
    )


def window_of(
    run: Run, schedules: dict[str, str], zone: ZoneInfo | None
) -> tuple[datetime, datetime] | None:
    """Return the window that was open when a run began, by the API's clock."""
    return Schedule.parse(schedules[run.source]).window("", run.api.astimezone(zone or UTC))


def outside_windows(fleet: Fleet, schedules: dict[str, str], zone: ZoneInfo | None = None) -> int:
    """Return how many runs began when their schedule has no window open, by the API's clock."""
    return sum(window_of(run, schedules, zone) is None for run in fleet.runs)


@pytest.mark.parametrize("jump", [*JUMPS, timedelta(minutes=-3)], ids=str)
def test_a_storage_unit_whose_clock_jumps_changes_nothing_of_when_backups_are_made(
    world: World, tally: Tally, dice: random.Random, jump: timedelta
) -> None:
    fleet = make_fleet(world, SCHEDULES)
    count = times(1, 10)
    for _ in range(count):
        fleet.go_on(dice.randrange(4, 40) * STEP)
        fleet.off["unit"] = jump
        fleet.go_on(dice.randrange(40, 60) * STEP)
        fleet.off["unit"] = timedelta()
    fleet.go_on(DAY)
    days = (fleet.true - fleet.began) / DAY
    for name in ("day", "night", "cron"):
        # One more at once, when the source is new.
        assert days - 1.5 <= fleet.count()[name] <= days + 2
    wrong = made_twice(fleet, SCHEDULES) + outside_windows(fleet, SCHEDULES)
    tally.note("the storage unit's clock jumps, and back", times=2 * count, lost=wrong)
    assert wrong == 0


@pytest.mark.parametrize("jump", JUMPS, ids=str)
def test_an_api_whose_clock_jumps_and_comes_back_backs_up_nothing_twice_and_goes_on(
    world: World, tally: Tally, dice: random.Random, jump: timedelta
) -> None:
    fleet = make_fleet(world, SCHEDULES)
    fleet.go_on(DAY)
    count = times(1, 10)
    for _ in range(count):
        for off in (jump, timedelta()):
            fleet.off["api"] = off
            fleet.go_on(dice.randrange(2, 40) * STEP)
    back = fleet.true
    fleet.go_on(1.3 * DAY)
    wrong = made_twice(fleet, SCHEDULES) + outside_windows(fleet, SCHEDULES)
    late = [name for name in SCHEDULES if fleet.count(since=back)[name] == 0]
    tally.note("the API's clock jumps, and back", times=2 * count, lost=wrong + len(late))
    assert (wrong, late) == (0, [])
    # Where no run is known of, one is made at once: after the jump to before the source was made.
    assert fleet.count()["day"] <= len(fleet.dates) + 1 + count


ZONES = [
    ("Europe/Berlin", datetime(2026, 3, 27, 12, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 23, 12, tzinfo=UTC)),
    ("UTC", datetime(2028, 2, 27, 12, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 3, 12, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 30, 12, tzinfo=UTC)),
]
OF_A_NIGHT = {"day": "daily", "night": "daily, 0130-0330", "hours": "hourly", "late": "daily, 2300"}


@pytest.mark.parametrize(("name", "start"), ZONES if FULL else ZONES[1:3])
def test_each_day_has_its_run_when_clocks_are_changed_and_on_a_leap_day(
    world: World, tally: Tally, name: str, start: datetime
) -> None:
    zone = ZoneInfo(name)
    with override_settings(TIME_ZONE=name):
        fleet = make_fleet(world, OF_A_NIGHT, start)
        fleet.go_on(3 * DAY, zone=zone)
    wrong = made_twice(fleet, OF_A_NIGHT, zone) + outside_windows(fleet, OF_A_NIGHT, zone)
    # The first day and the last aren't whole ones.
    whole = sorted(fleet.dates)[1:-1]
    assert len(whole) >= 2
    for source in ("day", "night", "late"):
        runs = Counter(
            run.api.astimezone(zone).date() for run in fleet.runs if run.source == source
        )
        if source == "day":
            # The moment of a day may come before the run that a new source has at once.
            runs.subtract({fleet.runs[0].api.astimezone(zone).date(): 1})
        wrong += sum(runs[day] != 1 for day in whole)
    hours = Counter(run.api.replace(minute=0) for run in fleet.runs if run.source == "hours")
    wrong += sum(count > 2 for count in hours.values())
    tally.note("clocks are changed, leap day, end of a month", times=len(whole), lost=wrong)
    assert wrong == 0


@dataclass
class Store:
    """A source on a storage unit whose clock may be off: daily snapshots, and expiry."""

    records: list[Record] = field(default_factory=list)
    clock: ClockState | None = None
    truly: dict[str, int] = field(default_factory=dict)
    """On which day each snapshot was truly taken."""

    def day(self, number: int, off: timedelta) -> int:
        """Let a day go by; return how many snapshots were expired or removed in it."""
        changed = 0
        for part in range(4):
            true = START + number * DAY + part * timedelta(hours=6)
            now = true + off
            if part == 0:
                self._back_up(number, now)
            uptime = (true - START).total_seconds()
            self.clock = judge_clock(self.clock, Reading(now, "boot", uptime))
            made = decide(self.records, POLICY, now, clock_problem=self.clock.problem)
            changed += len(made.expire) + len(made.remove)
            self.records = carried_out(made, self.records, now)
        return changed

    def _back_up(self, number: int, now: datetime) -> None:
        name = f"snapshot-{number}"
        previous = max((record.taken_at for record in self.records), default=None)
        record = Record("machine", "docs", name, now, now, "link-dest", previous_at=previous)
        self.records.append(record)
        self.truly[name] = number

    def held(self, *, expired: bool) -> set[int]:
        """Return the days whose snapshots are there, with those that have expired or without."""
        kept = [record for record in self.records if expired or record.expired_at is None]
        return {self.truly[record.id] for record in kept}


POLICY = Policy.parse("last 10 days, earliest of 3 months")


@pytest.mark.parametrize("jump", [*ALL_JUMPS], ids=str)
def test_a_storage_unit_whose_clock_jumps_expires_nothing_that_a_right_one_would_keep(
    tally: Tally, dice: random.Random, jump: timedelta
) -> None:
    count, lost, expired = times(10, 200), 0, 0
    for _ in range(count):
        unit, twin = Store(), Store()
        begins = dice.randrange(20, 90)
        ends = begins + dice.randrange(1, 7)
        for number in range(ends + 3):
            off = jump if begins <= number < ends else timedelta()
            changed = unit.day(number, off)
            twin.day(number, timedelta())
            if abs(off) > HOUR:
                expired += changed
            lost += len(twin.held(expired=False) - unit.held(expired=True))
    tally.note("the storage unit's clock jumps: what expires", times=count, lost=lost + expired)
    assert (lost, expired) == (0, 0)

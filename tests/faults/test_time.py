"""Clocks that jump, on each part alone, clock changes, leap days: nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test.utils import override_settings

from tests.faults.bad_api import bad_api
from tests.faults.site import PLAIN, SOURCE, Site, running_site
from tests.faults.tally import FULL, Tally, times
from tests.support import api_django  # noqa: F401  (chooses Django's settings)
from tests.support.api_world import AgentCaller, UnitCaller, World
from tests.support.expiry import carried_out
from turku_core.api.certificates import CLOCK_DIFFERENCE, SERVER_LIFETIME, ensure_certificates
from turku_core.api.models import Backup, Outcome, RestoreGrant
from turku_core.api.overdue import Kind, find_behind
from turku_core.clock import ClockState, Reading, judge_clock
from turku_core.protocol.client import ApiUnreachable, Client
from turku_core.retention import Policy
from turku_core.schedule import Schedule
from turku_core.storage.expiry import decide
from turku_core.storage.records import Record

UTC = timezone.utc
SECONDS = 240.0
"""In which a program has to end, however busy the host is."""

STEP = timedelta(minutes=30)
"""Between the check-ins of these machines."""

START = datetime(2026, 3, 11, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TEN_YEARS = timedelta(days=3653)
ALL_JUMPS = (HOUR, DAY, TEN_YEARS, -HOUR, -DAY, -TEN_YEARS)
JUMPS = ALL_JUMPS if FULL else (-TEN_YEARS,)
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
    excursion: int
    """The how-manieth time it is that the API's clock is ahead by a day or more; 0: it isn't."""


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
    steps: int = 0
    excursions: int = 0
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
        if self.steps % 12 == 0:
            self.unit.update()
        self.steps += 1
        scheduled = self.agent.check_in()
        if not scheduled:
            return
        session = self.unit.open_session(self.agent).json["machine"]["scheduled_sources"]
        clock = (self.true + self.off["unit"]).timestamp()
        for name in scheduled:
            assert name in session
            is_ahead = self.off["api"] >= DAY
            run = Run(name, self.true, now, self.excursions if is_ahead else 0)
            self.runs.append(run)
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

    A window is told by the API's clock. Where that was a day ahead, it comes again each time, and
    truly is another one. Without hours a window may have two: the late run of the one before, and
    its own.
    """
    found = Counter(
        (run.source, run.excursion, window[0].astimezone(UTC))
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


@pytest.mark.parametrize("jump", [*ALL_JUMPS, timedelta(minutes=-3)] if FULL else [DAY], ids=str)
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
            fleet.excursions += 1
            fleet.go_on(dice.randrange(2, 40) * STEP)
    back = fleet.true
    fleet.go_on(1.3 * DAY)
    wrong = made_twice(fleet, SCHEDULES) + outside_windows(fleet, SCHEDULES)
    late = [name for name in SCHEDULES if fleet.count(since=back)[name] == 0]
    tally.note("the API's clock jumps, and back", times=2 * count, lost=wrong + len(late))
    assert (wrong, late) == (0, [])
    # Where no run is known of, one is made at once: after the jump to before the source was made.
    assert fleet.count()["day"] <= len(fleet.dates) + 1 + count


WEEKS = range(798, 0, -14)
"""How many days ago there was a backup: for twice as long as records are kept."""


@pytest.mark.parametrize("jump", ALL_JUMPS if FULL else [TEN_YEARS], ids=str)
def test_an_api_whose_clock_jumps_deletes_nothing_that_a_right_one_would_keep(
    world: World,
    tally: Tally,
    dice: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    jump: timedelta,
) -> None:
    start, retention = world.now, timedelta(days=settings.TURKU_RECORD_RETENTION_DAYS)
    true = start
    # What tells of a jump is how long the host has been up.
    monkeypatch.setattr(time, "clock_gettime", lambda _: (true - start).total_seconds())
    unit, agent, other = world.unit(), world.agent(), world.agent("old")
    # Without a good run for long: its last one is older than what is kept.
    world.now = start - 2 * retention
    assert unit.report_run(other).status == 200
    for days in WEEKS:
        world.now = start - timedelta(days=days)
        assert unit.report_run(agent).status == 200
    RestoreGrant.objects.create(
        machine=agent.row, from_machine=other.row, until=start + timedelta(days=300)
    )
    lost, count = 0, times(1, 10)
    good = Backup.objects.filter(outcome=Outcome.SUCCEEDED)
    for _ in range(count):
        for off in (timedelta(), jump, timedelta()):
            for _ in range(dice.randrange(1, 30)):
                true += HOUR
                world.now = true + off
                with contextlib.redirect_stdout(None):
                    call_command("housekeeping", json=True)
        wanted = sum(start - timedelta(days=days) > true - retention for days in WEEKS)
        lost += wanted - good.filter(recorded_at__gt=true - retention).count()
        lost += 1 - RestoreGrant.objects.count()
        lost += 1 - good.filter(source=other.source()).count()
    tally.note("the API's clock jumps, and back: what is deleted", times=2 * count, lost=lost)
    assert lost == 0
    # By a right clock, what is old is deleted.
    old = good.filter(recorded_at__lte=true - retention)
    assert [each.source for each in old] == [other.source()]


ZONES = [
    ("Europe/Berlin", datetime(2026, 3, 27, 12, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 23, 12, tzinfo=UTC)),
    ("UTC", datetime(2028, 2, 27, 12, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 3, 12, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 30, 12, tzinfo=UTC)),
]
OF_A_NIGHT = {"day": "daily", "night": "daily, 0130-0330", "hours": "hourly", "late": "daily, 2300"}


@pytest.mark.parametrize(("name", "start"), ZONES if FULL else ZONES[1:2])
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


def missing(unit: Store, twin: Store) -> set[int]:
    """Return the days of which the twin keeps the snapshot, and the unit has nothing.

    What the unit removed later may be an earlier one of the month than any that the twin has left:
    then it is the one that the policy asks for.
    """
    only_here = unit.held(expired=False) - twin.held(expired=True)
    gone = twin.held(expired=False) - unit.held(expired=True)
    return {day for day in gone if not any(earlier < day for earlier in only_here)}


POLICY = Policy.parse("last 10 days, earliest of 3 months")


@pytest.mark.parametrize("jump", [*ALL_JUMPS], ids=str)
def test_a_storage_unit_whose_clock_jumps_expires_nothing_that_a_right_one_would_keep(
    tally: Tally, dice: random.Random, jump: timedelta
) -> None:
    count, lost, expired = times(2, 50), 0, 0
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
            lost += len(missing(unit, twin))
    tally.note("the storage unit's clock jumps: what expires", times=count, lost=lost + expired)
    assert (lost, expired) == (0, 0)


CLOCK = """\
import datetime, os, time

off, true = float(os.environ["OFF"]), time.time


class Instances(type):
    def __instancecheck__(cls, value):
        return isinstance(value, plain)


class Wrong(datetime.datetime, metaclass=Instances):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(true() + off, tz)


plain, datetime.datetime, time.time = datetime.datetime, Wrong, lambda: true() + off
with open(os.environ["OFF_TOLD"], "a") as told:
    told.write(datetime.datetime.now().isoformat() + "\\n")
"""
"""A clock that is off by so many seconds, for a program in Python and those it starts."""


@contextlib.contextmanager
def machine_clock(site: Site, off: timedelta) -> Iterator[None]:
    """Let the machine's programs and files live at another time while the context lasts."""
    folder = site.folder / "clock"
    folder.mkdir(exist_ok=True)
    told = folder / "told"
    told.write_text("")
    (folder / "sitecustomize.py").write_text(CLOCK)
    wrong = {
        "OFF": str(off.total_seconds()),
        "OFF_TOLD": str(told),
        "PYTHONPATH": str(folder),
    }
    began = time.time()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wrong.items():
            patch.setenv(name, value)
        yield
    assert told.read_text(), "nothing ran by that clock"
    for path in site.machine.root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            at = path.lstat().st_mtime
            if at >= began - 1 and not path.is_symlink():
                os.utime(path, (at + off.total_seconds(),) * 2)


@pytest.mark.needs_root
@pytest.mark.parametrize("part", range(3) if FULL else [0])
def test_a_machine_whose_clock_jumps_is_backed_up_as_any_other(
    tally: Tally, dice: random.Random, part: int
) -> None:
    jumps = list(ALL_JUMPS[2 * part : 2 * part + 2]) if FULL else [dice.choice(ALL_JUMPS)]
    jumps *= times(1, 4)
    lost = 0
    with running_site(dice, PLAIN) as site:
        for number, jump in enumerate(jumps):
            before = count_runs(site)
            site.later()
            lost += back_up_by_the_clock(site, jump, f"comment {number}")
            # It comes back: nothing is made up for, and nothing waits for that other time.
            see_idle(site)
            site.settle(SECONDS)
            lost += count_runs(site) - before - times(1, 2)
            site.clean_run()
            lost += site.count_lost()
    tally.note("a machine's clock jumps, and back", times=2 * len(jumps), lost=lost)
    assert lost == 0


def back_up_by_the_clock(site: Site, jump: timedelta, comment: str) -> int:
    """Do all that a machine does while its clock is off; return how many files came wrong."""
    state = site.change()
    site.make_due()
    with machine_clock(site, jump):
        done = site.ping(seconds=SECONDS)
        assert done.exit_code == 0, (done, site.log()[-2000:])
        site.turku.wait_until_committed(SECONDS)
        assert state in site.held().values()
        see_idle(site)
        if not FULL:
            return 0
        state = site.change()
        site.machine.write_source(SOURCE, {"path": str(site.source), "comment": comment})
        for command in (
            ("turku-update-config",),
            ("turku-agent-ping", "--backup-now"),
            ("turku-agent-ping", "--status"),
        ):
            done = site.run(*command, seconds=SECONDS)
            assert done.exit_code == 0, (done, site.log()[-2000:])
        site.turku.wait_until_committed(SECONDS)
        assert state in site.held().values()
        return site.restore()


def see_idle(site: Site) -> None:
    """See that the machine checks in, and that nothing is due."""
    done = site.run("turku-agent-ping", "--verbose", seconds=SECONDS)
    assert (done.exit_code, "nothing is due" in done.errors) == (0, True), done


def count_runs(site: Site) -> int:
    """Return how many good runs the API knows of, each at the time that it truly was."""
    with site.database() as rows:
        query = "SELECT time_begin, time_end FROM turku_api_backup WHERE outcome = 'succeeded'"
        runs = rows.execute(query).fetchall()
    now = datetime.now(UTC)
    for text in (text for run in runs for text in run):
        assert abs(now - datetime.fromisoformat(text).replace(tzinfo=UTC)) < HOUR
    return len(runs)


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (timedelta(), None),
        (HOUR, None),
        (-HOUR, None),
        (DAY, None),
        (HOUR - CLOCK_DIFFERENCE, None),
        (-HOUR - CLOCK_DIFFERENCE, "not yet valid"),
        (-TEN_YEARS, "not yet valid"),
        (SERVER_LIFETIME - DAY, None),
        (SERVER_LIFETIME + DAY, "expired"),
        (TEN_YEARS, "expired"),
    ],
    ids=str,
)
def test_a_machine_whose_clock_is_wrong_by_years_says_that_the_certificate_is_not_valid(
    tmp_path: Path, tally: Tally, dice: random.Random, off: timedelta, said: str | None
) -> None:
    # The certificate is as old as it would seem to be.
    made_at = datetime.now(UTC) - off
    with bad_api(tmp_path / "api", "https://127.0.0.1:9", ["127.0.0.1"], dice, made_at) as api:
        api.spoil("agent_ping_checkin", "empty object")
        client = Client([api.url()], api.ca_certificate)
        if said is None:
            assert client.call("agent_ping_checkin", {}) == {}
        else:
            with pytest.raises(ApiUnreachable, match=f"its certificate isn't trusted .*{said}"):
                client.call("agent_ping_checkin", {"secret": "secret"})
            assert api.plan.struck == 0, "it said its secret"
    tally.note("a machine whose clock is off looks at the API's certificate")


@pytest.mark.parametrize("jump", ALL_JUMPS, ids=str)
def test_an_api_whose_clock_was_wrong_has_a_valid_certificate_when_it_next_keeps_house(
    tmp_path: Path, tally: Tally, dice: random.Random, jump: timedelta
) -> None:
    now, folder = datetime.now(UTC), tmp_path / "api"
    authority = ensure_certificates(folder, ["127.0.0.1"], now).ca_certificate.read_bytes()
    ensure_certificates(folder, ["127.0.0.1"], now + jump)
    # As housekeeping does, every hour, when the clock is right again.
    with bad_api(folder, "https://127.0.0.1:9", ["127.0.0.1"], dice, now) as api:
        assert api.ca_certificate.read_bytes() == authority
        api.spoil("agent_ping_checkin", "empty object")
        assert Client([api.url()], api.ca_certificate).call("agent_ping_checkin", {}) == {}
    tally.note("the API's clock jumps, and back: its certificate")


def test_a_machine_that_does_not_check_in_is_overdue_and_is_backed_up_when_it_does(
    world: World, tally: Tally
) -> None:
    fleet = make_fleet(world, {"day": "daily"})
    fleet.go_on(DAY)
    last = fleet.true
    fleet.true += 2 * DAY
    (behind,) = find_behind(fleet.true)
    assert behind.kind is Kind.MISSED
    assert "The machine was last seen" in behind.reason
    fleet.go_on(HOUR)
    assert fleet.count(since=last)["day"] == 1
    assert find_behind(world.now) == []
    tally.note("a machine that its clock keeps away")

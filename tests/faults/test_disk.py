"""A disk that is full, read-only, gone, over its quota or cut off from power, at each step."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.faults.disks import Disk, made_disk
from tests.faults.station import (
    LATER,
    Station,
    Steps,
    change_tree,
    day,
    id_of,
    patched,
)
from tests.faults.tally import FULL, SEED, Tally, times
from tests.integration.snapshots.support import MACHINE, serve
from tests.support.mounts import own_mounts
from tests.support.trees import Entry
from turku_core import clock
from turku_core.errors import TurkuError
from turku_core.storage import programs
from turku_core.storage.mirror import Daemon
from turku_core.storage.volumes import RESERVE

pytestmark = pytest.mark.needs_root

OLD = 4
"""How many days are backed up before the fault; the first of them has expired."""

NEW, LAST = day(OLD), day(OLD + 9)
"""When the backup is made that the fault strikes, and the one after it."""

REMOVAL = day(OLD + 8)
"""When the grace period of what has expired is over."""

STEPS_MAX = 200


INODES = 900
"""How many the disks have whose file system has a number of them."""

MIB = {"link-dest": 64, "none": 64, "btrfs": 256, "borg": 768}
"""How large a disk must be for a reserve that is enough; borg wants room for whole segments."""

MODES = ["link-dest", "borg", "none", "btrfs"] if FULL else ["link-dest"]
TRIES = {"link-dest": 20, "none": 20, "btrfs": 20, "borg": 6}
"""How often each test tries its fault in the full form; borg's programs take long to start."""


@dataclass
class Scene:
    """A disk with backups, as often as it is wanted, and the machine they are of.

    Attributes:
        disk: Where the storage unit is, or has its volume alone.
        mode: In which it keeps snapshots.
        place: A folder for what a test needs beside it.
        kept: What the disk was after the first days.
        source: What is backed up.
        daemon: The machine's end.
        dice: Chance.
        trees: What each snapshot must give back, by its id.
    """

    disk: Disk
    mode: str
    place: Path
    kept: Path
    source: Path
    daemon: Daemon
    dice: random.Random
    trees: dict[str, dict[bytes, Entry]]

    @contextlib.contextmanager
    def station(self, *, has_state_elsewhere: bool) -> Iterator[Station]:
        """Mount the disk as it was after the first days, and give its storage unit."""
        self.disk.unmount()
        self.disk.bring_back(self.kept)
        self.disk.mount()
        state = self.disk.place / "state"
        if has_state_elsewhere:
            shutil.rmtree(self.place / "state", ignore_errors=True)
            shutil.copytree(state, self.place / "state", symlinks=True)
            state = self.place / "state"
        yield Station(self.disk.place / "volume", state, self.trees)

    @property
    def days(self) -> int:
        """How many snapshots there were after the first days; the first of several expired."""
        return 1 if self.mode == "none" else OLD

    @property
    def expired(self) -> list[str]:
        """What expiry has to remove."""
        return [id_of(day(number)) for number in range(self.days - 3)]

    @property
    def tries(self) -> int:
        """How often to try a fault."""
        return times(1, TRIES[self.mode])

    def change(self, number: int) -> None:
        """Make the machine's tree that of a day."""
        self.trees[id_of(day(number))] = change_tree(self.source, self.dice, number)

    def wrong(self, station: Station) -> list[str]:
        """Restore everything; return what isn't as it was."""
        return station.wrong(self.place / "restored")


class Scenes:
    """The scenes of this file's tests, each made when it is first wanted."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._made: dict[tuple[str, str, int], Scene] = {}

    def get(
        self, mode: str, dice: random.Random, kind: str | None = None, mib: int | None = None
    ) -> Scene:
        """Give the scene of a mode, with the chance of the test."""
        kind = kind or ("btrfs" if mode == "btrfs" else "ext4")
        key = mode, kind, mib or MIB[mode]
        if key not in self._made:
            self._made[key] = self._stack.enter_context(made_scene(*key))
        return replace(self._made[key], dice=dice)


@pytest.fixture(scope="module")
def scenes() -> Iterator[Scenes]:
    """What needs time to be made, and is the same for each test of a mode."""
    with own_mounts(), contextlib.ExitStack() as stack:
        yield Scenes(stack)


@contextlib.contextmanager
def made_scene(mode: str, kind: str, mib: int) -> Iterator[Scene]:
    """Back up some days to a disk, and keep what it is then."""
    dice = random.Random(f"{SEED}:{mode}:{kind}")
    with made_disk(kind, mib, INODES if kind == "ext4" else None) as disk:
        place = disk.place.parent
        source = place / "source"
        source.mkdir()
        with serve(source) as daemon:
            scene = Scene(disk, mode, place, place / "kept", source, daemon, dice, {})
            station = Station(disk.place / "volume", disk.place / "state", scene.trees)
            for number in range(scene.days):
                scene.change(number)
                station.back_up(daemon, mode, day(number))
            assert len(station.records()) == scene.days
            report = station.expire(day(scene.days - 1) + timedelta(hours=1))
            assert report.problems == ()
            assert [change.record.id for change in report.changes] == scene.expired
            assert (disk.place / "volume" / RESERVE).exists()
            disk.unmount()
            disk.keep(scene.kept)
            yield scene


def count_steps(scene: Scene, action: Callable[[Station], object]) -> int:
    """Return in how many steps something is done when all goes well."""
    scene.change(OLD)
    with scene.station(has_state_elsewhere=False) as station:
        counted = Steps(STEPS_MAX, lambda: None)
        with patched() as patch:
            counted.watch(patch)
            action(station)
    assert 2 <= counted.count < STEPS_MAX
    return counted.count


def strike_at_steps(
    scene: Scene,
    action: Callable[[Station], object],
    strike: Callable[[], object],
    check: Callable[[Station], list[str]],
    *,
    has_state_elsewhere: bool,
) -> tuple[int, int]:
    """Do something again and again, with a fault at another step each time.

    Returns how often, and how many things were lost. An unexpected kind of exception fails.
    """
    every = range(1, count_steps(scene, action) + 1)
    chosen = sorted(scene.dice.sample(every, min(scene.tries, len(every))))
    wrong: list[str] = []
    for number in chosen:
        scene.change(OLD)
        with scene.station(has_state_elsewhere=has_state_elsewhere) as station:
            steps = Steps(number, strike)
            with patched() as patch, contextlib.suppress(TurkuError, OSError):
                steps.watch(patch)
                action(station)
            assert steps.has_struck, f"step {number}"
            wrong += [f"step {number}: {line}" for line in check(station)]
    assert wrong == [], "\n".join(wrong)
    return len(chosen), len(wrong)


def goes_on(scene: Scene, station: Station) -> list[str]:
    """Let the worker go on and make one more backup; return what is lost."""
    lost = station.reported() - {record.id for record in station.records()}
    if scene.mode == "none":
        lost = set()  # its one snapshot goes when a pull begins
    station.work(NEW + LATER)
    scene.change(OLD + 9)
    station.back_up(scene.daemon, scene.mode, LAST)
    ids = [record.id for record in station.records()]
    assert ids[-1] == id_of(LAST)
    assert not [record.id for record in station.records() if record.partial or record.recovered]
    return [f"{each} was reported and is missing" for each in lost] + scene.wrong(station)


def backup_of(scene: Scene) -> Callable[[Station], object]:
    return lambda station: station.back_up(scene.daemon, scene.mode, NEW)


def restore_of(scene: Scene) -> Callable[[Station], object]:
    snapshot = id_of(day(scene.days // 2))
    return lambda station: station.wrong_in(snapshot, scene.place / "restored")


def fills(scene: Scene, what: str) -> tuple[Callable[..., None], list[int]]:
    """Return what fills a disk, and how much room it may leave."""
    if what == "blocks":
        return scene.disk.fill, [0, 4096, 65536]
    return scene.disk.fill_inodes, [0, 1, 2, 5]


WAYS = [
    (what, mode)
    for what in (["blocks", "inodes"] if FULL else ["blocks"])
    for mode in MODES
    if (what, mode) != ("inodes", "btrfs")  # it makes inodes as it needs them
]


@pytest.mark.parametrize(("what", "mode"), WAYS if FULL else [*WAYS, ("blocks", "borg")])
def test_a_volume_that_is_filled_during_a_backup_heals_by_expiry(
    scenes: Scenes, dice: random.Random, tally: Tally, what: str, mode: str
) -> None:
    scene = scenes.get(mode, dice)
    fill, rooms = fills(scene, what)

    def check(station: Station) -> list[str]:
        fill()
        report = station.expire(REMOVAL)
        assert report.problems == (), report
        removed = [each.record.id for each in report.changes if each.state == "removed"]
        assert removed == scene.expired
        scene.disk.clear()
        return goes_on(scene, station)

    tried, lost = strike_at_steps(
        scene,
        backup_of(scene),
        lambda: fill(dice.choice(rooms)),
        check,
        has_state_elsewhere=False,
    )
    tally.note(f"{mode}: full to the last of its {what} during a backup", times=tried, lost=lost)


UPKEEP = [
    (what, mode, action)
    for what, mode in WAYS
    for action in (["expiry", "verification", "restore"] if FULL else ["expiry"])
    if (mode, action) != ("none", "expiry")  # its one snapshot stays
]


@pytest.mark.parametrize(("what", "mode", "action"), UPKEEP)
def test_a_volume_that_is_filled_during_upkeep_or_a_restore_loses_nothing(
    scenes: Scenes, dice: random.Random, tally: Tally, what: str, mode: str, action: str
) -> None:
    scene = scenes.get(mode, dice)
    fill, rooms = fills(scene, what)
    actions = {
        "expiry": lambda station: station.expire(REMOVAL),
        "verification": lambda station: station.verify(REMOVAL),
        "restore": restore_of(scene),
    }

    def check(station: Station) -> list[str]:
        scene.disk.clear()
        assert station.expire(REMOVAL).problems == ()
        assert len(station.records()) == scene.days - len(scene.expired)
        return goes_on(scene, station)

    tried, lost = strike_at_steps(
        scene,
        actions[action],
        lambda: fill(dice.choice(rooms)),
        check,
        has_state_elsewhere=False,
    )
    tally.note(f"{mode}: full to the last of its {what} during {action}", times=tried, lost=lost)


@pytest.mark.parametrize("mode", MODES)
def test_a_volume_that_turns_read_only_can_be_restored_from_and_goes_on_when_it_is_repaired(
    scenes: Scenes, dice: random.Random, tally: Tally, mode: str
) -> None:
    scene = scenes.get(mode, dice)

    def check(station: Station) -> list[str]:
        wrong = scene.wrong(station)
        report = station.expire(REMOVAL)
        assert report.problems or not scene.expired
        scene.disk.repair()
        assert station.expire(REMOVAL).problems == ()
        return wrong + goes_on(scene, station)

    tried, lost = strike_at_steps(
        scene, backup_of(scene), scene.disk.turn_read_only, check, has_state_elsewhere=True
    )
    tally.note(f"{mode}: read-only from a step of a backup on", times=tried, lost=lost)


@pytest.mark.parametrize("mode", MODES)
def test_the_folder_below_a_volume_that_goes_away_is_never_filled(
    scenes: Scenes, dice: random.Random, tally: Tally, mode: str
) -> None:
    scene = scenes.get(mode, dice)

    def check(station: Station) -> list[str]:
        assert station.expire(REMOVAL).problems
        assert os.listdir(scene.disk.place) == [], "the folder below"
        scene.disk.mount()
        assert station.expire(REMOVAL).problems == ()
        return goes_on(scene, station)

    tried, lost = strike_at_steps(
        scene, backup_of(scene), scene.disk.unplug, check, has_state_elsewhere=True
    )
    tally.note(f"{mode}: unmounted at a step of a backup", times=tried, lost=lost)


def cut_short(scene: Scene, station: Station, number: int, action: Callable[[], object]) -> bool:
    """Do something in a process that ends at a step, and the disk with it; False without one.

    What was reported until then is in `reported` beside the disk: it may have been sent.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:

            def strike() -> None:
                (scene.place / "reported").write_text("\n".join(station.reported()))
                if scene.disk.kind == "btrfs":
                    scene.disk.keep(scene.place / "cut")
                else:
                    scene.disk.cut_power()
                os.kill(os.getpid(), signal.SIGKILL)

            with patched() as patch:
                Steps(number, strike).watch(patch)
                action()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        scene.disk.unmount()
        if scene.disk.kind == "btrfs":
            scene.disk.bring_back(scene.place / "cut")
        else:
            scene.disk.renew()
        scene.disk.mount()
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.parametrize("mode", MODES)
def test_what_is_reported_as_committed_survives_a_power_cut_at_any_step(
    scenes: Scenes, dice: random.Random, tally: Tally, mode: str
) -> None:
    scene = scenes.get(mode, dice)
    tried, wrong = 0, []
    with patched() as patch:
        count = count_steps(scene, backup_of(scene))
        # The last are between the snapshot and its report.
        others = range(1, count)
        steps = [*sorted(dice.sample(others, min(scene.tries, len(others)))), count]
        for number in steps:
            patch.setattr(clock, "boot_id", lambda: "before the cut")
            scene.change(OLD)
            with scene.station(has_state_elsewhere=False) as station:
                action = partial(backup_of(scene), station)
                tried += cut_short(scene, station, number, action)
                patch.setattr(clock, "boot_id", lambda: "after the cut")
                reported = set((scene.place / "reported").read_text().split())
                if mode == "none":
                    reported &= {id_of(NEW)}  # the one before goes when a pull begins
                lost = reported - {record.id for record in station.records()}
                wrong += [f"step {number}: {each} is lost" for each in lost]
                wrong += [f"step {number}: {line}" for line in scene.wrong(station)]
                assert station.expire(REMOVAL).problems == ()
                wrong += [f"step {number}: {line}" for line in goes_on(scene, station)]
    assert wrong == [], "\n".join(wrong)
    assert tried >= scene.tries
    tally.note(f"{mode}: power cut at a step of a backup", times=tried, lost=len(wrong))


def test_the_power_cut_of_these_tests_loses_what_was_not_synced() -> None:
    with own_mounts(), made_disk() as disk:
        for name in ("synced", "not synced"):
            (disk.place / name).write_bytes(b"x" * 100_000)
            if name == "synced":
                programs.sync_file_system(disk.place)
        disk.cut_power()
        disk.unmount()
        disk.renew()
        disk.mount()
        assert (disk.place / "synced").read_bytes() == b"x" * 100_000
        assert not (disk.place / "not synced").exists()


@pytest.mark.parametrize("mode", MODES)
def test_a_quota_is_told_like_a_full_disk_and_heals_by_expiry(
    scenes: Scenes, dice: random.Random, tally: Tally, mode: str
) -> None:
    scene = scenes.get(mode, dice, "btrfs", 1024)
    tried, wrong = 0, []
    for _ in range(times(1, 3)):
        with scene.station(has_state_elsewhere=True) as station:
            scene.disk.enable_quota()
            scene.change(OLD)
            limited = None
            if mode == "btrfs":
                limited = station.unit.catalogue.open(MACHINE, "docs").mirror
            room = dice.randrange(1, 32)
            too_much = scene.source / "too much"
            too_much.write_bytes(dice.randbytes((room + 32) * 1024 * 1024))
            scene.disk.limit(room * 1024 * 1024, limited)
            with pytest.raises(TurkuError, match="full"):
                station.back_up(scene.daemon, mode, NEW)
            report = station.expire(REMOVAL)
            assert report.problems == (), report
            kept = scene.days - len(scene.expired)
            assert len(station.records()) == (0 if mode == "none" else kept)
            too_much.unlink()
            scene.disk.limit(None, limited)
            wrong += goes_on(scene, station)
            tried += 1
    assert wrong == []
    tally.note(f"{mode}: over its quota during a backup", times=tried, lost=len(wrong))

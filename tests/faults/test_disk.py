"""A disk that is full, read-only, gone, over its quota or cut off from power, at each step."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from tests.faults.tally import FULL, Tally, times
from tests.integration.snapshots.support import MACHINE, serve
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


@dataclass
class Scene:
    """A disk with backups, as often as it is wanted, and the machine they are of."""

    disk: Disk
    mode: str
    place: Path
    source: Path
    daemon: Daemon
    dice: random.Random
    trees: dict[str, dict[bytes, Entry]]

    @contextlib.contextmanager
    def station(self, *, has_state_elsewhere: bool) -> Iterator[Station]:
        """Mount the disk as it was after the first days, and give its storage unit."""
        self.disk.unmount()
        self.disk.bring_back(self.place / "kept")
        self.disk.mount()
        state = self.disk.place / "state"
        if has_state_elsewhere:
            shutil.rmtree(self.place / "state", ignore_errors=True)
            shutil.copytree(state, self.place / "state", symlinks=True)
            state = self.place / "state"
        yield Station(self.disk.place / "volume", state, self.trees)

    def change(self, number: int) -> None:
        """Make the machine's tree that of a day."""
        self.trees[id_of(day(number))] = change_tree(self.source, self.dice, number)

    def wrong(self, station: Station) -> list[str]:
        """Restore everything; return what isn't as it was."""
        return station.wrong(self.place / "restored")


@contextlib.contextmanager
def made_scene(
    tmp_path: Path, dice: random.Random, mode: str, disk: Disk, *, days: int = OLD
) -> Iterator[Scene]:
    """Back up some days to a disk, and keep what it is then."""
    source = tmp_path / "source"
    source.mkdir()
    with serve(source) as daemon:
        scene = Scene(disk, mode, tmp_path, source, daemon, dice, {})
        station = Station(disk.place / "volume", disk.place / "state", scene.trees)
        for number in range(days):
            scene.change(number)
            station.back_up(daemon, mode, day(number))
        assert len(station.records()) == days
        report = station.expire(day(days - 1) + timedelta(hours=1))
        assert report.problems == ()
        assert [change.state for change in report.changes] == ["expired"] * (days - 3)
        assert (disk.place / "volume" / RESERVE).exists()
        disk.unmount()
        disk.keep(tmp_path / "kept")
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
    tries: int,
    *,
    has_state_elsewhere: bool,
) -> tuple[int, int]:
    """Do something again and again, with a fault at another step each time.

    Returns how often, and how many things were lost. An unexpected kind of exception fails.
    """
    every = range(1, count_steps(scene, action) + 1)
    chosen = sorted(scene.dice.sample(every, min(tries, len(every))))
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
    return lambda station: station.wrong_in(id_of(day(1)), scene.place / "restored")


MIB = {"link-dest": 64, "none": 64, "btrfs": 256, "borg": 768}
"""How large a disk must be for a reserve that is enough; borg wants room for whole segments."""

MODES = ["link-dest", "borg"] if FULL else ["link-dest"]


@pytest.mark.parametrize("mode", ["link-dest", "borg"])
@pytest.mark.parametrize("what", ["blocks", "inodes"] if FULL else ["blocks"])
def test_a_volume_that_is_filled_during_a_backup_heals_by_expiry(
    tmp_path: Path, dice: random.Random, tally: Tally, mode: str, what: str
) -> None:
    inodes = 900 if what == "inodes" else None
    with made_disk(mib=MIB[mode], inodes=inodes) as disk:
        with made_scene(tmp_path, dice, mode, disk) as scene:
            fill = disk.fill if what == "blocks" else disk.fill_inodes
            rooms = [0, 4096, 65536] if what == "blocks" else [0, 1, 2, 5]

            def check(station: Station) -> list[str]:
                fill()
                report = station.expire(REMOVAL)
                assert report.problems == (), report
                removed = [each.record.id for each in report.changes if each.state == "removed"]
                assert removed == [id_of(day(0))]
                disk.clear()
                return goes_on(scene, station)

            tried, lost = strike_at_steps(
                scene,
                backup_of(scene),
                lambda: fill(dice.choice(rooms)),
                check,
                times(1, STEPS_MAX),
                has_state_elsewhere=False,
            )
    tally.note(f"{mode}: full to the last of its {what} during a backup", times=tried, lost=lost)


@pytest.mark.parametrize("action", ["expiry", "verification", "restore"] if FULL else ["expiry"])
@pytest.mark.parametrize("mode", MODES)
def test_a_volume_that_is_filled_during_upkeep_or_a_restore_loses_nothing(
    tmp_path: Path, dice: random.Random, tally: Tally, mode: str, action: str
) -> None:
    with made_disk(mib=MIB[mode]) as disk, made_scene(tmp_path, dice, mode, disk) as scene:
        actions = {
            "expiry": lambda station: station.expire(REMOVAL),
            "verification": lambda station: station.verify(REMOVAL),
            "restore": restore_of(scene),
        }

        def check(station: Station) -> list[str]:
            disk.clear()
            assert station.expire(REMOVAL).problems == ()
            assert len(station.records()) == 3
            return goes_on(scene, station)

        tried, lost = strike_at_steps(
            scene, actions[action], disk.fill, check, times(1, STEPS_MAX), has_state_elsewhere=False
        )
    tally.note(f"{mode}: full to the last block during {action}", times=tried, lost=lost)


@pytest.mark.parametrize("mode", MODES)
def test_a_volume_that_turns_read_only_can_be_restored_from_and_goes_on_when_it_is_repaired(
    tmp_path: Path, dice: random.Random, tally: Tally, mode: str
) -> None:
    with made_disk(mib=MIB[mode]) as disk, made_scene(tmp_path, dice, mode, disk) as scene:

        def check(station: Station) -> list[str]:
            wrong = scene.wrong(station)
            report = station.expire(REMOVAL)
            assert report.problems
            disk.repair()
            assert station.expire(REMOVAL).problems == ()
            return wrong + goes_on(scene, station)

        tried, lost = strike_at_steps(
            scene,
            backup_of(scene),
            disk.turn_read_only,
            check,
            times(1, STEPS_MAX),
            has_state_elsewhere=True,
        )
    tally.note(f"{mode}: read-only from a step of a backup on", times=tried, lost=lost)


@pytest.mark.parametrize("mode", MODES)
def test_the_folder_below_a_volume_that_goes_away_is_never_filled(
    tmp_path: Path, dice: random.Random, tally: Tally, mode: str
) -> None:
    with made_disk(mib=MIB[mode]) as disk, made_scene(tmp_path, dice, mode, disk) as scene:

        def check(station: Station) -> list[str]:
            assert station.expire(REMOVAL).problems
            assert os.listdir(disk.place) == [], "the folder below"
            disk.mount()
            assert station.expire(REMOVAL).problems == ()
            return goes_on(scene, station)

        tried, lost = strike_at_steps(
            scene,
            backup_of(scene),
            disk.unplug,
            check,
            times(1, STEPS_MAX),
            has_state_elsewhere=True,
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


@pytest.mark.parametrize("mode", ["link-dest", "borg", "none", "btrfs"] if FULL else MODES)
def test_what_is_reported_as_committed_survives_a_power_cut_at_any_step(
    tmp_path: Path, dice: random.Random, tally: Tally, mode: str
) -> None:
    kind = "btrfs" if mode == "btrfs" else "ext4"
    days = 1 if mode == "none" else OLD
    tried, wrong = 0, []
    with made_disk(kind, MIB[mode]) as disk:
        with made_scene(tmp_path, dice, mode, disk, days=days) as scene, patched() as patch:
            count = count_steps(scene, lambda station: station.back_up(scene.daemon, mode, NEW))
            # The last are between the snapshot and its report.
            steps = range(1, count + 1) if FULL else [count, dice.randrange(1, count)]
            for number in steps:
                patch.setattr(clock, "boot_id", lambda: "before the cut")
                scene.change(OLD)
                with scene.station(has_state_elsewhere=False) as station:
                    action = partial(station.back_up, scene.daemon, mode, NEW)
                    tried += cut_short(scene, station, number, action)
                    patch.setattr(clock, "boot_id", lambda: "after the cut")
                    reported = set((tmp_path / "reported").read_text().split())
                    if mode == "none":
                        reported &= {id_of(NEW)}  # the one before goes when a pull begins
                    lost = reported - {record.id for record in station.records()}
                    wrong += [f"step {number}: {each} is lost" for each in lost]
                    wrong += [f"step {number}: {line}" for line in scene.wrong(station)]
                    assert station.expire(REMOVAL).problems == ()
                    wrong += [f"step {number}: {line}" for line in goes_on(scene, station)]
    assert wrong == [], "\n".join(wrong)
    assert tried >= times(1, 20)
    tally.note(f"{mode}: power cut at a step of a backup", times=tried, lost=len(wrong))


def test_the_power_cut_of_these_tests_loses_what_was_not_synced() -> None:
    with made_disk() as disk:
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


@pytest.mark.parametrize("mode", [*MODES, "btrfs"] if FULL else MODES)
def test_a_quota_is_told_like_a_full_disk_and_heals_by_expiry(
    tmp_path: Path, dice: random.Random, tally: Tally, mode: str
) -> None:
    with made_disk("btrfs", 1024) as disk:
        disk.enable_quota()
        with made_scene(tmp_path, dice, mode, disk) as scene:
            with scene.station(has_state_elsewhere=True) as station:
                (scene.source / "too much").write_bytes(dice.randbytes(48 * 1024 * 1024))
                limited = None
                if mode == "btrfs":
                    limited = station.unit.catalogue.open(MACHINE, "docs").mirror
                disk.limit(16 * 1024 * 1024, limited)
                with pytest.raises(TurkuError, match="full"):
                    station.back_up(scene.daemon, mode, NEW)
                report = station.expire(REMOVAL)
                assert report.problems == (), report
                assert len(station.records()) == 3
                (scene.source / "too much").unlink()
                disk.limit(None, limited)
                wrong = goes_on(scene, station)
    assert wrong == []
    tally.note(f"{mode}: over its quota during a backup", times=1, lost=len(wrong))

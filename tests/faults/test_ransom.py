"""A machine's files turn to noise, or are gone; and what a stolen identity is good for."""

from __future__ import annotations

import json
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tally import FULL, Tally, times
from tests.integration.snapshots.support import (
    DAY,
    MACHINE,
    PLAIN,
    START,
    Unit,
    as_nobody,
    btrfs_volume,
    make_unit,
    nobodys_folder,
    quick_folder,
    serve,
)
from tests.support.trees import Entry, describe_tree, differences
from turku_core.local.turku import LocalTurku, Machine
from turku_core.protocol.client import ApiInvalid, ApiRefused
from turku_core.storage import expiry, holds, mirror
from turku_core.storage.changes import Changed, Generation, recent, suspicion
from turku_core.storage.mirror import Daemon, PullOptions
from turku_core.storage.ping import make_catalogue
from turku_core.storage.records import Record
from turku_core.storage.settings import read_settings
from turku_core.storage.snapshots import Taken, commit, get_mode
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import Volumes

FILES = 48
QUIET = 12
"""How many quiet generations a source has behind it."""

RETENTION = "last 1 snapshots"


@dataclass
class Victim:
    """A source that has been quiet for days, on a real storage unit."""

    unit: Unit
    source: Path
    daemon: Daemon
    mode: str
    dice: random.Random
    number: int = QUIET
    trees: dict[str, dict[bytes, Entry]] = field(default_factory=dict)

    @property
    def folder(self) -> SourceFolder:
        return self.unit.catalogue.open(MACHINE, "docs")

    @property
    def now(self) -> datetime:
        return START + self.number * DAY

    def back_up(self, mode: str | None = None, options: PullOptions = PLAIN) -> Record:
        """Make the next generation, and remember the tree as it was."""
        self.number += 1
        maker = get_mode(mode or self.mode, self.unit.environment)
        with self.folder.lock(wait_seconds=60) as held:
            target = maker.prepare(self.folder, mode or "any")
            received = mirror.pull(self.daemon, target, options, hold=(held,))
            assert received.usable, received
            maker.freeze(
                self.folder,
                Taken(self.now, self.now + timedelta(minutes=1), received, None, RETENTION),
            )
        record = commit(self.unit.catalogue, self.folder, self.unit.environment)
        assert record is not None
        if not options.exclude:
            self.trees[record.id] = describe_tree(self.source)
        return record

    def break_off(self, mode: str | None = None) -> None:
        """Begin a pull, and lose the machine in the middle of it."""
        maker = get_mode(mode or self.mode, self.unit.environment)
        seen = 0

        def progress(count: int, _percent: float | None) -> None:
            nonlocal seen
            seen = count

        with self.folder.lock(wait_seconds=60) as held:
            target = maker.prepare(self.folder, mode or "any")
            received = mirror.pull(
                self.daemon,
                target,
                PullOptions(bwlimit="100k"),
                on_progress=progress,
                cancelled=lambda: seen > 0,
                hold=(held,),
            )
        assert not received.usable

    def write(self, name: str, size: int = 3000) -> None:
        """Write noise, which no file held before."""
        path = self.source / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.dice.randbytes(size))

    def files(self) -> list[Path]:
        return sorted(path for path in self.source.rglob("*") if path.is_file())

    def expire(self, days: float, *, remove_now: bool = False) -> list[tuple[str, str]]:
        """Let expiry run on the volume, which is full, so much later; return what it did."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Volumes, "over_high_water", lambda self, volume: True)
            report = expiry.run(
                self.unit.catalogue,
                self.unit.environment,
                self.now + days * DAY,
                trust_clock=True,
                remove_now=remove_now,
            )
        assert report.problems == ()
        return [(change.record.id, change.state) for change in report.changes]

    def lost(self, tmp_path: Path) -> int:
        """Restore every snapshot that there should be, and return how many didn't come back."""
        wanted = self.trees
        if self.mode == "none":
            newest = max(self.trees)
            wanted = {newest: self.trees[newest]}
        lost = 0
        for name, tree in wanted.items():
            place = tmp_path / f"restored-{name}"
            try:
                done = self.unit.restore(name, place)
                lost += not done.ok or differences(tree, describe_tree(place)) != []
            finally:
                shutil.rmtree(place, ignore_errors=True)
        return lost


def quieten(victim: Victim) -> None:
    """Give a source a first snapshot, a history of quiet days, and one more quiet day."""
    for number in range(FILES):
        victim.write(f"{number % 4}/{number}")
    victim.number = QUIET - 1
    first = victim.back_up()
    folder = victim.folder
    with folder.lock():
        quiet = [
            Generation(f"quiet-{number}", START + number * DAY, Changed(1, FILES), FILES)
            for number in range(1, QUIET)
        ]
        generations = (*quiet, *holds.read(folder).generations)
        holds.write(folder, holds.History(generations))
    victim.write("0/0")
    second = victim.back_up()
    assert (first.suspicious, second.suspicious) == (None, None)
    assert (second.files_changed, second.files_before) == (1, FILES)


@contextmanager
def quiet_victim(tmp_path: Path, mode: str, dice: random.Random) -> Iterator[Victim]:
    """Give a quiet source, in a folder of its own that is quick."""
    source = tmp_path / "source"
    source.mkdir()
    with quick_folder() as folder, serve(source) as daemon:
        victim = Victim(make_unit(folder), source, daemon, mode, dice)
        quieten(victim)
        yield victim


# The attacks, as they leave the tree. Each does harm to most of the files.


def noise(victim: Victim) -> None:
    for path in victim.files():
        path.write_bytes(victim.dice.randbytes(path.stat().st_size))


def noise_under_new_names(victim: Victim) -> None:
    for path in victim.files():
        path.write_bytes(victim.dice.randbytes(path.stat().st_size))
        path.rename(path.with_name(f"{path.name}.locked"))


def mostly_gone(victim: Victim) -> None:
    for path in victim.files()[FILES // 4 :]:
        path.unlink()


def all_gone(victim: Victim) -> None:
    for path in victim.source.iterdir():
        shutil.rmtree(path)
    (victim.source / "READ ME").write_text("Pay.")


def links_instead(victim: Victim) -> None:
    for path in victim.files():
        path.unlink()
        path.symlink_to("/dev/null")


def hidden_behind_much_that_is_new(victim: Victim) -> None:
    noise(victim)
    for number in range(5 * FILES):
        victim.write(f"new/{number}", 10)


def emptied(victim: Victim) -> None:
    for path in victim.files():
        path.write_bytes(b"")


ATTACKS: tuple[Callable[[Victim], None], ...] = (
    noise,
    noise_under_new_names,
    mostly_gone,
    all_gone,
    links_instead,
    hidden_behind_much_that_is_new,
    emptied,
)


def check_held(victim: Victim, record: Record, tmp_path: Path) -> int:
    """Make sure that nothing expires until an operator has looked; return what was lost."""
    assert record.suspicious is not None
    hold = holds.read(victim.folder).hold
    assert hold is not None
    assert (hold.snapshot, hold.reason) == (record.id, record.suspicious)
    # What is remembered is nobody else's to read.
    assert stat.S_IMODE(victim.folder.changes.stat().st_mode) & 0o077 == 0
    assert not victim.folder.pull_log.exists()
    # New backups go on, and nothing of them lifts it.
    victim.write("0/after")
    victim.back_up()
    assert holds.read(victim.folder).hold == hold
    # Another process, or the same after a reboot, knows what is written down and no more.
    victim.unit = make_unit(victim.unit.environment.state_folder.parent)
    for days in (0.1, 8, 400):
        assert victim.expire(days) == []
    assert victim.expire(401, remove_now=True) == []
    return victim.lost(tmp_path)


MODES = ("borg", "link-dest", "none")


@pytest.mark.parametrize("mode", MODES)
def test_a_source_whose_files_turn_to_noise_or_are_gone_keeps_all_its_snapshots(
    tmp_path: Path, tally: Tally, dice: random.Random, mode: str
) -> None:
    attacks = dice.sample(ATTACKS, times(2 if mode == "link-dest" else 1, len(ATTACKS)))
    lost = 0
    for attack in attacks:
        place = tmp_path / attack.__name__
        place.mkdir()
        with quiet_victim(place, mode, dice) as victim:
            attack(victim)
            record = victim.back_up()
            assert record.suspicious is not None, attack.__name__
            lost += check_held(victim, record, place)
    tally.note(f"files turned to noise or gone, mode {mode}", times=len(attacks), lost=lost)
    assert lost == 0


@pytest.mark.needs_root
def test_a_source_on_btrfs_keeps_all_its_snapshots_too(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    attacks = dice.sample(ATTACKS, times(1, len(ATTACKS)))
    for attack in attacks:
        source = tmp_path / attack.__name__
        source.mkdir()
        with nobodys_folder() as folder, btrfs_volume() as volume, serve(source) as daemon:
            with as_nobody():
                unit = make_unit(folder, volume)
            victim = Victim(unit, source, daemon, "btrfs", dice)
            for step in (quieten, attack):
                step(victim)
            record = victim.back_up()
            assert record.suspicious is not None, attack.__name__
            hold = holds.read(victim.folder).hold
            assert hold is not None
            victim.write("0/after")
            victim.back_up()
            assert victim.expire(400) == []
            assert len(unit.ids()) == len(victim.trees)
    tally.note("files turned to noise or gone, mode btrfs", times=len(attacks))


def test_what_pulls_that_broke_off_had_changed_counts_too(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    rounds = times(1, 10)
    for number in range(rounds):
        place = tmp_path / str(number)
        place.mkdir()
        with quiet_victim(place, "none", dice) as victim:
            for path in victim.files():
                path.write_bytes(dice.randbytes(40_000))
            victim.break_off()
            record = victim.back_up()
            assert record.suspicious is not None
            # And perhaps what rsync was writing when it was killed.
            assert record.files_changed in (FILES, FILES + 1)
    tally.note("noise in pulls that broke off", times=rounds)


def test_rules_that_leave_out_most_of_a_source_are_noticed(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    modes = dice.sample(MODES, times(1, len(MODES)))
    for mode in modes:
        place = tmp_path / mode
        place.mkdir()
        with quiet_victim(place, mode, dice) as victim:
            record = victim.back_up(options=PullOptions(exclude=("/1", "/2", "/3")))
            assert record.suspicious is not None
            assert record.files_changed == FILES * 3 // 4
            assert victim.expire(400) == []
    tally.note("a machine's rules that leave out most", times=len(modes))


SWITCHES = (("borg", "none"), ("link-dest", "none"), ("borg", "link-dest"), ("none", "borg"))


def test_a_machine_that_asks_for_another_mode_to_hide_it_is_noticed(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    switches = dice.sample(SWITCHES, times(1, len(SWITCHES)))
    for before, after in switches:
        place = tmp_path / f"{before}-{after}"
        place.mkdir()
        with quiet_victim(place, before, dice) as victim:
            noise(victim)
            assert victim.back_up(after).suspicious is not None
            assert victim.expire(400) == []
    # Also when it asks only for a moment, and the mirror is the only thing that goes.
    place = tmp_path / "moment"
    place.mkdir()
    with quiet_victim(place, "none", dice) as victim:
        for path in victim.files():
            path.write_bytes(dice.randbytes(40_000))
        victim.break_off("link-dest")
        assert victim.back_up().suspicious is not None
    tally.note("noise behind another snapshot mode", times=len(switches) + 1)


def test_a_mode_that_the_storage_unit_changes_by_itself_is_no_alarm(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    with quiet_victim(tmp_path, "link-dest", dice) as victim:
        victim.mode = "none"
        assert victim.back_up().suspicious is None
        assert holds.read(victim.folder).hold is None
    tally.note("an operator's other snapshot mode: no alarm")


def test_only_an_operators_word_lets_a_held_source_expire_again(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    with quiet_victim(tmp_path, "link-dest", dice) as victim:
        noise(victim)
        record = victim.back_up()
        for _ in range(3):
            victim.write("0/1")
            victim.back_up()
        assert victim.expire(1) == []
        released = holds.release(victim.folder)
        assert released is not None and released.snapshot == record.id
        assert holds.release(victim.folder) is None
        oldest = min(victim.trees)
        assert (oldest, "expired") in victim.expire(1)
        assert (oldest, "removed") in victim.expire(9)
    tally.note("a hold that an operator released")


def test_a_hold_that_cannot_be_read_holds(
    tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    with quiet_victim(tmp_path, "link-dest", dice) as victim:
        noise(victim)
        victim.back_up()
        contents = (b"", b"{", b"\xff" * 100, b'{"hold": null}', b'{"generations": 1}', b"[]")
        tried = dice.sample(contents, times(2, len(contents)))
        for content in tried:
            victim.folder.changes.write_bytes(content)
            assert holds.read(victim.folder).hold is not None
            assert victim.expire(400) == []
            victim.write("0/2")
            victim.back_up()
            assert holds.read(victim.folder).hold is not None
        assert victim.lost(tmp_path) == 0
        assert holds.release(victim.folder) is not None
        assert holds.read(victim.folder).hold is None
    tally.note("a file of changes that is damaged", times=len(tried))


def test_a_hold_that_comes_while_expiry_is_at_work_is_obeyed(
    tmp_path: Path, tally: Tally, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet_victim(tmp_path, "link-dest", dice) as victim:
        for _ in range(4):
            victim.write("0/1")
            victim.back_up()
        assert {state for _, state in victim.expire(0.1)} == {"expired"}
        noise(victim)
        decide = expiry.decide

        def decide_and_be_overtaken(*rest: Any, **values: Any) -> expiry.Decision:
            decision = decide(*rest, **values)
            assert decision.remove
            victim.back_up()
            return decision

        with monkeypatch.context() as patch:
            patch.setattr(expiry, "decide", decide_and_be_overtaken)
            assert victim.expire(9) == []
        assert victim.lost(tmp_path) == 0
    tally.note("a hold that overtakes an expiry at work")


# Habits: an alarm that always rings is none.


def _habit(dice: random.Random) -> Callable[[int], float]:
    """Return how much of a source changes in its n-th generation, in one of many steady ways."""
    base, noise_share = dice.uniform(0, 1), dice.uniform(0, 0.1)
    period, peak = dice.randint(2, 8), dice.uniform(0, 1)
    kind = dice.choice(("steady", "periodic", "whole", "wild"))

    def share(number: int) -> float:
        if kind == "whole":
            return 1.0
        if kind == "wild":
            return dice.uniform(0, 1)
        level = peak if kind == "periodic" and number % period == 0 else base
        return min(max(level + dice.uniform(-noise_share, noise_share), 0.0), 1.0)

    return share


def test_sources_of_steady_habits_hardly_ever_raise_an_alarm_once_these_are_known(
    tally: Tally, dice: random.Random
) -> None:
    sources, learned, generations = times(100, 5000), 30, 60
    alarms = 0
    for _ in range(sources):
        habit, files = _habit(dice), dice.choice((10, 100, 100_000))
        history: list[Generation] = []
        for number in range(generations):
            at = START + number * DAY + dice.uniform(-3, 3) * timedelta(hours=1)
            changed = Changed(round(habit(number) * files), files)
            new = Generation(str(number), at, changed, files)
            alarms += number >= learned and suspicion(history, new) is not None
            history = recent([*history, new])
    tally.note("generations of sources with their habits: hardly an alarm", times=sources * 30)
    # One in 10,000 generations, and so none at all in the short form.
    assert alarms * 10_000 <= sources * 30


def test_a_night_of_ransom_is_noticed_whatever_the_schedule_and_its_pace(
    tally: Tally, dice: random.Random
) -> None:
    nights = times(300, 20_000)
    missed = 0
    for _ in range(nights):
        step = dice.choice((timedelta(hours=1), timedelta(hours=4), DAY, 7 * DAY))
        files, churn = dice.randint(50, 100_000), dice.uniform(0, 0.02)
        history = [
            Generation(
                str(n), START + n * step, Changed(round(dice.uniform(0, churn) * files), files)
            )
            for n in range(40)
        ]
        # All files within a night of ten hours.
        runs = max(1, round(timedelta(hours=10) / step))
        noticed = False
        for run in range(runs):
            share = 1 / runs
            at = history[-1].taken_at + step
            new = Generation(f"night {run}", at, Changed(round(share * files), files))
            noticed |= suspicion(history, new) is not None
            history = recent([*history, new])
        missed += not noticed
    tally.note("nights in which all files turned to noise, at any pace", times=nights, lost=missed)
    assert missed == 0


# The whole of Turku: who may lift a hold, and what a stolen identity is good for.


def back_up(turku: LocalTurku, machine: Machine) -> None:
    turku.backup_now(machine)
    machine.run("turku-agent-ping")
    turku.wait_until_committed(240)


def remember_quiet_days(turku: LocalTurku, machine: Machine, source: str) -> None:
    """Give a source that was backed up a history of quiet days."""
    catalogue = make_catalogue(read_settings(turku.layout.storage))
    (folder,) = catalogue.folders(machine.uuid, source)
    now = datetime.now(timezone.utc)
    quiet = [
        Generation(f"quiet-{days}", now - days * DAY, Changed(0, FILES), FILES)
        for days in range(QUIET, 0, -1)
    ]
    with folder.lock(wait_seconds=60):
        holds.write(folder, holds.History((*quiet, *holds.read(folder).generations)))


def fill(folder: Path, dice: random.Random) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        (folder / f"file-{number}").write_bytes(dice.randbytes(2000))


def ssh(turku: LocalTurku, machine: Machine, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run ssh with a machine's key and with arguments of one's own."""
    running = turku.running
    key = machine.root / "var/lib/turku-agent/ssh_key"
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o"),
            *("BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o"),
            *("UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"),
            *("-o", "LogLevel=ERROR", "-p", str(running.ssh_port)),
            *(f"{running.ssh_user}@127.0.0.1", *arguments),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )


def held_sources(turku: LocalTurku) -> list[str]:
    """Return the machines' UUIDs of what the storage unit holds."""
    answer = json.loads(turku.storage_run("turku-storage", "holds", "--json").output)
    return [each["machine"] for each in answer["holds"]]


def snapshots_of(turku: LocalTurku, machine: Machine) -> dict[str, str | None]:
    """Return when each snapshot of a machine has expired, by its id, as the storage unit says."""
    answer = turku.storage_run("turku-storage", "list", machine.uuid, "--json").output
    return {each["id"]: each["expired_at"] for each in json.loads(answer)["snapshots"]}


def test_a_broken_machine_can_neither_lift_its_hold_nor_silence_the_alarm(
    turku: LocalTurku, tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    source = tmp_path / "files"
    fill(source, dice)
    machine = turku.add_machine("broken", {"files": {"path": str(source)}})
    back_up(turku, machine)
    remember_quiet_days(turku, machine, "files")
    back_up(turku, machine)
    fill(source, dice)
    back_up(turku, machine)
    assert held_sources(turku) == [machine.uuid]
    before = set(snapshots_of(turku, machine))

    # It is said everywhere, and why.
    why = "48 of the 48 files of the snapshot before (100%) were changed or are gone"
    (hold,) = json.loads(turku.api_run("list-holds", "--json").output)
    assert (hold["uuid"], hold["source"]) == (machine.uuid, "files") and why in hold["why"]
    (listed,) = json.loads(turku.api_run("list-sources", machine.uuid, "--json").output)
    assert listed["state"] == "active, held" and why in listed["held"]
    status = json.loads(machine.run("turku-agent-ping", "--status", "--json").output)
    assert why in status["sources"]["files"]["held"]
    assert why in machine.run("turku-agent-ping", "--status").output
    usage = turku.storage_run("turku-storage", "usage", "--json", check=False)
    assert usage.exit_code == 1 and why in usage.output
    assert (
        'turku_agent_source_held{source="files"} 1'
        in machine.run("turku-agent-ping", "--metrics").output
    )
    alarm = (
        'turku_storage_source_held_changed_ratio{volume="local",machine="broken",'
        f'machine_uuid="{machine.uuid}",source="files"}} 1'
    )
    assert alarm in turku.storage_run("turku-storage", "metrics").output

    def is_loud() -> bool:
        health = json.loads(turku.api_run("health", "--json", check=False).output)
        problems = health["checks"]["suspicious"]["problems"]
        metrics = turku.api_run("metrics").output
        return (
            [each["state"] for each in problems] == ["CRITICAL"]
            and why in problems[0]["why"]
            and "turku_api_source_held_changed_ratio{" in metrics
        )

    assert is_loud()

    # What the machine tries.
    sources = machine.root / "etc/turku-agent/sources.d/files.json"
    configured = json.loads(sources.read_text())

    def change(**settings: object) -> None:
        sources.write_text(json.dumps({"files": {**configured["files"], **settings}}))
        machine.run("turku-update-config")

    def withdraw() -> None:
        sources.write_text("{}")
        machine.run("turku-update-config")

    tries: list[Callable[[], object]] = [
        lambda: change(retention="last 1 snapshots"),
        lambda: change(path=str(tmp_path), retention="last 1 snapshots"),
        lambda: change(snapshot_mode="none", retention="last 1 snapshots"),
        withdraw,
        lambda: change(retention="last 1 snapshots"),
        *(
            lambda line=line: ssh(turku, machine, line)
            for line in (
                f"turku-storage release {machine.uuid}",
                f"turku-storage-ping {machine.uuid}; turku-storage release {machine.uuid} files",
                "rm -rf machines",
            )
        ),
        lambda: machine.run("turku-agent-ping", check=False),
    ]
    for attempt in tries:
        attempt()
        if FULL or attempt is withdraw:
            assert is_loud()
        if FULL:
            turku.storage_run("turku-storage", "expire", "--now")
            assert held_sources(turku) == [machine.uuid]
    back_up(turku, machine)
    left = snapshots_of(turku, machine)
    assert before <= set(left) and set(left.values()) == {None}
    tally.note("what a broken machine tries to end its hold", times=len(tries))

    # An API in the wrong hands forgets it; the storage unit doesn't.
    words = ("retire", "reinstate", "pause machine", "resume machine")[-times(2, 4) :]
    for word in words:
        turku.api_run(*word.split(), machine.uuid)
        if FULL:
            turku.update_storage()
    said = turku.storage_run("turku-storage", "expire", "--now").output
    assert why in said
    assert set(snapshots_of(turku, machine)) == set(left)
    assert held_sources(turku) == [machine.uuid]
    tally.note("what an API can say about a held source", times=len(words))

    # An operator of the storage unit lifts it.
    assert "expire again" in turku.storage_run("turku-storage", "release", "broken", "files").output
    turku.wait_until_committed(240)
    assert held_sources(turku) == []
    assert json.loads(turku.api_run("list-holds", "--json").output) == []
    turku.storage_run("turku-storage", "expire", "--now")
    assert set(snapshots_of(turku, machine)) < set(left)


def content_of(tree: Path) -> dict[str, bytes]:
    """Return all regular files below a folder."""
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in sorted(tree.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def stored(turku: LocalTurku) -> dict[str, bytes]:
    """Return all files of committed snapshots: their records, checksums and trees."""
    machines = turku.layout.volume / "machines"
    return {name: what for name, what in content_of(machines).items() if "/snapshots/" in name}


@pytest.mark.only_in_full
def test_a_stolen_identity_reads_and_adds_and_no_more(
    turku: LocalTurku, tmp_path: Path, tally: Tally, dice: random.Random
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        fill(folder, dice)
    (theirs / "file-0").write_text("the other's secret")
    robbed = turku.add_machine("robbed", {"docs": {"path": str(ours)}})
    other = turku.add_machine("the-other", {"docs": {"path": str(theirs)}})
    for machine in (robbed, other):
        back_up(turku, machine)
    shutil.copytree(robbed.root, tmp_path / "thief", symlinks=True)
    thief = Machine("thief", tmp_path / "thief")
    before = stored(turku)
    (listed,) = robbed.snapshots()

    # It reads.
    target = tmp_path / "read"
    thief.run("turku-agent-ping", "--restore", "--source", "docs", "--target", str(target))
    assert content_of(target) == content_of(ours)

    # It adds, and the retention policy is its own.
    ours.joinpath("file-1").write_text("added by the thief")
    thief.write_source("docs", {"path": str(ours), "retention": "last 1 snapshots"})
    thief.run("turku-update-config")
    back_up(turku, thief)
    turku.storage_run("turku-storage", "expire", "--now")
    assert listed["id"] in snapshots_of(turku, robbed)

    # It sees nothing of others.
    seen = bytearray()
    asked = [
        thief.run("turku-agent-ping", *arguments, check=False)
        for name in (other.uuid, "the-other")[: times(1, 2)]
        for arguments in (
            ("--list", "--machine", name),
            ("--restore", "--machine", name, "--source", "docs", "--target", str(tmp_path / "x")),
        )
    ]
    assert all(done.exit_code != 0 for done in asked)
    assert not any((tmp_path / "x").rglob("file-*"))
    seen += thief.run("turku-agent-ping", "--status", "--json").output.encode()
    seen += thief.run("turku-agent-ping", "--list", "--json").output.encode()

    # Whatever it says to the storage unit's sshd, or to the API.
    volume = turku.layout.volume / "machines"
    lines = [
        "true",
        f"cat {volume}/{other.uuid}/docs/snapshots/*/file-0",
        f"rm -rf {volume}/{robbed.uuid}/docs/snapshots",
        f"rsync --server --sender -logDtpre.iLsfxCIvu . {volume}/",
        f"rsync --server -logDtpre.iLsfxCIvu --delete . {volume}/{robbed.uuid}/docs/",
        f"turku-storage-ping {other.uuid}",
        f"turku-storage restore {other.uuid} docs --target /tmp/x",
        "scp -t /",
        "borg serve",
    ]
    lines = dice.sample(lines, times(3, len(lines)))
    tries = [ssh(turku, thief, line) for line in lines]
    tries += [ssh(turku, thief, "-s", "sftp"), ssh(turku, thief, "-tt", "sh")]
    tries += [
        ssh(turku, thief, "-N", forward, where)
        for forward, where in (
            ("-W", "127.0.0.1:22"),
            ("-R", "0.0.0.0:0:127.0.0.1:22"),
            ("-R", f"{tmp_path}/socket:127.0.0.1:22"),
        )
    ]
    for done in tries:
        assert done.returncode != 0
        seen += done.stdout + done.stderr
    client = read_settings(turku.layout.storage).make_client()
    login = json.loads((thief.root / "var/lib/turku-agent/config.d/identity.json").read_text())
    secret = login["machine_secret"]
    calls: list[tuple[str, dict[str, object]]] = [
        (name, {"machine": {"uuid": other.uuid, "secret": secret}})
        for name in ("agent_ping_checkin", "agent_ping_restore", "agent_status", "update_config")
    ]
    calls += [
        (name, {"storage": {"name": who, "secret": secret}, "machine": {"uuid": robbed.uuid}})
        for name in ("storage_ping_checkin", "storage_ping_source_update", "storage_update_config")
        for who in ("local", robbed.uuid)
    ]
    for name, request in calls:
        with pytest.raises((ApiRefused, ApiInvalid)):
            client.call(name, request)
    for name in ("agent_ping_checkin", "agent_ping_restore", "agent_status"):
        answer = client.call(name, {"machine": {"uuid": robbed.uuid, "secret": secret}})
        seen += json.dumps(answer).encode()
    for word in (other.uuid, "the-other", "the other's secret", str(theirs)):
        assert word.encode() not in bytes(seen)

    # What was there is there as it was, but for when a record was proven.
    after = stored(turku)
    changed = {name for name, what in before.items() if after.get(name) != what}
    assert {name for name in changed if not name.endswith(f"{listed['id']}.json")} == set()
    target = tmp_path / "restored"
    robbed.run(
        *("turku-agent-ping", "--restore", "--source", "docs", "--snapshot", listed["id"]),
        *("--target", str(target)),
    )
    assert content_of(target) == content_of(tmp_path / "read")
    tries_made = len(asked) + len(tries) + len(calls)
    tally.note("what a stolen identity tries", times=tries_made, lost=len(changed - set(after)))

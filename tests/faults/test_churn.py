"""Trees that change by chance through hundreds of generations, with faults thrown in.

After each generation the newest snapshot and some older ones are restored and compared with what
was there, and all that are listed after each fault and at the end. So many restores of borg's
archives would take hours: there it is one older one.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import selectors
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.churn import Memory, Tree, without_busy, writing
from tests.faults.damage import WAYS
from tests.faults.disks import Disk, made_disk
from tests.faults.station import LATER, Station, Steps, id_of, patched
from tests.faults.tally import FULL, SEED, Tally, times
from tests.integration.snapshots.support import MACHINE, START, free_port, quick_folder, serve
from turku_core import clock
from turku_core.errors import TurkuError
from turku_core.storage import holds, programs, verification
from turku_core.storage.expiry import DEFAULT_GRACE
from turku_core.storage.mirror import Daemon
from turku_core.storage.records import Record
from turku_core.storage.source_folder import SourceFolder

pytestmark = pytest.mark.needs_root

MIB = {"link-dest": 96, "none": 64, "btrfs": 512, "borg": 1024}
FAULT_SHARE = 0.25
JUMPS = [timedelta(hours=1), timedelta(days=1), timedelta(days=3652)]
MOMENT_SECONDS = {"link-dest": 0.3, "none": 0.3, "btrfs": 0.3, "borg": 1.5}
"""About as long as a backup takes."""


@dataclass
class Life:
    """A machine's tree, the storage unit that backs it up, and what each generation was."""

    mode: str
    disk: Disk
    place: Path
    station: Station
    tree: Tree
    daemon: Daemon
    dice: random.Random
    now: datetime = START
    uptime: float = 1e6
    memories: dict[str, Memory] = field(default_factory=dict)
    seen: dict[str, Record] = field(default_factory=dict)
    struck: set[str] = field(default_factory=set)
    """Snapshots that were there when something was damaged."""
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> SourceFolder:
        """Where its source is kept."""
        return self.station.unit.catalogue.open(MACHINE, "docs")

    def advance(self) -> None:
        """Let time go by: an hour, some days, seldom a month."""
        gap = timedelta(seconds=self.dice.randrange(3600, 3 * 86400))
        if self.dice.random() < 0.03:
            gap += timedelta(days=30)
        for _ in range(0, gap.days + 1, 7):
            # Somebody looks at the clock at least once a week.
            self.pass_time(min(gap, timedelta(days=6)))
            gap -= min(gap, timedelta(days=6))

    def pass_time(self, gap: timedelta) -> None:
        """Let time go by on all clocks."""
        self.now += gap
        self.uptime += gap.total_seconds()
        clock.observe_clock(self.station.state / clock.FILE, self.now)

    def remember(self, at: datetime, memory: Memory) -> None:
        """Keep in mind what a snapshot of this time has to give back."""
        self.memories[id_of(at)] = memory

    def back_up(self, at: datetime, daemon: Daemon | None = None) -> None:
        """Back up what there is, as a session and the worker do."""
        self.station.back_up(daemon or self.daemon, self.mode, at)

    def expire(self) -> None:
        """Expire, as the worker does."""
        report = self.station.expire(self.now, trust_clock=False)
        self.counts["removed"] += sum(each.state == "removed" for each in report.changes)

    def prove(self) -> None:
        """Prove any one snapshot, in any depth."""
        records = self.station.records()
        if records:
            record = self.dice.choice(records)
            depth = self.dice.choice(list(verification.Depth))
            catalogue, environment = self.station.unit.catalogue, self.station.unit.environment
            verification.verify(catalogue, self.folder, record, environment, self.now, depth=depth)

    def check(self, *, everything: bool) -> None:
        """Compare snapshots with what was there, and the list with what it was."""
        records = self.station.records()
        listed = {record.id: record for record in records}
        if self.mode != "none":
            self._check_list(listed)
        self.seen = listed
        chosen = records
        if not everything:
            older = records[:-1]
            count = min(len(older), 1 if self.mode == "borg" else 2)
            chosen = [*records[-1:], *self.dice.sample(older, count)]
        for record in chosen:
            if record.damaged is not None:
                if record.id not in self.struck:
                    self.wrong.append(f"{record.id} is whole and called damaged: {record.damaged}")
                self.counts["named damaged"] += 1
            else:
                self.wrong += self._wrong_in(record.id)
                self.counts["restored"] += 1

    def _check_list(self, listed: dict[str, Record]) -> None:
        for snapshot in sorted(self.seen.keys() - listed.keys()):
            expired_at = self.seen[snapshot].expired_at
            if expired_at is None or self.now - expired_at < DEFAULT_GRACE:
                self.wrong.append(f"{snapshot} is gone, and had expired at {expired_at}")
        for snapshot in sorted(self.station.reported() - listed.keys()):
            self.wrong.append(f"{snapshot} was reported and is not listed")

    def _wrong_in(self, snapshot: str) -> list[str]:
        target = self.place / "restored"
        programs.remove_tree(target)
        restored = self.station.unit.restore(snapshot, target)
        lines = [] if restored.ok else [restored.message]
        lines += self.memories[snapshot].wrong_in(target)
        programs.remove_tree(target)
        return [f"{snapshot}: {line}" for line in lines]

    def settle(self) -> None:
        """Let what was killed be gone, and the worker do what is left."""
        with self.folder.lock(wait_seconds=120):
            pass
        self.station.work(self.now + LATER)
        self.expire()

    def make_sure(self, memory: Memory) -> None:
        """Back up what there is now, if that didn't come to be; nothing is in the way any more."""
        if id_of(self.now) not in {record.id for record in self.station.records()}:
            self.pass_time(timedelta(hours=1))
            self.remember(self.now, memory)
            self.back_up(self.now)
            if id_of(self.now) not in {record.id for record in self.station.records()}:
                self.wrong.append("nothing came of the backup after the fault")


@contextlib.contextmanager
def made_life(mode: str, dice: random.Random) -> Iterator[Life]:
    """Give a machine and its storage unit, which has a disk and a clock of its own."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(quick_folder())
        disk = stack.enter_context(made_disk("btrfs" if mode == "btrfs" else "ext4", MIB[mode]))
        tree = Tree(place / "source", dice)
        daemon = stack.enter_context(serve(place / "source"))
        station = Station(disk.place / "volume", place / "state")
        life = Life(mode, disk, place, station, tree, daemon, dice)
        patch = stack.enter_context(patched())
        clocks = SimpleNamespace(clock_gettime=lambda _: life.uptime, CLOCK_BOOTTIME=7)
        patch.setattr(clock, "time", clocks)
        yield life


# What a generation does, and the faults.


def plainly(life: Life, memory: Memory) -> None:
    """Nothing goes wrong; the steps are counted for those times when something does."""
    actions: dict[str, Callable[[], object]] = {"a backup": partial(life.back_up, life.now)}
    if life.dice.random() < 0.5:
        actions["expiry"] = life.expire
    if life.dice.random() < 0.2:
        actions["verification"] = life.prove
    for name, action in actions.items():
        steps = Steps(0, lambda: None)
        with patched() as patch:
            steps.watch(patch)
            action()
        life.steps[name] = steps.count
    newest = life.station.records()[-1]
    if newest.partial:
        life.wrong.append(f"{newest.id} is partial: {newest.summary}")


def any_action(life: Life, daemon: Daemon | None = None) -> tuple[str, Callable[[], object], int]:
    """Return something to disturb, and one of its steps; a backup is from that daemon."""
    actions: dict[str, Callable[[], object]] = {
        "a backup": partial(life.back_up, life.now, daemon),
        "expiry": life.expire,
        "verification": life.prove,
    }
    name = life.dice.choice([each for each in actions if life.steps.get(each)] or ["a backup"])
    return name, actions[name], life.dice.randrange(1, life.steps.get(name, 10) + 1)


def killed_at_a_step(life: Life, memory: Memory) -> None:
    """SIGKILL before or after something that is written or started."""
    with cut_after(life.daemon, math.inf) as daemon:
        _, action, step = any_action(life, daemon)

        def act() -> None:
            with patched() as patch:
                Steps(step, lambda: os.kill(os.getpid(), signal.SIGKILL)).watch(patch)
                action()

        waited_for(begun(act))


def killed_at_a_moment(life: Life, memory: Memory) -> None:
    """SIGKILL at any time, which the seed doesn't say to the step."""
    # With a session that is killed its tunnel ends.
    with cut_after(life.daemon, math.inf) as daemon:
        _, action, _ = any_action(life, daemon)
        child = begun(action)
        time.sleep(life.dice.random() * MOMENT_SECONDS[life.mode])
        os.kill(child, signal.SIGKILL)
        waited_for(child)


def begun(action: Callable[[], object]) -> int:
    """Do something in a process of its own, and return its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except (TurkuError, OSError):
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def waited_for(child: int) -> None:
    """Wait for a process that was killed, or had done all before."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.WEXITSTATUS(status) == 0


def full_disk(life: Life, memory: Memory) -> None:
    """From one step on the volume is full, until expiry has had its turn."""
    _, action, step = any_action(life)
    room = life.dice.choice([0, 4096, 65536])
    with patched() as patch, contextlib.suppress(TurkuError, OSError):
        Steps(step, lambda: life.disk.fill(room)).watch(patch)
        action()
    life.expire()
    life.disk.clear()


def cut_connection(life: Life, memory: Memory) -> None:
    """Cut the connection after so many bytes, of those to the machine and back."""
    count = int(100_000 ** life.dice.random())
    with cut_after(life.daemon, count) as daemon, contextlib.suppress(TurkuError):
        life.back_up(life.now, daemon)


@contextlib.contextmanager
def cut_after(daemon: Daemon, count: float) -> Iterator[Daemon]:
    """Stand before a daemon, as a tunnel does, and end it when it has carried so many bytes.

    At the end of the context it ends in any case.
    """
    port = free_port()
    ended, told = socket.socketpair()
    with ended, socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=_carry, args=(listener, told, daemon.port, count))
        thread.start()
        try:
            yield replace(daemon, port=port)
        finally:
            ended.close()
            thread.join()
            told.close()


def _carry(listener: socket.socket, told: socket.socket, port: int, count: float) -> None:
    """Carry connections, one after the other, until told to end."""
    while True:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(told, selectors.EVENT_READ)
            if any(key.fileobj is told for key, _ in selector.select()):
                return
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
                for each in (near, far, told):
                    selector.register(each, selectors.EVENT_READ)
                left, is_open = count, True
                while left > 0 and is_open:
                    for key, _ in selector.select():
                        if key.fileobj is told:
                            return
                        block = os.read(key.fd, int(min(left, 65536)))
                        (far if key.fileobj is near else near).sendall(block)
                        left -= len(block)
                        is_open = is_open and bool(block)


def clock_jumped(life: Life, memory: Memory) -> None:
    """The storage unit's clock is wrong for a while: when it expires, and when it backs up."""
    jump = life.dice.choice(JUMPS) + timedelta(minutes=1, seconds=life.dice.randrange(60))
    wrong = life.now + life.dice.choice([1, -1]) * jump
    if life.dice.random() < 0.5:
        life.remember(wrong, memory)
        life.back_up(wrong)
    before = {(record.id, record.expired_at is None) for record in life.station.records()}
    life.station.expire(wrong, trust_clock=False)
    after = {(record.id, record.expired_at is None) for record in life.station.records()}
    gone = {snapshot for snapshot, _ in before} - {snapshot for snapshot, _ in after}
    expired = {snapshot for snapshot, is_alive in before - after if is_alive}
    life.wrong += [f"{each} expired at a wrong time" for each in sorted(expired | gone)]


def damaged_file(life: Life, memory: Memory) -> None:
    """Damage a stored file; after a verification whatever isn't whole is called damaged."""
    life.back_up(life.now)
    life.struck |= {record.id for record in life.station.records()}
    machine = life.disk.place / "volume" / "machines" / MACHINE
    paths = sorted(
        path
        for path in machine.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
        if not path.name.startswith(("lock", ".lock", "reading"))
    )
    path = life.dice.choice(paths)
    way = life.dice.choice(sorted(WAYS))
    life.tree.done.append(f"{path.relative_to(machine)}: {way}")
    with writable(life, path):
        WAYS[way](path, life.dice)
    for _ in range(2):
        life.pass_time(timedelta(hours=1))
        life.expire()
        life.station.verify(life.now)


@contextlib.contextmanager
def writable(life: Life, path: Path) -> Iterator[None]:
    """Let a file in a read-only snapshot of btrfs be written to."""
    snapshots = life.folder.snapshots
    tree = None
    if life.mode == "btrfs" and snapshots in path.parents and path.parent != snapshots:
        tree = snapshots / path.relative_to(snapshots).parts[0]
    for value in ["false", "true"]:
        if tree is not None:
            command = ["btrfs", "property", "set", "-f", "-ts", os.fspath(tree), "ro", value]
            subprocess.run(command, check=True)
        if value == "false":
            yield


def busy_files(life: Life, memory: Memory) -> None:
    """Somebody writes to some files all the time; every other file is as it was."""
    with writing(life.place / "source") as writer:
        life.back_up(life.now)
        could_be = writer.could_be()
    life.remember(life.now, Memory(without_busy(memory.tree), could_be))


FAULTS = {
    "killed at a step": killed_at_a_step,
    "killed at a moment": killed_at_a_moment,
    "the volume is full": full_disk,
    "the connection is cut": cut_connection,
    "the clock jumps": clock_jumped,
    "a stored file is damaged": damaged_file,
}

SHORT = {"link-dest": 14, "btrfs": 10, "none": 10, "borg": 4}
LONG = {"link-dest": (3, 100), "btrfs": (3, 100), "none": (2, 100), "borg": (4, 50)}
LIVES = [(mode, number) for mode in LONG for number in range(LONG[mode][0] if FULL else 1)]


@pytest.mark.parametrize(("mode", "number"), LIVES)
def test_every_generation_of_a_tree_comes_back_as_it_was(
    dice: random.Random, tally: Tally, mode: str, number: int
) -> None:
    generations = times(SHORT[mode], LONG[mode][1])
    with made_life(mode, dice) as life:
        for generation in range(generations):
            name = live_through(life, generation)
            life.check(everything=name in FAULTS or generation == generations - 1)
            assert not life.wrong, told(life, generation, name)
            life.counts[name] += 1
        assert mode == "none" or life.counts["removed"] >= times(0, generations // 2)
    for name in sorted({*FAULTS, "a busy tree", "in peace"} & set(life.counts)):
        tally.note(f"{mode}: a generation, {name}", times=life.counts[name])
    tally.note(f"{mode}: a restore of a generation", times=life.counts["restored"])


def live_through(life: Life, generation: int) -> str:
    """Let one generation come to be, and return what happened to it."""
    life.advance()
    tree = life.tree.change(life.dice.randrange(1, 25))
    memory = Memory(tree, {})
    life.remember(life.now, memory)
    chance = life.dice.random()
    if generation > 2 and chance < FAULT_SHARE:
        name = life.dice.choice(sorted(FAULTS))
        with contextlib.suppress(TurkuError) if name == "a stored file is damaged" else quiet():
            FAULTS[name](life, memory)
        life.settle()
        life.make_sure(memory)
    elif chance < FAULT_SHARE + 0.15:
        name = "a busy tree"
        busy_files(life, memory)
    else:
        name = "in peace"
        plainly(life, memory)
    if holds.find([life.folder]) is not None and life.dice.random() < 0.5:
        # So much has changed that it looks like ransom; an operator has had a look.
        holds.release(life.folder)
    return name


def quiet() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def told(life: Life, generation: int, name: str) -> str:
    """Return what is wrong, and all that is needed to have it again."""
    return "\n".join(
        [
            f"TURKU_FAULTS_SEED={SEED}, {life.mode}, generation {generation}, {name}:",
            *life.wrong,
            "what was done to the tree:",
            *life.tree.done,
        ]
    )

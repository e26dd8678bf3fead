"""Whatever is killed, and whenever: the next run converges, and nothing is lost or left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.faults.killing import (
    MODES,
    SIGNALS,
    Ran,
    World,
    describe,
    find,
    finish,
    kill,
    make_world,
)
from tests.faults.tally import FULL, SEED, Tally, times
from tests.integration.api.server import serving
from tests.support.trees import describe_tree, differences
from turku_core.local.parts import set_up_machine
from turku_core.local.turku import Machine
from turku_core.storage.records import Record
from turku_core.storage.source_folder import SourceFolder

AGENT, SESSION = "turku-agent-ping", "turku-storage-ping"
WORKER, EXPIRE = "turku-storage-worker", "turku-storage-expire"
OPERATOR = "turku-storage"
AGENT_CONFIG, STORAGE_CONFIG = "turku-update-config", "turku-storage-update-config"

CALLS = (
    "agent_backup_now",
    "agent_ping_checkin",
    "agent_status",
    "storage_ping_checkin",
    "storage_ping_source_update",
    "storage_update_config",
)

PROGRAMS = (AGENT, SESSION, WORKER, "borg")
KINDS = (
    (AGENT, "without borg"),
    (SESSION, "without borg"),
    (SESSION, "with borg"),
    (WORKER, "without borg"),
    (WORKER, "with borg"),
    ("borg", "with borg"),
)
RSYNCS = ("rsync of the machine", "rsync of the storage unit")
BYSTANDERS = ("ssh", "sshd", "agent", *RSYNCS)


Test = Callable[..., None]


def in_full(test: Test) -> Test | None:
    """Leave a test out of `make test`: each is a minute or more of real programs."""
    return test if FULL else None


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="turku-kill-"))
    try:
        dice = random.Random(f"{SEED}:kill")
        modes = MODES if FULL else ("borg", dice.choice(MODES[1:]))
        with make_world(folder, dice, modes) as made:
            if FULL:
                # The first backup of all takes more steps than those after it.
                made.converge()
            yield made
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Strike:
    """What is killed, and when.

    Attributes:
        program: Who is killed at its own step or, with a victim, waits there meanwhile.
        at: Which of its steps.
        number: The signal.
        word: Which command of borg's, or call of the API.
        victim: Who is killed instead.
        words: What the program of the machine is told beside.
    """

    program: str
    at: int
    number: int
    word: str | None = None
    victim: str | None = None
    words: tuple[str, ...] = ()


NEVER = Strike("nobody", -1, 0)
Process = subprocess.Popen[str]


def victims_of(world: World, victim: str, agent: Process | None, operator: Process) -> list[int]:
    """Return the processes of a bystander that are there at the moment."""
    supervisor = world.turku.running.pid
    if victim == "agent":
        return [agent.pid] if agent is not None and agent.poll() is None else []
    if victim == "ssh":
        return find(agent.pid, lambda line: line.startswith("ssh ")) if agent else []
    if victim == "rsync of the machine":
        return find(agent.pid, lambda line: line.startswith("rsync ")) if agent else []
    if victim == "rsync of the operator":
        return find(operator.pid, lambda line: line.startswith("rsync "))
    if victim == "sshd":
        services, _ = world.processes()
        found = find(supervisor, lambda line: line.startswith(("sshd:", "sshd-session:")))
        return [pid for pid in found if pid not in services]
    if victim == "session":
        return find(supervisor, lambda line: SESSION in line)
    assert victim == "rsync of the storage unit"
    return find(supervisor, lambda line: line.startswith("rsync "))


def run_struck(
    world: World,
    name: str,
    words: Sequence[str],
    strike: Strike,
    agent: Process | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[bool, Ran]:
    """Run a program while the strike falls; return whether it fell, and the run.

    The agent is the program itself unless another one is given.
    """
    if strike.victim is None:
        with world.planned(strike.program, strike.at, strike.number, strike.word):
            ran = finish(world.start(name, *words, environment=environment))
        return len(world.steps(strike.program)) >= strike.at, ran
    if strike.victim.startswith("rsync"):
        process = world.start(name, *words, environment=environment)
        has_struck = strike_when_there(world, strike, process, agent or process)
        return has_struck, finish(process)
    with world.planned(strike.program, strike.at, 0):
        process = world.start(name, *words, environment=environment)
        has_struck = False
        if world.waiting(strike.program, process) is not None:
            for victim in victims_of(world, strike.victim, agent or process, process):
                kill(victim, strike.number)
                has_struck = True
            world.go_on(strike.program)
        return has_struck, finish(process)


def strike_when_there(world: World, strike: Strike, process: Process, agent: Process) -> bool:
    """Kill a program's process once it has been at work for a moment."""
    assert strike.victim is not None
    while process.poll() is None:
        victims = victims_of(world, strike.victim, agent, process)
        if victims:
            time.sleep(strike.at / 1000)
            for victim in victims:
                kill(victim, strike.number)
            return True
        time.sleep(0.002)
    return False


def back_up_struck(world: World, strike: Strike) -> bool:
    """Back up and commit while the strike falls; return whether it fell."""
    if strike.program == "API":
        return call_struck(world, strike)
    world.change()
    world.make_due()
    if strike.program in (AGENT, SESSION):
        has_struck, _ = run_struck(world, AGENT, strike.words, strike)
        world.run(WORKER, "--once")
        return has_struck
    world.run(AGENT)
    has_struck, _ = run_struck(world, WORKER, ("--once",), strike)
    return has_struck


def check_after(world: World, lost: list[str]) -> None:
    """See what is left behind at once, and count what is lost."""
    world.require_nothing_left()
    lost += world.lost()


def check_converged(world: World, lost: list[str]) -> None:
    """Let the next run come, and see that it mends everything."""
    world.converge()
    world.require_nothing_left()
    assert world.secrets_left() == []
    world.require_converged()
    lost += world.lost(restores=2)


def spread(dice: random.Random, steps: int, count: int) -> list[int]:
    """Return up to `count` of the numbers from 1 to `steps`, spread evenly; all if there is room.

    Where the first one is, chance says.
    """
    if count >= steps:
        return list(range(1, steps + 1))
    first = dice.random()
    return sorted({1 + int((each + first) * steps / count) % steps for each in range(count)})


def strikes_at(program: str, points: Sequence[int], dice: random.Random) -> list[Strike]:
    """Return a strike at each point, with either signal in turn."""
    first = dice.randrange(2)
    return [Strike(program, at, SIGNALS[(first + each) % 2]) for each, at in enumerate(points)]


def draw(world: World, kind: str, dice: random.Random) -> Sequence[str]:
    """Choose what is to be due: two sources of other modes than borg's, or one and borg's."""
    others = [name for name in world.sources if name != "borg"]
    return ["borg", dice.choice(others)] if kind == "with borg" else dice.sample(others, 2)


def count_steps(world: World, words: Sequence[str] = ()) -> dict[str, int]:
    """Count how many steps each program goes through in a backup and its commit."""
    world.change()
    world.make_due()
    with contextlib.ExitStack() as stack:
        for program in PROGRAMS:
            stack.enter_context(world.planned(program, -1, 0))
        assert world.run(AGENT, *words).code == 0
        assert world.run(WORKER, "--once").code == 0
    return {program: len(world.steps(program)) for program in PROGRAMS}


def strike_all(
    world: World, strikes: Sequence[Strike], act: Callable[[World, Strike], bool], tally: Tally
) -> None:
    """Let each strike fall, and see that nothing is lost and the next run converges.

    Strikes fall on each other's ruins as well: of two in turn only the second, and in the short
    form only the last, is converged from.
    """
    fallen = 0
    for number, strike in enumerate(strikes, start=1):
        lost: list[str] = []
        fallen += (has_fallen := act(world, strike))
        is_last = number == len(strikes)
        if FULL or is_last:
            check_after(world, lost)
        if is_last or (FULL and number % 2 == 0):
            check_converged(world, lost)
        tally.note(
            f"{signal.Signals(strike.number).name} of {strike.victim or strike.program}"
            f"{' in --backup-now' if strike.words else ''}",
            times=int(has_fallen),
            lost=len(lost),
        )
        assert lost == [], strike
    assert fallen > 0


def test_a_few_programs_killed_one_after_the_other_in_a_life_lose_nothing(
    world: World, tally: Tally, dice: random.Random
) -> None:
    with world.only_due(draw(world, "with borg", dice)):
        counted = count_steps(world)
        strikes = [
            *(
                strike
                for program in PROGRAMS
                for strike in strikes_at(
                    program,
                    [dice.randint(1, counted[program] // (3 if program == WORKER else 1))],
                    dice,
                )
            ),
            Strike(SESSION, dice.randrange(40, 60), signal.SIGKILL, victim=dice.choice(BYSTANDERS)),
            Strike("API", 0, signal.SIGKILL, CALLS[1]),
        ]
        chosen = strikes if FULL else dice.sample(strikes, 3)
        if strikes[-1] in chosen:
            # Its last step: the call is done, and its answer is lost.
            last = replace(strikes[-1], at=api_steps(world, CALLS[1]))
            chosen = [last if each == strikes[-1] else each for each in chosen]
        strike_all(world, chosen, back_up_struck, tally)


@in_full
@pytest.mark.parametrize(("program", "kind"), KINDS)
def test_a_program_killed_at_any_step_of_a_backup_or_a_commit_loses_nothing(
    world: World, tally: Tally, dice: random.Random, program: str, kind: str
) -> None:
    with world.only_due(draw(world, kind, dice)):
        points = spread(dice, count_steps(world)[program], times(1, 16))
        strike_all(world, strikes_at(program, points, dice), back_up_struck, tally)


@in_full
@pytest.mark.parametrize("victim", BYSTANDERS)
def test_a_bystander_killed_in_a_backup_loses_nothing(
    world: World, tally: Tally, dice: random.Random, victim: str
) -> None:
    with world.only_due(draw(world, "without borg", dice)):
        steps = 300 if victim.startswith("rsync") else count_steps(world)[SESSION]
        points = spread(dice, steps, times(1, 6))
        strikes = [replace(each, victim=victim) for each in strikes_at(SESSION, points, dice)]
        strike_all(world, strikes, back_up_struck, tally)


@in_full
@pytest.mark.parametrize("victim", [AGENT, SESSION, "ssh", "sshd"])
def test_a_backup_that_was_asked_for_by_hand_and_is_killed_loses_nothing(
    world: World, tally: Tally, dice: random.Random, victim: str
) -> None:
    with world.only_due(draw(world, "without borg", dice)):
        words = ("--backup-now", *(word for name in world.due for word in ("--source", name)))
        program = AGENT if victim == AGENT else SESSION
        points = spread(dice, count_steps(world, words)[program], times(1, 5))
        strikes = [replace(each, words=words) for each in strikes_at(program, points, dice)]
        if victim not in (AGENT, SESSION):
            strikes = [replace(each, victim=victim) for each in strikes]
        strike_all(world, strikes, back_up_struck, tally)


def ensure_snapshots(world: World, count: int) -> None:
    """Back up until each source has so many snapshots, but for mode none's, which has one."""
    wanted = len(world.sources) - 1
    while sum(len(group) >= count for group in by_source(world).values()) < wanted:
        world.converge()


def by_source(world: World) -> dict[str, list[Record]]:
    """Return the snapshots of each source that are listed, the oldest first."""
    found: dict[str, list[Record]] = {name: [] for name in world.sources}
    for key, record in sorted(world.listed().items()):
        found[key[0]].append(record)
    return found


@dataclass
class Restore:
    """One restore that somebody wants; it is tried until it is done.

    Attributes:
        way: Who does it: a key of `WAYS`.
        place: An empty folder of the test's.
    """

    world: World
    way: str
    record: Record
    place: Path
    orders: int = 0

    @property
    def target(self) -> Path:
        """Where the files go."""
        return self.place / "target"

    def attempt(self, strike: Strike) -> tuple[bool, bool]:
        """Try it once while the strike falls; return whether it fell, and whether it is done."""
        attempts = {
            "machine": self._by_the_machine,
            "order": self._by_an_order,
            "operator": self._by_the_operator,
            "waiting agent": self._to_a_waiting_agent,
        }
        return attempts[self.way](strike)

    def restored(self) -> Path:
        """Return where the files are. No attempt at an order has left another folder."""
        if self.way != "order":
            return self.target
        _, folder = self._order_state()
        path = Path(folder)
        assert len(list(path.parent.iterdir())) <= self.orders, list(path.parent.iterdir())
        return path

    def clear(self) -> None:
        """Remove what was restored."""
        shutil.rmtree(self.restored().parent if self.way == "order" else self.target)

    def _by_the_machine(self, strike: Strike) -> tuple[bool, bool]:
        snapshot = ["--source", self.record.source, "--snapshot", self.record.id]
        words = ["--restore", *snapshot, "--target", str(self.target)]
        has_fallen, ran = run_struck(self.world, AGENT, words, strike)
        return has_fallen, ran.code == 0

    def _by_an_order(self, strike: Strike) -> tuple[bool, bool]:
        with self.world.only_due(()):
            state = self._order_state()[0] if self.orders else "failed"
            if state == "failed":
                words = (self.record.machine, self.record.source, "--snapshot", self.record.id)
                self.world.turku.api_run("order-restore", *words)
                self.orders += 1
            self.world.make_due()
            has_fallen, _ = run_struck(self.world, AGENT, (), strike)
        return has_fallen, self._order_state()[0] == "done"

    def _order_state(self) -> tuple[str, str]:
        with self.world.database() as database:
            query = "SELECT state, restored_to FROM turku_api_restoreorder ORDER BY id DESC"
            state, folder = database.execute(query).fetchone()
        assert state in ("ordered", "running", "failed", "done"), state
        return state, folder

    def _operators_words(self) -> list[str]:
        snapshot = [self.record.source, "--snapshot", self.record.id]
        return ["restore", self.record.machine, *snapshot]

    def _by_the_operator(self, strike: Strike) -> tuple[bool, bool]:
        words = [*self._operators_words(), "--target", str(self.target), "--into-filled-folder"]
        has_fallen, ran = run_struck(self.world, OPERATOR, words, strike)
        return has_fallen, ran.code == 0

    def _to_a_waiting_agent(self, strike: Strike) -> tuple[bool, bool]:
        words = ("--restore", "--target", str(self.target))
        agent = self.world.start(AGENT, *words, output=subprocess.PIPE)
        try:
            password, where = read_invitation(agent)
            has_fallen, ran = run_struck(
                self.world,
                OPERATOR,
                [*self._operators_words(), *where],
                strike,
                agent,
                environment={"RSYNC_PASSWORD": password},
            )
        finally:
            agent.send_signal(signal.SIGINT)
            ended = finish(agent)
        return has_fallen, ran.code == 0 and ended.code == 0


def read_invitation(agent: Process) -> tuple[str, list[str]]:
    """Read the line that a waiting agent shows; return the password, and where to restore to."""
    assert agent.stdout is not None
    for line in agent.stdout:
        if "--to-port" in line:
            words = shlex.split(line.partition(":")[2])
            options = [words.index(word) for word in ("--to-port", "--username")]
            password = words[0].partition("=")[2]
            return password, [words[at + each] for at in options for each in (0, 1)]
    raise AssertionError(f"The agent said nothing of where to restore to: {finish(agent)}")


WAYS: Mapping[str, Sequence[str]] = {
    "machine": (AGENT, SESSION, "borg", "ssh", "sshd", *RSYNCS),
    "order": (AGENT, SESSION, "ssh", "sshd", *RSYNCS),
    "operator": (OPERATOR, "borg", "rsync of the operator"),
    "waiting agent": (OPERATOR, "agent", "ssh", "sshd", "session", RSYNCS[0]),
}
"""Who does a restore, and who may be killed in it."""


@in_full
@pytest.mark.parametrize(("way", "victim"), [(way, each) for way in WAYS for each in WAYS[way]])
def test_a_restore_that_is_killed_is_done_by_the_next_one(
    world: World, tally: Tally, dice: random.Random, way: str, victim: str, tmp_path: Path
) -> None:
    ensure_snapshots(world, 2)
    source = "borg" if victim == "borg" else dice.choice(sorted(world.sources))
    # The newest is in the mirror; an older one has to be extracted.
    record = by_source(world)[source][0]
    for strike in restore_strikes(world, way, victim, record, dice, tmp_path):
        restore = Restore(world, way, record, tmp_path)
        has_fallen, is_done = restore.attempt(strike)
        world.require_nothing_left()
        if not is_done or way != "order":
            _, is_done = restore.attempt(NEVER)
        assert is_done, strike
        wrong = differences(world.expected(record), describe_tree(restore.restored()))
        restore.clear()
        world.require_nothing_left()
        tally.note(
            f"{signal.Signals(strike.number).name} of {victim} in a restore, {way}",
            times=int(has_fallen),
            lost=len(wrong),
        )
        assert wrong == [], strike
    lost: list[str] = []
    with world.only_due([source]):
        check_converged(world, lost)
    assert lost == []


def restore_strikes(
    world: World, way: str, victim: str, record: Record, dice: random.Random, place: Path
) -> list[Strike]:
    """Return when to strike at a restore: over all the steps that one without a strike has."""
    waits_at = SESSION if way in ("machine", "order") else OPERATOR
    count = times(1, 3)
    if victim.startswith("rsync"):
        points = spread(dice, 60, count)
        return [replace(each, victim=victim) for each in strikes_at(waits_at, points, dice)]
    counted = victim if victim in (AGENT, SESSION, OPERATOR, "borg") else waits_at
    restore = Restore(world, way, record, place)
    assert restore.attempt(Strike(counted, -1, 0))[1]
    restore.clear()
    strikes = strikes_at(counted, spread(dice, len(world.steps(counted)), count), dice)
    return strikes if counted == victim else [replace(each, victim=victim) for each in strikes]


@pytest.fixture
def expirable(world: World) -> Iterator[set[tuple[str, str]]]:
    """Let a policy want the newest two snapshots only, at once; yield which these are."""
    ensure_snapshots(world, 5)
    path = world.turku.layout.storage / "etc/turku-storage/config.d/60-expiry.json"
    path.write_text(json.dumps({"expiry_grace_days": 0, "expiry_floor": 1}))
    folders = world.catalogue().folders()
    states = {folder: folder.state() for folder in folders}
    set_retention(folders, "last 2 snapshots")
    kept = {(each.source, each.id) for group in by_source(world).values() for each in group[-2:]}
    try:
        yield kept
    finally:
        path.unlink()
        for folder in world.catalogue().folders():
            retention = states[folder].retention
            folder.write_state(replace(folder.state(), retention=retention))


def set_retention(folders: Sequence[SourceFolder], policy: str) -> None:
    """Change the policy of sources, as a machine's next backup would."""
    for folder in folders:
        folder.write_state(replace(folder.state(), retention=policy))


@in_full
@pytest.mark.parametrize("program", [EXPIRE, "borg", WORKER])
def test_expiry_that_is_killed_removes_nothing_that_is_wanted_and_is_finished_by_the_next_one(
    world: World,
    tally: Tally,
    dice: random.Random,
    program: str,
    expirable: set[tuple[str, str]],
) -> None:
    with world.set_aside() as put_back:
        # The worker's expiry is due once an hour: let it be.
        words = ("--once",) if program == WORKER else ()
        name = WORKER if program == WORKER else EXPIRE
        forget_rounds(world)
        with world.planned(program, -1, 0):
            assert world.run(name, *words).code == 0
        points = spread(dice, len(world.steps(program)), times(2, 6))
        assert set(world.listed()) == expirable
        for strike in strikes_at(program, points, dice):
            put_back()
            forget_rounds(world)
            before = world.listed()
            has_fallen, _ = run_struck(world, name, words, strike)
            world.require_nothing_left()
            between = world.listed()
            assert expirable <= between.keys() <= before.keys()
            unwanted = before.keys() - expirable
            wrong = world.lost(restores=1, unwanted=unwanted)
            forget_rounds(world)
            assert world.run(name, *words).code == 0
            assert set(world.listed()) == expirable, strike
            wrong += world.lost(restores=2, unwanted=unwanted)
            assert names_left(world) == expirable, strike
            assert world.run(WORKER, "--once").code == 0
            assert world.reported() == expirable, strike
            world.require_nothing_left()
            assert world.secrets_left() == []
            tally.note(
                f"{signal.Signals(strike.number).name} of {program} in expiry",
                times=int(has_fallen),
                lost=len(wrong),
            )
            assert wrong == [], strike


def forget_rounds(world: World) -> None:
    """Let the worker think that each of its rounds is due."""
    world.settings().paths.worker_state.unlink(missing_ok=True)


def names_left(world: World) -> set[tuple[str, str]]:
    """Return the snapshots of which there is anything on the volume: a record, tree or archive."""
    found = set()
    for folder in world.catalogue().folders():
        for path in folder.snapshots.iterdir():
            found.add((folder.source, path.name.partition(".")[0]))
    command = ["borg", "list", "--short", "--consider-checkpoints"]
    for repository in world.volume.glob("machines/*/.borg"):
        environment = {
            **os.environ,
            "BORG_BASE_DIR": str(world.folder / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        listed = subprocess.run(
            [*command, str(repository)], env=environment, capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            source, _, snapshot = line.partition("-")
            found.add((source, snapshot))
    return found


def machines_named(world: World, name: str) -> list[tuple[str, str]]:
    """Return the UUID and the SSH key of each machine of a name that the API knows."""
    with world.database() as database:
        rows = database.execute(
            "SELECT uuid, ssh_public_key FROM turku_api_machine WHERE unit_name = ?", (name,)
        )
        return list(rows)


def register_struck(world: World, name: str, strike: Strike | None) -> tuple[bool, list[str]]:
    """Register a new machine, twice if the first time is struck; return what isn't as it should."""
    layout = world.turku.layout
    key = json.loads(layout.registration_keys.read_text("utf-8"))["machine"]
    root = set_up_machine(layout, name, world.turku.running.api_url, key, {})
    stranger = replace(world, machine=Machine(name, root))
    stranger.machine.write_source("docs", {"path": str(world.folder)})
    has_fallen = False
    if strike is not None:
        has_fallen, _ = run_struck(stranger, AGENT_CONFIG, (), strike)
        world.require_nothing_left()
    again = stranger.run(AGENT_CONFIG)
    wrong = [] if again.code == 0 else [str(again)]
    known = machines_named(world, name)
    public = (root / "var/lib/turku-agent/ssh_key.pub").read_text("utf-8").split()[:2]
    if [(uuid, line.split()[:2]) for uuid, line in known] != [(stranger.machine.uuid, public)]:
        wrong.append(f"the API knows {known}")
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(root / "var/lib/turku-agent/ssh_key")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if derived.stdout.split()[:2] != public:
        wrong.append("the private SSH key is another one's")
    wrong += [f"left behind: {each}" for each in stranger.secrets_left()]
    shutil.rmtree(root)
    return has_fallen, wrong


@pytest.mark.parametrize("program", [AGENT_CONFIG, "API"] if FULL else [AGENT_CONFIG])
def test_a_registration_that_is_killed_ends_in_one_machine_that_has_one_identity(
    world: World, tally: Tally, dice: random.Random, program: str
) -> None:
    word = "update_config" if program == "API" else None
    with world.planned(program, -1, 0, word):
        assert register_struck(world, f"counted-{program}", None) == (False, [])
    points = spread(dice, len(world.steps(program)), times(1, 12))
    for number, strike in enumerate(strikes_at(program, points, dice)):
        strike = replace(strike, word=word)
        has_fallen, wrong = register_struck(world, f"{program}-{number}", strike)
        tally.note(
            f"{signal.Signals(strike.number).name} of {program} in a registration",
            times=int(has_fallen),
            lost=len(wrong),
        )
        assert wrong == [], strike


@in_full
def test_a_storage_unit_killed_while_it_registers_lets_its_machines_in_all_the_same(
    world: World, tally: Tally, dice: random.Random
) -> None:
    layout = world.turku.layout
    keys = layout.storage / "var/lib/turku-storage/.ssh/authorized_keys"
    known = world.settings().paths.known_machines
    known.unlink()
    with world.planned(STORAGE_CONFIG, -1, 0):
        assert world.run(STORAGE_CONFIG).code == 0
    before = keys.read_bytes()
    points = spread(dice, len(world.steps(STORAGE_CONFIG)), times(1, 8))
    for strike in strikes_at(STORAGE_CONFIG, points, dice):
        known.unlink(missing_ok=True)
        has_fallen, _ = run_struck(world, STORAGE_CONFIG, (), strike)
        world.require_nothing_left()
        lost = int(keys.read_bytes() != before)
        assert world.run(STORAGE_CONFIG).code == 0
        assert keys.read_bytes() == before
        assert known.exists()
        world.run(WORKER, "--once")
        assert world.secrets_left() == []
        tally.note(
            f"{signal.Signals(strike.number).name} of {STORAGE_CONFIG}",
            times=int(has_fallen),
            lost=lost,
        )
        assert lost == 0, strike


def call_struck(world: World, strike: Strike) -> bool:
    """Back up and commit while the API is killed in a call of it; return whether it was."""
    world.change()
    world.make_due()
    words = ("--backup-now",) if strike.word == "agent_backup_now" else ()
    (world.plans / "API.steps").unlink(missing_ok=True)
    with world.planned("API", strike.at, strike.number, strike.word):
        world.run(AGENT, *words)
        if strike.word == "agent_status":
            # It is asked at the first check-in after one that had sessions.
            world.run(AGENT)
        world.run(WORKER, "--once")
    return len(world.steps("API")) >= strike.at


@in_full
def test_a_storage_unit_killed_at_its_first_call_has_one_identity(
    world: World, tally: Tally, dice: random.Random, tmp_path: Path
) -> None:
    def register(strike: Strike) -> tuple[bool, list[str]]:
        root = tmp_path / "storage"
        make_storage_unit(world, root)
        stranger = replace(world, storage=root)
        has_fallen, _ = run_struck(stranger, STORAGE_CONFIG, (), strike)
        world.require_nothing_left()
        assert stranger.run(STORAGE_CONFIG).code == 0
        name = stranger.settings().login.name
        with world.database() as database:
            query = "SELECT name FROM turku_api_storageunit WHERE id > 1"
            known = [each for (each,) in database.execute(query)]
            database.execute("DELETE FROM turku_api_storageunit WHERE id > 1")
        shutil.rmtree(root)
        return has_fallen, [] if known == [name] else [f"{name} is known as {known}"]

    assert register(Strike(STORAGE_CONFIG, -1, 0)) == (True, [])
    points = spread(dice, len(world.steps(STORAGE_CONFIG)), times(1, 8))
    for strike in strikes_at(STORAGE_CONFIG, points, dice):
        has_fallen, wrong = register(strike)
        tally.note(
            f"{signal.Signals(strike.number).name} of {STORAGE_CONFIG} in a registration",
            times=int(has_fallen),
            lost=len(wrong),
        )
        assert wrong == [], strike


def make_storage_unit(world: World, root: Path) -> None:
    """Set up one more storage unit, which takes nothing and has no identity yet."""
    folder = root / "etc/turku-storage/config.d"
    shutil.copytree(world.turku.layout.storage / "etc/turku-storage/config.d", folder)
    for path in folder.iterdir():
        values = json.loads(path.read_bytes())
        values.pop("name", None)
        path.write_text(json.dumps(values))
    place = {"path": str(world.volume), "accept_new": False}
    (folder / "90-other.json").write_text(json.dumps({"volumes": {"local": place}}))
    (root / "var/lib/turku-storage").mkdir(mode=0o700, parents=True)


def api_steps(world: World, call: str) -> int:
    """Count the steps that the API goes through in one call of a backup and its commit."""
    call_struck(world, Strike("API", -1, 0, call))
    steps = len(world.steps("API"))
    assert steps > 2
    return steps


@in_full
@pytest.mark.parametrize("call", CALLS)
def test_the_api_killed_in_a_call_before_or_after_it_took_effect_loses_nothing(
    world: World, tally: Tally, dice: random.Random, call: str
) -> None:
    with world.only_due(draw(world, "without borg", dice)):
        steps = api_steps(world, call)
        # At the last step what was asked for is done, and only the answer is lost.
        points = sorted({*spread(dice, steps, times(1, 4)), steps})
        strikes = [replace(each, word=call) for each in strikes_at("API", points, dice)]
        strike_all(world, strikes, call_struck, tally)


@in_full
@pytest.mark.parametrize("call", ["agent_ping_restore", "agent_restore_report"])
def test_the_api_killed_in_a_call_of_a_restore_lets_it_be_done_once(
    world: World, tally: Tally, dice: random.Random, call: str, tmp_path: Path
) -> None:
    record = by_source(world)["link-dest"][0]
    counting = Restore(world, "order", record, tmp_path)
    assert counting.attempt(Strike("API", -1, 0, call))[1]
    counting.clear()
    steps = len(world.steps("API"))
    for strike in strikes_at("API", sorted({*spread(dice, steps, times(1, 5)), steps}), dice):
        restore = Restore(world, "order", record, tmp_path)
        has_fallen, is_done = restore.attempt(replace(strike, word=call))
        world.require_nothing_left()
        if not is_done:
            assert restore.attempt(NEVER)[1], strike
        wrong = differences(world.expected(record), describe_tree(restore.restored()))
        restore.clear()
        tally.note(
            f"{signal.Signals(strike.number).name} of API in a restore",
            times=int(has_fallen),
            lost=len(wrong),
        )
        assert wrong == [], strike
    lost: list[str] = []
    with world.only_due(["link-dest"]):
        check_converged(world, lost)
    assert lost == []


def count_rows(world: World) -> dict[str, int]:
    """Return how many rows each of the API's tables has."""
    with world.database() as database:
        names = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'turku_api_%'"
        ).fetchall()
        return {
            name: database.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()[0]
            for (name,) in names
        }


@in_full
def test_every_call_made_twice_because_its_first_answer_was_lost_changes_nothing_more(
    world: World, tally: Tally
) -> None:
    lives: list[dict[str, int]] = []
    for is_twice in (False, True):
        before = count_rows(world)
        if is_twice:
            (world.plans / "API.twice").touch()
        try:
            _, wrong = register_struck(world, f"twice-{is_twice}", None)
            assert wrong == []
            assert world.run(STORAGE_CONFIG).code == 0
            lost: list[str] = []
            check_converged(world, lost)
        finally:
            (world.plans / "API.twice").unlink(missing_ok=True)
        after = count_rows(world)
        lives.append({name: after[name] - before[name] for name in after})
    once, twice = lives
    more = sum(each != once[name] for name, each in twice.items())
    assert once["turku_api_backup"] == len(world.due)
    tally.note("every answer of the API lost once", lost=len(lost) + more)
    assert lost == []
    assert twice == once


@in_full
@pytest.mark.parametrize("number", SIGNALS)
def test_the_worker_as_a_service_ends_cleanly_and_begins_again(
    world: World, tally: Tally, dice: random.Random, number: int
) -> None:
    for at in sorted(dice.sample(range(1, 90), times(1, 5))):
        world.change()
        world.make_due()
        assert world.run(AGENT).code == 0
        with world.planned(WORKER, at, number):
            process = world.start(WORKER)
            code = finish(process).code if strike_falls(world, at, process) else end(process)
        assert code in (-signal.SIGKILL, 0), code
        world.require_nothing_left()
        lost = world.lost()
        check_converged(world, lost)
        tally.note(f"{signal.Signals(number).name} of {WORKER} as a service", lost=len(lost))
        assert lost == []


def strike_falls(world: World, at: int, process: subprocess.Popen[str]) -> bool:
    """Wait until the service has come to its step; False when it has nothing more to do."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if len(world.steps(WORKER)) >= at:
            return True
        time.sleep(0.02)
    return process.poll() is not None


def end(process: subprocess.Popen[str]) -> int:
    """Kill a program and return the code that it ends with."""
    process.kill()
    return finish(process).code


@in_full
def test_when_the_apis_first_process_is_killed_its_workers_go_and_another_takes_their_place(
    tmp_path: Path, tally: Tally
) -> None:
    with serving(tmp_path) as server:
        deadline = time.monotonic() + 30
        while not (workers := server.workers()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = server.port
        server.process.kill()
        server.process.wait()
        while left := [pid for pid in workers if "turku-api" in describe(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        with serving(tmp_path, "--listen", f"127.0.0.1:{port}") as again:
            assert again.post("health", {}).status_code == 200
    tally.note("SIGKILL of the API's first process")

"""A storage unit that is the enemy's: a real agent has sessions with it, and gives no more away.

What a storage unit gets by right are the sources that are due there, for as long as a session
lasts, without what the machine leaves out.
"""

from __future__ import annotations

import random
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import hostile_unit
from tests.faults.attacked import OUTSIDE, Attacked, attacked_machine, restore_ill
from tests.faults.hostile_unit import ACTS, Act, HostileUnit, Visit
from tests.faults.tally import FULL, SEED, Tally, times
from tests.integration.agent.stand_ins import (
    StandInUnit,
    running,
    wait_until,
)
from turku_core.agent import session
from turku_core.agent.processes import Stop
from turku_core.agent.session import SessionFailed, SessionPlan, run_session
from turku_core.protocol.messages import StorageAddress


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked_machine(tmp_path_factory.mktemp("attacked")) as made:
        yield made


def test_a_hostile_storage_unit_gets_the_due_sources_without_what_is_left_out(
    attacked: Attacked, tally: Tally, dice: random.Random
) -> None:
    """By right, that is; so the enemy's stand-in can do what a storage unit can."""
    done = attacked.suffer(ACTS["what a good one does"], dice)
    assert done.code == 0, done
    visit = attacked.unit.visits[-1]
    assert list(visit.request["sources"]) == ["docs"]
    got = {str(path.relative_to(visit.loot)) for path in visit.loot.rglob("*")}
    assert got == {"a", "sub", "sub/b", "to-outside", "folder-outside"}
    assert (visit.loot / "to-outside").is_symlink()
    assert (visit.loot / "sub/b").read_text() == "beta"
    stolen = attacked.stolen()
    tally.note("a hostile storage unit reads what is due", lost=len(stolen))
    assert stolen == []


TRIED = [name for name in ACTS if name != "what a good one does"]
SHORT = random.Random(SEED).sample(TRIED, 1)


@pytest.mark.parametrize("name", TRIED if FULL else SHORT)
def test_a_hostile_storage_unit_gets_and_changes_nothing_else(
    attacked: Attacked, tally: Tally, dice: random.Random, name: str
) -> None:
    count = times(1, 10)
    for _ in range(count):
        visits = len(attacked.unit.visits)
        attacked.suffer(ACTS[name], dice)
        assert len(attacked.unit.visits) == visits + 1
    stolen = attacked.stolen()
    tally.note(f"a hostile storage unit {name}", times=count, lost=len(stolen))
    assert stolen == []


def _greetings(dice: random.Random) -> list[bytes]:
    return [
        b"",
        dice.randbytes(3000),
        b"SSH-1.0-x\r\n",
        b"SSH-2.0-" + b"x" * 300 + b"\r\n",
        b"SSH-2.0-x\r\n" + b"\xff\xff\xff\xff" + dice.randbytes(60_000),
        b"\x1b[2Ja line before SSH\r\n" * 3000,
        b"HTTP/1.1 200 OK\r\n\r\n{}",
    ]


@pytest.mark.only_in_full
def test_what_isnt_ssh_or_has_another_host_key_hears_nothing(
    attacked: Attacked, tally: Tally, dice: random.Random
) -> None:
    visits = len(attacked.unit.visits)
    tried = dice.sample(_greetings(dice), times(1, 7))
    announced = attacked.machine.scheduled["docs"]
    other = HostileUnit(attacked.folder / f"other-{dice.random()}")
    try:
        for greeting in tried:
            attacked.unit.greeting = greeting
            assert attacked.suffer(ACTS["talks nonsense"], dice).code == 1
        attacked.unit.greeting = None
        # The keys are those of another one.
        keys = other.address()["ssh_ping_host_keys"]
        announced["storage"] = attacked.unit.address(ssh_ping_host_keys=keys)
        done = attacked.suffer(ACTS["talks nonsense"], dice)
        assert done.code == 1
        assert "host key is not one that the API announced" in done.errors
    finally:
        attacked.unit.greeting = None
        announced["storage"] = attacked.unit.address()
        other.close()
    heard = len(attacked.unit.visits) - visits
    tally.note("a hostile storage unit without SSH, or with another host key",
               times=len(tried) + 1, lost=heard)  # fmt: skip
    assert heard == 0


def _held(visit: Visit, dice: random.Random) -> int:
    """Hold the session until the agent goes."""
    while visit.transport.is_active():
        time.sleep(0.02)
    return 0


@pytest.mark.only_in_full
def test_who_holds_a_session_for_ever_holds_no_other_storage_unit_up(
    attacked: Attacked, tmp_path: Path, tally: Tally
) -> None:
    machine = attacked.machine
    before = attacked.describe()
    with running(StandInUnit(tmp_path / "good")) as good:
        good.authorize((machine.state / "ssh_key.pub").read_text().strip())
        attacked.unit.act = _held
        docs = machine.scheduled["docs"]
        machine.scheduled["other"] = {
            "path": "/elsewhere", "filter": [], "exclude": [], "storage": good.address()
        }  # fmt: skip
        visits = len(attacked.unit.visits)
        agent = machine.start("turku-agent-ping")
        try:
            wait_until(
                lambda: (good.folder / "mirrors/other/secret").exists(), "the good one has it"
            )
            wait_until(lambda: len(attacked.unit.visits) > visits, "the enemy has a session")
            # The session that is held lasts; told to stop, the agent leaves it and is gone.
            assert agent.poll() is None
            agent.terminate()
            agent.communicate(timeout=hostile_unit.SECONDS)
        finally:
            agent.kill()
            agent.wait()
            del machine.scheduled["other"]
            assert machine.scheduled["docs"] is docs
    assert attacked.describe() == before
    assert machine.leftovers() == []
    assert machine.children() == []
    tally.note("a hostile storage unit holds its session for ever")


def run_bounded(attacked: Attacked, folder: Path, act: Act, patience: float) -> str:
    """Have a session in this process; the sentence with which it failed."""
    attacked.unit.act = act
    address = StorageAddress.from_json(attacked.unit.address(), "storage")
    stop = Stop()
    try:
        with pytest.raises(SessionFailed) as failed:
            run_session(
                SessionPlan(address, "list", patience=patience),
                key=attacked.machine.state / "ssh_key",
                run_folder=folder,
                stop=stop,
                on_event=lambda event: None,
            )
    finally:
        stop.close()
    return str(failed.value)


def test_a_session_has_its_bounds_in_silence_and_in_words(
    attacked: Attacked, tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has said nothing for 1 seconds" in run_bounded(attacked, tmp_path, _held, 1)
    # A gigabyte takes a while.
    monkeypatch.setattr(session, "SAID_BYTES_MAX", 2**20)

    def say_on(visit: Visit, dice: random.Random) -> int:
        while visit.transport.is_active():
            visit.say(b'{"event": "progress", "bytes": 1}\n' * 1000)
        return 0

    def complain_on(visit: Visit, dice: random.Random) -> int:
        while visit.transport.is_active():
            visit.complain(b"x\n" * 10_000)
        return 0

    for act in (say_on, complain_on):
        assert "says more than" in run_bounded(attacked, tmp_path, act, hostile_unit.SECONDS)
    tally.note("a hostile storage unit is silent, or says no end of words", times=3)


@pytest.mark.parametrize(
    "where", ["a folder", "the restore folder"] if FULL else ["the restore folder"]
)
def test_a_restore_from_a_hostile_storage_unit_never_leaves_its_folder(
    attacked: Attacked, tmp_path: Path, tally: Tally, dice: random.Random, where: str
) -> None:
    count = times(1, 10)
    deleted = 0
    for number in range(count):
        target = tmp_path / str(number)
        target.mkdir()
        (target / "mine").write_bytes(OUTSIDE)
        more = ["--target", str(target)] if where == "a folder" else []
        act = restore_ill(attacked)
        attacked.suffer(act, dice, "--restore", "--source", "docs", *more)
        deleted += (target / "mine").read_bytes() != OUTSIDE
    if where != "a folder":
        folder = attacked.machine.state / "restore"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.iterdir()) == [folder / "docs"]
    stolen = attacked.stolen()
    tally.note(f"a hostile storage unit restores into {where}", times=count,
               lost=len(stolen) + deleted)  # fmt: skip
    assert stolen == []
    assert deleted == 0


@pytest.mark.only_in_full
def test_lists_of_snapshots_without_end_are_bounded_and_few_of_their_faults_are_said(
    attacked: Attacked, tally: Tally, dice: random.Random
) -> None:
    def act(visit: Visit, dice: random.Random) -> int:
        for _ in range(3):
            visit.say({"event": "snapshots", "snapshots": [{"id": "\x1b[2J"}] * 20_000})
        return 0

    done = attacked.suffer(act, dice, "--list")
    assert done.errors.count("storage unit enemy") < 20, done.errors[:3000]
    tally.note("a hostile storage unit lists snapshots without end")

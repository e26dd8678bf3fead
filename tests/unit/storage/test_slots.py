"""The slots of a storage unit."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from turku_core.storage.slots import PULL, RESTORE, SlotsFull, hold_slot, running

MACHINE = "11111111-1111-4111-8111-111111111111"
MACHINES = [f"{number:08d}-1111-4111-8111-111111111111" for number in range(4)]


def test_no_more_sessions_than_slots(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for machine in MACHINES[:3]:
            stack.enter_context(hold_slot(tmp_path, 3, machine, ["docs"]))
        with (
            pytest.raises(SlotsFull, match=r"All 3 slots .* come back") as raised,
            hold_slot(tmp_path, 3, MACHINES[3], ["docs"]),
        ):
            pass
        assert raised.value.exit_code == 75
        # Restores have slots of their own.
        stack.enter_context(hold_slot(tmp_path, 3, MACHINE, [], RESTORE))
    with hold_slot(tmp_path, 3, MACHINE, ["docs"]):
        pass


@pytest.mark.parametrize(("kind", "share"), [(PULL, 1), (RESTORE, 4)])
def test_no_machine_takes_the_slots_of_all(tmp_path: Path, kind: str, share: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(share):
            stack.enter_context(hold_slot(tmp_path, 10, MACHINE, [], kind))
        with pytest.raises(SlotsFull, match="of this machine"):
            stack.enter_context(hold_slot(tmp_path, 10, MACHINE, [], kind))
        stack.enter_context(hold_slot(tmp_path, 10, MACHINES[0], [], kind))
    with hold_slot(tmp_path, 10, MACHINE, [], kind):
        pass


def test_who_is_being_backed_up_is_known_while_it_lasts(tmp_path: Path) -> None:
    with (
        hold_slot(tmp_path, 2, MACHINE, ["docs", "mail"]),
        hold_slot(tmp_path, 2, MACHINE, [], RESTORE),
    ):
        [session] = running(tmp_path)
        assert (session.machine, session.sources) == (MACHINE, ("docs", "mail"))
    assert running(tmp_path) == []


def test_looking_at_slots_never_makes_one_seem_taken(tmp_path: Path) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            running(tmp_path)

    with hold_slot(tmp_path, 1, MACHINE, []):
        pass
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with hold_slot(tmp_path, 2, MACHINE, []):
                pass
    finally:
        over.set()
        thread.join()


def test_prior_art_23_a_killed_session_frees_its_slot(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from turku_core.storage.slots import *\n"
        "with hold_slot(Path(sys.argv[1]), 1, sys.argv[2], []):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), MACHINE], stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"held\n"
        with pytest.raises(SlotsFull), hold_slot(tmp_path, 1, MACHINE, []):
            pass
        killed.send_signal(signal.SIGKILL)
    with hold_slot(tmp_path, 1, MACHINE, []):
        pass

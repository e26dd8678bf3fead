"""Killed at any step, a backup or a removal converges, and nothing half made is ever listed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.snapshots.support import (
    DAY,
    MACHINE,
    START,
    make_unit,
    quick_folder,
    serve,
)
from turku_core.storage import catalogue, manifest, programs, source_folder
from turku_core.storage.mirror import Daemon
from turku_core.storage.snapshots import FrozenStateLost, commit, converge

FIRST, SECOND, THIRD = "20260105T030000Z", "20260106T030000Z", "20260107T030000Z"


class Steps:
    """Kills this process at one of the steps that leave something behind, before or after it."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0

    def watch(self, holder: Any, name: str) -> None:
        """Count the calls of a function as steps."""
        function = getattr(holder, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self.step()
            result = function(*arguments, **keywords)
            self.step()
            return result

        setattr(holder, name, watched)

    def step(self) -> None:
        """Be killed, if this is the one."""
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(fatal: int, action: Callable[[], object]) -> bool:
    """Run something in a process that is killed at a step; False when it had fewer steps."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            steps = Steps(fatal)
            for module in (catalogue, source_folder, manifest):
                steps.watch(module, "write_durably")
            for name in ("run", "sync_file_system", "remove_tree"):
                steps.watch(programs, name)
            for name in ("rename", "unlink"):
                steps.watch(Path, name)
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def write_tree(source: Path, text: str) -> None:
    source.mkdir(exist_ok=True)
    (source / "changing").write_text(text)
    (source / "same").write_text("same\n")
    (source / f"only in {text}").write_text(text)


def check_listed(folder: Path, place: Path, texts: dict[str, str]) -> None:
    """Restore everything that is listed and see that it is whole."""
    unit = make_unit(folder)
    for snapshot in unit.ids():
        target = place / snapshot
        assert unit.restore(snapshot, target).ok
        assert (target / "changing").read_text() == texts[snapshot]
        assert (target / "same").read_text() == "same\n"
        assert (target / f"only in {texts[snapshot]}").exists()
        programs.remove_tree(target)


def copied(base: Path, folder: Path) -> None:
    programs.remove_tree(folder)
    subprocess.run(["cp", "-a", base, folder], check=True)


def check_backup_killed_everywhere(
    tmp_path: Path, daemon: Daemon, source: Path, mode: str, stride: int
) -> int:
    """Kill a second backup at its steps, look, and take a third; return how many steps.

    Args:
        stride: At every step: 1; at every second: 2.
    """
    base, folder = tmp_path / "base", tmp_path / "unit"
    write_tree(source, "one")
    make_unit(base).back_up(daemon, mode)
    texts = {FIRST: "one", SECOND: "two", THIRD: "three"}
    fatal = 1
    while True:
        copied(base, folder)
        programs.remove_tree(source)
        write_tree(source, "two")
        unit = make_unit(folder)
        if not killed_at(fatal, partial(unit.back_up, daemon, mode, at=START + DAY)):
            return fatal - 1
        if mode != "none":
            assert FIRST in unit.ids()
        check_listed(folder, tmp_path, texts)
        place = unit.catalogue.open(MACHINE, "docs")
        had_frozen = place.pending() is not None or SECOND in unit.ids()
        converge(unit.catalogue, place, unit.environment)
        commit(unit.catalogue, place, unit.environment)
        assert (SECOND in unit.ids()) == had_frozen, f"step {fatal}"
        programs.remove_tree(source)
        write_tree(source, "three")
        unit.back_up(daemon, mode, at=START + 2 * DAY)
        assert unit.ids()[-1] == THIRD
        check_listed(folder, tmp_path, texts)
        converge(unit.catalogue, place, unit.environment)
        left = [path.name for path in place.path.rglob(".*.tmp")]
        assert left == [], f"step {fatal}"
        fatal += stride


# borg takes some seconds for a step; `tests/faults/test_kill.py` kills it at each of them.
@pytest.mark.parametrize(("mode", "stride"), [("link-dest", 1), ("borg", 3), ("none", 1)])
def test_a_backup_killed_at_any_step_converges(mode: str, stride: int) -> None:
    with quick_folder() as place:
        source = place / "source"
        source.mkdir()
        with serve(source) as daemon:
            assert check_backup_killed_everywhere(place, daemon, source, mode, stride) >= 12


@pytest.mark.parametrize("mode", ["link-dest", "borg"])
def test_prior_art_20_a_removal_killed_at_any_step_is_finished(mode: str) -> None:
    with quick_folder() as place:
        assert check_removal_killed_everywhere(place, mode) >= 4


def check_removal_killed_everywhere(place: Path, mode: str) -> int:
    """Kill a removal at every step, look, and finish it; return how many steps."""
    base, folder, source = place / "base", place / "unit", place / "source"
    write_tree(source, "one")
    with serve(source) as daemon:
        unit = make_unit(base)
        unit.back_up(daemon, mode)
        unit.back_up(daemon, mode, at=START + DAY)
    fatal = 1
    while True:
        copied(base, folder)
        unit = make_unit(folder)
        where, record = unit.catalogue.listing().records[0]
        assert record.id == FIRST
        if not killed_at(fatal, partial(unit.remove, where, record)):
            return fatal - 1
        listed = unit.ids()
        check_listed(folder, place, {FIRST: "one", SECOND: "one"})
        converge(unit.catalogue, where, unit.environment)
        assert unit.ids() == ([FIRST, SECOND] if FIRST in listed else [SECOND])
        if FIRST not in listed:
            assert all(name.startswith(SECOND) for name in os.listdir(where.snapshots))
        fatal += 1


def test_a_borg_killed_while_it_archives_leaves_a_repository_that_goes_on() -> None:
    with quick_folder() as folder:
        source = folder / "source"
        source.mkdir()
        (source / "large").write_bytes(os.urandom(64 * 1024 * 1024))
        unit = make_unit(folder)
        with serve(source) as daemon:
            place, received = unit.receive(daemon, "borg")
        assert received.usable
        child = os.fork()
        if child == 0:
            try:
                commit(unit.catalogue, place, unit.environment)
            finally:
                os._exit(0)
        while written(place.repository / "data") < 1024 * 1024:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert unit.ids() == []
        assert commit(unit.catalogue, place, unit.environment) is not None
        assert unit.ids() == [FIRST]


def written(folder: Path) -> int:
    """Return the size of the largest file below a folder."""
    return max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)


def test_a_frozen_state_that_a_power_cut_may_have_lost_is_taken_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_tree(source, "one")
    unit = make_unit(tmp_path)
    with serve(source) as daemon:
        for mode in ("link-dest", "borg"):
            place, _ = unit.receive(daemon, mode, source=mode)
            pending = place.pending()
            assert pending is not None
            place.write_pending(dataclasses.replace(pending, boot_id="another boot"))
            with pytest.raises(FrozenStateLost, match="taken again"):
                commit(unit.catalogue, place, unit.environment)
            assert place.pending() is None
            assert FIRST not in unit.ids()
            unit.back_up(daemon, mode, source=mode, at=START + DAY)
    assert unit.ids() == [SECOND, SECOND]

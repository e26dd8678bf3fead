"""The worker as a process of its own: what it does, how it stops, what a kill costs."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import turku_core.protocol
import turku_core.storage
from tests.integration.storage.conftest import Machine, Unit, add_machine, wait_for
from turku_core.checked_json import dumps, read_json
from turku_core.storage import commands


@contextlib.contextmanager
def running_worker(unit: Unit, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run the worker while the context lasts."""
    process = subprocess.Popen(
        [unit.program("turku-storage-worker"), "--root", str(unit.root)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> tuple[int, float]:
    """Ask the worker to stop; return its exit code and how long it took."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    return process.returncode, time.monotonic() - began


@pytest.fixture
def slow_borg(unit: Unit) -> dict[str, str]:
    """Put a borg on the PATH that never ends making an archive."""
    folder = unit.root.parent / "bin"
    folder.mkdir()
    real = shutil.which("borg")
    script = folder / "borg"
    script.write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" create "*) echo $$ >> {folder}/pids; exec sleep 600;; esac\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_running_worker_does_everything_by_itself_and_stops_when_asked(
    unit: Unit, machine: Machine
) -> None:
    with running_worker(unit) as worker:
        machine.check_in()
        wait_for(lambda: unit.api.reports("docs"))
        assert unit.api.reports("docs")[0]["success"] is True
        code, seconds = stop(worker)
    assert (code, seconds < 6) == (0, True)
    state = json.loads((unit.state / "worker.json").read_text())
    assert {"commit 1", "config", "expiry", "recover", "reports"} <= set(state["loops"])
    assert not any(loop["error"] for loop in state["loops"].values())
    [readable] = (unit.state / "machines").iterdir()
    assert readable.name == f"test-web-unit-{machine.uuid[:4]}"
    assert (readable / "docs/snapshots").is_dir()


def test_a_second_worker_leaves_the_first_alone(unit: Unit, machine: Machine) -> None:
    with running_worker(unit):
        wait_for(lambda: (unit.state / "worker.json").exists())
        said = unit.run("turku-storage-worker", "--once", code=75)
    assert "Another turku-storage-worker" in said


def test_the_worker_stops_within_seconds_in_the_middle_of_a_commit_and_loses_nothing(
    unit: Unit, machine: Machine, slow_borg: dict[str, str]
) -> None:
    machine.schedule(docs=machine.source(snapshot_mode="borg"))
    machine.check_in()
    pids = unit.root.parent / "bin/pids"
    with running_worker(unit, **slow_borg) as worker:
        wait_for(lambda: pids.exists() and pids.read_text())
        code, seconds = stop(worker)
    assert (code, seconds < 8) == (0, True)
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()
    [job] = [json.loads(path.read_text()) for path in (unit.state / "queue").glob("*.json")]
    assert job["attempts"] == 0
    unit.drain()
    assert len(unit.snapshots(machine)) == 1
    assert [each["success"] for each in unit.api.reports("docs")] == [True]


def test_prior_art_24_a_killed_worker_leaves_no_borg_behind_and_the_next_one_finishes(
    unit: Unit, machine: Machine, slow_borg: dict[str, str]
) -> None:
    machine.schedule(docs=machine.source(snapshot_mode="borg"))
    machine.check_in()
    pids = unit.root.parent / "bin/pids"
    with running_worker(unit, **slow_borg) as worker:
        wait_for(lambda: pids.exists() and pids.read_text())
        worker.kill()
        for pid in pids.read_text().split():
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 10)
    unit.drain()
    assert len(unit.snapshots(machine)) == 1


def test_a_source_whose_commit_waits_is_for_later(unit: Unit, machine: Machine) -> None:
    machine.schedule(docs=machine.source(snapshot_mode="borg"))
    assert machine.check_in().code == 0
    spoken = machine.check_in()
    assert (spoken.code, spoken.outcome("docs")) == (75, "later")
    unit.drain()
    assert machine.check_in().code == 0


def back_up_and_lose_the_report(unit: Unit, machine: Machine) -> None:
    """Make a snapshot as a SIGKILL would leave it: it is there, its job too, its report isn't."""
    machine.check_in()
    [path] = (unit.state / "queue").glob("*.json")
    job = path.read_bytes()
    unit.api.down()
    unit.drain()
    path.write_bytes(job)
    for spooled in (unit.state / "reports").glob("*.json"):
        spooled.unlink()
    unit.api.up()


def test_prior_art_27_a_kill_between_snapshot_and_report_is_made_good(
    unit: Unit, machine: Machine
) -> None:
    back_up_and_lose_the_report(unit, machine)
    unit.drain()
    [report] = unit.api.reports("docs")
    assert report["snapshot"] == unit.snapshots(machine)[0]


def test_a_kill_between_snapshot_and_report_is_made_good_also_after_another_backup(
    unit: Unit, machine: Machine
) -> None:
    back_up_and_lose_the_report(unit, machine)
    assert machine.check_in().code == 0
    unit.drain()
    told = {report["snapshot"] for report in unit.api.reports("docs")}
    assert told == set(unit.snapshots(machine))
    assert len(told) == 2


def test_a_lost_queue_is_made_again_from_what_is_frozen(unit: Unit, machine: Machine) -> None:
    machine.check_in()
    shutil.rmtree(unit.state / "queue")
    unit.drain()
    assert len(unit.snapshots(machine)) == 1
    assert unit.api.reports("docs")[0]["success"] is True


def test_prior_art_36_a_commit_that_fails_is_where_operators_look(
    unit: Unit, machine: Machine
) -> None:
    other = add_machine(unit)
    broken = unit.root.parent / "bin"
    broken.mkdir()
    (broken / "borg").write_text("#!/bin/sh\necho 'borg: the disk is on fire' >&2\nexit 2\n")
    (broken / "borg").chmod(0o755)
    machine.schedule(docs=machine.source(snapshot_mode="borg"))
    machine.check_in()
    other.schedule()
    other.check_in()
    done = subprocess.run(
        [unit.program("turku-storage-worker"), "--once", "--root", str(unit.root)],
        env={**os.environ, "PATH": f"{broken}:{os.environ['PATH']}"}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(unit.snapshots(other)) == 1
    said = unit.run("turku-storage", "usage", code=1)
    assert "could not be made" in said
    assert "the disk is on fire" in said
    make_due(unit)
    unit.drain()
    assert len(unit.snapshots(machine)) == 1
    unit.run("turku-storage", "usage")


def make_due(unit: Unit, **values: Any) -> None:
    """Let every job that failed be due now."""
    for path in (unit.state / "queue").glob("*.json"):
        path.write_text(dumps({**read_json(path), "not_before": None, **values}))


def test_prior_art_21_a_commit_that_is_given_up_is_reported_and_its_mirror_released(
    unit: Unit, machine: Machine
) -> None:
    broken = unit.root.parent / "bin"
    broken.mkdir()
    (broken / "borg").write_text("#!/bin/sh\necho 'borg: no' >&2\nexit 2\n")
    (broken / "borg").chmod(0o755)
    machine.schedule(docs=machine.source(snapshot_mode="borg"))
    machine.check_in()
    make_due(unit, attempts=11)
    subprocess.run(
        [unit.program("turku-storage-worker"), "--once", "--root", str(unit.root)],
        env={**os.environ, "PATH": f"{broken}:{os.environ['PATH']}"}, timeout=120, check=False,
        capture_output=True,
    )  # fmt: skip
    unit.drain()
    [report] = unit.api.reports("docs")
    assert (report["success"], "Given up after 12 tries" in report["summary"]) == (False, True)
    assert machine.check_in().code == 0
    unit.drain()
    assert len(unit.snapshots(machine)) == 1


def test_what_is_pulled_and_what_waits_for_its_commit_keeps_its_lease(
    unit: Unit, machine: Machine
) -> None:
    machine.check_in()
    unit.drain()
    # The second call of that round comes before the commit.
    running = unit.api.calls("storage_update_config")[-1]["storage"]["running"]
    assert running == [{"machine": machine.uuid, "sources": ["docs"]}]


def test_expiry_goes_on_by_its_own_clock_and_tells_the_api(unit: Unit, machine: Machine) -> None:
    unit.configure(expiry_floor=1)
    machine.schedule(docs=machine.source(retention="last 1 snapshots"))
    for _ in range(2):
        machine.check_in()
        unit.drain()
        time.sleep(1.1)
    first, _ = unit.snapshots(machine)
    (unit.state / "worker.json").unlink()
    unit.drain()
    states = [each for each in unit.api.inventory("docs") if each["name"] == first]
    assert states[-1]["state"] == "expired"
    listed = unit.run_json("list")["snapshots"]
    assert [bool(each["expired_at"]) for each in listed] == [True, False]


def test_a_worker_that_only_lacks_the_api_asks_for_another_try(
    unit: Unit, machine: Machine
) -> None:
    unit.run("turku-storage-worker", "--once")
    assert machine.check_in().code == 0
    unit.api.down()
    said = unit.run("turku-storage-worker", "--once", code=75)
    assert "can't be reached" in said
    assert len(unit.snapshots(machine)) == 1
    away = unit.volume.with_name("away")
    unit.volume.rename(away)
    (unit.state / "worker.json").unlink()
    unit.run("turku-storage-worker", "--once", code=1)
    away.rename(unit.volume)
    unit.api.up()
    unit.run("turku-storage-worker", "--once")
    assert len(unit.api.reports("docs")) == 1


def test_how_much_is_logged_is_an_option(unit: Unit, machine: Machine) -> None:
    unit.configure(log_level="error")
    machine.check_in()
    assert "session for checkin" not in unit.log
    unit.configure(log_level="info")
    assert "INFO" in unit.drain()
    unit.configure(log_level="loud")
    said = unit.run("turku-storage-worker", "--once", code=2)
    assert "log_level: must be one of debug, info, warning, error" in said


def run_dropping(unit: Unit, script: str, *arguments: str) -> str:
    """Run a console script in a child of this process, and return what it printed.

    The child steps down from root; this interpreter may lie where only root can read, so
    everything that it imports is imported here.
    """
    for package in (turku_core.protocol, turku_core.storage):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for codec in ("ascii", "idna", "latin-1", "utf-8"):
        codecs.lookup(codec)
    # Programs are looked for beside the one that runs.
    programs = unit.root.parent / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("turku-storage-worker", "turku-storage-ping"):
        (programs / name).touch()
    said = unit.root.parent / "said"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
            program = str(programs / "turku-storage-worker")
            sys.argv = [program, *arguments, "--root", str(unit.root)]
            getattr(commands, script)()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said.read_text()
    return said.read_text()


@pytest.mark.needs_root
def test_prior_art_11_what_root_starts_runs_as_the_units_user(unit: Unit, machine: Machine) -> None:
    machine.schedule(docs=machine.source(snapshot_mode="borg"))
    machine.check_in()
    owner = 65534
    unit.root.parent.chmod(0o755)
    for path in [unit.state, unit.volume, *unit.state.rglob("*"), *unit.volume.rglob("*")]:
        os.chown(path, owner, owner, follow_symlinks=False)
    run_dropping(unit, "update_config")
    run_dropping(unit, "worker", "--once")
    assert len(unit.snapshots(machine)) == 1
    # Without the mirror, everything comes out of borg.
    shutil.rmtree(unit.volume / "machines" / machine.uuid / "docs/mirror")
    run_dropping(unit, "storage", "list")
    run_dropping(unit, "storage", "verify")
    run_dropping(unit, "expire", "--now")
    target = unit.root / "restored"
    run_dropping(unit, "storage", "restore", machine.uuid, "docs", "--target", str(target))
    others = [
        path for path in [*unit.state.rglob("*"), *unit.volume.rglob("*")]
        if path.lstat().st_uid != owner
    ]  # fmt: skip
    assert others == []
    assert (target / "one").read_text() == "first"


def test_everything_of_the_unit_is_private(unit: Unit, machine: Machine) -> None:
    machine.check_in()
    unit.drain()
    for top in (unit.state, unit.volume):
        for path in [top, *top.rglob("*")]:
            # The marker of a volume says only which volume it is.
            if path.name.startswith(".turku-volume") or path.is_symlink():
                continue
            if "mirror" in path.parts or "snapshots" in path.parts:
                continue
            mode = path.stat().st_mode & 0o777
            assert mode == (0o700 if path.is_dir() else 0o600), path

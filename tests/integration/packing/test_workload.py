"""Laying versions of the workload down, switching, going back and clearing away.

The packages are small ones made here, with programs that do next to nothing; everything else is
real. That Turku's own programs run from a packed charm is tested in test_packed.py.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from turku_charm.workload import Workload, WorkloadError
from turku_core.errors import TurkuError

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)

PROGRAM = """
import sys, time

def ping():
    if "--wait" in sys.argv:
        print("waiting", flush=True)
        time.sleep(60)
    print({text!r}, sys.flags.isolated)

def update():
    print("updated")
"""


WATCHER = """
import os, sys
seen = set()
print("ready", flush=True)
while len(seen) < 2:
    seen.add(os.path.realpath(sys.argv[1], strict=True))
    os.stat(sys.argv[1])
"""


def make_charm(folder: Path, text: str, version: str = "1.0.0", program: str = PROGRAM) -> Path:
    """Make the packages of a charm whose program prints `text`; return the charm's folder."""
    library = folder / "venv/lib" / PYTHON / "site-packages"
    info = library / f"turku_core-{version}.dist-info"
    agent = library / "turku_core/agent"
    info.mkdir(parents=True)
    agent.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: turku-core\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        "[console_scripts]\n"
        "turku-agent-ping = turku_core.agent.commands:ping\n"
        "turku-update-config = turku_core.agent.commands:update\n"
        "turku-api = turku_core.api.commands:main\n"
    )
    (library / "turku_core/__init__.py").write_text("")
    (agent / "__init__.py").write_text("")
    (agent / "commands.py").write_text(program.format(text=text))
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Workload:
    """The workload of a charm in its first version, not installed yet."""
    return Workload("agent", make_charm(tmp_path / "charm-1", "one"), tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Workload:
    """The same workload when the charm was refreshed."""
    return Workload("agent", make_charm(tmp_path / "charm-2", "two", "1.1.0"), tmp_path)


def said_by(workload: Workload) -> str:
    """Return what the program of the current version prints."""
    return workload.programs().run("turku-agent-ping")


def works() -> None:
    """Start services that start."""


def fails() -> None:
    """Start services that don't start."""
    raise TurkuError("turku-agent-ping.timer would not start.")


def versions(workload: Workload) -> list[str]:
    """Return the turku-core versions that lie there, sorted."""
    folder = workload.folder / "versions"
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())


def test_a_first_installation_runs_its_own_packages_alone(one: Workload) -> None:
    assert not one.is_installed()
    assert one.version() is None

    assert one.install() is True

    assert one.is_installed()
    assert one.version() == "1.0.0"
    assert said_by(one).startswith("one 1")  # isolated: no PYTHONPATH of a hook gets in
    assert {path.name for path in one.bin.glob("turku-*")} == {
        "turku-agent-ping",
        "turku-update-config",
    }
    python = os.readlink(one.bin / "python")
    assert not python.startswith(str(one.charm_dir))
    assert list(one.folder.rglob("commands.*.pyc"))


def test_a_second_installation_of_the_same_changes_nothing(one: Workload) -> None:
    one.install()
    before = {path: path.lstat().st_mtime_ns for path in one.folder.rglob("*")}
    assert one.install() is False
    assert {path: path.lstat().st_mtime_ns for path in one.folder.rglob("*")} == before


def test_every_user_may_run_it_however_the_charm_was_unpacked(one: Workload) -> None:
    for path in one.charm_dir.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    before = os.umask(0o077)
    try:
        one.install()
    finally:
        os.umask(before)
    versions_folder = one.folder / "versions"
    for path in versions_folder.rglob("*"):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o044 == 0o044, path
        assert mode & 0o022 == 0, path
        assert not path.is_dir() or mode & 0o055 == 0o055, path
    assert stat.S_IMODE((one.bin / "turku-agent-ping").stat().st_mode) == 0o755
    assert stat.S_IMODE(versions_folder.stat().st_mode) == 0o755
    assert stat.S_IMODE(one.folder.stat().st_mode) == 0o755


def test_an_upgrade_switches_and_starts_once(one: Workload, two: Workload) -> None:
    one.upgrade(works)
    started = []
    assert two.upgrade(lambda: started.append(said_by(two))) is True
    assert two.upgrade(lambda: started.append("again")) is False
    assert [text.split()[0] for text in started] == ["two"]
    assert two.version() == "1.1.0"


def test_the_path_of_the_programs_is_there_at_every_moment_of_a_switch(
    one: Workload, two: Workload
) -> None:
    one.install()
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(one.bin / "turku-agent-ping")], stdout=subprocess.PIPE
    )
    assert watcher.stdout is not None
    watcher.stdout.readline()
    two.install()
    assert watcher.wait(timeout=30) == 0


def test_a_version_that_does_not_start_gives_way_to_the_one_before(
    one: Workload, two: Workload
) -> None:
    one.upgrade(works)
    identity = two.root / "etc/turku-agent/identity.json"
    identity.parent.mkdir(parents=True)
    identity.write_text("ours")
    started = []

    def start() -> None:
        started.append(said_by(two).split()[0])
        if started[-1] == "two":
            raise TurkuError("The service would not start.")

    with pytest.raises(WorkloadError, match="did not start, so the version before is in use again"):
        two.upgrade(start)
    assert started == ["two", "one"]
    assert two.version() == "1.0.0"
    assert identity.read_text() == "ours"


def test_a_version_that_did_not_start_is_tried_again_an_hour_later(
    one: Workload, two: Workload
) -> None:
    one.upgrade(works)
    calls = []

    def at(minutes: int) -> Workload:
        return Workload("agent", two.charm_dir, two.root, lambda: NOON + timedelta(minutes=minutes))

    def start() -> None:
        calls.append(said_by(two).split()[0])
        if calls == ["two"]:
            fails()

    with pytest.raises(WorkloadError):
        at(0).upgrade(start)
    for minutes in (5, 59):
        with pytest.raises(WorkloadError, match="would not start"):
            at(minutes).upgrade(start)
        with pytest.raises(WorkloadError, match="would not start"):
            at(minutes).install()
    assert calls == ["two", "one"]
    assert at(61).upgrade(start) is True
    assert calls == ["two", "one", "two"]
    assert two.version() == "1.1.0"


def test_another_version_needs_not_wait_for_that_hour(one: Workload, two: Workload) -> None:
    one.upgrade(works)
    with pytest.raises(WorkloadError):
        two.upgrade(lambda: fails() if two.version() == "1.1.0" else None)
    three = Workload("agent", make_charm(one.root / "charm-3", "three", "1.2.0"), one.root)
    assert three.upgrade(works) is True
    assert said_by(three).startswith("three")


def test_a_first_version_that_does_not_start_says_so_itself_and_is_tried_every_time(
    one: Workload,
) -> None:
    for _ in range(2):
        with pytest.raises(TurkuError, match="would not start"):
            one.upgrade(fails)
    assert one.is_installed()
    assert one.upgrade(works) is True
    assert one.upgrade(fails) is False


def test_when_neither_starts_the_words_say_both(one: Workload, two: Workload) -> None:
    one.upgrade(works)
    with pytest.raises(WorkloadError, match="Nor does that one start any more"):
        two.upgrade(fails)
    assert two.version() == "1.0.0"
    restarted: list[str] = []
    with pytest.raises(WorkloadError, match="is in use again"):
        two.upgrade(lambda: restarted.append(said_by(two)))
    assert restarted[0].startswith("one")


def test_a_version_whose_programs_do_not_run_is_never_switched_to(
    one: Workload, tmp_path: Path
) -> None:
    one.install()
    charm = make_charm(tmp_path / "charm-2", "two", "1.1.0", program="import no_such_thing\n")
    broken = Workload("agent", charm, tmp_path)
    with pytest.raises(WorkloadError, match=r"turku-agent-ping --help failed.*no_such_thing"):
        broken.install()
    assert broken.version() == "1.0.0"
    assert said_by(broken).startswith("one")


@pytest.mark.needs_root
def test_a_full_disk_is_said_and_the_version_in_use_stays(one: Workload, tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", tmp_path / "opt"], check=True)
    try:
        one.upgrade(works)
        charm = make_charm(tmp_path / "charm-2", "two", "1.1.0")
        module = next(charm.rglob("commands.py"))
        module.with_name("large.py").write_bytes(b"#" * 2**21)
        with pytest.raises(WorkloadError, match=r"could not be made: .*No space left"):
            Workload("agent", charm, tmp_path).upgrade(works)
        assert said_by(one).startswith("one")
        assert versions(one) == ["1.0.0"]
        # With room again the next hook mends it.
        module.with_name("large.py").unlink()
        assert Workload("agent", charm, tmp_path).upgrade(works) is True
        assert versions(one) == ["1.0.0", "1.1.0"]
    finally:
        subprocess.run(["umount", tmp_path / "opt"], check=True)


def test_only_one_version_before_is_kept(tmp_path: Path) -> None:
    for number in range(4):
        charm = make_charm(tmp_path / f"charm-{number}", str(number), f"1.{number}.0")
        Workload("agent", charm, tmp_path).upgrade(works)
    assert versions(Workload("agent", charm, tmp_path)) == ["1.2.0", "1.3.0"]


def test_a_version_that_a_process_still_runs_from_is_kept(tmp_path: Path) -> None:
    first = Workload("agent", make_charm(tmp_path / "charm-0", "0"), tmp_path)
    first.upgrade(works)
    session = subprocess.Popen(
        [str(first.bin / "turku-agent-ping"), "--wait"], stdout=subprocess.PIPE
    )
    try:
        assert session.stdout is not None
        assert session.stdout.readline() == b"waiting\n"
        for number in range(1, 4):
            charm = make_charm(tmp_path / f"charm-{number}", str(number), f"1.{number}.0")
            Workload("agent", charm, tmp_path).upgrade(works)
        assert versions(first) == ["1.0.0", "1.2.0", "1.3.0"]
    finally:
        session.kill()
        session.wait()


def install_in_a_process(workload: Workload) -> subprocess.Popen[bytes]:
    """Upgrade in a process of its own, as a hook would, so that it can be killed."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom turku_charm.workload import Workload\n"
        "def start(): Path(sys.argv[2], 'started').touch()\n"
        "Workload('agent', Path(sys.argv[1]), Path(sys.argv[2])).upgrade(start)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(workload.charm_dir), str(workload.root)],
        start_new_session=True,
    )


def test_wherever_a_hook_is_killed_the_next_one_goes_on(one: Workload, tmp_path: Path) -> None:
    one.upgrade(works)
    began = time.monotonic()
    timed = Workload("agent", make_charm(tmp_path / "charm-t", "timed", "1.0.1"), tmp_path)
    assert install_in_a_process(timed).wait(timeout=60) == 0
    whole = time.monotonic() - began
    last = "timed"
    moments = 8
    for number in range(moments):
        charm = make_charm(tmp_path / f"killed-{number}", f"v{number}", f"2.{number}.0")
        workload = Workload("agent", charm, tmp_path)
        process = install_in_a_process(workload)
        time.sleep(whole * (number + 1) / (moments + 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Some whole version is in use; what was half-made goes with the next hook that installs.
        assert workload.is_installed()
        assert said_by(workload).split()[0] in (last, f"v{number}")
        workload.upgrade(works)
        assert len(versions(workload)) == 2
        assert said_by(workload).startswith(f"v{number}")
        assert workload.upgrade(fails) is False
        last = f"v{number}"


class Killed(BaseException):
    """What a hook dies of; nothing of the code under test catches it."""


def broken_off_at(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], None]:
    """Let a hook die when it calls `name` of a workload; return how to let it live again."""

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Workload, name, die)
    return monkeypatch.undo


@pytest.mark.parametrize("step", ["_save", "_switch", "_prune"])
def test_a_hook_that_dies_before_a_step_leaves_what_the_next_one_mends(
    one: Workload, two: Workload, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one.upgrade(works)
    revive = broken_off_at(monkeypatch, step)
    with pytest.raises(Killed):
        two.upgrade(works)
    revive()
    assert two.is_installed()
    started: list[str] = []
    two.upgrade(lambda: started.append("started"))
    assert started == ["started"]
    assert said_by(two).startswith("two")
    with pytest.raises(WorkloadError):
        three = make_charm(one.root / "charm-3", "three", "1.2.0")
        Workload("agent", three, one.root).upgrade(fails)
    assert said_by(two).startswith("two")


def test_a_hook_that_dies_while_it_goes_back_is_mended_by_the_next_one(
    one: Workload, two: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.upgrade(works)
    revive = broken_off_at(monkeypatch, "_go_back")
    with pytest.raises(Killed):
        two.upgrade(fails)
    revive()
    started: list[str] = []
    with pytest.raises(WorkloadError, match="is in use again"):
        two.upgrade(lambda: started.append(said_by(two).split()[0]))
    assert started == ["one"]


def test_a_charm_for_another_python_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "charm/venv/lib/python3.1").mkdir(parents=True)
    with pytest.raises(WorkloadError, match="deploy the build for this machine's base"):
        Workload("agent", tmp_path / "charm", tmp_path).install()


def test_a_charm_without_turku_core_is_refused_with_words(one: Workload) -> None:
    info = next(one.charm_dir.rglob("*.dist-info"))
    (info / "METADATA").unlink()
    info.rename(info.with_name("other-1.0.0.dist-info"))
    with pytest.raises(WorkloadError, match="doesn't carry turku-core"):
        one.install()


def test_removal_leaves_nothing_below_opt(one: Workload, two: Workload) -> None:
    one.upgrade(works)
    two.upgrade(works)
    two.remove()
    assert list((two.root / "opt").iterdir()) == []
    two.remove()


def test_the_state_is_a_file_that_a_person_can_read(one: Workload, two: Workload) -> None:
    one.upgrade(works)
    two.upgrade(works)
    state = json.loads((two.folder / "state.json").read_text("utf-8"))
    assert state["started"].startswith("1.1.0-")
    assert state["before"].startswith("1.0.0-")
    assert state["failed"] is None

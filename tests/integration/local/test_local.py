"""A whole Turku in one folder: two side by side, and nothing of them left in the end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from turku_core.errors import TurkuError
from turku_core.local.layout import make_layout, program
from turku_core.local.turku import LocalTurku, is_up

END_SECONDS = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets below it."""
    path = Path(tempfile.mkdtemp(prefix="turku-l-"))
    yield path
    shutil.rmtree(path)


def processes_of(folder: Path) -> list[str]:
    """Return the command of every process that names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if os.fsencode(folder) in command:
                    found.append(command.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def turku_local(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("turku-local"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=END_SECONDS,
    )


def test_two_stand_side_by_side_and_each_keeps_its_own_machines(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("content")
    source = {"data": {"path": str(folder / "data")}}
    with LocalTurku(folder / "a") as one, LocalTurku(folder / "b") as other:
        assert one.running.api_port != other.running.api_port
        assert one.running.ssh_port != other.running.ssh_port
        machines = [turku.add_machine("same-name", source) for turku in (one, other)]
        for turku, machine in zip((one, other), machines, strict=True):
            machine.run("turku-agent-ping")
            turku.wait_until_committed(END_SECONDS)
            assert len(machine.snapshots()) == 1
    assert processes_of(folder) == []


def test_up_says_where_the_administration_site_is_and_down_leaves_nothing(folder: Path) -> None:
    layout = make_layout(folder / "t")
    up = turku_local("up", str(layout.folder))
    try:
        assert up.returncode == 0, up.stderr
        status = json.loads(turku_local("status", "--json", str(layout.folder)).stdout)
        assert status["up"] is True
        assert status["admin_url"] in up.stdout
        assert str(layout.admin_password) in up.stdout
        assert layout.admin_password.stat().st_mode & 0o777 == 0o600
        assert layout.folder.stat().st_mode & 0o777 == 0o700
        again = turku_local("up", str(layout.folder))
        assert again.returncode == 0
        assert "already up" in again.stdout
    finally:
        down = turku_local("down", str(layout.folder))
    assert down.returncode == 0
    assert processes_of(folder) == []
    assert not is_up(layout)
    assert turku_local("status", str(layout.folder)).returncode == 1
    assert "No Turku runs" in turku_local("down", str(layout.folder)).stdout


def test_one_that_is_started_again_keeps_its_machines_and_its_ports(folder: Path) -> None:
    (folder / "data").mkdir()
    with LocalTurku(folder / "t") as turku:
        before = turku.running
        machine = turku.add_machine("kept", {"data": {"path": str(folder / "data")}})
    with LocalTurku(folder / "t") as turku:
        assert turku.running.api_port == before.api_port
        assert turku.running.ssh_port == before.ssh_port
        machine.run("turku-agent-ping")
        turku.wait_until_committed(END_SECONDS)
        assert len(machine.snapshots()) == 1


def test_it_never_outlives_the_process_that_started_it(folder: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from turku_core.local.turku import LocalTurku;"
        "LocalTurku(Path(sys.argv[1])).start(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    layout = make_layout(folder / "t")
    done = subprocess.run(
        [sys.executable, "-c", script, str(layout.folder)], check=False, timeout=END_SECONDS
    )
    assert done.returncode == -signal.SIGKILL
    wait_until_gone(folder)


def wait_until_gone(folder: Path) -> None:
    """Wait for every process of a folder to end, by the kernel's word on each."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                descriptor = os.pidfd_open(int(entry.name))
                try:
                    assert select.select([descriptor], [], [], END_SECONDS)[0], entry
                finally:
                    os.close(descriptor)
    assert processes_of(folder) == []


def test_a_part_that_cannot_start_leaves_nothing_running_and_is_named(folder: Path) -> None:
    turku = LocalTurku(folder / "t", api_settings={"time_zone": "Nowhere/Land"})
    with pytest.raises(TurkuError, match="time_zone"):
        turku.start()
    assert processes_of(folder) == []


def test_the_demo_brings_back_a_small_tree_and_cleans_up(folder: Path) -> None:
    source = folder / "source"
    for number in range(40):
        path = source / f"folder-{number % 4}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {number}\n" * number)
    done = subprocess.run(
        [program("turku-local"), "demo", "--source", str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * END_SECONDS,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything that was restored is what it was" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["source"]
    assert processes_of(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Starting", "Registering", "The machine checks in"])
def test_the_demo_that_is_interrupted_cleans_up(
    folder: Path, moment: str, number: signal.Signals
) -> None:
    source = folder / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(20_000_000))
    with subprocess.Popen(
        [program("turku-local"), "demo", "--source", str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith(moment):
                break
        demo.send_signal(number)
        demo.communicate(timeout=END_SECONDS)
    assert demo.returncode == 130
    assert sorted(path.name for path in folder.iterdir()) == ["source"]
    assert processes_of(folder) == []


def test_a_folder_whose_path_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    done = turku_local("up", str(tmp_path / ("x" * 80)))
    assert done.returncode == 2
    assert "shorter" in done.stderr


def test_a_demo_of_something_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    done = turku_local("demo", "--source", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "is not a folder" in done.stderr

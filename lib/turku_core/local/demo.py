"""The demonstration: real files through a real check-in, tunnel and snapshot, and back again.

It works on a copy of the tree, in a folder of its own that is removed in the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

from turku_core.commandline import Progress, human_duration, human_size, print_table
from turku_core.errors import DONE, FAILED, ConfigurationError, TurkuError
from turku_core.local.comparison import Tree, describe_tree, differences, size_of
from turku_core.local.turku import LocalTurku, Machine, run_to_end

MACHINE = "demo"
SOURCE = "files"
_DIFFERENCES_SHOWN = 10
_CHANGED_FILES = 20
_TICK_SECONDS = 0.2
_STORAGE_SETTINGS = {"expiry_floor": 1}
"""So that one of three snapshots may expire; the demonstration says so."""


@dataclass(frozen=True)
class Step:
    """One line of the table in the end."""

    name: str
    seconds: float
    result: str


@dataclass
class Story:
    """What has happened so far."""

    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def step(
        self, name: str, announcement: str, *, shows_progress: bool = False
    ) -> Iterator[list[str]]:
        """Say what begins, measure it, and remember it with the result put into the list.

        A step that shows no progress of its own gets a line that counts the seconds.
        """
        print(f"{announcement} ...", flush=True)
        result: list[str] = []
        began = time.monotonic()
        with contextlib.nullcontext() if shows_progress else _ticking(name):
            yield result
        seconds = time.monotonic() - began
        self.steps.append(Step(name, seconds, "; ".join(result)))
        print(f"    {'; '.join(result)} ({human_duration(timedelta(seconds=seconds))})", flush=True)

    def compare(self, expected: Tree, found: Tree) -> str:
        """Compare two trees, remember what differs, and return the outcome in words."""
        different = differences(expected, found)
        self.problems += different
        for line in different[:_DIFFERENCES_SHOWN]:
            print(f"    {line}")
        if different:
            return f"{len(different)} DIFFERENCES"
        return f"identical: {_counted(expected)}"


@contextlib.contextmanager
def _ticking(name: str) -> Iterator[None]:
    """Show on a terminal that, and for how long, something has been going on."""
    progress = Progress()
    began = time.monotonic()
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_SECONDS):
            progress.show(f"    {name}: {time.monotonic() - began:.0f} s")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()
        progress.clear()


def run_demo(source: Path) -> int:
    """Run the demonstration on a copy of `source`, and return the exit code.

    It is 0 only if everything that was restored was what it had been.

    Raises:
        ConfigurationError: The tree can't be used.
        TurkuError: A step failed; everything is cleaned up.
    """
    if not source.is_dir():
        raise ConfigurationError(f"{source} is not a folder: name one with SOURCE=/path.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    story = Story()
    # As short as can be: Unix sockets are made below it.
    folder = Path(tempfile.mkdtemp(prefix="turku-demo-"))
    print(f"The demonstration works in {folder}, which is removed in the end.")
    try:
        _tell(story, source.absolute(), folder)
    except KeyboardInterrupt:
        print("\nInterrupted; cleaning up ...", flush=True)
        raise
    finally:
        with _signals_ignored():
            _remove(folder)
    _print_end(story)
    return FAILED if story.problems else DONE


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Let nothing break the cleaning up off."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _tell(story: Story, source: Path, folder: Path) -> None:
    data = folder / "data"
    with story.step("copy", f"Copying {source}, so that yours is left alone") as result:
        _copy(source, data)
        original = describe_tree(data)
        result.append(_counted(original))
    turku = LocalTurku(folder / "turku", storage_settings=_STORAGE_SETTINGS)
    try:
        with story.step("set up", "Starting an API, an SSH daemon and a storage unit") as result:
            running = turku.start()
            result.append(f"API on port {running.api_port}, SSH on port {running.ssh_port}")
        _tell_of_machine(story, turku, data, original, folder)
    finally:
        with _signals_ignored(), story.step("end", "Ending every process") as result:
            turku.stop()
            result.append("nothing is left running")


def _tell_of_machine(
    story: Story, turku: LocalTurku, data: Path, original: Tree, folder: Path
) -> None:
    with story.step("register", "Registering a machine with one source") as result:
        machine = turku.add_machine(
            MACHINE, {SOURCE: {"path": str(data), "retention": "last 2 snapshots"}}
        )
        result.append(f"machine {machine.uuid}")
    first = _back_up(story, turku, machine, "first backup", "The machine checks in and is due")
    with story.step("change", "Changing, removing and adding files of the copy") as result:
        result.append(_change(data))
        changed = describe_tree(data)
    turku.backup_now(machine)
    second = _back_up(story, turku, machine, "second backup", "It is asked to back up again")
    _print_snapshots(machine)
    _restore(story, machine, "restore older", first, original, folder / "older")
    _restore(story, machine, "restore newest", second, changed, folder / "newest")
    _expire(story, turku, machine, data, keep=second)


def _back_up(
    story: Story, turku: LocalTurku, machine: Machine, name: str, announcement: str
) -> str:
    """Let the machine check in, wait for the snapshot, and return its id."""
    with story.step(name, announcement, shows_progress=True) as result:
        _run_agent(machine)
        result.append("the machine is done")
    with story.step(f"{name}: commit", "The storage unit makes the snapshot") as result:
        turku.wait_until_committed()
        newest = machine.snapshots()[-1]
        result.append(f"snapshot {newest['id']} by {newest['mode']}")
    return str(newest["id"])


def _run_agent(machine: Machine, *arguments: str) -> None:
    """Run turku-agent-ping, which on a terminal shows its progress itself.

    Raises:
        TurkuError: It failed.
    """
    if not sys.stderr.isatty():
        machine.run("turku-agent-ping", *arguments)
        return
    done = run_to_end(
        machine.command("turku-agent-ping", *arguments), subprocess.DEVNULL, errors=None
    )
    if done.returncode != 0:
        raise TurkuError(f"turku-agent-ping failed with exit code {done.returncode}, see above.")


def _print_snapshots(machine: Machine) -> None:
    print("The machine lists what it may restore:")
    sys.stdout.flush()
    print(machine.run("turku-agent-ping", "--list").output.rstrip(), flush=True)


def _restore(
    story: Story, machine: Machine, name: str, snapshot: str, expected: Tree, target: Path
) -> None:
    announcement = f"Restoring snapshot {snapshot} to {target}"
    with story.step(name, announcement, shows_progress=True) as result:
        _run_agent(
            machine, "--restore", "--source", SOURCE,
            "--snapshot", snapshot, "--target", str(target),
        )  # fmt: skip
        result.append("restored")
    with story.step("compare", "Comparing every byte, and all metadata") as result:
        result.append(story.compare(expected, describe_tree(target)))


def _expire(story: Story, turku: LocalTurku, machine: Machine, data: Path, *, keep: str) -> None:
    """Make one more snapshot than the policy keeps, and let it expire."""
    (data / "third").write_text("One more.\n")
    turku.backup_now(machine)
    third = _back_up(story, turku, machine, "third backup", "A third backup, one too many")
    announcement = (
        "Expiring what `last 2 snapshots` doesn't keep (a real storage unit also keeps the 3 "
        "newest, whatever a policy says)"
    )
    with story.step("expire", announcement) as result:
        turku.storage_run("turku-storage-expire")
        expired = [each["id"] for each in machine.snapshots() if each["state"] == "expired"]
        result.append(f"{len(expired)} of 3 snapshots expired, and still restorable for 7 days")
    _print_snapshots(machine)
    with story.step("remove for good", "An operator who can't wait removes it now") as result:
        turku.storage_run("turku-storage-expire", "--now")
        left = [str(snapshot["id"]) for snapshot in machine.snapshots()]
        if len(expired) != 1 or left != [keep, third]:
            story.problems.append(f"After expiry there are {left}, not {[keep, third]}.")
        result.append(f"{len(left)} of 3 snapshots left")


def _copy(source: Path, target: Path) -> None:
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", "--", f"{source}/.", str(target)],
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["cp said nothing"])[-1]
        raise TurkuError(
            f"{source} can't be copied as a whole ({last}): choose a tree that you may read "
            "with SOURCE=/path, or see whether there is room."
        )


def _change(data: Path) -> str:
    """Change some files, whatever the tree holds, and say what was done."""
    files = list(_regular_files(data))[: 3 * _CHANGED_FILES]
    written, removed, touched = files[0::3], files[1::3], files[2::3]
    for path in written:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)
        with path.open("ab") as file:
            file.write(b"changed by the demonstration\n")
    for path in removed:
        path.unlink()
    for path in touched:
        path.chmod(0o600)
        os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    added = data / "added by the demonstration"
    added.mkdir()
    (added / "näme with ümlauts\nand a newline").write_text("new\n")
    (added / "link").symlink_to("../elsewhere")
    return (
        f"{len(written)} written to, {len(removed)} removed, {len(touched)} with other modes and "
        "times, a folder added"
    )


def _regular_files(top: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(top):
        names.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _remove(folder: Path) -> None:
    """Remove the demonstration's folder, with folders in it that nobody may write to."""

    def retry(remove: Callable[..., object], path: str, problem: object) -> None:
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        remove(path)

    shutil.rmtree(folder, onerror=retry)


def _print_end(story: Story) -> None:
    print()
    print_table(
        ["Step", "Took", "Result"],
        [
            (step.name, human_duration(timedelta(seconds=step.seconds)), step.result)
            for step in story.steps
        ],
    )
    print()
    if story.problems:
        print(f"{len(story.problems)} things are not as they should be:")
        for problem in story.problems[:_DIFFERENCES_SHOWN]:
            print(f"  {problem}")
    else:
        print("Everything that was restored is what it was.")


def _counted(tree: Tree) -> str:
    entries, size = size_of(tree)
    return f"{entries:,} entries, {human_size(size)}"

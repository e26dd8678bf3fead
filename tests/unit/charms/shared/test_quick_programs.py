"""The programs that charm tests run in place of the console scripts: they do the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.quick_programs import BIN, quick_programs


def ran(folder: Path, *command: str, root: Path) -> tuple[int, str, str]:
    """Run a program below a root, and return its exit code and what it said on both outputs."""
    name, *arguments = command
    done = subprocess.run(
        [folder / name, "--root", root, *arguments],
        input="{}",
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, ("turku-storage", "--help")),
        (0, ("turku-api", "--version")),
        (2, ("turku-update-config", "nonsense")),
        (2, ("turku-agent-ping", "--status")),
    ],
)
def test_a_stand_in_says_and_ends_as_its_program_does(
    tmp_path: Path, code: int, command: tuple[str, ...]
) -> None:
    said = ran(quick_programs(), *command, root=tmp_path)
    assert said[0] == code
    assert said == ran(BIN, *command, root=tmp_path)

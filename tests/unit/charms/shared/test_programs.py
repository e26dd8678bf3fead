"""Running the workload's programs: their words, exit codes and input."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from turku_charm.programs import Programs
from turku_core.errors import ConfigurationError, TryAgainLater, TurkuError

HERE = Path(sys.executable).parent


def script(folder: Path, body: str) -> Programs:
    """Make a program ``turku-tried`` of a few lines of shell."""
    path = folder / "turku-tried"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Programs(folder)


def test_a_program_works_below_its_root() -> None:
    programs = Programs(HERE, Path("/tmp/root"))
    assert programs.command("turku-agent-ping", "--list") == [
        f"{HERE}/turku-agent-ping", "--root", "/tmp/root", "--list",
    ]  # fmt: skip
    assert programs.command("turku-api", "health") == [
        f"{HERE}/turku-api", "--root", "/tmp/root", "health",
    ]  # fmt: skip


def test_on_a_real_machine_no_root_is_said() -> None:
    programs = Programs(Path("/opt/turku-agent/current/bin"))
    assert programs.command("turku-agent-ping", "--list") == [
        "/opt/turku-agent/current/bin/turku-agent-ping", "--list",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [("turku-agent-ping",), ("turku-api", "health"), ("turku-storage", "list")],
)
def test_the_real_programs_take_the_root_where_it_is_put(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert "usage" in Programs(HERE, tmp_path).run(*command, "--help").lower()


def test_a_command_of_the_api_works_below_its_root(tmp_path: Path) -> None:
    Programs(HERE, tmp_path).run("turku-api", "migrate")
    assert Programs(HERE, tmp_path).run_json("turku-api", "list-machines") == []
    assert (tmp_path / "var/lib/turku-api/turku.sqlite3").is_file()


def test_the_hooks_own_environment_stays_with_the_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUJU_CONTEXT_ID", "PYTHONPATH", "CHARM_DIR", "LANG"):
        monkeypatch.setenv(name, "of-the-hook")
    lines = script(tmp_path, "env").run("turku-tried").splitlines()
    assert [line for line in lines if "of-the-hook" in line] == ["LANG=of-the-hook"]


def test_what_it_prints_comes_back_and_its_input_goes_in(tmp_path: Path) -> None:
    assert script(tmp_path, "tr a-z A-Z").run("turku-tried", given="secret") == "SECRET"


def test_without_input_there_is_none_to_wait_for(tmp_path: Path) -> None:
    assert script(tmp_path, "cat; echo end").run("turku-tried") == "end\n"


def test_json_is_asked_for_and_parsed(tmp_path: Path) -> None:
    programs = script(tmp_path, 'echo "{\\"asked\\": \\"$1\\"}"')
    assert programs.run_json("turku-tried") == {"asked": "--json"}


def test_no_json_is_an_error_with_words(tmp_path: Path) -> None:
    with pytest.raises(TurkuError, match="answered no JSON"):
        script(tmp_path, "echo no").run_json("turku-tried")


@pytest.mark.parametrize(
    ("code", "error"), [(1, TurkuError), (2, ConfigurationError), (75, TryAgainLater)]
)
def test_an_exit_code_is_an_error_with_the_programs_own_words(
    tmp_path: Path, code: int, error: type[TurkuError]
) -> None:
    programs = script(tmp_path, f"echo 'It says why.' >&2; exit {code}")
    with pytest.raises(error, match=r"^It says why\.$") as caught:
        programs.run("turku-tried")
    assert type(caught.value) is error


def test_a_program_that_says_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TurkuError, match="turku-tried ended with exit code 3"):
        script(tmp_path, "exit 3").run("turku-tried")


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(TurkuError, match="turku-tried can't be run"):
        Programs(tmp_path).run("turku-tried")


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TurkuError, match="did not end"):
        script(tmp_path, "exec sleep 60").run("turku-tried", seconds_max=0.3)
    assert time.monotonic() - began < 10


def test_a_program_may_answer_with_an_exit_code_that_tells_of_something_bad(tmp_path: Path) -> None:
    programs = script(tmp_path, "echo '[\"damaged\"]'; exit 1")
    assert programs.run_json("turku-tried", answering=(0, 1)) == ["damaged"]
    with pytest.raises(TurkuError):
        programs.run_json("turku-tried")

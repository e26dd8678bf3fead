"""The console script's own part of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turku_core.api import commands
from turku_core.api.commands import CommandLine, parse
from turku_core.errors import ConfigurationError


@pytest.mark.parametrize(
    "words",
    [
        ["--root", "/srv/turku", "list-machines", "--all"],
        ["--root=/srv/turku", "list_machines", "--all"],
        ["-v", "--root", "/srv/turku", "list-machines", "--all"],
    ],
)
def test_the_root_stands_anywhere_before_the_command(words: list[str]) -> None:
    parsed = parse(words)
    assert (parsed.root, parsed.command, parsed.arguments) == (
        Path("/srv/turku"),
        "list-machines",
        ("--all",),
    )


def test_what_follows_the_command_is_the_commands_business() -> None:
    assert parse(["serve", "--root", "--help", "-v"]) == CommandLine(
        Path("/"), False, "serve", ("--root", "--help", "-v")
    )


def test_a_relative_root_is_made_absolute() -> None:
    assert parse(["--root", "here", "help"]).root == Path.cwd() / "here"


@pytest.mark.parametrize("words", [[], ["--bogus", "help"], ["--root"]])
def test_bad_usage_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert "usage: turku-api" in capsys.readouterr().err


def test_another_users_data_is_refused_when_we_cannot_become_that_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "var/lib/turku-api"
    folder.mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise PermissionError

    class Status:
        st_uid = st_gid = 4711

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setgroups", refuse)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: Status)
    monkeypatch.setattr(Path, "is_dir", lambda *_: True)
    with pytest.raises(ConfigurationError, match="belongs to user id 4711"):
        commands.become_owner(folder)

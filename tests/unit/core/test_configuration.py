"""Reading *.d folders, and writing files durably."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from turku_core import configuration
from turku_core.configuration import (
    ensure_folder,
    ensure_private_folder,
    read_file,
    read_folder,
    write_durably,
)
from turku_core.errors import ConfigurationError


def test_files_merge_in_name_order_and_mappings_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "20-site.yaml").write_text("api_url: https://b/v1\nsources:\n  b: {path: /b}\n")
    (tmp_path / "10-base.json").write_text(
        '{"api_url": "https://a/v1", "unit_name": "u", "sources": {"a": {"path": "/a"}}}'
    )
    (tmp_path / ".hidden.json").write_text("not JSON")
    (tmp_path / "notes.txt").write_text("not read")
    merged = read_folder(tmp_path)
    assert merged.values == {
        "api_url": "https://b/v1",
        "unit_name": "u",
        "sources": {"a": {"path": "/a"}, "b": {"path": "/b"}},
    }
    assert merged.origin("api_url") == f"{tmp_path}/20-site.yaml, line 1"
    assert merged.origin("sources", "b", "path") == f"{tmp_path}/20-site.yaml, line 3"
    assert merged.origin("sources", "a", "nothing") == f"{tmp_path}/10-base.json, line 1"
    assert merged.origin("unknown") == "the configuration"


def test_a_folder_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    assert read_folder(tmp_path / "none").values == {}


def test_empty_files_add_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n")
    (tmp_path / "b.yaml").write_text("# only a comment\n")
    with pytest.raises(ConfigurationError, match=r"b\.yaml"):
        read_folder(tmp_path)
    (tmp_path / "b.yaml").unlink()
    assert read_folder(tmp_path).values == {}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'{\n "a": 1,\n "b" }', r"a\.json, line 3: this is not valid JSON"),
        ("a.json", b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("a.json", b"[1]", "must hold a mapping"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b'{"a":\n "\xff"}', r"a\.json, line 2: the file is not UTF-8"),
        ("a.yaml", b"a: 1\nb: [\n", r"a\.yaml, line 3: this is not valid YAML"),
        ("a.yaml", b"a: 1\nb: 2\na: 3\n", r"a\.yaml, line 3: the key 'a' stands twice"),
        ("a.yaml", b"a: &x [1]\nb: *x\n", r"a\.yaml, line 2: aliases"),
        ("a.yaml", b"1: 2\n", "must be text"),
        ("a.yaml", b"a: !!python/object/apply:os.system [id]\n", "line 1"),
        ("a.yaml", b"a: \x07\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=expected) as caught:
        read_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b" " * (configuration.FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        read_folder(tmp_path)


def test_a_written_file_has_its_mode_from_the_start_and_leaves_nothing_beside(
    tmp_path: Path,
) -> None:
    previous = os.umask(0)
    try:
        write_durably(tmp_path / "secret", "one")
        write_durably(tmp_path / "public", b"two", 0o644)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["public", "secret"]


@pytest.mark.parametrize("broken", ["fsync", "rename", "fchmod"])
def test_prior_art_26_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "state.json"
    write_durably(path, "old")

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, broken, fail)
        with pytest.raises(OSError, match="no space left"):
            write_durably(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_prior_art_26_the_file_is_synced_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    write_durably(tmp_path / "state.json", "new")
    assert steps == ["sync file", "rename", "sync folder"]


def test_a_private_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert configuration.ensure_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not configuration.ensure_private_folder(folder)
    folder.chmod(0o755)
    assert configuration.ensure_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "value", ["!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!set 1"]
)
def test_a_yaml_value_that_is_not_what_its_tag_says_is_named_with_its_file(
    tmp_path: Path, value: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"published: {value}\n")
    with pytest.raises(ConfigurationError, match=r"x\.yaml.*not valid YAML"):
        read_file(path)


def test_a_file_of_very_many_keys_is_read_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{" + "".join(f'"{n}":1,' for n in range(200_000)) + '"199999":1}')
    began = time.process_time()
    with pytest.raises(ConfigurationError, match="'199999' stands twice"):
        read_file(path)
    assert time.process_time() - began < 10


def test_folders_are_closed_to_others_whatever_the_umask_is(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        ensure_folder(tmp_path / "open/deep")
        ensure_private_folder(tmp_path / "above/private")
        # What is there already is left alone.
        ensure_folder(tmp_path)
    finally:
        os.umask(umask)
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("open", "open/deep", "above", "above/private")
    }
    assert modes == {"open": 0o755, "open/deep": 0o755, "above": 0o755, "above/private": 0o700}


def test_what_a_killed_writer_has_left_is_removed_but_not_what_is_being_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "secret.json"
    child = os.fork()
    if child == 0:
        # Killed when the new content is written and doesn't have its name yet.
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_durably(path, "half a secret")
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    others = [tmp_path / ".hidden.tmp", tmp_path / ".x.0123456789abcdef.tmp.json"]
    for other in others:
        other.touch()
    being_written = tmp_path / ".other.0123456789abcdef.tmp"
    descriptor = os.open(being_written, os.O_WRONLY | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert configuration.remove_left_overs(tmp_path) == 1
    assert not left.exists()
    assert {*others, being_written} == set(tmp_path.iterdir())
    os.close(descriptor)
    assert configuration.remove_left_overs(tmp_path) == 1
    assert configuration.remove_left_overs(tmp_path / "none") == 0


def test_a_temporary_file_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    swept: list[Path] = []

    def flock(descriptor: int, operation: int) -> None:
        if not swept:
            swept.append(next(tmp_path.iterdir()))
            swept[0].unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    write_durably(path, "content")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "content"

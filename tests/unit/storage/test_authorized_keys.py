"""The authorized_keys file as text."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.credentials import KeyFormatError, PublicKey, make_ssh_key_pair
from turku_core.storage.authorized_keys import make_content, make_line, write

A = "11111111-1111-4111-8111-111111111111"
B = "22222222-2222-4222-8222-222222222222"
COMMAND = ["/opt/turku/bin/turku-storage-ping"]


def new_key() -> PublicKey:
    """Return a fresh public key."""
    return PublicKey.parse(make_ssh_key_pair("x")[1])


def unquote(line: str) -> str:
    """Return what sshd hands to the shell: options' ``\\"`` is a quote (auth2-pubkeyfile.c)."""
    start = line.index('command="') + len('command="')
    end = start
    while line[end] != '"':
        end += 2 if line.startswith('\\"', end) else 1
    return line[start:end].replace('\\"', '"')


def test_prior_art_06_a_line_is_exactly_this() -> None:
    key = new_key()
    assert make_line(A, key, COMMAND) == (
        'restrict,port-forwarding,permitlisten="localhost:*",permitopen="none.invalid:1",'
        f'command="/opt/turku/bin/turku-storage-ping {A}" {key.line}'
    )


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_path_of_the_command_is_one_word_to_the_shell(path: str) -> None:
    import shlex

    line = make_line(A, KEY, [path, "--root", path])
    assert shlex.split(unquote(line)) == [path, "--root", path, A]
    assert "\n" not in line


KEY = new_key()


def test_prior_art_02_a_newline_in_a_key_never_becomes_a_line() -> None:
    good = new_key().line
    for hostile in (f"{good}\n{new_key().line}", f"{good} x\nssh-rsa AAAA", f"{good}\r{good}"):
        with pytest.raises(KeyFormatError):
            PublicKey.parse(hostile)
    commented = PublicKey.parse(f'{good} command="x" y')
    content, _ = make_content({A: commented}, COMMAND)
    assert content.splitlines()[1:] == [make_line(A, PublicKey.parse(good), COMMAND)]


def test_prior_art_05_a_cloned_machine_is_not_taken_for_the_first() -> None:
    key = new_key()
    content, problems = make_content({B: key, A: key}, COMMAND)
    assert content.count(key.line) == 1
    assert f' {A}" ' in content
    assert len(problems) == 1
    assert B in problems[0] and A in problems[0]


def test_prior_art_05_whoever_had_the_key_first_keeps_it() -> None:
    key = new_key()
    before, _ = make_content({B: key}, COMMAND)
    content, problems = make_content({A: key, B: key}, COMMAND, previous=before)
    assert f' {B}" ' in content
    assert f"Machine {A}" in problems[0]


def test_a_machine_that_is_gone_frees_its_key() -> None:
    key = new_key()
    before, _ = make_content({B: key}, COMMAND)
    content, problems = make_content({A: key}, COMMAND, previous=before)
    assert (f' {A}" ' in content, problems) == (True, [])


def test_the_file_is_private_and_only_written_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / ".ssh/authorized_keys"
    machines = {str(uuid.uuid4()): new_key() for _ in range(3)}
    assert write(path, machines, COMMAND) is True
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    inode = path.stat().st_ino
    assert write(path, machines, COMMAND) is False
    assert path.stat().st_ino == inode
    path.chmod(0o644)
    assert write(path, machines, COMMAND) is True
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_someone_elses_making_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "authorized_keys"
    path.write_bytes(b"ssh-rsa AAAA a key dropped in\n\xff\n")
    write(path, {A: KEY}, COMMAND)
    assert "dropped in" not in path.read_text()

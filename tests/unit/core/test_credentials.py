"""Secrets and SSH keys."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core import credentials
from turku_core.credentials import KeyFormatError, PublicKey


def test_prior_art_08_secrets_are_256_random_bits_and_only_their_hash_is_kept() -> None:
    made = {credentials.make_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(secret) for secret in made} == {43}
    secret = made.pop()
    kept = credentials.hash_secret(secret)
    assert secret not in kept
    assert credentials.secret_matches(secret, kept)
    assert not credentials.secret_matches(secret + "x", kept)


def test_a_key_pair_is_one_that_openssh_reads(tmp_path: Path) -> None:
    private, public = credentials.make_ssh_key_pair("turku-agent")
    path = tmp_path / "key"
    path.write_text(private)
    path.chmod(0o600)
    said = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True
    )
    assert PublicKey.parse(said.stdout).line == PublicKey.parse(public).line
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(path)], capture_output=True, text=True, check=True
    )
    assert PublicKey.parse(public).fingerprint == fingerprint.stdout.split()[1]


@pytest.mark.parametrize("kind", [["-t", "rsa", "-b", "2048"], ["-t", "ecdsa"], ["-t", "ed25519"]])
def test_keys_made_by_openssh_are_read(kind: list[str], tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", *kind, "-N", "", "-C", "root@a b", "-f", str(path)], check=True
    )
    line = path.with_suffix(".pub").read_text()
    key = PublicKey.parse(line)
    assert line.strip() == f"{key.line} {key.comment}"


def _line() -> str:
    return credentials.make_ssh_key_pair("x")[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line + "\nssh-ed25519 AAAA evil",
        lambda line: line.replace(" ", "\n", 1),
        lambda line: 'command="sh" ' + line,
        lambda line: line + "\rx",
        lambda line: line + "\0",
        lambda line: line.replace("ssh-ed25519", "ssh-rsa"),
        lambda line: line.replace(" ", "\t"),
        lambda line: "ssh-ed25519",
        lambda line: "ssh-ed25519 " + "A" * 5000,
        lambda line: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
        lambda line: "",
    ],
)
def test_prior_art_02_a_key_that_is_more_than_one_key_is_refused(
    spoil: Callable[[str], str],
) -> None:
    with pytest.raises(KeyFormatError):
        PublicKey.parse(spoil(_line()))


@given(st.text())
def test_any_comment_leaves_one_plain_line(comment: str) -> None:
    try:
        key = PublicKey.parse(f"{_line()} {comment}")
    except KeyFormatError:
        return
    assert key.line.isascii()
    assert key.line.isprintable()
    assert len(key.line.split(" ")) == 2
    assert key.comment.isascii()

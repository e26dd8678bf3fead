"""What a local Turku writes, and how the demonstration compares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turku_core.errors import ConfigurationError
from turku_core.local.comparison import describe_tree, differences, size_of
from turku_core.local.layout import make_layout
from turku_core.local.parts import make_sshd_configuration


def test_the_private_sshd_lets_one_user_in_with_keys_for_remote_forwards_only() -> None:
    text = make_sshd_configuration(
        Path("/t/key"), [Path("/t/a b"), Path("/t/own")], 2222, "someone", use_pam=False
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        "ListenAddress 127.0.0.1",
        "Port 2222",
        'HostKey "/t/key"',
        "PidFile none",
        'AuthorizedKeysFile "/t/a b" "/t/own"',
        "StrictModes no",
        "AllowUsers someone",
        "PermitRootLogin forced-commands-only",
        "AuthenticationMethods publickey",
        "UsePAM no",
        "DisableForwarding no",
        "AllowTcpForwarding remote",
        "AllowStreamLocalForwarding no",
        "AllowAgentForwarding no",
        "X11Forwarding no",
        "PermitTunnel no",
        "PermitTTY no",
        "PermitUserRC no",
        "PrintMotd no",
        "SetEnv SHLVL=1",
        "MaxStartups 100",
        "ClientAliveInterval 30",
        "ClientAliveCountMax 3",
    ]


@pytest.mark.parametrize("name", ['with"quote', "with%percent", "with\\backslash", "with\nline"])
def test_a_folder_that_sshd_could_misread_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="choose another"):
        make_layout(Path("/t") / name)


def test_a_machines_name_cannot_leave_the_folder() -> None:
    with pytest.raises(ConfigurationError):
        make_layout(Path("/t")).machine("../elsewhere")


def make_tree(top: Path) -> None:
    (top / "folder").mkdir(parents=True)
    (top / "folder/file").write_bytes(b"content")
    (top / "link").symlink_to("folder/file")
    os.link(top / "folder/file", top / "second name")
    (top / "twin").write_bytes(b"content")
    for name in ("folder/file", "twin", "folder", "."):
        os.utime(top / name, ns=(0, 10**18 + 1))


def test_equal_trees_have_no_differences(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_tree(tmp_path / name)
    os.utime(tmp_path / "b/link", ns=(0, 5), follow_symlinks=False)
    os.utime(tmp_path / "a/link", ns=(0, 5), follow_symlinks=False)
    one, other = describe_tree(tmp_path / "a"), describe_tree(tmp_path / "b")
    assert differences(one, other) == []
    # Two names of one file, and its twin: the folder of the tree counts as well.
    assert size_of(one) == (6, 2 * len(b"content"))


def test_what_differs_is_named_with_its_path(tmp_path: Path) -> None:
    top = tmp_path / "t"
    make_tree(top)
    before = describe_tree(top)
    (top / "twin").write_bytes(b"CONTENT")
    os.utime(top / "twin", ns=(0, 10**18 + 1))
    (top / "folder").chmod(0o700)
    (top / "link").unlink()
    (top / "new").write_bytes(b"")
    (top / "second name").unlink()
    (top / "second name").write_bytes(b"content")
    os.utime(top / "second name", ns=(0, 10**18 + 1))
    os.utime(top, ns=(0, 10**18 + 1))
    assert differences(before, describe_tree(top)) == [
        "folder: differs in mode",
        "folder/file: differs in linked with",
        "link: is missing",
        "new: should not be there",
        "second name: differs in linked with",
        "twin: differs in content",
    ]

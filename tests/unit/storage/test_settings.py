"""The settings of a storage unit."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from turku_core.credentials import make_ssh_key_pair
from turku_core.errors import ConfigurationError
from turku_core.protocol.messages import Auth
from turku_core.storage.settings import Settings, read_host_keys, read_settings


def write(root: Path, name: str, content: str) -> None:
    """Write a file of the operator's."""
    folder = root / "etc/turku-storage/config.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def settings(root: Path, **values: Any) -> Settings:
    """Return the settings that these values make."""
    write(root, "10-test.json", json.dumps(values))
    return read_settings(root)


def test_nothing_configured_means_the_defaults(tmp_path: Path) -> None:
    read = read_settings(tmp_path)
    assert (read.api_urls, read.volumes, read.name, read.registration) == ((), (), None, None)
    assert (read.snapshot_mode, read.slots, read.ssh_ping_port) == ("borg", 10, 22)
    assert (read.expiry_floor, read.expiry_grace) == (3, timedelta(days=7))
    assert read.default_retention == "last 5 days, earliest of month"
    assert read.published


def test_fielded_configuration_is_read_as_it_is(tmp_path: Path) -> None:
    write(
        tmp_path,
        "10-charm.yaml",
        "api_url: https://turku.example.com/v1\napi_auth: oldest-secret\n"
        "snapshot_mode: attic\nssh_ping_port: 2222\n"
        "volumes:\n  main:\n    path: /srv/turku\n    accept_new: false\n"
        "    accept_new_high_water_pct: 70\n    snapshot_mode: attic\n",
    )
    write(
        tmp_path, "20-more.json", '{"volumes": {"more": {"path": "/srv/more"}}, "name": "unit-1"}'
    )
    read = read_settings(tmp_path)
    assert read.api_urls == ("https://turku.example.com/v1",)
    assert read.registration == Auth(None, "oldest-secret")
    assert (read.snapshot_mode, read.ssh_ping_port, read.name) == ("borg", 2222, "unit-1")
    assert [(each.name, str(each.path), each.accept_new, each.high_water_pct, each.snapshot_mode)
            for each in read.volumes] == [
        ("main", "/srv/turku", False, 70.0, "borg"),
        ("more", "/srv/more", True, 80.0, None),
    ]  # fmt: skip


def test_several_urls_and_a_named_key(tmp_path: Path) -> None:
    urls = ["https://a/v1/", "https://b/v1"]
    read = settings(tmp_path, api_url=urls, api_auth_name="key", api_auth_secret="12345678")
    assert read.api_urls == ("https://a/v1", "https://b/v1")
    assert read.registration == Auth("key", "12345678")


def test_the_generated_identity_comes_last(tmp_path: Path) -> None:
    own = tmp_path / "var/lib/turku-storage/config.d"
    own.mkdir(parents=True)
    (own / "identity.json").write_text('{"name": "mine", "secret": "0123456789"}')
    read = settings(tmp_path, name="yours")
    assert (read.login.name, read.login.secret) == ("mine", "0123456789")


def test_without_an_identity_there_is_no_login(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="turku-storage-update-config"):
        _ = read_settings(tmp_path).login


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("slots: 0", "slots"),
        ("slots: ten", "slots"),
        ("api_url: ftp://x", "api_url"),
        ("snapshot_mode: zfs", "borg, btrfs, link-dest, none"),
        ("ssh_ping_host: -oProxyCommand=x", "ssh_ping_host"),
        ("name: ../x", "name"),
        ("ssh_ping_host_keys: ['ssh-rsa x']", "ssh_ping_host_keys"),
        ("default_retention: forever", "default_retention"),
        ("volumes: /srv", "volumes"),
        ("volumes: {a: {path: srv}}", "volumes.a.path"),
        ("volumes: {a: {}}", "volumes.a.path"),
        ("volumes: {../a: {path: /srv}}", "volumes"),
        ("volumes: {a: {path: /srv, accept_new: maybe}}", "volumes.a.accept_new"),
        ("volumes: {a: {path: /srv, accept_new_high_water_pct: 101}}", "high_water_pct"),
        ("volumes: {a: {path: /srv, snapshot_mode: zfs}}", "volumes.a.snapshot_mode"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    write(tmp_path, "10-test.yaml", f"# a comment\n{line}\n")
    with pytest.raises(ConfigurationError) as raised:
        read_settings(tmp_path)
    assert "10-test.yaml, line 2" in str(raised.value)
    assert words in str(raised.value)
    assert raised.value.exit_code == 2


def test_prior_art_08_no_secret_is_shown(tmp_path: Path) -> None:
    read = settings(tmp_path, secret="very-secret-1", api_auth_secret="very-secret-2")
    assert "very-secret" not in repr(read)
    with pytest.raises(ConfigurationError) as raised:
        settings(tmp_path, secret="very secret 3")
    assert "very secret" not in str(raised.value)


def test_this_hosts_keys_are_found(tmp_path: Path) -> None:
    line = make_ssh_key_pair("root@host")[1]
    (tmp_path / "ssh_host_ed25519_key.pub").write_text(line + "\n")
    (tmp_path / "ssh_host_dsa_key.pub").write_text("ssh-dss AAAAB3NzaC1kc3M= root@host\n")
    [key] = read_host_keys(tmp_path)
    assert line.startswith(key.line)


def test_a_host_without_keys_is_told_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ssh-keygen -A"):
        read_host_keys(tmp_path)


def test_a_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings(Path("unit")).paths.root == tmp_path / "unit"

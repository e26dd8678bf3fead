"""Installing the service: the files below a root of their own, and sshd's word on its part."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from turku_core.errors import ConfigurationError, TurkuError
from turku_core.storage.install import (
    install,
    install_sshd_drop_in,
    make_user_command,
    program,
    uninstall,
    wrong_options,
)
from turku_core.storage.settings import Paths
from turku_core.storage.templates import render

DROP_IN = "etc/ssh/sshd_config.d/50-turku-storage.conf"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with an sshd configuration as Debian has it."""
    monkeypatch.setattr("sys.argv", [str(Path(sys.executable).parent / "turku-storage")])
    folder = tmp_path / "root"
    (folder / "etc/ssh/sshd_config.d").mkdir(parents=True)
    key = folder / "etc/ssh/ssh_host_ed25519_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    write_sshd(folder, f"Include {folder}/etc/ssh/sshd_config.d/*.conf\n")
    return folder


def write_sshd(root: Path, text: str) -> None:
    """Write sshd's main configuration."""
    key = root / "etc/ssh/ssh_host_ed25519_key"
    (root / "etc/ssh/sshd_config").write_text(f"{text}HostKey {key}\nX11Forwarding yes\n")


def test_one_command_writes_everything_and_a_second_changes_nothing(root: Path) -> None:
    user = getpass.getuser()
    installed = install(root, user)
    names = sorted(str(path.relative_to(root)) for path in installed.changed)
    assert names == [DROP_IN, "etc/systemd/system/turku-storage-worker.service"]
    assert (root / "var/lib/turku-storage").stat().st_mode & 0o777 == 0o700
    assert install(root, user).changed == ()


def test_metrics_are_scraped_where_the_option_says(root: Path) -> None:
    folder = root / "etc/turku-storage/config.d"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"metrics_listen": "127.0.0.1:9522"}')
    changed = [path.name for path in install(root, getpass.getuser()).changed]
    units = ["turku-storage-metrics.socket", "turku-storage-metrics@.service"]
    assert changed[-2:] == units
    text = (root / "etc/systemd/system/turku-storage-metrics@.service").read_text()
    assert (
        f"User={getpass.getuser()}\nExecStart={program('turku-storage')} metrics --http\n" in text
    )
    (folder / "metrics.json").write_text("{}")
    assert [path.name for path in install(root, getpass.getuser()).changed] == units


def test_what_is_uninstalled_lets_nobody_in_and_leaves_the_backups(root: Path) -> None:
    installed = install(root, getpass.getuser())
    paths = Paths(root)
    paths.authorized_keys.parent.mkdir()
    paths.authorized_keys.write_text("a key\n")
    kept = paths.state / "known_machines.json"
    kept.write_text("{}")
    (root / "etc/ssh/sshd_config.d/other.conf").touch()
    removed = uninstall(root)
    assert set(removed.changed) == {*installed.changed, paths.authorized_keys}
    assert not any(path.exists() for path in removed.changed)
    assert kept.exists()
    assert paths.configuration.is_dir()
    assert (root / "etc/ssh/sshd_config.d/other.conf").exists()
    assert uninstall(root).changed == ()
    assert set(install(root, getpass.getuser()).changed) == set(installed.changed)


def test_the_user_gets_the_id_of_the_backups_that_are_there() -> None:
    paths = Paths(Path("/"))
    plain = make_user_command("turku-storage", paths, None)
    assert plain == [
        "useradd", "--system", "--user-group", "--shell", "/bin/sh",
        "--home-dir", "/var/lib/turku-storage", "--no-create-home", "--password", "*",
        "--", "turku-storage",
    ]  # fmt: skip
    wanted = make_user_command("turku-storage", paths, 997)
    assert [each for each in wanted if each not in plain] == ["--uid", "997"]
    assert wanted[-2:] == plain[-2:]


def test_the_drop_in_is_exactly_this() -> None:
    text = render("turku-storage-sshd.conf.j2", user="turku-storage", authorized_keys="/v/k")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        "Match User turku-storage",
        "    AuthorizedKeysFile /v/k",
        "    AuthenticationMethods publickey",
        "    AllowTcpForwarding remote",
        "    AllowStreamLocalForwarding no",
        "    AllowAgentForwarding no",
        "    GatewayPorts no",
        "    PermitOpen none",
        "    PermitTTY no",
        "    PermitTunnel no",
        "    PermitUserRC no",
        "    X11Forwarding no",
        "    MaxSessions 2",
        "    ClientAliveInterval 15",
        "    ClientAliveCountMax 4",
    ]


def test_the_unit_and_the_cron_line_run_the_worker_as_the_units_user() -> None:
    unit = render("turku-storage-worker.service.j2", user="u", worker="/opt/w")
    assert "\nUser=u\nExecStart=/opt/w\nRestart=always\n" in unit
    cron = render("turku-storage.cron.j2", user="u", worker="/opt/w")
    assert cron.splitlines()[-1].startswith("* * * * * u /opt/w --once ")
    assert cron.endswith("\n")


def test_the_worker_sees_the_same_boot_id_as_the_sessions_in_a_container_too() -> None:
    unit = render("turku-storage-worker.service.j2", user="u", worker="/opt/w")
    settings = [line for line in unit.splitlines() if not line.startswith("#")]
    fresh_proc = ("ProtectKernelTunables", "ProtectControlGroups", "ProtectProc", "ProcSubset")
    assert not any(line.startswith(fresh_proc) for line in settings)


def test_a_systemd_unit_is_one_that_systemd_accepts(root: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        # Not on this host; every line is compared above, and the model tests boot it.
        return
    install(root, getpass.getuser())
    unit = root / "etc/systemd/system/turku-storage-worker.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "turku-storage-worker" not in done.stderr, done.stderr


def test_a_configuration_that_sshd_refuses_does_not_stay(root: Path) -> None:
    write_sshd(root, "Nonsense yes\n")
    with pytest.raises(TurkuError, match="Nonsense"):
        install_sshd_drop_in(root, "root", Paths(root))
    assert not (root / DROP_IN).exists()


def test_what_was_there_before_is_there_again(root: Path) -> None:
    (root / DROP_IN).write_text("# before\n")
    write_sshd(root, "Nonsense yes\n")
    with pytest.raises(TurkuError):
        install_sshd_drop_in(root, "root", Paths(root))
    assert (root / DROP_IN).read_text() == "# before\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "allowtcpforwarding is yes"),
        ("AllowTcpForwarding yes\n{include}", None),
        (
            "Match User root\nGatewayPorts yes\nMatch all\n{include}",
            "gatewayports is yes",
        ),
    ],
)
def test_a_drop_in_that_would_have_no_effect_is_an_error(
    root: Path, text: str, words: str | None
) -> None:
    include = f"Include {root}/etc/ssh/sshd_config.d/*.conf\n"
    write_sshd(root, text.format(include=include))
    if words is None:
        install_sshd_drop_in(root, "root", Paths(root))
        return
    with pytest.raises(TurkuError, match=words):
        install_sshd_drop_in(root, "root", Paths(root))
    assert not (root / DROP_IN).exists()


def test_options_that_differ_are_named() -> None:
    said = "allowtcpforwarding remote\npermittty yes\n"
    expected = {"allowtcpforwarding": "remote", "permittty": "no", "gatewayports": "no"}
    assert wrong_options(said, expected) == ["permittty is yes", "gatewayports is not set"]


def test_a_path_that_files_could_misread_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b%"
    folder.mkdir()
    (folder / "turku-storage-worker").touch()
    monkeypatch.setattr("sys.argv", [str(folder / "turku-storage")])
    with pytest.raises(ConfigurationError, match="plain path"):
        program("turku-storage-worker")

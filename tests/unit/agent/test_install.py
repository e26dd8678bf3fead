"""The unit files and cron lines, as text, and what may stand in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from turku_core.agent import install
from turku_core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (install.PING, install.UPDATE):
        (folder / name).write_text("")
    monkeypatch.setattr(sys, "argv", [str(folder / install.UPDATE)])
    return folder


def test_the_services_name_the_program_and_its_ends(tmp_path: Path, programs: Path) -> None:
    changed = install.install_systemd(tmp_path)
    assert {path.name for path in changed} == {
        "turku-agent-ping.service",
        "turku-agent-ping.timer",
        "turku-update-config.service",
        "turku-update-config.timer",
    }
    folder = tmp_path / "etc/systemd/system"
    service = (folder / "turku-agent-ping.service").read_text().splitlines()
    assert f"ExecStart={programs}/turku-agent-ping" in service
    assert "SuccessExitStatus=75" in service
    assert "TimeoutStartSec=infinity" in service
    update = (folder / "turku-update-config.service").read_text().splitlines()
    assert f"ExecStart={programs}/turku-update-config --wait 120 --keep-going" in update
    ping_at_once = "ExecStartPost=-systemctl start --no-block turku-agent-ping.service"
    assert ping_at_once in update
    # What is only not possible yet isn't left for the hourly timer.
    assert {"Restart=on-failure", "RestartPreventExitStatus=1 2", "RestartSec=2min"} <= set(update)
    assert "SuccessExitStatus=75" not in update
    timer = (folder / "turku-agent-ping.timer").read_text().splitlines()
    assert "OnUnitInactiveSec=5min" in timer
    assert "RandomizedDelaySec=60" in timer
    assert "{" not in "".join((folder / path.name).read_text() for path in changed)


def test_the_cron_lines_have_a_place_of_the_machines_own(tmp_path: Path, programs: Path) -> None:
    places = set()
    for number in range(40):
        root = tmp_path / str(number)
        (root / "etc").mkdir(parents=True)
        (root / "etc/machine-id").write_text(f"{number:032x}\n")
        (path,) = install.install_cron(root)
        lines = [line for line in path.read_text().splitlines() if " root " in line]
        ping, update = lines
        assert ping.endswith(f"; {programs}/turku-agent-ping")
        assert f"root {programs}/turku-update-config" in update
        first, seconds = int(ping.split("-")[0]), int(ping.split("sleep ")[1].split(";")[0])
        assert 0 <= first < 5
        assert 0 <= seconds < 60
        places.add((first, seconds))
        assert install.install_cron(root) == []
    assert len(places) > 30


@pytest.mark.parametrize("name", ["with space", "per%cent", "dol$lar", "new\nline"])
def test_a_program_under_an_odd_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / install.PING).write_text("")
    monkeypatch.setattr(sys, "argv", [str(folder / install.UPDATE)])
    with pytest.raises(ConfigurationError, match="plain path"):
        install.program(install.PING)


def test_what_was_installed_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    install.install_systemd(tmp_path)
    other = tmp_path / "etc/systemd/system/other.service"
    other.write_text("")
    assert len(install.uninstall(tmp_path)) == 4
    assert install.uninstall(tmp_path) == []
    assert other.exists()


def write_metrics_option(root: Path) -> None:
    folder = root / "etc/turku-agent/config.d"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"metrics_listen": "127.0.0.1:9521"}')


def test_metrics_are_scraped_where_the_option_says(tmp_path: Path, programs: Path) -> None:
    write_metrics_option(tmp_path)
    changed = [path.name for path in install.install_systemd(tmp_path)]
    assert changed[4:] == ["turku-agent-metrics.socket", "turku-agent-metrics@.service"]
    text = (tmp_path / "etc/systemd/system/turku-agent-metrics@.service").read_text()
    assert f"User=root\nExecStart={programs}/turku-agent-ping --metrics --http\n" in text
    assert [path.name for path in install.uninstall(tmp_path)] == changed


def test_without_systemd_nobody_listens_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_metrics_option(tmp_path)
    assert [path.name for path in install.install_cron(tmp_path)] == ["turku-agent"]
    assert "metrics_listen needs systemd" in caplog.text

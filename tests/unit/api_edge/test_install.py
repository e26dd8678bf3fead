"""Installing the API as a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from turku_core.api import install
from turku_core.api.install import UNITS, find_program, render_unit
from turku_core.errors import ConfigurationError

SERVICE = """\
# Written by `turku-api install-service`; what is changed here is lost.
[Unit]
Description=Turku API and administration site
Wants=network-online.target
After=network-online.target postgresql.service

[Service]
Type=notify
User=turku-api
ExecStart=/opt/turku-api/bin/turku-api serve --migrate
Restart=always
RestartSec=5
# A configuration that can't be used doesn't mend itself.
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStartSec=10min
TimeoutStopSec=30
UMask=0077
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectHome=yes
ProtectSystem=full
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""


def test_the_unit_of_the_service() -> None:
    program = Path("/opt/turku-api/bin/turku-api")
    assert render_unit("turku-api.service", "turku-api", program) == SERVICE


def test_the_hourly_timer_runs_the_housekeeping() -> None:
    program = Path("/opt/turku-api/bin/turku-api")
    unit = render_unit("turku-api-housekeeping.service", "turku-api", program)
    assert "ExecStart=/opt/turku-api/bin/turku-api housekeeping\n" in unit
    assert "OnCalendar=hourly" in render_unit("turku-api-housekeeping.timer", "x", program)


def test_below_another_root_the_units_are_written_and_nothing_is_started(tmp_path: Path) -> None:
    first = install.install(tmp_path)
    assert [path.name for path in first.changed] == list(UNITS)
    assert not first.started
    text = (tmp_path / "etc/systemd/system/turku-api.service").read_text()
    assert f"ExecStart={find_program()} serve --migrate\n" in text
    assert install.install(tmp_path).changed == ()


def test_installing_for_the_running_system_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match="run it as root"):
        install.install(Path("/"))


def test_metrics_are_scraped_where_the_option_says_and_only_while_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "etc/turku-api/config.d"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"metrics_listen": "127.0.0.1:9520"}')
    changed = [path.name for path in install.install(tmp_path).changed]
    assert changed == [*UNITS, "turku-api-metrics.socket", "turku-api-metrics@.service"]
    text = (tmp_path / "etc/systemd/system/turku-api-metrics@.service").read_text()
    assert f"User=turku-api\nExecStart={find_program()} metrics --http\n" in text
    assert "PrivateNetwork" not in text, "PostgreSQL may be on another host"
    (folder / "metrics.json").write_text("{}")
    assert [path.name for path in install.install(tmp_path).changed] == changed[-2:]
    assert not (tmp_path / "etc/systemd/system/turku-api-metrics.socket").exists()

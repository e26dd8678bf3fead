"""The units that let metrics be scraped, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from turku_core.errors import ConfigurationError
from turku_core.metrics.units import Exporter, install, read_listen, remove, render

EXPORTER = Exporter(
    program="turku-storage",
    command="/usr/bin/true metrics --http",
    user="root",
    installer="turku-storage install-service",
)

SOCKET = """\
# Written by `turku-storage install-service`; what is changed here is lost.
[Unit]
Description=Where the metrics of turku-storage are scraped

[Socket]
ListenStream=127.0.0.1:9522
# A process for each scrape, and only so many at once.
Accept=yes
MaxConnections=4
# The address may come up after this unit.
FreeBind=yes

[Install]
WantedBy=sockets.target
"""

SERVICE = """\
# Written by `turku-storage install-service`; what is changed here is lost.
[Unit]
Description=Answer one scrape of the metrics of turku-storage
CollectMode=inactive-or-failed

[Service]
User=root
ExecStart=/usr/bin/true metrics --http
StandardInput=socket
StandardOutput=journal
StandardError=journal
# That a scrape came is no news; what the program says of it is.
LogLevelMax=notice
SyslogLevel=warning
RuntimeMaxSec=60
UMask=0077
Nice=10
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
# The connection that it answers on was made outside.
PrivateNetwork=yes
ProtectHome=read-only
ProtectSystem=full
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
"""


def test_the_units_are_exactly_these(tmp_path: Path) -> None:
    changed = install(tmp_path, EXPORTER, "127.0.0.1:9522")
    folder = tmp_path / "etc/systemd/system"
    socket = folder / "turku-storage-metrics.socket"
    service = folder / "turku-storage-metrics@.service"
    assert changed == [socket, service]
    assert socket.read_text() == SOCKET
    assert service.read_text() == SERVICE


def test_only_what_needs_the_network_has_it() -> None:
    exporter = Exporter("turku-api", "/usr/bin/true", "root", "x", needs_network=True)
    assert "PrivateNetwork" not in render("turku-metrics@.service", exporter, "127.0.0.1:1")


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    install(tmp_path, EXPORTER, "127.0.0.1:9522")
    assert install(tmp_path, EXPORTER, "127.0.0.1:9522") == []


def test_another_address_is_written(tmp_path: Path) -> None:
    install(tmp_path, EXPORTER, "127.0.0.1:9522")
    (changed,) = install(tmp_path, EXPORTER, "127.0.0.1:9622")
    assert changed.name == "turku-storage-metrics.socket"


def test_without_the_option_the_units_go(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/system"
    install(tmp_path, EXPORTER, "127.0.0.1:9522")
    (folder / "turku-api-metrics.socket").write_text("another's")
    assert len(install(tmp_path, EXPORTER, None)) == 2
    assert [path.name for path in folder.iterdir()] == ["turku-api-metrics.socket"]
    assert remove(tmp_path, "turku-storage") == []


def test_the_option_is_read_from_the_configuration(tmp_path: Path) -> None:
    assert read_listen(tmp_path / "none") is None
    (tmp_path / "10-main.yaml").write_text("metrics_listen: 127.0.0.1:9520\n")
    assert read_listen(tmp_path) == "127.0.0.1:9520"
    (tmp_path / "20-off.yaml").write_text('metrics_listen: ""\n')
    assert read_listen(tmp_path) is None


def test_an_option_that_is_no_address_is_an_error_that_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "10-main.yaml").write_text("a: 1\nmetrics_listen: example.com:9520\n")
    with pytest.raises(ConfigurationError, match=r"10-main.yaml, line 2: metrics_listen: must be"):
        read_listen(tmp_path)

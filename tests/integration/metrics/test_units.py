"""The units that let metrics be scraped, in systemd's own opinion."""

from __future__ import annotations

import subprocess
from pathlib import Path

from turku_core.metrics.units import Exporter, install

EXPORTER = Exporter(
    program="turku-storage",
    command="/usr/bin/true metrics --http",
    user="root",
    installer="turku-storage install-service",
)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    install(tmp_path, EXPORTER, "[::1]:9522")
    folder = tmp_path / "etc/systemd/system"
    # An instance, as there is one for each scrape.
    instance = folder / "turku-storage-metrics@1.service"
    instance.symlink_to("turku-storage-metrics@.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(folder / "turku-storage-metrics.socket"),
         str(instance)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "turku-storage-metrics" not in done.stderr, done.stderr

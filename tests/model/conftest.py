"""What the model tests share: the machines' image, the packed charms, a small bundle that stands.

A test that fails is shown with the status of the models that are open, the units' logs and the
machines' journals; how long each test took is printed at the end.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.model.fleet import BUNDLES, pack_store
from tests.model.runner.machines import ensure_image
from tests.model.runner.model import OPEN, Model, active

PROGRAMS = ("debootstrap", "systemd-nspawn", "nsenter", "ip", "nft", "mkfs.ext4", "losetup")


@pytest.fixture(scope="session")
def image() -> Path:
    """The root folder that machines are overlays on; TURKU_MODEL_CACHE names another place."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        what = f"these programs: {', '.join(missing)}" if missing else "root"
        pytest.fail(f"The model test needs {what}.", pytrace=False)
    cache = Path(os.environ.get("TURKU_MODEL_CACHE", "/var/cache/turku-model"))
    return ensure_image(cache)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packed charms by name: ours, and small ones that stand for those of others."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the processes of one run share
    folder /= "charms"
    folder.mkdir(exist_ok=True)
    with folder.joinpath("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return pack_store(folder)


@pytest.fixture(scope="session")
def small(image: Path, store: dict[str, Path]) -> Iterator[Model]:
    """A model in which `bundles/turku.yaml` was deployed and has become active."""
    with Model(image, store) as model:
        model.deploy(BUNDLES / "turku.yaml")
        model.wait(active, 300, "for the small bundle to be active")
        yield model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look at the small bundle first, while nothing has been added to it."""
    items.sort(key=lambda item: item.path.name != "test_small_bundle.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the open models can say to the report of a test that failed."""
    report = yield
    if report.failed:
        for model in OPEN:
            report.sections.append((f"model {model.folder.name}", model.report()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each scenario took, and each of its tests, with what was made for it."""
    scenarios: dict[str, dict[str, float]] = {}
    for outcome in ("passed", "failed", "error", ""):
        for report in terminalreporter.stats.get(outcome, []):
            if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/model/"):
                scenario, _, name = report.nodeid.partition("::")
                seconds = scenarios.setdefault(scenario, {})
                seconds[name] = seconds.get(name, 0.0) + report.duration
    if scenarios:
        terminalreporter.section("time of each scenario on machines")
    for scenario, seconds in sorted(scenarios.items()):
        terminalreporter.line(f"{sum(seconds.values()):7.1f} s  {scenario}")
        for name, took in sorted(seconds.items()):
            terminalreporter.line(f"{took:7.1f} s    {name}")

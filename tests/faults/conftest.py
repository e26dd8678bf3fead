"""What the fault tests share: a tally, chance, and the table at the end of the run."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.tally import FULL, PROPERTY, SEED, Tally
from turku_core.local.turku import LocalTurku


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Tally:
    """The table's rows of this test; their kind is the first word of the file's name."""
    return Tally(request.path.stem.split("_")[1], record_property)


@pytest.fixture(scope="module")
def turku() -> Iterator[LocalTurku]:
    """A whole Turku that the tests of a file share, each with machines of its own."""
    folder = Path(tempfile.mkdtemp(prefix="turku-faults-"))
    try:
        with LocalTurku(folder / "t", storage_settings={"snapshot_mode": "link-dest"}) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Chance that is the same for this test in each run with the same seed."""
    return random.Random(f"{SEED}:{request.node.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what takes minutes to `make faults`, which begins with what waits the longest."""
    long = [] if FULL else [each for each in items if each.get_closest_marker("only_in_full")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [each for each in items if each not in long]
    if FULL:
        items.sort(key=lambda item: item.path.name != "test_network.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table: each fault, how often it was tried, what was lost."""
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY and report.when == "call":
                    kind, what, tried, lost = json.loads(value)
                    before = rows.get((kind, what), (0, 0))
                    rows[kind, what] = (before[0] + tried, before[1] + lost)
    if not rows:
        return
    terminalreporter.section(f"faults (seed {SEED})")
    for (kind, what), (tried, lost) in sorted(rows.items()):
        terminalreporter.line(f"{kind:11} {what:64} {tried:7} tried {lost:4} lost")
    tried, lost = (sum(column) for column in zip(*rows.values(), strict=True))
    terminalreporter.line(f"{'all':11} {'':64} {tried:7} tried {lost:4} lost")

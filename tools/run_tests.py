"""Run the checks that are named and say, on the last line, how many tests passed.

    python tools/run_tests.py lint unit integration

Each test run says itself what it does; this adds their counts up. The exit code is 0 only if
every check held. It runs from any folder and needs the environment of requirements/dev.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PROCESSORS = max(2, os.cpu_count() or 2)


@dataclass(frozen=True)
class Check:
    """One command of a part: what it is called, its arguments, and what it needs to know."""

    name: str
    command: tuple[str, ...]
    counts_tests: bool = False


@dataclass
class Count:
    """How many tests had which outcome, over all runs so far."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, report: Path) -> None:
        """Add the outcomes in a JUnit report; a run that died without one is a failure."""
        try:
            suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
        except (OSError, ElementTree.ParseError):
            self.failed += 1
            return
        for suite in suites:
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            self.failed += failed
            self.skipped += skipped
            self.passed += int(suite.get("tests", 0)) - failed - skipped

    def line(self) -> str:
        """Return the line that ends the whole output."""
        line = f"{self.passed} passed, {self.failed} failed"
        return f"{line}, {self.skipped} skipped" if self.skipped else line


def tool(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command for a program of this environment."""
    return (str(BIN / name), *arguments)


def pytest_command(*arguments: str, as_root: bool = False) -> tuple[str, ...]:
    """Return the command of a test run; as root it goes through sudo when we are not root."""
    # One more than there are processors: many tests wait for programs.
    command = tool("pytest", "-q", "-n", str(PROCESSORS + 1), "--dist=worksteal", *arguments)
    if as_root and os.geteuid() != 0:
        # Nothing of root's may be left in this user's tree.
        kept = (f"{name}={os.environ.get(name, '')}" for name in ("CI", "TURKU_FAULTS"))
        settings = (*kept, "PYTHONDONTWRITEBYTECODE=1")
        return ("sudo", "env", *settings, *command)
    return command


CHARMS = ("turku-api", "turku-agent", "turku-storage")

LINT = (
    Check("ruff check", tool("ruff", "check", "--quiet", ".")),
    Check("ruff format", tool("ruff", "format", "--check", "--quiet", ".")),
    Check("mypy", tool("mypy")),
    # Each has a module named `charm`, so each is checked by itself.
    *(Check(f"mypy, {charm}", tool("mypy", f"charms/{charm}/src")) for charm in CHARMS),
    Check("import-linter", tool("lint-imports", "--no-cache")),
)

UNIT = (
    Check("unit tests", pytest_command("tests/unit", "tests/test_house.py"), counts_tests=True),
    Check(
        "the API's tests on PostgreSQL",
        (
            *(sys.executable, "-m", "tests.support.postgresql", "--"),
            *pytest_command("tests/unit/api", "tests/unit/api_edge"),
        ),
        counts_tests=True,
    ),
)

# Both with real parts; of the faults a few rounds, `make faults` tries all of them. They wait for
# time to pass as well, so there is one process more.
REAL_PARTS = ("-n", str(PROCESSORS + 2), "tests/integration", "tests/faults")

INTEGRATION_AS_ROOT = (
    Check(
        "integration tests (as root)",
        pytest_command(*REAL_PARTS, as_root=True),
        counts_tests=True,
    ),
)

INTEGRATION_AS_USER = (
    Check(
        "integration tests (as this user)",
        pytest_command(*REAL_PARTS, "-m", "not needs_root"),
        counts_tests=True,
    ),
    Check(
        "integration tests that need root (with sudo)",
        pytest_command(*REAL_PARTS, "-m", "needs_root", as_root=True),
        counts_tests=True,
    ),
)

# In the order of their files: the small bundle is looked at before others add to it.
MODEL_TESTS = ("--dist=loadfile", "--no-loadscope-reorder", "tests/model", "-m")

MODEL = (
    Check(
        "the charms on machines of their own",
        pytest_command(*MODEL_TESTS, "not slow_model", as_root=True),
        counts_tests=True,
    ),
)

MODEL_SLOW = (
    Check(
        "what takes many minutes on machines",
        # One at a time: each wants the whole host.
        pytest_command(*MODEL_TESTS, "slow_model", "-n0", as_root=True),
        counts_tests=True,
    ),
)

# Most of the time they wait: for what is slow, silent or gone to be noticed.
FAULTS_PROCESSES = ("-n", str(2 * PROCESSORS + 1))

FAULTS = (
    Check(
        "faults, all of them",
        pytest_command(*FAULTS_PROCESSES, "tests/faults", as_root=True),
        counts_tests=True,
    ),
)

PARTS = {
    "lint": LINT,
    "unit": UNIT,
    "integration": INTEGRATION_AS_ROOT if os.geteuid() == 0 else INTEGRATION_AS_USER,
    "model": MODEL,
    "model-slow": MODEL_SLOW,
    "faults": FAULTS,
}


def run(check: Check, count: Count) -> bool:
    """Run one check, show its output, add its tests to `count`; return whether it held."""
    print(f"== {check.name}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="turku-tests-") as folder:
        report = Path(folder, "report.xml")
        if check.counts_tests:
            command = [*check.command, f"--junit-xml={report}"]
            held = subprocess.run(command, cwd=TREE, check=False).returncode == 0
            count.add(report)
        else:
            held = run_quietly(check.command)
    outcome = "held" if held else "FAILED"
    print(f"== {check.name}: {outcome} after {time.monotonic() - began:.0f} s", flush=True)
    return held


def run_quietly(command: tuple[str, ...]) -> bool:
    """Run a check whose words matter only when it fails; return whether it held."""
    done = subprocess.run(
        command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0:
        sys.stdout.buffer.write(done.stdout)
    return done.returncode == 0


def main(parts: list[str]) -> int:
    """Run the parts that are named, all to their end, and return the exit code."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        print(f"usage: run_tests.py {'|'.join(PARTS)}...", file=sys.stderr)
        return 2
    count = Count()
    broken = [check.name for part in parts for check in PARTS[part] if not run(check, count)]
    if broken:
        print(f"These did not hold: {', '.join(broken)}.")
    if count != Count():
        print(count.line(), flush=True)
    return 1 if broken or count.failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

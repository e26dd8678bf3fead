"""A coverage-guided fuzzer at every parser: it learns what leads further into the code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.faults import parsers
from tests.faults.tally import SEED, Tally, times

TREE = Path(__file__).parents[2]
FUZZER = TREE / ".venv/fuzz"
SECONDS_MAX = 900

WITH_FILES = (
    *(parser.name for parser in parsers.CONFIGURATIONS),
    "the bytes of a YAML configuration",
    "a manifest",
)
"""Parsers that read files, each of which takes milliseconds to write."""

# There are releases of it for this processor only.
PARSERS = parsers.ALL if platform.machine() == "x86_64" else ()


@pytest.mark.only_in_full
@pytest.mark.parametrize("parser", PARSERS, ids=[parser.name for parser in PARSERS])
def test_no_parser_gives_way_to_a_fuzzer_that_sees_what_it_reaches(
    parser: parsers.Parser, tmp_path: Path, tally: Tally
) -> None:
    assert (FUZZER / "atheris").is_dir(), "make faults installs it"
    runs = times(200, 1_000 if parser.name in WITH_FILES else 10_000)
    found = tmp_path / "found"
    found.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.coverage_guided", parser.name, str(runs),
         str(zlib.crc32(f"{SEED}:{parser.name}".encode()) % 2**31 + 1), str(found)],
        cwd=TREE,
        env={**os.environ, "PYTHONPATH": str(FUZZER)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS_MAX,
        check=False,
    )  # fmt: skip
    tally.note("values of a coverage-guided fuzzer", times=runs, lost=int(done.returncode != 0))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

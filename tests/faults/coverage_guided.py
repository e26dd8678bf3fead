"""A fuzzer that is led by what it reaches in the code, for one parser of `tests.faults.parsers`.

As a program of its own, since it takes over the process: ``python -m tests.faults.coverage_guided
NAME RUNS SEED FOLDER``, where FOLDER is empty and will hold what it has found out. What it needs is
in requirements/fuzz.txt, which `make faults` installs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["turku_core"]):
    from tests.faults import parsers

SECONDS_MAX = 30
"""For one value: a parser that takes longer doesn't bound what it does."""


def find(name: str) -> parsers.Parser:
    """Return the parser of that name."""
    return next(each for each in parsers.ALL if each.name == name)


def main() -> None:
    """Fuzz until the runs are done; any error ends the process with another exit code than 0."""
    name, runs, seed, folder = sys.argv[1:]
    parser = find(name)
    is_text = isinstance(parser.example, str)
    example = parser.example if is_text else json.dumps(parser.example)
    Path(folder, "example").write_text(example, "utf-8")

    def attempt(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        if is_text:
            parsers.check(parser, text)
            return
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return
        parsers.check(parser, value)

    options = [f"-runs={runs}", f"-seed={seed}", f"-timeout={SECONDS_MAX}", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", folder], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""How often a fault is tried, by which chance, and what came of it.

In `make test` each is tried a few times; `make faults` tries all of them, as often as it takes.
Chance comes from one seed, so that a run can be had again: TURKU_FAULTS_SEED=NUMBER.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

FULL = os.environ.get("TURKU_FAULTS") == "full"
SEED = int(os.environ.get("TURKU_FAULTS_SEED", "20260105"))
PROPERTY = "turku-fault"


def times(short: int, full: int) -> int:
    """Return how often to try something: in `make test`, and in `make faults`."""
    return full if FULL else short


class Tally:
    """Notes what a test tried, for the table at the end of the run."""

    def __init__(self, kind: str, record: Callable[[str, object], None]) -> None:
        self._kind = kind
        self._record = record

    def note(self, what: str, *, times: int = 1, lost: int = 0) -> None:
        """Note that something was tried.

        Args:
            what: The fault and where it struck, in a few words: a line of the table.
            times: How often.
            lost: How many backups, files or answers were lost by it, as the test counted them.
        """
        self._record(PROPERTY, json.dumps([self._kind, what, times, lost]))

"""The rows of the table, and its two forms."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from turku_core.commandline import print_table


@dataclass(frozen=True)
class Row:
    """One measurement: ours, what it stands beside, and what it should be.

    `ours` and `other` are medians; `unit` is theirs. `value` is what is held against `bound`,
    which is an upper one unless `at_least` is true.
    """

    what: str
    unit: str
    ours: float
    other: float | None
    value: float
    value_unit: str
    bound: float
    at_least: bool
    runs: tuple[float, ...]
    other_runs: tuple[float, ...] = ()

    @classmethod
    def ratio(
        cls,
        what: str,
        runs: Sequence[float],
        other_runs: Sequence[float],
        *,
        bound: float,
        allowance: float = 0.0,
    ) -> Row:
        """Make the row of a ratio between the medians of seconds, after an allowance for ours."""
        ours, other = median(runs), median(other_runs)
        less = f" less {allowance:g} s" if allowance else ""
        return cls(
            what, "s", ours, other, (ours - allowance) / other, f"times{less}", bound, False,
            tuple(runs), tuple(other_runs),
        )  # fmt: skip

    @classmethod
    def single(
        cls, what: str, unit: str, runs: Sequence[float], *, bound: float, at_least: bool = False
    ) -> Row:
        """Make the row of a number that stands alone: the median of its runs."""
        value = median(runs)
        return cls(what, unit, value, None, value, unit, bound, at_least, tuple(runs))

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def print_report(rows: Sequence[Row]) -> None:
    """Print the table for a person."""
    print_table(
        ["What", "Ours", "Bare rsync", "Measured", "Aim", "Held"],
        [
            (
                row.what,
                f"{row.ours:.2f} {row.unit}",
                None if row.other is None else f"{row.other:.2f} {row.unit}",
                f"{row.value:.2f} {row.value_unit}",
                f"{'at least' if row.at_least else 'at most'} {row.bound:g} {row.value_unit}",
                "yes" if row.holds else "no",
            )
            for row in rows
        ],
    )


def as_json(rows: Sequence[Row], conditions: dict[str, Any]) -> dict[str, Any]:
    """Return the same for a program."""
    return {
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "conditions": conditions,
        "rows": [{**asdict(row), "holds": row.holds} for row in rows],
    }

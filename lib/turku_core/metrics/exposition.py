"""Samples as text, in Prometheus' exposition format, version 0.0.4.

Described on https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """One thing that is measured. All are gauges: each scrape is a fresh look, by a new process.

    Attributes:
        name: It ends in its unit.
        unit: In words, for the reference.
        labels: The names of its labels, in the order in which they are written.
        meaning: A sentence without its full stop.
    """

    name: str
    unit: str
    labels: tuple[str, ...]
    meaning: str

    type: ClassVar[str] = "gauge"


class Samples:
    """The samples of one scrape, of the metrics of one table.

    Args:
        table: The metrics there may be; they are written in this order.
    """

    def __init__(self, table: Sequence[Metric]) -> None:
        self._metrics = {metric.name: metric for metric in table}
        self._lines: dict[str, list[str]] = {name: [] for name in self._metrics}

    def add(self, name: str, value: float | datetime | None, /, **labels: str) -> None:
        """Add a sample; None adds nothing, as befits what has never happened.

        Args:
            name: The metric's.
            value: A number, or a time, which becomes seconds since 1970.
            labels: Exactly the metric's labels.

        Raises:
            KeyError: The metric isn't in the table, or a label is missing.
        """
        metric = self._metrics[name]
        if labels.keys() != set(metric.labels):
            raise KeyError(f"{name} has the labels {metric.labels}, not {tuple(labels)}")
        if value is None:
            return
        number = value.timestamp() if isinstance(value, datetime) else value
        pairs = ",".join(f'{label}="{escaped(labels[label])}"' for label in metric.labels)
        shown = f"{name}{{{pairs}}}" if pairs else name
        self._lines[name].append(f"{shown} {written(number)}\n")

    def text(self) -> str:
        """Return the whole answer to a scrape; a metric without a sample isn't named in it."""
        parts = []
        for name, lines in self._lines.items():
            if lines:
                metric = self._metrics[name]
                meaning = metric.meaning.replace("\\", "\\\\").replace("\n", "\\n")
                parts.append(f"# HELP {name} {meaning}.\n# TYPE {name} {metric.type}\n")
                parts += lines
        return "".join(parts)


def escaped(value: str) -> str:
    """Return a label's value as it stands between its quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def written(number: float) -> str:
    """Return a number as Prometheus reads it: whole numbers without a point, Go's infinities."""
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    if math.isnan(number):
        return "NaN"
    return str(int(number)) if float(number).is_integer() else repr(float(number))

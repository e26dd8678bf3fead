"""Actions: a person reads the result's ``result``, a program its ``json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ops

from turku_core.errors import TurkuError

logger = logging.getLogger(__name__)

RESULT_BYTES_MAX = 100_000
"""Each result goes to Juju as an argument of a command, and Linux takes no more than 128 KiB."""


@dataclass(frozen=True)
class Result:
    """What an action found or did.

    Attributes:
        text: In words or as a table, for a person.
        values: The same as plain data, for a program; JSON must be able to hold it.
        failure: A sentence when what was found or done counts as a failure of the action; the
            results are there all the same.
    """

    text: str
    values: Any
    failure: str | None = None


def answer(event: ops.ActionEvent, body: Callable[[], Result]) -> None:
    """Carry an action out, and let it fail with the error's sentence when it can't be."""
    try:
        result = body()
    except TurkuError as error:
        logger.info("action failed: %s", error)
        event.fail(_printable(str(error)))
        return
    text = _cut_text(_printable(result.text))
    event.set_results({"result": text, "json": _cut_json(result.values)})
    if result.failure is not None:
        event.fail(_printable(result.failure))


def _printable(text: str) -> str:
    """Return text as it may be an argument of Juju's commands, and stand on a terminal.

    Files' names may hold anything; bytes of them that aren't UTF-8 come as surrogates.
    """
    return "".join(
        each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text
    )


def _cut_text(text: str) -> str:
    """Return as many of the lines as fit, and how many are left out."""
    if len(text.encode()) <= RESULT_BYTES_MAX:
        return text
    lines = text.split("\n")
    kept = len(lines)
    while len("\n".join(lines[:kept]).encode()) > RESULT_BYTES_MAX:
        kept //= 2
    return "\n".join([*lines[:kept], f"... and {len(lines) - kept} lines more"])


def _cut_json(values: Any) -> str:
    """Return values as JSON; what is too long loses the ends of its longest lists.

    Then ``left_out`` says how many items of which list are missing.
    """
    text = json.dumps(values, sort_keys=True, default=str)
    lists = {}
    if isinstance(values, Mapping):
        lists = {key: value for key, value in values.items() if isinstance(value, list) and value}
    kept = dict(lists)
    while len(text.encode()) > RESULT_BYTES_MAX and any(kept.values()):
        longest = max(kept, key=lambda key: len(kept[key]))
        kept[longest] = kept[longest][: len(kept[longest]) // 2]
        left_out = {key: len(lists[key]) - len(kept[key]) for key in lists}
        missing = {key: count for key, count in left_out.items() if count}
        text = json.dumps({**values, **kept, "left_out": missing}, sort_keys=True, default=str)
    return text

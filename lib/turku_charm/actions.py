"""Actions: a person reads the result's ``result``, a program its ``json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ops

from turku_core.errors import TurkuError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What an action found or did.

    Attributes:
        text: In words or as a table, for a person.
        values: The same as plain data, for a program; JSON must be able to hold it.
    """

    text: str
    values: Any


def answer(event: ops.ActionEvent, body: Callable[[], Result]) -> None:
    """Carry an action out, and let it fail with the error's sentence when it can't be."""
    try:
        result = body()
    except TurkuError as error:
        logger.info("action failed: %s", error)
        event.fail(str(error))
        return
    event.set_results(
        {"result": result.text, "json": json.dumps(result.values, sort_keys=True, default=str)}
    )

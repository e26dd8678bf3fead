"""Every field of every message, databag and file, filled with what an enemy would put there.

Whatever comes: it is taken, or refused in words. No other error, nothing that would make a second
line where it is written, no words that could drive a terminal. Where what an enemy says is stored
and acted on, see the other files of this name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.faults import hostile, parsers
from tests.faults.parsers import Parser
from tests.faults.tally import SEED, Tally, times


def _attack(parser: Parser, strategy: Any, count: int) -> int:
    """Give a parser hostile values; return how many it was given."""
    tried = 0

    @seed(SEED)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(value=strategy)
    def attempt(value: Any) -> None:
        nonlocal tried
        tried += 1
        parsers.check(parser, value)

    attempt()
    return tried


@dataclass(frozen=True)
class Kind:
    """Parsers of one kind, how to change what they take, and how often in the full form."""

    name: str
    parsers: tuple[Parser, ...]
    change: Callable[[Any], Any]
    count: int


KINDS = (
    Kind("messages, every field", parsers.MESSAGES, hostile.changed, 2500),
    Kind("databags", parsers.DATABAGS, hostile.changed, 2500),
    Kind("values in configuration files", parsers.CONFIGURATIONS, hostile.changed, 1500),
    Kind("texts: schedules, keys, files", parsers.TEXTS, hostile.changed_text, 2500),
)
EACH = [(kind, parser) for kind in KINDS for parser in kind.parsers]
IDS = [parser.name for _, parser in EACH]


@pytest.mark.parametrize(("kind", "parser"), EACH, ids=IDS)
def test_nothing_that_another_party_says_is_an_error_of_ours(
    tally: Tally, kind: Kind, parser: Parser
) -> None:
    assert parsers.check(parser, parser.example)
    tried = _attack(parser, kind.change(parser.example), times(6, kind.count))
    tally.note(f"hostile {kind.name}", times=tried)


def test_a_parser_that_fails_is_noticed() -> None:
    """The check itself can fail: a parser that lets a line through, or that knows no bounds."""
    careless = Parser("careless", lambda value: value, "x")
    with pytest.raises(AssertionError, match="may hold"):
        parsers.check(careless, "a\nb")
    broken = Parser("broken", lambda value: value["x"], "x")
    with pytest.raises(TypeError):
        parsers.check(broken, 1)

"""Every field of every message, databag and file, filled with what an enemy would put there.

Whatever comes: it is taken, or refused in words. No other error, nothing that would make a second
line where it is written, no words that could drive a terminal. Where what an enemy says is stored
and acted on, see the other files of this name.
"""

from __future__ import annotations

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


def _names(found: tuple[Parser, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("parser", found, ids=[parser.name for parser in found])


@_names(parsers.ALL)
def test_what_is_honest_is_taken(parser: Parser) -> None:
    assert parsers.check(parser, parser.example)


@_names(parsers.MESSAGES)
def test_no_field_of_a_message_is_an_error_of_ours(tally: Tally, parser: Parser) -> None:
    tried = _attack(parser, hostile.changed(parser.example), times(25, 2500))
    tally.note("hostile messages, every field", times=tried)


@_names(parsers.DATABAGS)
def test_no_databag_is_an_error_of_ours(tally: Tally, parser: Parser) -> None:
    tried = _attack(parser, hostile.changed(parser.example), times(25, 2500))
    tally.note("hostile databags", times=tried)


@_names(parsers.CONFIGURATIONS)
def test_no_setting_is_an_error_of_ours(tally: Tally, parser: Parser) -> None:
    tried = _attack(parser, hostile.changed(parser.example), times(25, 1500))
    tally.note("hostile values in configuration files", times=tried)


@_names(parsers.TEXTS)
def test_no_text_is_an_error_of_ours(tally: Tally, parser: Parser) -> None:
    tried = _attack(parser, hostile.changed_text(parser.example), times(25, 2500))
    tally.note("hostile texts: schedules, keys, files", times=tried)


def test_a_parser_that_fails_is_noticed() -> None:
    """The check itself can fail: a parser that lets a line through, or that knows no bounds."""
    careless = Parser("careless", lambda value: value, "x")
    with pytest.raises(AssertionError, match="may hold"):
        parsers.check(careless, "a\nb")
    broken = Parser("broken", lambda value: value["x"], "x")
    with pytest.raises(TypeError):
        parsers.check(broken, 1)

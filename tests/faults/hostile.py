"""Values that no honest party sends, and requests with one of them somewhere inside."""

from __future__ import annotations

import copy
import string
from typing import Any

from hypothesis import strategies as st

NASTY = (
    "", "\0", "a\0b", "\n", "a\nb", "a\r\nb", "\ud800", "/\udcff", "\u202e", "\x1b[31m",
    "\U0001f4a9" * 300, "x" * 70_000, ".", "..", "../..", "a/../../b", "/", "//", "/etc/shadow",
    "-oProxyCommand=x", "--rsh=sh", "-", "*", "%TURKU_PATH_1%", "${HOME}", "$(id)", "`id`", "';",
    "a b", " a", "NaN", "Infinity", "null", "true", "merge a", ". /etc/shadow", ":C", "!",
    "last 99999999999999999999 days", "last 0 days", "cron * * * * *", "cron H/0 * * * *",
    "cron 0 0 30 2 *", "daily, 0000-0000", "latest", "mirror", "1e999", "0x10", "1:30", "~",
    "\u0661\u0662", "2026-02-30T00:00:00+00:00", "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59", "::ffff:127.0.0.1", "fe80::1%eth0", "127.0.0.1:0",
    "&a [*a, *a]", "!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "<<: *a", "? [a]: b",
)  # fmt: skip

texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.text(string.printable, max_size=30),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400, 1e308, 253402300799]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), texts, numbers),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the ways to every value inside `value`."""
    if isinstance(value, dict):
        inside: Any = value.items()
    else:
        inside = enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, each in inside for found in places(each, (*place, key)))]


@st.composite
def changed(draw: st.DrawFn, example: Any) -> Any:
    """Draw a value like `example` with something hostile in one, two or three of its places."""
    value = copy.deepcopy(example)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(value)))
        if not place:
            return draw(values)
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        what = draw(st.sampled_from(("value", "value", "value", "text", "gone", "name", "twice")))
        if what == "gone":
            del holder[place[-1]]
        elif what == "name" and isinstance(holder, dict):
            holder[draw(texts)] = holder.pop(place[-1])
        elif what == "twice" and isinstance(holder, list):
            holder.append(holder[place[-1]])
        elif what == "text":
            holder[place[-1]] = draw(texts)
        else:
            holder[place[-1]] = draw(values)
    return value


@st.composite
def changed_text(draw: st.DrawFn, example: str) -> str:
    """Draw a text like `example` with something put in, taken out or doubled in some places."""
    text = example
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 6)))
        piece = draw(st.one_of(texts, st.just(text[start:end] * 2), st.just("")))
        text = text[:start] + piece + text[end:]
    return text

"""What the reference pages of the two languages show is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from turku_core.retention import Policy
from turku_core.schedule import Schedule

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
READ = {"schedule": Schedule.parse, "retention policy": Policy.parse}


def first_column(page: str) -> list[str]:
    """What stands as code in the first column of the first table of a page."""
    table = (REFERENCE / page).read_text().split("\n\n")[2]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def errors(page: str) -> list[str]:
    return re.findall(
        r"^    (.* is not understood.*)$", (REFERENCE / page).read_text(), re.MULTILINE
    )


@pytest.mark.parametrize("text", first_column("schedule.md"))
def test_every_schedule_on_the_page_is_one(text: str) -> None:
    Schedule.parse(text)


@pytest.mark.parametrize("text", first_column("retention.md"))
def test_every_rule_on_the_page_is_one(text: str) -> None:
    Policy.parse(text)


@pytest.mark.parametrize("error", errors("schedule.md") + errors("retention.md"))
def test_every_error_on_the_pages_is_what_one_gets(error: str) -> None:
    found = re.match(r"(schedule|retention policy) '(.*?)', column", error)
    assert found is not None
    with pytest.raises(ValueError) as caught:
        READ[found[1]](found[2])
    assert str(caught.value) == error


def test_the_pages_have_examples() -> None:
    assert len(first_column("schedule.md")) == 13
    assert len(first_column("retention.md")) == 5
    assert len(errors("schedule.md") + errors("retention.md")) == 4

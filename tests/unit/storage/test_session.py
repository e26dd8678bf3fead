"""What a session makes of the API's answer, and what it ends with."""

from __future__ import annotations

from typing import Any

import pytest

from turku_core.fields import FieldError
from turku_core.storage.mirror import Outcome
from turku_core.storage.session import exit_code, make_options, parse_permission

MACHINE = "11111111-1111-4111-8111-111111111111"


def answer(**values: Any) -> dict[str, Any]:
    """Return an answer about the machine."""
    return {"machine": {"uuid": MACHINE, "unit_name": "x", **values}}


def test_the_answer_of_v1_is_understood() -> None:
    source = {"path": "/srv", "retention": "last 2 days", "bwlimit": "10m", "filter": ["- *.tmp"],
              "exclude": ["/cache"], "large_rotating_files": True, "preserve_hard_links": False,
              "snapshot_mode": "attic"}  # fmt: skip
    permission = parse_permission(answer(scheduled_sources={"docs": source}), MACHINE)
    scheduled = permission.scheduled["docs"]
    assert (scheduled.snapshot_mode, scheduled.large_rotating_files) == ("borg", True)
    options = make_options(scheduled)
    assert (options.filter, options.exclude) == (("- *.tmp",), ("/cache",))
    assert (options.bwlimit, options.preserve_hard_links) == ("10m", False)


def test_prior_art_35_one_source_that_is_not_valid_is_alone_left_out() -> None:
    sources = {
        "docs": {"path": "/srv"},
        "../x": {"path": "/srv"},
        "rule": {"path": "/srv", "filter": ["merge /etc/shadow"]},
        "typo": {"path": "/srv", "retention": "for ever"},
        "path": {"path": "srv"},
        "none": None,
    }
    permission = parse_permission(answer(scheduled_sources=sources), MACHINE)
    assert list(permission.scheduled) == ["docs"]
    assert sorted(permission.problems) == ["none", "path", "rule", "typo"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"machine": []},
        {"machine": {"uuid": "22222222-2222-4222-8222-222222222222"}},
        answer(scheduled_sources=[]),
        answer(restore_from={"../x": {"unit_name": "x", "until": "2026-01-01"}}),
    ],
)
def test_an_answer_of_another_form_or_about_another_machine_is_refused(wrong: Any) -> None:
    with pytest.raises(FieldError):
        parse_permission(wrong, MACHINE)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([Outcome.RECEIVED, Outcome.PARTIAL], 0),
        ([Outcome.RECEIVED, Outcome.LATER], 75),
        ([Outcome.LATER, Outcome.FAILED, Outcome.RECEIVED], 1),
    ],
)
def test_a_failure_counts_before_what_is_only_to_come_back(
    outcomes: list[Outcome], code: int
) -> None:
    assert exit_code(outcomes) == code

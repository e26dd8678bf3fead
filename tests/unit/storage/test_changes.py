"""What changed between two snapshots, and when it is suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from turku_core.storage.changes import (
    Changed,
    Generation,
    begin_log,
    compare_manifests,
    read_log,
    recent,
    suspicion,
)
from turku_core.storage.manifest import Line

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2026, 1, 5, 3, tzinfo=timezone.utc)
FILES = 1000


def history(shares: Sequence[float], step: timedelta = DAY, files: int = FILES) -> list[Generation]:
    """Return generations of which each changed such a share, one after the other."""
    return [
        Generation(str(number), START + number * step, Changed(round(share * files), files), files)
        for number, share in enumerate(shares)
    ]


def judge(shares: Sequence[float], step: timedelta = DAY, files: int = FILES) -> list[int]:
    """Return the numbers of the generations that are suspicious."""
    generations = history(shares, step, files)
    return [
        number
        for number, new in enumerate(generations)
        if suspicion(recent(generations[:number]), new) is not None
    ]


@pytest.mark.parametrize("share", [0.4, 0.6, 1.0])
def test_a_quiet_source_that_changes_all_at_once_is_suspicious(share: float) -> None:
    assert judge([0.01, 0, 0.02, 0, 0.01, 0.03, share, 0.01]) == [6]


def test_the_words_say_how_many_files_and_what_is_usual() -> None:
    *former, new = history([0.01] * 8 + [0.9])
    assert suspicion(former, new) == (
        "900 of the 1000 files of the snapshot before (90%) were changed or are gone; usually 1% "
        "are."
    )


def test_the_first_generations_are_never_suspicious() -> None:
    assert judge([1.0]) == []
    assert judge([0, 0, 0, 1.0]) == []
    assert judge([0, 0, 0, 0, 1.0]) == [4]


def test_a_source_that_always_changes_wholly_never_is() -> None:
    assert judge([1.0] * 100) == []
    assert judge([0.9, 1.0, 0.97, 0.95, 1.0, 0.92] * 10, HOUR) == []


def test_a_source_of_unsteady_habits_is_not_for_what_it_has_done_before() -> None:
    assert judge([0.1, 0.7, 0.3, 0.5, 0.2, 0.6, 0.65, 0.7, 0.05, 0.72]) == []


def test_a_weekly_release_is_news_twice_and_then_usual() -> None:
    weekly = ([0.0] * 6 + [1.0]) * 6
    assert judge(weekly) == [6, 13, 20]


def test_a_nightly_job_of_a_source_that_is_backed_up_hourly_becomes_usual() -> None:
    nightly = ([0.5] + [0.01] * 23) * 20
    assert [number // 24 for number in judge(nightly, HOUR)] == [1, 2]


def test_few_files_are_never_suspicious() -> None:
    assert judge([0] * 8 + [1.0], files=24) == []
    assert judge([0] * 8 + [1.0], files=25) == [8]


def test_files_that_change_bit_by_bit_within_a_day_are_noticed() -> None:
    quiet = [0.01] * 72
    found = judge([*quiet, *[0.1] * 10], HOUR)
    assert found and found[0] <= 72 + 4


def test_few_files_at_a_time_are_noticed_when_they_are_many_within_a_day() -> None:
    found = judge([*[0.0] * 72, *[0.1] * 10], HOUR, files=60)
    assert found and found[0] <= 72 + 5


def test_hot_files_that_change_every_hour_are_not_news() -> None:
    assert judge([0.05, 0.06, 0.05, 0.04] * 100, HOUR) == []


def test_a_source_with_late_runs_is_not_suspicious_for_two_in_a_day() -> None:
    generations = history([0.5] * 30)
    late = Generation("late", generations[-1].taken_at + 2 * HOUR, Changed(500, FILES), FILES)
    assert suspicion(generations, late) is None


def test_what_can_not_be_compared_is_no_part_of_the_history() -> None:
    former = [Generation(str(number), START + number * DAY, None) for number in range(10)]
    assert suspicion(former, history([1.0])[0]) is None
    assert suspicion(history([0.0] * 10), Generation("x", START + 10 * DAY, None)) is None


def test_a_mode_asked_for_from_outside_is_suspicious_whatever_is_usual() -> None:
    *former, new = history([1.0] * 9)
    assert suspicion(former, new) is None
    assert "asked for another snapshot mode" in (suspicion(former, new, is_switch=True) or "")
    assert suspicion(former[:3], new, is_switch=True) is None


@pytest.mark.parametrize("jump", [timedelta(days=3650), -timedelta(days=3650)])
def test_a_clock_that_jumped_makes_no_alarm_and_hides_none(jump: timedelta) -> None:
    quiet = history([0.1] * 20)
    odd = Generation("odd", quiet[-1].taken_at + jump, Changed(100, FILES), FILES)
    after = [
        Generation(f"after {number}", quiet[-1].taken_at + number * DAY, Changed(100, FILES), FILES)
        for number in range(1, 20)
    ]
    generations = [*quiet, odd]
    assert suspicion(recent(quiet), odd) is None
    for new in after:
        assert suspicion(recent(generations), new) is None
        generations = recent([*generations, new])
    whole = Generation("whole", after[-1].taken_at + DAY, Changed(FILES, FILES), FILES)
    assert suspicion(recent(generations), whole) is not None


def test_the_history_is_of_a_month_and_of_ten_generations_at_least() -> None:
    assert len(recent(history([0.0] * 100))) == 35
    assert len(recent(history([0.0] * 100, 7 * DAY))) == 10
    assert len(recent(history([0.0] * 3000, timedelta(minutes=5)))) == 1000
    assert recent([]) == []


# What rsync logged.

ITEMS = [
    (">f.st......", "changed"),
    (">f..t......", "time only, which rsync takes for a change"),
    (".f...p.....", "permissions only"),
    ("*deleting  ", "gone"),
    ("*deleting  ", "gone folder/"),
    ("cd+++++++++", "new folder/"),
    (".d..t......", "folder/"),
    (">f+++++++++", "new"),
    ("cL+++++++++", "new link"),
    ("cLc........", "link that leads elsewhere"),
    ("hf+++++++++", "new name of a file"),
]


def write_log(path: Path, items: Sequence[tuple[str, str]], mark: str | None = None) -> None:
    """Add lines to a log, as rsync does."""
    own = begin_log(path)
    with path.open("a") as file:
        for item, name in items:
            file.write(f"2026/11/22 20:19:38 [15334] {mark or own} {item} {name}\n")


def test_a_log_is_counted(tmp_path: Path) -> None:
    write_log(tmp_path / "log", ITEMS)
    # Of 10 there are now, 3 came; 3 were changed and 1 is gone.
    assert read_log(tmp_path / "log", 10) == Changed(4, 8)


def test_without_a_log_nothing_is_known(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log", 10) is None


def test_what_several_pulls_changed_counts_once(tmp_path: Path) -> None:
    for items in (ITEMS, ITEMS, [("*deleting  ", "changed"), ("*deleting  ", "new")]):
        write_log(tmp_path / "log", items)
    assert read_log(tmp_path / "log", 8) == Changed(4, 8)


def test_lines_that_a_machine_brought_about_count_for_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_log(log, ITEMS)
    write_log(log, [(">f+++++++++", "gone"), ("*deleting  ", "x")] * 100, mark="0" * 32)
    with log.open("a") as file:
        file.write("2026/11/22 20:19:38 [15334] *deleting   y\n*deleting   z\n\0\xff")
    assert read_log(log, 10) == Changed(4, 8)


def test_a_log_that_a_crash_left_without_its_mark_is_begun_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    write_log(log, ITEMS)
    assert read_log(log, 10) == Changed(4, 8)


def test_manifests_are_compared_by_content() -> None:
    def line(content: str, inode: int = 1) -> Line:
        return Line(content, "", len(content), inode, inode)

    former = {"a": line("x"), "b": line("y"), "c": line("z"), ".": line(""), "d": line("")}
    listed = {"a": line("x", 2), "b": line("noise"), "new": line("n"), ".": line("")}
    assert compare_manifests(former, listed) == Changed(2, 3)
    assert compare_manifests({}, listed) == Changed(0, 0)

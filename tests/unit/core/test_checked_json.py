from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.checked_json import dumps, loads, read_json

TEXT = '{"outcome": "done", "files": 12}'


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.booleans())))
def test_what_was_written_comes_back(values: dict[str, object]) -> None:
    assert loads(dumps(values).encode(), "values") == values


def test_whatever_bit_is_flipped_no_other_value_comes_back(tmp_path: Path) -> None:
    values = loads(TEXT.encode(), "values")
    whole = dumps(values).encode()
    for position in range(8 * len(whole)):
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path = tmp_path / "damaged.json"
        path.write_bytes(content)
        try:
            found = read_json(path)
        except ValueError:
            continue
        # A flip between two values changes neither; one in the checksum's own name, what it is.
        assert {key: found.get(key) for key in values} == values


def test_a_file_without_a_checksum_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "written-by-hand.json"
    path.write_text(TEXT)
    assert read_json(path) == {"outcome": "done", "files": 12}


@pytest.mark.parametrize("content", ["", "[]", '{"half": ', "\udcff"])
def test_what_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError):
        read_json(path)


def test_the_longest_report_of_a_restore_can_be_read_again(tmp_path: Path) -> None:
    report = {"changes": ["\N{EURO SIGN}" * 1024] * 1000}
    path = tmp_path / "report.json"
    path.write_text(dumps(report))
    assert read_json(path) == report

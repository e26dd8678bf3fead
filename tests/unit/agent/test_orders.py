"""What a machine allows an order to do, and what it remembers of one."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core.agent.orders import Journal, OrderRefused, require_allowed, wish_of
from turku_core.agent.restore import make_restore_folder, require_own_folders
from turku_core.agent.settings import Locations, OrdersAllowed, Settings, load_settings
from turku_core.errors import ConfigurationError
from turku_core.protocol.restore_orders import RestoreOrder, RestoreReport, orders_from_json

ID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


def settings(root: Path, **values: Any) -> Settings:
    folder = root / "etc/turku-agent/config.d"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"api_url": "https://turku.example.com/v1", **values})
    (folder / "10.json").write_text(text)
    return load_settings(Locations(root))


def test_without_a_word_orders_go_into_the_restore_folder_alone(tmp_path: Path) -> None:
    assert settings(tmp_path).restore_orders is OrdersAllowed.RESTORE_FOLDER
    assert settings(tmp_path, restore_orders="none").restore_orders is OrdersAllowed.NONE
    with pytest.raises(ConfigurationError, match="must be one of restore-folder, anywhere, none"):
        settings(tmp_path, restore_orders="everywhere")


def test_how_much_is_logged_is_one_of_four_words(tmp_path: Path) -> None:
    assert settings(tmp_path).log_level == "warning"
    assert settings(tmp_path, log_level="debug").log_level == "debug"
    with pytest.raises(ConfigurationError, match="must be one of debug, info, warning, error"):
        settings(tmp_path, log_level="DEBUG")


paths = st.lists(
    st.sampled_from(["r", "restore", ".", "x", "~", "restore-other", " ", "%2e%2e"]), max_size=6
).map(lambda parts: "/" + "/".join(parts))


@given(target=paths)
def test_whatever_the_target_is_only_a_folder_inside_the_restore_folder_is_allowed(
    target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = settings(tmp_path_factory.getbasetemp())
    own = replace(own, restore_path=Path("/r/restore"))
    order = RestoreOrder.from_json({"id": ID, "source": "docs", "target": target}, "order")
    inside = os.path.normpath(target).startswith("/r/restore/")
    try:
        require_allowed(order, own)
        allowed = True
    except OrderRefused:
        allowed = False
    assert allowed == inside
    require_allowed(order, replace(own, restore_orders=OrdersAllowed.ANYWHERE))
    with pytest.raises(OrderRefused, match="none"):
        require_allowed(order, replace(own, restore_orders=OrdersAllowed.NONE))


def test_a_wish_holds_what_the_order_says_and_no_more() -> None:
    order = RestoreOrder.from_json(
        {"id": ID, "source": "docs", "machine": ID, "paths": ["/a", "b/"], "dry_run": True},
        "order",
    )
    wish = wish_of(order)
    assert (wish.machine, wish.paths, wish.target) == (ID, ("/a", "b"), None)
    assert (wish.dry_run, wish.in_place, wish.snapshot) == (True, False, "latest")


def test_only_folders_of_ones_own_lead_to_where_files_are_restored(tmp_path: Path) -> None:
    top = tmp_path / "restore"
    require_own_folders(top / "docs/one", top)
    (top / "docs/one").mkdir(parents=True)
    require_own_folders(top / "docs/one", top)
    # The source's own top may be anybody's.
    (top / "docs/one").chmod(0o777)
    require_own_folders(top / "docs/one", top)
    with pytest.raises(ConfigurationError, match="may lead elsewhere"):
        require_own_folders(top / "docs/one/two", top)
    (top / "link").symlink_to(tmp_path)
    (top / "file").touch()
    for step in ("link", "link/x", "file", "file/x"):
        with pytest.raises(ConfigurationError):
            require_own_folders(top / step, top)
    for folder in (top, tmp_path, tmp_path / "other/x", top / "../x"):
        with pytest.raises(ConfigurationError, match="isn't inside the restore folder"):
            require_own_folders(folder, top)


def test_folders_that_a_restore_makes_are_ones_own_whatever_the_umask(tmp_path: Path) -> None:
    top = tmp_path / "restore"
    before = os.umask(0)
    try:
        make_restore_folder(top / "docs/one", top)
    finally:
        os.umask(before)
    modes = [(top / step).stat().st_mode & 0o777 for step in (".", "docs", "docs/one")]
    assert modes == [0o700, 0o755, 0o700]
    require_own_folders(top / "docs/one", top)
    (top / "file").touch()
    with pytest.raises(ConfigurationError, match="in the way"):
        make_restore_folder(top / "file/x", top)


def test_a_report_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders")
    assert list(journal.reports()) == []
    journal.begin(ID, Path("/r"))
    assert journal.folder(ID) == Path("/r")
    assert journal.report(ID) is None
    report = RestoreReport(ID, "done", "", "s", "/r", 1, 2, (">f a",))
    journal.write_report(report)
    assert journal.report(ID) == report
    assert list(journal.reports()) == [report]
    assert (tmp_path / "orders").stat().st_mode & 0o777 == 0o700
    journal.forget(ID)
    journal.forget(ID)
    assert list(journal.reports()) == []


def test_an_order_for_later_is_no_report_and_keeps_its_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(ID, Path("/r"))
    journal.write_report(RestoreReport(ID, "later", "busy"))
    assert journal.report(ID) is None
    assert journal.folder(ID) == Path("/r")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"report": 5}', '{"report": {"id": "x"}}'])
def test_a_broken_note_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{ID}.json").write_text(content)
    journal = Journal(tmp_path)
    assert journal.report(ID) is None
    assert journal.folder(ID) is None
    assert list(journal.reports()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=json_values)
def test_no_answer_is_an_error_of_ours(value: Any) -> None:
    orders, problems = orders_from_json(value, "orders")
    assert orders == []
    assert problems or value == []


@given(
    order=st.fixed_dictionaries(
        {"id": st.uuids().map(str), "source": st.sampled_from(["docs", "a.b"])},
        optional={
            "machine": st.uuids().map(str),
            "snapshot": st.sampled_from(
                ["latest", "20261102T000000Z", "2026-11-02T10:30:00+02:00"]
            ),
            "paths": st.lists(st.sampled_from(["a", "/a/b", "ä ö"])),
            "target": st.sampled_from(["/srv", "/r/x y"]),
            "dry_run": st.booleans(),
        },
    )
)
def test_an_order_survives_the_wire(order: dict[str, Any]) -> None:
    first = RestoreOrder.from_json(order, "order")
    assert RestoreOrder.from_json(json.loads(json.dumps(first.to_json())), "order") == first
    assert {**first.to_json(), **order} == first.to_json()


def test_a_machine_takes_a_bounded_number_of_orders() -> None:
    many = [{"id": str(uuid.uuid4()), "source": "docs"} for _ in range(500)]
    assert len(orders_from_json(many, "orders")[0]) == 100

"""The actions, by the real programs, on real snapshots made by borg of a real rsync's pull."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from storage_actions import Chosen, Restore, Verify
from tests.integration.snapshots.support import MACHINE, serve
from tests.integration.snapshots.support import Unit as Snapshots
from tests.unit.charms.storage.conftest import Unit
from turku_core.storage import holds
from turku_core.storage.ping import make_catalogue
from turku_core.storage.records import Record
from turku_core.storage.settings import read_settings
from turku_core.storage.snapshots import Environment

NOW = datetime.now(timezone.utc).replace(microsecond=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tree of a machine's source ``docs``."""
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/deep").write_text("deep")
    return folder


@pytest.fixture
def records(served: Unit, source: Path) -> list[Record]:
    """Four snapshots of the source, a day apart, the last one an hour ago."""
    catalogue = make_catalogue(read_settings(served.root))
    snapshots = Snapshots(catalogue, Environment(served.state_folder), catalogue.volumes.volumes[0])
    made = []
    with serve(source) as daemon:
        for days in (3, 2, 1, 0):
            (source / "file").write_text(f"{days} days ago")
            at = NOW - timedelta(days=days, hours=1)
            made.append(snapshots.back_up(daemon, "borg", at=at, retention="last 1 snapshots"))
    return made


def test_listing_shows_people_a_table_and_programs_the_records(
    served: Unit, records: list[Record]
) -> None:
    found = served.act("list-snapshots")
    assert [each["id"] for each in found["snapshots"]] == [record.id for record in records]
    lines = served.text.splitlines()
    assert lines[0].split()[:4] == ["MACHINE", "SOURCE", "SNAPSHOT", "TAKEN"]
    assert len(lines) == 5
    assert records[-1].id in lines[4]
    assert len(served.act("list-snapshots", machine=MACHINE, source="docs")["snapshots"]) == 4


def test_listing_nothing_says_so(served: Unit) -> None:
    assert served.act("list-snapshots") == {"problems": [], "snapshots": []}
    assert served.text == "There are no snapshots on this unit."


def test_a_snapshot_is_restored_to_a_folder(
    served: Unit, records: list[Record], tmp_path: Path
) -> None:
    target = tmp_path / "restored"
    found = served.act("restore", machine=MACHINE, source="docs", target=str(target))
    assert (target / "file").read_text() == "0 days ago"
    assert (target / "sub/deep").read_text() == "deep"
    assert found["snapshot"] == records[-1].id
    assert served.text == (
        f"Restored {found['files']} files ({found['bytes']} B) of snapshot {records[-1].id} to "
        f"{target}."
    )


def test_only_some_paths_of_an_older_snapshot_are_restored(
    served: Unit, records: list[Record], tmp_path: Path
) -> None:
    target = tmp_path / "restored"
    served.act(
        "restore", machine=MACHINE, source="docs", target=str(target), snapshot=records[0].id,
        paths=["file"],
    )  # fmt: skip
    assert (target / "file").read_text() == "3 days ago"
    assert not (target / "sub").exists()


def test_a_dry_run_shows_what_would_change_and_changes_nothing(
    served: Unit, records: list[Record], tmp_path: Path
) -> None:
    target = tmp_path / "restored"
    target.mkdir()
    found = served.act("restore", machine=MACHINE, source="docs", target=str(target), dry_run=True)
    assert list(target.iterdir()) == []
    assert any("file" in change for change in found["changes"])
    assert "Would restore" in served.text


def test_a_filled_folder_is_restored_into_only_when_that_is_said(
    served: Unit, records: list[Record], tmp_path: Path
) -> None:
    target = tmp_path / "filled"
    target.mkdir()
    (target / "other").write_text("stays")
    where = {"machine": MACHINE, "source": "docs", "target": str(target)}
    assert "filled" in served.failure("restore", **where)
    assert [path.name for path in target.iterdir()] == ["other"]
    served.act("restore", **where, into_filled_folder=True)
    assert (target / "file").read_text() == "0 days ago"


def test_expiry_is_shown_first_and_done_when_it_is_said(
    served: Unit, records: list[Record]
) -> None:
    served.run(served.on.config_changed(), config={"expiry-floor": 1})
    shown = served.act("expire", machine=MACHINE, source="docs", dry_run=True)
    assert [each["state"] for each in shown["changes"]] == ["expired"] * 3
    assert served.text.splitlines()[0].split() == [
        "MACHINE", "SOURCE", "SNAPSHOT", "TAKEN", "WOULD", "BE",
    ]  # fmt: skip
    assert len(served.act("list-snapshots")["snapshots"]) == 4
    done = served.act("expire")
    assert [each["state"] for each in done["changes"]] == ["expired"] * 3
    assert len(served.act("list-snapshots")["snapshots"]) == 4, "the grace period holds them"
    served.act("expire", now=True)
    left = served.act("list-snapshots")["snapshots"]
    assert [each["id"] for each in left] == [records[-1].id]
    assert served.act("expire")["changes"] == []
    assert served.text == "Nothing to expire."


def test_verification_proves_good_snapshots_and_fails_with_a_damaged_one(
    served: Unit, records: list[Record]
) -> None:
    found = served.act("verify", machine=MACHINE, source="docs", snapshot=records[-1].id)
    assert [each["proven"] for each in found["verified"]] == [True]
    assert served.text.splitlines()[1].split()[-1] == "proven"
    for file in served.root.rglob(".borg/data/0/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(bytes(content))
    sentence = served.failure("verify", machine=MACHINE)
    assert sentence.endswith("snapshots could not be proven to be good.")
    assert any(not each["proven"] for each in served.results()["verified"])
    assert sentence.split()[0] in "1234"


def test_usage_says_how_full_the_volumes_are(served: Unit, records: list[Record]) -> None:
    found = served.act("usage")
    [volume] = found["volumes"]
    assert (volume["name"], volume["mounted"]) == ("folder", True)
    assert served.text.splitlines()[0].split() == [
        "VOLUME", "PATH", "SIZE", "AVAILABLE", "USED", "MARK", "STATE",
    ]  # fmt: skip
    assert "Sessions at work:    0 of 10" in served.text


@pytest.mark.parametrize(
    ("action", "params", "words"),
    [
        ("list-snapshots", {"source": "docs"}, "say as well which machine's it is"),
        ("list-snapshots", {"machine": MACHINE, "source": "../etc"}, "source: must be a name"),
        ("list-snapshots", {"machine": "--json"}, "machine: must be a UUID or a name"),
        ("verify", {"snapshot": "-x"}, "snapshot: must be a snapshot's name"),
        ("expire", {"machine": "a\nb"}, "machine: must be one line of printable text"),
        (
            "restore",
            {"machine": MACHINE, "source": "docs", "target": "relative"},
            "target: must be an absolute path",
        ),
        (
            "restore",
            {"machine": MACHINE, "source": "docs", "target": "/tmp/x", "paths": ["../up"]},
            "paths[0]: must be a path inside the source",
        ),
    ],
)
def test_a_bad_parameter_fails_with_a_sentence_before_anything_is_done(
    unit: Unit, action: str, params: dict[str, object], words: str
) -> None:
    assert words in unit.failure(action, **params)


def test_what_is_not_there_is_said_in_the_programs_words(served: Unit) -> None:
    nobody = served.failure("list-snapshots", machine="nobody")
    assert "No machine is called 'nobody' here" in nobody
    assert "There is no such snapshot to verify." in served.failure("verify", machine=MACHINE)
    nowhere = {"machine": MACHINE, "source": "docs", "target": "/nowhere/at/all"}
    assert "has no snapshots" in served.failure("restore", **nowhere)
    assert not Path("/nowhere").exists()


def test_before_the_unit_is_set_up_there_is_nothing_to_act_on(unit: Unit) -> None:
    assert unit.failure("usage") == "This storage unit isn't set up yet: see its status."


def test_an_action_leaves_the_status_as_it_is(served: Unit) -> None:
    before = served.status
    served.act("usage")
    assert served.status == before


def test_what_might_look_like_an_option_is_joined_to_one() -> None:
    wanted = Restore("web-0", "docs", "/srv/-x", paths=("-rf", "sub/a b"), dry_run=True)
    assert wanted.arguments == [
        "web-0", "docs", "--snapshot=latest", "--target=/srv/-x", "--path=-rf", "--path=sub/a b",
        "--dry-run",
    ]  # fmt: skip
    assert Chosen("web-0", "docs").arguments == ["web-0", "docs"]
    assert Verify().arguments == []


def test_a_hold_is_listed_and_released(served: Unit, records: list[Record]) -> None:
    assert served.act("list-holds") == {"holds": []}
    assert served.text == "Nothing is held."
    assert "Nothing of that is held" in served.failure("release-hold", machine=MACHINE)
    [folder] = make_catalogue(read_settings(served.root)).folders(MACHINE, "docs")
    hold = holds.Hold(NOW, records[-1].id, "All of it changed.", 1.0)
    with folder.lock():
        holds.write(folder, holds.History(hold=hold))
    served.run(served.on.config_changed(), config={"expiry-floor": 1})
    expired = served.act("expire", now=True)
    assert expired["changes"] == []
    assert "All of it changed." in served.text
    [found] = served.act("list-holds", machine=MACHINE, source="docs")["holds"]
    assert (found["snapshot"], found["reason"]) == (records[-1].id, "All of it changed.")
    assert "All of it changed." in served.text
    served.act("release-hold", machine=MACHINE, source="docs")
    assert served.text == f"The snapshots of the source docs of {MACHINE} expire again."
    assert served.act("list-holds") == {"holds": []}
    assert len(served.act("expire", now=True)["changes"]) > 0

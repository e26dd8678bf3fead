"""Volumes: known by their mark, drawn by free space, and never filled while not mounted."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from turku_core.checked_json import read_json
from turku_core.storage import volumes
from turku_core.storage.volumes import Space, Volume, VolumeError, VolumeFull, VolumeNotMounted


def make_volumes(tmp_path: Path, *names: str, **values: object) -> volumes.Volumes:
    """Return volumes of these names, with their folders made."""
    made = []
    for name in names:
        (tmp_path / name).mkdir(exist_ok=True)
        made.append(Volume(name, tmp_path / name, **values))  # type: ignore[arg-type] # checked there
    (tmp_path / "state").mkdir(exist_ok=True)
    return volumes.Volumes(made, tmp_path / "state")


def give_space(monkeypatch: pytest.MonkeyPatch, used_pct: dict[str, float]) -> None:
    """Let the volumes be full to these percentages, all of 1000 MiB."""

    def space(self: volumes.Volumes, volume: Volume) -> Space:
        self.check(volume)
        total = 1000 * 1024 * 1024
        return Space(total, int(total * (1 - used_pct[volume.name] / 100)), 0, 0)

    monkeypatch.setattr(volumes.Volumes, "space", space)


def test_a_new_volume_is_marked_and_remembered(tmp_path: Path) -> None:
    unit = make_volumes(tmp_path, "one")
    assert unit.get("one").name == "one"
    marker = (tmp_path / "one" / volumes.MARKER).read_text().strip()
    assert (tmp_path / "one" / volumes.MARKER_COPY).read_text().strip() == marker
    assert read_json(tmp_path / "state" / "volumes.json") == {"one": marker}


def test_prior_art_29_a_volume_that_is_not_mounted_is_an_error_and_not_filled(
    tmp_path: Path,
) -> None:
    unit = make_volumes(tmp_path, "one")
    unit.get("one")
    (tmp_path / "one").rename(tmp_path / "unmounted")
    (tmp_path / "one").mkdir()
    with pytest.raises(VolumeNotMounted, match="isn't mounted"):
        unit.get("one")
    with pytest.raises(VolumeNotMounted, match="No volume takes"):
        unit.choose()
    assert list((tmp_path / "one").iterdir()) == []
    assert unit.mounted() == []
    assert len(unit.problems()) == 1
    assert unit.totals_mib() == (0, 0)


def test_prior_art_29_another_volume_in_its_place_is_an_error(tmp_path: Path) -> None:
    unit = make_volumes(tmp_path, "one", "two")
    unit.get("one")
    unit.get("two")
    marker = (tmp_path / "two" / volumes.MARKER).read_text()
    for name in (volumes.MARKER, volumes.MARKER_COPY):
        (tmp_path / "one" / name).write_text(marker)
    with pytest.raises(VolumeNotMounted, match="holds another volume"):
        unit.get("one")


def test_prior_art_29_a_mount_may_be_required_from_the_first_use(tmp_path: Path) -> None:
    unit = make_volumes(tmp_path, "one", mount_required=True)
    with pytest.raises(VolumeNotMounted, match="nothing is mounted"):
        unit.get("one")


def test_a_volume_that_is_gone_is_logged_once_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unit = make_volumes(tmp_path, "one", "two")
    assert len(unit.mounted()) == 2
    away = tmp_path / "away"
    for _ in range(2):
        unit.volumes[0].path.rename(away)
        assert [each.mounted() for each in (unit, unit)] == [[unit.volumes[1]]] * 2
        away.rename(unit.volumes[0].path)
        assert len(unit.mounted()) == 2
    errors = [each for each in caplog.records if each.levelname == "ERROR"]
    assert len(errors) == 2


def test_a_volume_brings_its_mark_to_a_unit_that_lost_its_state(tmp_path: Path) -> None:
    unit = make_volumes(tmp_path, "one")
    unit.get("one")
    marker = (tmp_path / "one" / volumes.MARKER).read_text()
    (tmp_path / "state" / "volumes.json").unlink()
    assert unit.get("one").name == "one"
    assert (tmp_path / "one" / volumes.MARKER).read_text() == marker


@pytest.mark.parametrize("content", ["{", '{"(checksum)": "not its own", "one": "x"}'])
def test_a_broken_registry_is_made_anew_and_no_volume_that_is_away_is_taken_for_a_new_one(
    tmp_path: Path, content: str
) -> None:
    unit = make_volumes(tmp_path, "one", "two")
    unit.get("one")
    unit.get("two")
    (tmp_path / "two").rename(tmp_path / "unmounted")
    (tmp_path / "two").mkdir()
    (tmp_path / "state" / "volumes.json").write_text(content)
    assert unit.get("one").name == "one"
    with pytest.raises(VolumeNotMounted, match="isn't mounted"):
        unit.get("two")
    assert list((tmp_path / "two").iterdir()) == []
    (tmp_path / "two").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "two")
    assert unit.get("two").name == "two"


@pytest.mark.parametrize("name", [volumes.MARKER, volumes.MARKER_COPY])
@pytest.mark.parametrize(
    "content", [None, "", "not a UUID", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"]
)
def test_a_damaged_mark_is_mended_from_its_copy(
    tmp_path: Path, name: str, content: str | None
) -> None:
    unit = make_volumes(tmp_path, "one")
    unit.get("one")
    marker = (tmp_path / "one" / name).read_text()
    (tmp_path / "one" / name).unlink()
    if content is not None:
        (tmp_path / "one" / name).write_text(content)
    assert unit.get("one").name == "one"
    assert (tmp_path / "one" / name).read_text() == marker


def test_an_unknown_volume_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"'two'.*'one'"):
        make_volumes(tmp_path, "one").get("two")


def test_new_sources_are_drawn_in_proportion_to_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = make_volumes(tmp_path, "empty", "half")
    give_space(monkeypatch, {"empty": 0, "half": 50})
    drawn = Counter(unit.choose().name for _ in range(600))
    assert 320 < drawn["empty"] < 480


def test_a_volume_at_its_mark_or_closed_takes_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = make_volumes(tmp_path, "full", "closed", "open")
    closed = Volume("closed", tmp_path / "closed", accept_new=False)
    unit.volumes = (unit.volumes[0], closed, unit.volumes[2])
    give_space(monkeypatch, {"full": 80, "closed": 0, "open": 79})
    assert {unit.choose().name for _ in range(20)} == {"open"}
    assert unit.over_high_water(unit.volumes[0])


def test_when_every_volume_is_at_its_mark_nothing_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = make_volumes(tmp_path, "one", "two")
    give_space(monkeypatch, {"one": 81, "two": 99})
    with pytest.raises(VolumeFull, match="make room"):
        unit.choose()


def test_a_machine_stays_where_it_is_until_that_is_over_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = make_volumes(tmp_path, "home", "other")
    home = Volume("home", tmp_path / "home", accept_new=False)
    unit.volumes = (home, unit.volumes[1])
    give_space(monkeypatch, {"home": 70, "other": 0})
    assert unit.choose([home]).name == "home"
    give_space(monkeypatch, {"home": 90, "other": 0})
    assert unit.choose([home]).name == "other"


def test_inodes_count_like_space() -> None:
    assert Space(100, 90, 100, 5).used_pct == 95.0
    assert Space(100, 90, 0, 0).used_pct == pytest.approx(10.0)


def test_volumes_on_one_file_system_are_counted_once(tmp_path: Path) -> None:
    one = make_volumes(tmp_path, "one").totals_mib()
    both = make_volumes(tmp_path, "one", "two").totals_mib()
    assert both[0] == one[0] > 0


def test_what_accepts_nothing_new_counts_neither_as_room_nor_as_used(tmp_path: Path) -> None:
    assert make_volumes(tmp_path, "one", accept_new=False).totals_mib() == (0, 0)


def test_space_is_counted_as_df_counts_it(tmp_path: Path) -> None:
    unit = make_volumes(tmp_path, "one")
    space = unit.space(unit.get("one"))
    command = ["df", "--output=pcent", str(tmp_path / "one")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    percent = float(said.split()[-1].rstrip("%"))
    assert abs(100 * (1 - space.available / space.total) - percent) <= 2


def test_the_mark_that_the_api_is_told_is_that_of_the_volumes_that_accept_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = make_volumes(tmp_path, "one", "two", "closed")
    unit.volumes = (
        Volume("one", tmp_path / "one", high_water_pct=60),
        Volume("two", tmp_path / "two", high_water_pct=91),
        Volume("closed", tmp_path / "closed", high_water_pct=10, accept_new=False),
    )
    give_space(monkeypatch, {"one": 0, "two": 99, "closed": 0})
    assert unit.high_water_mark() == 75
    unit.volumes = unit.volumes[2:]
    assert unit.high_water_mark() is None

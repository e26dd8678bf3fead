"""Storage that comes and goes: block devices, a filesystem storage, the folder, in every order.

LVM's own commands are a fake that keeps its state (`fake_lvm`), for device-mapper is not to be had
everywhere that tests run; devices, file systems and mounts are real.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ops import testing

from storage_volumes import Attached, UnitVolume, choose, detached, on_root_disk, to_config
from tests.support.mounts import own_mounts
from tests.support.stand_in_api import StandInApi
from tests.unit.charms.storage.conftest import WORKER, Systemd, Unit
from tests.unit.charms.storage.fake_lvm import FakeLvm, fake_lvm
from turku_charm.programs import Programs
from turku_core.storage.volumes import MARKER, RESERVE

ROOT = Path("/")
DATA = Path("/srv/turku-storage/data")
BLOCK_VOLUME = UnitVolume("volumes", Path("/srv/turku-storage/volumes"))
DATA_VOLUME = UnitVolume("data", DATA)
FOLDER_VOLUME = UnitVolume(
    "folder", Path("/srv/turku-storage/folder"), mount_required=False, accept_new=True
)
FORMER_DATA = {"data": {"path": str(DATA), "mount_required": True}}


# Which volumes there are: the choice alone


@pytest.mark.parametrize(
    ("attached", "in_use", "former", "names"),
    [
        (Attached(), [], {}, ["folder"]),
        (Attached(), ["folder"], {}, ["folder"]),
        (Attached(block=True), [], {}, ["volumes"]),
        (Attached(data=DATA), [], {}, ["data"]),
        (Attached(block=True, data=DATA), [], {}, ["volumes", "data"]),
        (Attached(block=True), ["folder"], {}, ["volumes", "folder"]),
        (Attached(), ["volumes"], {}, ["volumes"]),
        (Attached(), ["data"], FORMER_DATA, ["data"]),
        (Attached(), [], FORMER_DATA, ["folder"]),
        (Attached(block=True), ["data", "folder"], FORMER_DATA, ["volumes", "data", "folder"]),
    ],
)
def test_the_volumes_are_what_is_attached_and_what_holds_backups(
    attached: Attached, in_use: list[str], former: dict[str, object], names: list[str]
) -> None:
    assert [volume.name for volume in choose(ROOT, attached, in_use, former)] == names


def test_a_folder_that_was_used_takes_nothing_new_beside_another_volume() -> None:
    volumes = choose(ROOT, Attached(block=True), ["folder"], {})
    assert [(volume.name, volume.accept_new) for volume in volumes] == [
        ("volumes", True), ("folder", False),
    ]  # fmt: skip
    assert not on_root_disk(volumes)
    assert on_root_disk(choose(ROOT, Attached(), ["folder"], {}))


def test_prior_art_29_storage_that_is_gone_is_never_replaced_by_a_folder() -> None:
    for name in ("volumes", "data"):
        [volume] = choose(ROOT, Attached(), [name], {})
        assert (volume.name, volume.mount_required, volume.is_attached) == (name, True, False)
        assert not on_root_disk([volume])
        [sentence] = detached([volume])
        assert sentence == (
            f"The storage {name} is detached, and the backups on it can't be reached until it is "
            f"attached again (juju attach-storage). Nothing is lost, and nothing is begun anew "
            f"elsewhere."
        )


def test_a_filesystem_storage_that_was_a_mount_stays_one() -> None:
    [first] = choose(ROOT, Attached(data=DATA, data_is_mount=True), [], {})
    assert first.mount_required
    [again] = choose(ROOT, Attached(data=DATA), [], {"data": to_config(first, 80, None)})
    assert again.mount_required, "it isn't mounted yet, after a reboot"
    [folder] = choose(ROOT, Attached(data=DATA), [], {})
    assert not folder.mount_required, "some providers give a folder of the root disk"


def test_a_volume_is_configured_with_the_mark_and_the_mode_of_its_file_system() -> None:
    assert to_config(BLOCK_VOLUME, 70, "btrfs") == {
        "path": "/srv/turku-storage/volumes",
        "accept_new": True,
        "accept_new_high_water_pct": 70,
        "mount_required": True,
        "snapshot_mode": "btrfs",
    }
    assert "snapshot_mode" not in to_config(BLOCK_VOLUME, 70, None)
    assert "snapshot_mode" not in to_config(DATA_VOLUME, 70, "btrfs")
    assert not to_config(FOLDER_VOLUME, 70, "btrfs")["mount_required"]


# A filesystem storage


def test_a_filesystem_storage_that_was_there_before_the_install_is_used(
    unit: Unit, systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("turku_charm.workload.Workload.is_installed", lambda self: False)
        unit.attach("data/0", data)
        assert systemd.packages == set(), "the install hook comes next, and sees all storage"
    unit.install()
    unit.relate()
    assert unit.paths == {"data": str(data)}
    assert data.stat().st_mode & 0o777 == 0o700
    assert "lvm2" not in systemd.packages
    assert unit.configuration()["snapshot_mode"] == "borg"


@pytest.mark.needs_root
def test_a_mounted_filesystem_storage_must_stay_mounted(served: Unit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    run("mount", "-t", "tmpfs", "none", data)
    try:
        served.attach("data/0", data)
        assert served.configuration()["volumes"]["data"]["mount_required"] is True
        assert served.status[0] == "active"
        assert "root disk" not in served.status[1]
        served.use("data")
    finally:
        run("umount", data)
    served.run(served.on.update_status())
    assert served.status[0] == "blocked"
    assert f"nothing is mounted on {data}" in served.status[1]
    assert list(data.iterdir()) == [], "nothing was written below the mount"


def test_storage_attached_after_the_folder_was_used_takes_the_new_machines(
    served: Unit, tmp_path: Path, systemd: Systemd
) -> None:
    served.use("folder")
    data = tmp_path / "data"
    data.mkdir()
    served.attach("data/0", data)
    volumes = served.configuration()["volumes"]
    assert {name: values["accept_new"] for name, values in volumes.items()} == {
        "data": True, "folder": False,
    }  # fmt: skip
    assert "folder: " in served.status[1] and "takes nothing new" in served.status[1]
    assert systemd.asked == [f"restart {WORKER}"] * 2


def test_an_unused_folder_is_forgotten_when_storage_comes(served: Unit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    reserve = served.root / "srv/turku-storage/folder" / RESERVE
    reserve.write_text("room")
    served.attach("data/0", data)
    assert list(served.paths) == ["data"]
    assert not reserve.exists(), "the root disk has its room back"


def test_detached_storage_with_backups_is_missed_and_nothing_takes_its_place(
    served: Unit, tmp_path: Path, systemd: Systemd
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    storage = served.attach("data/0", data)
    served.use("data")
    served.detach(storage)
    assert systemd.running == set(), "nothing may hold the storage while Juju takes it away"
    assert served.status[0] == "blocked"
    assert served.status[1].startswith("The storage data is detached, and the backups on it")
    data.rename(tmp_path / "away")

    served.run(served.on.update_status())
    assert served.status[0] == "blocked"
    assert list(served.paths) == ["data"]
    assert systemd.running == {WORKER}, "what needs no storage goes on"
    assert not data.exists(), "no folder is made in its place"

    (tmp_path / "away").rename(data)
    served.attach("data/0", data)
    assert served.status[0] == "active"


def test_detached_storage_without_backups_is_forgotten(served: Unit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    served.detach(served.attach("data/0", data))
    assert list(served.paths) == ["folder"]
    served.run(served.on.update_status())
    assert served.status[0] == "active"


@pytest.mark.needs_root
def test_backups_of_another_units_user_are_not_taken_from_it(served: Unit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (data, data / MARKER):
        path.touch()
        os.chown(path, 61234, 61234)
    served.attach("data/0", data)
    assert served.status[0] == "blocked"
    assert (
        "whose user's id is 61234; here it is 0. Attach the storage to a new unit"
        in (served.status[1])
    )
    assert data.stat().st_uid == 61234


@pytest.mark.needs_root
def test_a_new_units_user_gets_the_id_of_the_backups_that_it_is_given(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / MARKER).touch()
    os.chown(data / MARKER, 61234, 61234)
    asked: list[tuple[str, ...]] = []

    def run(self: Programs, name: str, *arguments: str, **_: object) -> str:
        # Below a root of its own, install-service makes no user.
        asked.append((name, *arguments))
        return "{}"

    monkeypatch.setattr(Programs, "run", run)
    unit.attach("data/0", data, hook=False)
    unit.install()
    unit.relate()
    assert asked[0] == ("turku-storage", "install-service", "--uid", "61234")


# Block devices


@pytest.fixture
def lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLvm]:
    """LVM's commands come first on the PATH."""
    with own_mounts(), fake_lvm(tmp_path / "lvm") as made:
        for variable, value in made.environment().items():
            monkeypatch.setenv(variable, value)
        yield made


def run(*command: str | Path) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.needs_root
def test_block_devices_there_before_the_install_become_one_btrfs_volume(
    unit: Unit, lvm: FakeLvm, systemd: Systemd
) -> None:
    unit.attach("volumes/0", lvm.device("one"), hook=False)
    unit.attach("volumes/1", lvm.device("two"), hook=False)
    unit.install()
    assert "lvm2" in systemd.packages
    unit.relate()
    path = unit.root / "srv/turku-storage/volumes"
    assert unit.configuration()["volumes"] == {
        "volumes": {
            "path": str(path),
            "accept_new": True,
            "accept_new_high_water_pct": 80,
            "mount_required": True,
            "snapshot_mode": "btrfs",
        }
    }
    assert path.is_mount()
    assert path.stat().st_mode & 0o777 == 0o700
    assert unit.configuration()["snapshot_mode"] == "borg"
    assert f" {path} btrfs " in (unit.root / "etc/fstab").read_text()


@pytest.mark.needs_root
def test_a_unit_that_serves_takes_up_block_devices_one_after_the_other(
    served: Unit, lvm: FakeLvm, systemd: Systemd, api: StandInApi
) -> None:
    served.attach("volumes/0", lvm.device("one"))
    assert served.status[0] == "active"
    assert re.fullmatch(r"volumes: \d % of \d+\.\d MiB", served.status[1])
    asked = list(systemd.asked)
    before = served.act("usage")["volumes"][0]["bytes_total"]
    served.attach("volumes/1", lvm.device("two", 300))
    assert served.status[0] == "active"
    assert served.act("usage")["volumes"][0]["bytes_total"] > before + 250 * 1024**2
    assert systemd.asked == asked, "the volume grew under the worker"


@pytest.mark.needs_root
def test_a_mode_of_the_operators_is_that_of_every_volume(served: Unit, lvm: FakeLvm) -> None:
    served.attach("volumes/0", lvm.device("one"))
    served.run(served.on.config_changed(), config={"snapshot-mode": "borg"})
    assert "snapshot_mode" not in served.configuration()["volumes"]["volumes"]


@pytest.mark.needs_root
def test_a_device_that_holds_data_blocks_the_unit_and_stays_as_it_is(
    served: Unit, lvm: FakeLvm
) -> None:
    device = lvm.device("foreign")
    run("mkfs.ext4", "-q", device)
    before = (lvm.folder / "foreign.img").read_bytes()
    served.attach("volumes/0", device)
    assert served.status[0] == "blocked"
    assert served.status[1].startswith(f"volumes/0 ({device}) holds ext4: it isn't touched.")
    run("sync")
    assert (lvm.folder / "foreign.img").read_bytes() == before
    mount_point = served.root / "srv/turku-storage/volumes"
    assert not mount_point.exists() or list(mount_point.iterdir()) == []
    run("wipefs", "--all", device)
    served.run(served.on.update_status())
    assert served.status[0] == "active"


@pytest.mark.needs_root
def test_a_device_that_juju_has_yet_to_bring_is_waited_for(served: Unit, lvm: FakeLvm) -> None:
    storage = testing.Storage("volumes", index=0)
    served.run(served.on.update_status(), storages=[storage])
    assert served.status == ("waiting", "Waiting for the device of volumes/0.")
    served.locations["volumes/0"] = lvm.device("one")
    served.run(served.on.update_status())
    assert served.status[0] == "active"


@pytest.mark.needs_root
def test_a_detached_device_lets_the_volume_go_and_brings_it_back(
    served: Unit, lvm: FakeLvm, systemd: Systemd
) -> None:
    served.attach("volumes/0", lvm.device("one"))
    second = lvm.device("two")
    storage = served.attach("volumes/1", second)
    served.use("volumes")
    path = served.root / "srv/turku-storage/volumes"
    (path / "backup").write_text("kept")
    served.detach(storage)
    assert not path.is_mount()
    assert systemd.running == set()
    assert served.status[0] == "blocked"
    assert f"needs all of its devices, and {second} isn't attached any more" in served.status[1]
    assert str(path) not in (served.root / "etc/fstab").read_text()

    lvm.lose(second)
    served.run(served.on.update_status())
    assert served.status[0] == "blocked"
    assert list(served.paths) == ["volumes"]

    lvm.lose()
    served.attach("volumes/1", second)
    assert served.status[0] == "active"
    assert (path / "backup").read_text() == "kept"
    assert systemd.running == {WORKER}


@pytest.mark.needs_root
def test_lvm_that_fails_is_said_and_the_rest_goes_on(
    served: Unit, lvm: FakeLvm, systemd: Systemd
) -> None:
    (lvm.folder / "vgcreate").unlink()
    (lvm.folder / "vgcreate").symlink_to("/bin/false")
    served.attach("volumes/0", lvm.device("one"))
    assert served.status[0] == "blocked"
    assert "failed with exit code 1: see juju debug-log" in served.status[1]
    assert systemd.running == {WORKER}


# Removal


@pytest.mark.needs_root
def test_a_unit_that_goes_takes_its_services_along_and_leaves_the_backups(
    served: Unit, lvm: FakeLvm, systemd: Systemd
) -> None:
    served.attach("volumes/0", lvm.device("one"))
    path = served.root / "srv/turku-storage/volumes"
    (path / "backup").write_text("kept")
    served.run(served.on.stop())
    assert not (served.root / "etc/ssh/sshd_config.d/50-turku-storage.conf").exists()
    assert not (served.root / "etc/systemd/system/turku-storage-worker.service").exists()
    assert (path / "backup").read_text() == "kept"
    assert f" {path} btrfs " in (served.root / "etc/fstab").read_text()
    assert [file.name for file in served.config_folder.iterdir()] == ["90-operator.json"]
    served.run(served.on.remove())


def test_removal_with_a_filesystem_storage_lets_go_of_it_first(
    served: Unit, tmp_path: Path, systemd: Systemd
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    storage = served.attach("data/0", data)
    (data / "backup").write_text("kept")
    served.detach(storage)
    served.run(served.on.stop())
    served.run(served.on.remove())
    assert systemd.running == set()
    assert (data / "backup").read_text() == "kept"

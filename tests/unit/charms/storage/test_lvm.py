"""Block devices: plans carried out on loop devices, with real file systems and mounts.

LVM's own commands are a fake that keeps its state (`fake_lvm`), for device-mapper is not to be had
everywhere that tests run; everything else is real.
"""

from __future__ import annotations

import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvm import LvmError, ensure, read_facts, write_fstab
from tests.support.mounts import own_mounts
from tests.unit.charms.storage.fake_lvm import FakeLvm, fake_lvm
from volume_plan import FstabLine, Mount, Step

pytestmark = pytest.mark.needs_root


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


class Host:
    """The host's part: a mount point and an fstab."""

    def __init__(self, folder: Path) -> None:
        self.mount_point = folder / "srv/volumes"
        self.fstab = folder / "fstab"
        self.fstab.write_text("# /etc/fstab: gepflegt für Gäste\nproc /proc proc defaults 0 0")

    def ensure(self, *devices: Path | None) -> tuple[list[str], list[str]]:
        """Attach these devices; return the steps that were done, and what stands in the way."""
        steps: list[str] = []

        def note(step: Step) -> None:
            steps.append(type(step).__name__)

        attached = {f"volumes/{number}": device for number, device in enumerate(devices)}
        left = ensure(self.mount_point, self.fstab, attached, note)
        return steps, [*left.waiting, *left.problems]

    def ensure_until(self, count: int, *devices: Path) -> None:
        """Do only so many steps, as if the hook were killed then."""

        def stop(step: Step) -> None:
            nonlocal count
            if count == 0:
                raise KeyboardInterrupt
            count -= 1

        attached = {f"volumes/{number}": device for number, device in enumerate(devices)}
        with pytest.raises(KeyboardInterrupt):
            ensure(self.mount_point, self.fstab, attached, stop)

    def tell(self, column: str) -> str:
        """Return what findmnt(8) says of the mount point."""
        return run("findmnt", "--bytes", "--noheadings", "--output", column, self.mount_point)

    @property
    def size(self) -> int:
        """The size of what is mounted, in MiB."""
        return int(self.tell("SIZE")) // 1024**2


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def unmounted(lvm: FakeLvm, host: Host) -> Path:
    """The device of a volume that was mounted and isn't any more."""
    device = lvm.device("one")
    host.ensure(device)
    run("umount", host.mount_point)
    return device


def test_a_first_device_becomes_a_mounted_volume(lvm: FakeLvm, host: Host) -> None:
    device = lvm.device("one")
    steps, problems = host.ensure(device)
    assert problems == []
    assert steps == [
        "CreatePhysicalVolume", "CreateVolumeGroup", "CreateLogicalVolume", "MakeFilesystem",
        "WriteFstab", "Mount",
    ]  # fmt: skip
    assert lvm.calls == [
        f"pvcreate {device}", f"vgcreate turku {device}",
        "lvcreate --yes -l 100%FREE -n backups turku",
    ]  # fmt: skip
    assert host.size == 200
    options = {"user_subvol_rm_allowed", "noatime", "nodev", "nosuid", "noexec"}
    assert options <= set(host.tell("OPTIONS").split(","))
    assert host.ensure(device) == ([], [])


def test_fstab_has_the_volume_by_its_uuid_and_everything_else_as_it_was(
    lvm: FakeLvm, host: Host
) -> None:
    host.ensure(lvm.device("one"))
    assert host.fstab.read_text() == (
        "# /etc/fstab: gepflegt für Gäste\n"
        "proc /proc proc defaults 0 0\n"
        f"UUID={host.tell('UUID')} {host.mount_point} btrfs "
        "noatime,nodev,noexec,nofail,nosuid,user_subvol_rm_allowed 0 0\n"
    )


def test_a_device_attached_later_extends_the_volume_while_it_is_in_use(
    lvm: FakeLvm, host: Host
) -> None:
    one, two = lvm.device("one"), lvm.device("two", 300)
    host.ensure(one)
    (host.mount_point / "backup").write_text("kept")
    with (host.mount_point / "backup").open() as in_use:
        steps, problems = host.ensure(one, two)
        assert in_use.read() == "kept"
    assert problems == []
    assert steps == [
        "CreatePhysicalVolume", "ExtendVolumeGroup", "ExtendLogicalVolume", "GrowFilesystem",
    ]  # fmt: skip
    assert lvm.calls[3:] == [
        f"pvcreate {two}", f"vgextend turku {two}", f"lvextend turku/backups {two}",
    ]  # fmt: skip
    assert host.size == 500
    assert host.ensure(one, two) == ([], [])


def test_several_devices_at_once_make_one_volume(lvm: FakeLvm, host: Host) -> None:
    assert host.ensure(lvm.device("one"), lvm.device("two"), lvm.device("three"))[1] == []
    assert host.size == 600


@pytest.mark.parametrize("count", range(6))
def test_a_hook_killed_before_any_step_is_finished_by_the_next(
    lvm: FakeLvm, host: Host, count: int
) -> None:
    one, two = lvm.device("one"), lvm.device("two")
    host.ensure_until(count, one)
    assert host.ensure(one)[1] == []
    (host.mount_point / "backup").write_text("kept")
    host.ensure_until(min(count, 3), one, two)
    assert host.ensure(one, two)[1] == []
    assert host.size == 400
    assert (host.mount_point / "backup").read_text() == "kept"


def test_after_a_reboot_fstab_mounts_it_again(lvm: FakeLvm, host: Host) -> None:
    device = lvm.device("one")
    host.ensure(device)
    (host.mount_point / "backup").write_text("kept")
    run("umount", host.mount_point)
    lvm.reboot()
    lvm.boot()
    run("mount", "--all", "--fstab", host.fstab, "--types", "btrfs")
    assert (host.mount_point / "backup").read_text() == "kept"
    assert host.ensure(device) == ([], [])


def test_what_nobody_activated_or_mounted_is_activated_and_mounted(
    lvm: FakeLvm, host: Host, unmounted: Path
) -> None:
    lvm.reboot()
    assert host.ensure(unmounted) == (["Activate", "Mount"], [])


def test_a_volume_that_somebody_looked_at_as_it_went_comes_back(
    lvm: FakeLvm, host: Host, unmounted: Path
) -> None:
    held = os.open(lvm.folder / "dev-turku-backups", os.O_RDONLY)
    threading.Timer(0.3, os.close, [held]).start()
    lvm.reboot()
    assert host.ensure(unmounted) == (["Activate", "Mount"], [])


def test_a_volume_is_found_by_its_uuid_when_its_devices_number_went_to_another(
    lvm: FakeLvm, host: Host, unmounted: Path
) -> None:
    lvm.reboot()
    lvm.device("other")
    assert host.ensure(unmounted) == (["Activate", "Mount"], [])


def test_a_volume_that_systemd_mounts_at_that_moment_is_mounted_once(
    host: Host, unmounted: Path
) -> None:
    def come_first(step: Step) -> None:
        assert step == Mount()
        run("mount", "--fstab", host.fstab, host.mount_point)

    left = ensure(host.mount_point, host.fstab, {"volumes/0": unmounted}, come_first)
    assert (left.waiting, left.problems) == ((), ())
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    assert [line.split()[1] for line in mounts].count(str(host.mount_point)) == 1


@pytest.mark.parametrize("make", ["mkfs.ext4 -q", "mkswap", "mkfs.btrfs -q"])
def test_a_device_that_holds_data_is_refused_and_left_as_it_is(
    lvm: FakeLvm, host: Host, make: str
) -> None:
    good, foreign = lvm.device("good"), lvm.device("foreign")
    run(*make.split(), foreign)
    before = foreign_content(lvm)
    _, [problem] = host.ensure(foreign, good)
    assert problem.startswith(f"volumes/0 ({foreign}) holds ")
    assert f"wipefs --all {foreign}" in problem
    assert host.size == 200, "the other device is used all the same"
    assert foreign_content(lvm) == before


def test_a_partition_table_is_data_too(lvm: FakeLvm, host: Host) -> None:
    device = lvm.device("foreign")
    entry = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0x83, 0, 2, 0, 2048, 4096)
    device.write_bytes(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    steps, [problem] = host.ensure(device)
    assert steps == []
    assert "holds dos" in problem


def test_prior_art_29_data_that_was_on_the_logical_volume_is_never_formatted(
    lvm: FakeLvm, host: Host
) -> None:
    device = lvm.device("one")
    host.ensure_until(3, device)
    run("mkfs.ext4", "-q", lvm.folder / "dev-turku-backups")
    steps, [problem] = host.ensure(device)
    assert steps == []
    assert "holds ext4, not btrfs: it isn't touched" in problem


def test_a_device_taken_away_lets_the_whole_volume_go_and_nothing_is_lost(
    lvm: FakeLvm, host: Host
) -> None:
    one, two = lvm.device("one"), lvm.device("two")
    host.ensure(one, two)
    (host.mount_point / "backup").write_text("kept")
    steps, [problem] = host.ensure(one)
    assert steps == ["Unmount", "RemoveFstab", "Deactivate"]
    assert f"needs all of its devices, and {two} isn't attached any more" in problem
    assert str(host.mount_point) not in host.fstab.read_text()
    assert list(host.mount_point.iterdir()) == []

    lvm.lose(two)
    steps, [problem] = host.ensure(one)
    assert steps == [], "also when it is really gone"
    assert "isn't attached any more" in problem

    lvm.lose()
    assert host.ensure(one, two) == (["Activate", "WriteFstab", "Mount"], [])
    assert (host.mount_point / "backup").read_text() == "kept"


def test_when_all_devices_are_gone_nothing_is_left_mounted(lvm: FakeLvm, host: Host) -> None:
    one = lvm.device("one")
    host.ensure(one)
    lvm.lose(one)
    assert host.ensure()[0] == ["Unmount", "RemoveFstab"]
    assert host.ensure() == ([], [])


def test_a_device_that_juju_has_yet_to_bring_is_waited_for(lvm: FakeLvm, host: Host) -> None:
    one = lvm.device("one")
    assert host.ensure(one, None)[1] == ["Waiting for the device of volumes/1."]
    assert host.size == 200
    assert host.ensure(None) == ([], ["Waiting for the device of volumes/0."])
    assert host.size == 200, "what can't be seen for a moment isn't let go"


def test_something_else_on_the_mount_point_stays_there(lvm: FakeLvm, host: Host) -> None:
    device = lvm.device("one")
    host.ensure_until(5, device)
    host.mount_point.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "other", host.mount_point)
    try:
        steps, [problem] = host.ensure(device)
        assert steps == []
        assert problem.startswith(f"other is mounted on {host.mount_point}")
    finally:
        run("umount", host.mount_point)


def test_a_changed_line_takes_the_old_ones_place(lvm: FakeLvm, host: Host) -> None:
    device = lvm.device("one")
    host.ensure(device)
    line = FstabLine("UUID=another", "btrfs", "defaults")
    write_fstab(host.fstab, host.mount_point, line)
    with host.fstab.open("a") as file:
        file.write("tmpfs /tmp tmpfs defaults 0 0\n")
    assert read_facts(host.mount_point, host.fstab, {}).fstab == line
    assert host.ensure(device) == (["WriteFstab"], [])
    lines = host.fstab.read_text().splitlines()
    assert [each.split()[1] for each in lines[1:]] == ["/proc", str(host.mount_point), "/tmp"]


def test_a_failing_command_is_named_with_its_words(
    lvm: FakeLvm, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = lvm.device("one")
    monkeypatch.setattr("lvm.SECONDS_MAX", 60.0)
    (lvm.folder / "vgcreate").unlink()
    (lvm.folder / "vgcreate").symlink_to("/bin/false")
    with pytest.raises(LvmError, match=r"`vgcreate turku \S+` failed with exit code 1"):
        host.ensure(device)
    (lvm.folder / "pvs").unlink()
    (lvm.folder / "pvs").symlink_to("/bin/false")
    with pytest.raises(LvmError, match=r"pvs \S+ failed: exit code 1"):
        host.ensure(device)


def test_without_lvm_and_devices_there_is_nothing_to_do(host: Host) -> None:
    assert host.ensure() == ([], [])


def foreign_content(lvm: FakeLvm) -> bytes:
    """Return what lies on the device ``foreign``, written back."""
    run("sync", lvm.folder / "foreign.img")
    return (lvm.folder / "foreign.img").read_bytes()

"""Scenario 8. The storage unit on a kernel of its own makes, extends and remounts a volume of LVM.

One model: the machine of its storage unit is in qemu, with block devices; the API and a machine to
be backed up are beside it on the same network. The tests go on where the one before ended, as an
operator does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model.fleet import BUNDLES, act, agent_beside, backups, wait_for_backup
from tests.model.runner.kernel_machine import KernelMachine, ensure_kernel_image
from tests.model.runner.model import ActionFailed, Model, active
from tests.model.trees import describe, make_tree
from tests.support.trees import differences

pytestmark = pytest.mark.slow_model

UNIT, WEB = "turku-storage/0", "web/0"
SOURCE = {"path": "/srv/data", "retention": "last 2 snapshots"}
MOUNT = "/srv/turku-storage/volumes"
MIB = 1024**2
SECONDS_MAX = 1200
"""How long a hook or a backup may take on an emulated machine, on a host with much else to do."""


@pytest.fixture(scope="module")
def lvm(image: Path, store: dict[str, Path]) -> Iterator[Model]:
    """A small Turku whose storage unit has one block device, and `web/0` with an odd tree."""
    kernel = ensure_kernel_image(image.parent, image)
    with Model(image, store) as model:
        model.deploy("ubuntu", "web")
        make_tree(model.machine_of(WEB), "/srv/data")
        agent = {"options": {"sources": json.dumps({"data": SOURCE})}}
        overlay = {"turku-storage": None, "ubuntu": None, "turku-agent": agent}
        model.deploy(BUNDLES / "turku.yaml", overlay=overlay)
        model.integrate("web:juju-info", "turku-agent:host")
        began = time.monotonic()
        machine = model.add_machine(kernel)
        print(f"the machine with a kernel booted within {time.monotonic() - began:.0f} s")
        model.deploy(
            "turku-storage",
            config={"expiry-floor": 1},
            storage={"volumes": "1G"},
            machines=[machine],
        )
        model.integrate("turku-storage:api", "turku-api:storages")
        took = model.wait(active, SECONDS_MAX, "for the storage unit to be active")
        print(f"and was active after {took:.0f} s more")
        yield model


def guest(model: Model) -> KernelMachine:
    """Return the storage unit's machine."""
    machine = model.machine_of(UNIT)
    assert isinstance(machine, KernelMachine)
    return machine


def locations(model: Model) -> list[str]:
    """Return where the unit's block devices are, as hooks are told."""
    return [each.location for each in model.entities.unit(UNIT).storages.values()]


def report(model: Model, program: str, columns: str) -> list[dict[str, str]]:
    """Return what `pvs`, `vgs` or `lvs` says."""
    units = ["--units", "m", "--nosuffix"]
    said = guest(model).run([program, "--reportformat", "json", *units, "-o", columns])
    rows: list[dict[str, str]] = json.loads(said)["report"][0][program[:2]]
    return rows


def mounted(model: Model) -> dict[str, Any]:
    """Return what is mounted where the volume belongs; nothing when nothing is."""
    command = ["findmnt", "--json", "--bytes", "--output", "ID,UUID,FSTYPE,OPTIONS,SIZE"]
    said = guest(model).run([*command, "--mountpoint", MOUNT], check=False)
    return dict(json.loads(said)["filesystems"][0]) if said else {}


def snapshots(model: Model) -> list[str]:
    """Return the ids of the snapshots on the unit, each of which is a read-only subvolume there."""
    said = act(model, UNIT, "list-snapshots", machine=WEB)
    assert said["problems"] == []
    ids = sorted(each["id"] for each in said["snapshots"])
    subvolumes = guest(model).run(["btrfs", "subvolume", "list", "-r", MOUNT]).splitlines()
    frozen = sorted(line.rpartition("/snapshots/")[2].partition("/")[0] for line in subvolumes)
    assert frozen == ids
    assert {each["mode"] for each in said["snapshots"]} == {"btrfs"}
    return ids


def back_up(model: Model, news: str) -> None:
    """Let the machine hold something new, and back it up."""
    count = sum(each["outcome"] == "succeeded" for each in backups(model, WEB, "data"))
    model.machine_of(WEB).run(["sh", "-c", f"echo {news} >/srv/data/news"])
    said = act(model, agent_beside(model, WEB), "backup-now")
    assert said["sources"]["data"]["outcome"] == "success", said
    wait_for_backup(model, WEB, "data", count + 1, SECONDS_MAX)


def assert_restores(model: Model, target: str) -> None:
    """Restore the newest snapshot on the machine, and compare everything with what is there now."""
    machine = model.machine_of(WEB)
    act(model, agent_beside(model, WEB), "restore", source="data", target=target)
    assert differences(describe(machine, "/srv/data"), describe(machine, target)) == []


def assert_proven(model: Model) -> None:
    """Let the unit read every snapshot again and compare it with what was noted of it."""
    said = act(model, UNIT, "verify")
    assert len(said["verified"]) == len(snapshots(model))
    assert all(each["proven"] for each in said["verified"]), said


def wait_for_status(model: Model, word: str, words: str) -> None:
    """Let the unit look again, and wait until it says this."""
    model.update_status(UNIT)

    def says_it(each: Model) -> bool:
        return each.is_settled() and each.status()[UNIT][0] == word

    model.wait(says_it, SECONDS_MAX, f"for {UNIT} to be {word}")
    assert words in model.status()[UNIT][1]


def test_a_block_device_becomes_a_btrfs_on_lvm_mounted_by_its_uuid(lvm: Model) -> None:
    (device,) = report(lvm, "pvs", "pv_name,vg_name,pv_free")
    assert (device["vg_name"], float(device["pv_free"])) == ("turku", 0)
    attached = guest(lvm).run(["realpath", *locations(lvm)]).split()
    assert attached == [device["pv_name"]]
    (volume,) = report(lvm, "lvs", "vg_name,lv_name,lv_size")
    assert (volume["vg_name"], volume["lv_name"]) == ("turku", "backups")

    mount = mounted(lvm)
    assert mount["fstype"] == "btrfs"
    assert mount["size"] == float(volume["lv_size"]) * MIB
    options = {"noatime", "nodev", "noexec", "nosuid", "user_subvol_rm_allowed"}
    assert options <= set(mount["options"].split(","))
    lines = guest(lvm).run(["cat", "/etc/fstab"]).splitlines()
    (line,) = [each.split() for each in lines if MOUNT in each]
    assert line[:3] == [f"UUID={mount['uuid']}", MOUNT, "btrfs"]
    assert {*options, "nofail"} <= set(line[3].split(","))

    assert lvm.status()[UNIT][0] == "active"
    (said,) = act(lvm, UNIT, "usage")["volumes"]
    assert (said["name"], said["path"], said["mounted"]) == ("volumes", MOUNT, True)


def test_a_machine_is_backed_up_into_snapshots_of_btrfs(lvm: Model) -> None:
    took = wait_for_backup(lvm, WEB, "data", 1, SECONDS_MAX)
    print(f"first backup after {took:.0f} s")
    assert len(snapshots(lvm)) == 1
    assert_restores(lvm, "/srv/from-btrfs")


def test_a_device_attached_later_extends_the_volume_while_it_is_in_use(lvm: Model) -> None:
    before, ids = mounted(lvm), snapshots(lvm)
    worker = guest(lvm).run(["systemctl", "show", "-P", "MainPID", "turku-storage-worker"])
    lvm.add_storage(UNIT, "volumes", "1G")
    took = lvm.wait(active, SECONDS_MAX, "for the volume to be extended")
    print(f"extended within {took:.0f} s")

    devices = report(lvm, "pvs", "vg_name,pv_free")
    assert [(each["vg_name"], float(each["pv_free"])) for each in devices] == [("turku", 0)] * 2
    (volume,) = report(lvm, "lvs", "lv_size")
    after = mounted(lvm)
    assert after["size"] == float(volume["lv_size"]) * MIB == 2 * before["size"]
    # It is the same mount, which was never let go, and the worker that began with it.
    assert {**after, "size": 0} == {**before, "size": 0}
    assert worker == guest(lvm).run(["systemctl", "show", "-P", "MainPID", "turku-storage-worker"])
    assert snapshots(lvm) == ids
    assert_proven(lvm)


def test_after_a_reboot_the_volume_is_mounted_with_its_data_and_goes_on(lvm: Model) -> None:
    before, ids, hooks = mounted(lvm), snapshots(lvm), len(lvm.hooks_run)
    began = time.monotonic()
    guest(lvm).reboot()
    print(f"rebooted within {time.monotonic() - began:.0f} s")
    # A host whose disk is late boots nevertheless: the volume may come after all else.
    lvm.wait(lambda model: bool(mounted(model)), SECONDS_MAX, "for the volume to be mounted")
    assert {**mounted(lvm), "id": 0} == {**before, "id": 0}
    assert snapshots(lvm) == ids
    assert len(lvm.hooks_run) == hooks, "it was the machine that mounted it, not a hook"

    back_up(lvm, "after the reboot")
    assert_restores(lvm, "/srv/after-reboot")
    wait_for_status(lvm, "active", "volumes: ")


def test_while_a_device_is_missing_nothing_is_filled_in_the_folder_beneath(lvm: Model) -> None:
    ids, size = snapshots(lvm), mounted(lvm)["size"]
    missing = list(lvm.entities.unit(UNIT).storages)[-1]
    machine = guest(lvm)
    machine.stop(kill=True)
    machine.detach_block(missing)
    machine.start()
    assert mounted(lvm) == {}
    with pytest.raises(ActionFailed):
        act(lvm, agent_beside(lvm, WEB), "backup-now")
    assert machine.run(["find", MOUNT, "-mindepth", "1"]) == ""
    wait_for_status(lvm, "waiting", f"Waiting for the device of {missing}.")
    assert mounted(lvm) == {}
    assert machine.run(["find", MOUNT, "-mindepth", "1"]) == ""

    machine.attach_block(missing, "1G")
    wait_for_status(lvm, "active", "volumes: ")
    assert mounted(lvm)["size"] == size
    assert snapshots(lvm) == ids


def test_the_units_user_removes_expired_snapshots(lvm: Model) -> None:
    back_up(lvm, "after the power cut")
    ids = snapshots(lvm)
    assert len(ids) > 2, "the retention policy keeps two"
    said = act(lvm, UNIT, "expire", now=True)
    assert said["problems"] == []
    assert snapshots(lvm) == ids[-2:]
    assert_restores(lvm, "/srv/after-expiry")

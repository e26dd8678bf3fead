"""Plans for the block devices: from every state that a hook may find to what it does next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volume_plan import (
    MOUNT_OPTIONS,
    Activate,
    CreateLogicalVolume,
    CreatePhysicalVolume,
    CreateVolumeGroup,
    Deactivate,
    Device,
    ExtendLogicalVolume,
    ExtendVolumeGroup,
    Facts,
    Filesystem,
    FstabLine,
    GrowFilesystem,
    LogicalVolume,
    MakeFilesystem,
    Mount,
    Mounted,
    PhysicalVolume,
    Plan,
    RemoveFstab,
    Step,
    Unmount,
    WriteFstab,
    plan,
)

MOUNT_POINT = "/srv/turku-storage/volumes"
NODE = "/dev/turku/backups"
LINE = FstabLine("UUID=1234", "btrfs", MOUNT_OPTIONS)
ONE = Device("volumes/0", "/dev/sdb", ("LVM2_member",))
TWO = Device("volumes/1", "/dev/sdc", ("LVM2_member",))
EMPTY = Device("volumes/1", "/dev/sdc")


def member(path: str, **values: object) -> PhysicalVolume:
    """Return a member of our group, all of it in use."""
    whole = PhysicalVolume(path, "turku", "group-uuid")
    return replace(whole, **values)  # type: ignore[arg-type] # checked by the dataclass


READY = Facts(
    MOUNT_POINT,
    (ONE,),
    (member("/dev/sdb"),),
    LogicalVolume(NODE, True),
    Filesystem("btrfs", "1234"),
    LINE,
    Mounted(True, "/dev/mapper/turku-backups"),
)
NOTHING = Facts(MOUNT_POINT)


def steps(facts: Facts) -> tuple[Step, ...]:
    """Return the plan's steps, where nothing stands in the way."""
    found = plan(facts)
    assert (found.waiting, found.problems) == ((), ())
    return found.steps


def test_nothing_attached_and_nothing_there_is_nothing_to_do() -> None:
    assert plan(NOTHING) == Plan()


def test_a_volume_that_is_mounted_needs_nothing() -> None:
    assert plan(READY) == Plan()


def test_an_empty_device_becomes_the_group_and_the_logical_volume() -> None:
    assert steps(replace(NOTHING, devices=(EMPTY,))) == (
        CreatePhysicalVolume("/dev/sdc"), CreateVolumeGroup("/dev/sdc"), CreateLogicalVolume(),
    )  # fmt: skip


def test_several_empty_devices_become_one_group() -> None:
    devices = (Device("volumes/0", "/dev/sdb"), EMPTY)
    assert steps(replace(NOTHING, devices=devices)) == (
        CreatePhysicalVolume("/dev/sdb"), CreateVolumeGroup("/dev/sdb"),
        CreatePhysicalVolume("/dev/sdc"), ExtendVolumeGroup("/dev/sdc"),
        CreateLogicalVolume(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # In the order in which a hook could have been broken off.
        (
            replace(NOTHING, devices=(ONE,), physical_volumes=(PhysicalVolume("/dev/sdb"),)),
            (CreateVolumeGroup("/dev/sdb"), CreateLogicalVolume()),
        ),
        (
            replace(NOTHING, devices=(ONE,), physical_volumes=(member("/dev/sdb", free_bytes=9),)),
            (CreateLogicalVolume(),),
        ),
        (
            replace(READY, filesystem=None, fstab=None, mounted=None),
            (MakeFilesystem(NODE),),
        ),
        (replace(READY, fstab=None, mounted=None), (WriteFstab(LINE), Mount())),
        (replace(READY, mounted=None), (Mount(),)),
    ],
)
def test_what_a_hook_left_undone_is_done_and_nothing_twice(
    facts: Facts, expected: tuple[Step, ...]
) -> None:
    assert steps(facts) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            replace(READY, devices=(ONE, EMPTY)),
            (
                CreatePhysicalVolume("/dev/sdc"),
                ExtendVolumeGroup("/dev/sdc"),
                ExtendLogicalVolume("/dev/sdc"),
            ),
        ),
        (
            replace(
                READY,
                devices=(ONE, TWO),
                physical_volumes=(member("/dev/sdb"), PhysicalVolume("/dev/sdc")),
            ),
            (ExtendVolumeGroup("/dev/sdc"), ExtendLogicalVolume("/dev/sdc")),
        ),
        (
            replace(
                READY,
                devices=(ONE, TWO),
                physical_volumes=(member("/dev/sdb"), member("/dev/sdc", free_bytes=9)),
            ),
            (ExtendLogicalVolume("/dev/sdc"),),
        ),
        (
            replace(READY, mounted=Mounted(True, "/dev/dm-0", unused_bytes=9)),
            (GrowFilesystem(),),
        ),
    ],
)
def test_a_later_device_extends_the_volume_from_wherever_a_hook_was_broken_off(
    facts: Facts, expected: tuple[Step, ...]
) -> None:
    assert steps(facts) == expected


def test_a_group_that_came_with_its_devices_from_another_unit_is_used_as_it_is() -> None:
    facts = replace(
        READY, logical_volume=LogicalVolume(NODE, False), filesystem=None, fstab=None, mounted=None
    )
    assert steps(facts) == (Activate(),)


def test_an_fstab_line_that_differs_is_put_right() -> None:
    assert steps(replace(READY, fstab=replace(LINE, options="defaults"))) == (WriteFstab(LINE),)


@pytest.mark.parametrize("signature", ["ext4", "gpt", "dos", "crypto_LUKS", "LVM2_member", "btrfs"])
def test_prior_art_29_a_device_that_holds_data_is_never_touched(signature: str) -> None:
    foreign = Device("volumes/1", "/dev/sdc", (signature,))
    found = plan(replace(READY, devices=(ONE, foreign)))
    assert found.steps == ()
    [problem] = found.problems
    assert problem == (
        f"volumes/1 (/dev/sdc) holds {signature}: it isn't touched. If nobody needs that, run "
        f"`wipefs --all /dev/sdc` on the unit's machine; else detach it."
    )


def test_a_part_of_another_group_is_never_touched() -> None:
    others = PhysicalVolume("/dev/sdc", "vg0", "other-uuid")
    found = plan(
        replace(NOTHING, devices=(TWO,), physical_volumes=(others,)),
    )
    assert found.steps == ()
    assert "holds a part of the volume group vg0" in found.problems[0]


def test_a_foreign_device_keeps_no_other_from_being_used() -> None:
    foreign = Device("volumes/1", "/dev/sdc", ("ext4",))
    found = plan(replace(NOTHING, devices=(Device("volumes/0", "/dev/sdb"), foreign)))
    assert found.steps == (
        CreatePhysicalVolume("/dev/sdb"), CreateVolumeGroup("/dev/sdb"), CreateLogicalVolume(),
    )  # fmt: skip
    assert len(found.problems) == 1


def test_a_logical_volume_with_another_file_system_is_never_formatted() -> None:
    found = plan(replace(READY, filesystem=Filesystem("xfs", "99"), mounted=None, fstab=None))
    assert found.steps == ()
    assert found.problems[0].startswith(f"{NODE} holds xfs, not btrfs: it isn't touched.")


def test_what_else_is_mounted_there_stays_mounted() -> None:
    found = plan(replace(READY, mounted=Mounted(False, "/dev/sdz")))
    assert found.steps == ()
    assert found.problems == (
        f"/dev/sdz is mounted on {MOUNT_POINT}, where {NODE} belongs: unmount it.",
    )


@pytest.mark.parametrize(
    "lost",
    [member("/dev/sdc"), member("[unknown]", missing=True)],
    ids=["Juju says that it is detached", "it is gone"],
)
def test_without_one_of_its_devices_the_volume_is_let_go_whole(lost: PhysicalVolume) -> None:
    found = plan(replace(READY, physical_volumes=(member("/dev/sdb"), lost)))
    assert found.steps == (Unmount(), RemoveFstab(), Deactivate())
    [problem] = found.problems
    assert f"{lost.path} isn't attached any more" in problem
    assert "Nothing is lost" in problem


def test_a_volume_that_was_let_go_stays_so_until_all_devices_are_there() -> None:
    let_go = replace(
        READY,
        physical_volumes=(member("/dev/sdb"), member("/dev/sdc")),
        logical_volume=LogicalVolume(NODE, False),
        filesystem=None,
        fstab=None,
        mounted=None,
    )
    assert plan(let_go).steps == ()
    assert plan(let_go).problems != ()
    assert steps(replace(let_go, devices=(ONE, TWO))) == (Activate(),)


def test_nothing_is_let_go_while_juju_has_yet_to_say_where_a_device_is() -> None:
    unknown = Device("volumes/1", None)
    members = (member("/dev/sdb"), member("/dev/sdc"))
    found = plan(replace(READY, devices=(ONE, unknown), physical_volumes=members))
    assert found == Plan((), ("Waiting for the device of volumes/1.",))


def test_a_device_that_is_yet_to_come_keeps_no_other_from_being_used() -> None:
    found = plan(replace(NOTHING, devices=(Device("volumes/0", None), EMPTY)))
    assert found.waiting == ("Waiting for the device of volumes/0.",)
    assert CreateVolumeGroup("/dev/sdc") in found.steps


def test_two_storage_units_groups_are_told_apart_and_left_alone() -> None:
    members = (member("/dev/sdb"), member("/dev/sdc", group_uuid="another"))
    found = plan(replace(READY, devices=(ONE, TWO), physical_volumes=members))
    assert found.steps == ()
    assert "come from different storage units" in found.problems[0]


def test_when_all_is_gone_nothing_stays_mounted_or_in_fstab() -> None:
    facts = replace(NOTHING, fstab=LINE, mounted=Mounted(True, "/dev/dm-0"))
    assert steps(facts) == (Unmount(), RemoveFstab())


_DEVICES = st.lists(
    st.builds(
        Device,
        st.sampled_from(["volumes/0", "volumes/1", "volumes/2"]),
        st.sampled_from([None, "/dev/sdb", "/dev/sdc"]),
        st.lists(st.sampled_from(["ext4", "LVM2_member", "gpt"]), max_size=2).map(tuple),
    ),
    max_size=3,
    unique_by=(lambda device: device.storage, lambda device: device.path or device.storage),
).map(tuple)
_MEMBERS = st.lists(
    st.builds(
        PhysicalVolume,
        st.sampled_from(["/dev/sdb", "/dev/sdc", "[unknown]"]),
        st.sampled_from(["", "turku", "vg0"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from([0, 4096]),
        st.booleans(),
    ),
    max_size=3,
    unique_by=lambda volume: volume.path,
).map(tuple)
_FACTS = st.builds(
    Facts,
    st.just(MOUNT_POINT),
    _DEVICES,
    _MEMBERS,
    st.one_of(st.none(), st.builds(LogicalVolume, st.just(NODE), st.booleans())),
    st.one_of(st.none(), st.builds(Filesystem, st.sampled_from(["btrfs", "xfs"]), st.just("1"))),
    st.one_of(st.none(), st.just(LINE)),
    st.one_of(st.none(), st.builds(Mounted, st.booleans(), st.just("x"), st.sampled_from([0, 9]))),
)


@given(_FACTS)
def test_whatever_is_there_only_empty_devices_are_taken_and_empty_volumes_formatted(
    facts: Facts,
) -> None:
    holding = {device.path for device in facts.devices if set(device.signatures) - {"LVM2_member"}}
    others = {each.path for each in facts.physical_volumes if each.group not in ("", "turku")}
    ours = {each.path for each in facts.group}
    signed = {device.path for device in facts.devices if device.signatures}
    for step in plan(facts).steps:
        if isinstance(step, CreatePhysicalVolume):
            assert step.device not in signed
        if isinstance(step, (CreatePhysicalVolume, CreateVolumeGroup, ExtendVolumeGroup)):
            assert step.device not in holding | others | ours
        if isinstance(step, MakeFilesystem):
            assert facts.filesystem is None
        if isinstance(step, Unmount):
            assert facts.mounted is not None and facts.mounted.ours


@given(_FACTS)
def test_whatever_is_there_the_volume_is_used_only_with_all_its_devices(facts: Facts) -> None:
    attached = {device.path for device in facts.devices}
    lost = [each for each in facts.group if each.missing or each.path not in attached]
    if lost:
        assert set(plan(facts).steps) <= {Unmount(), RemoveFstab(), Deactivate()}

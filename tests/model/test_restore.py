"""Scenario 3. Every action does on machines what it says, and what comes back is what was there.

A tree with every kind of file is backed up, changed and backed up again, and restored in each way
that there is. Both sides of each comparison are read on the machines themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.model.fleet import act, agent_beside, backups, wait_for_backup
from tests.model.runner.machines import Machine
from tests.model.runner.model import ActionFailed, Model
from tests.model.trees import Tree, below, describe, make_tree
from tests.support.trees import differences

AGENT = "vault-agent"
MACHINE, OTHER = "vault/0", "vault/1"
STORAGE, API = "turku-storage/0", "turku-api/0"
SOURCE, FOLDER = "tree", "/srv/tree"
OPTION = f"{SOURCE}: {{path: {FOLDER}, retention: last 2 snapshots}}"

CHANGE = """
set -e
cd /srv/tree
echo changed >>plain
rm private
echo new >'folder/new file'
chmod 0700 'empty folder'
setfattr -n user.comment -v other 'with attributes'
"""
"""What happens to the tree between two of its backups."""

DAMAGE = """
set -e
cd /srv/tree
printf damaged | dd of=large conv=notrunc status=none
then=$(stat -c %y owned)
printf SOMEBODY | dd of=owned conv=notrunc status=none
touch -d "$then" owned
chmod 0666 setuid
setfacl -b 'with acl'
setfattr -x user.empty 'with attributes'
rm fifo 'null device' 'folder/new file'
ln -sfn elsewhere 'link to folder'
echo 'is in no backup' >stray
"""
"""Much is gone or wrong, and newer than the backup; one file has its old size and time still."""


@dataclasses.dataclass
class Vault:
    """A machine that is backed up, and what its tree was at each time.

    Attributes:
        states: The tree by the ids of its snapshots, the oldest first.
    """

    model: Model
    machine: Machine
    agent: str
    states: dict[str, Tree] = dataclasses.field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The snapshots' ids, the oldest first."""
        return list(self.states)

    @property
    def latest(self) -> Tree:
        """What the tree was when it was backed up last."""
        return self.states[self.ids[-1]]

    def back_up(self) -> None:
        """Back the tree up as it is, and keep what it was."""
        tree = describe(self.machine, FOLDER)
        said = act(self.model, self.agent, "backup-now", sources=[SOURCE])
        assert said["sources"][SOURCE]["outcome"] == "success", said
        self.note(tree)

    def note(self, tree: Tree) -> None:
        """Wait for the snapshot of a backup that has ended, and keep what the tree was."""

        def is_there(_: Model) -> bool:
            return self.newest() not in (None, *self.states)

        self.model.wait(is_there, 240, "for the snapshot")
        self.states[str(self.newest())] = tree

    def newest(self) -> str | None:
        """Return the id of the newest snapshot."""
        listed = self.snapshots()
        return listed[0]["id"] if listed else None

    def snapshots(self) -> list[dict[str, Any]]:
        """Return the snapshots as the machine sees them, the newest first."""
        found = act(self.model, self.agent, "list-snapshots", source=SOURCE)["snapshots"]
        return list(found)

    def restore(self, **wanted: Any) -> dict[str, Any]:
        """Restore on the machine itself."""
        said = act(self.model, self.agent, "restore", source=SOURCE, **wanted)
        return dict(said)

    def run(self, script: str) -> None:
        """Run a shell script on the machine."""
        self.machine.run(["bash", "-c", script])


@pytest.fixture(scope="module")
def vault(small: Model) -> Iterator[Vault]:
    """Two machines, one of them with a tree of which there are two snapshots."""
    small.deploy("ubuntu", "vault", units=2)
    make_tree(small.machine_of(MACHINE), FOLDER)
    small.machine_of(OTHER).run(["mkdir", FOLDER])
    small.deploy("turku-agent", AGENT, config={"sources": OPTION})
    small.integrate(f"{AGENT}:api", "turku-api:agents")
    small.integrate("vault:juju-info", f"{AGENT}:host")
    small.settle(400)
    for machine in (MACHINE, OTHER):
        wait_for_backup(small, machine, SOURCE, seconds_max=400)
    made = Vault(small, small.machine_of(MACHINE), agent_beside(small, MACHINE))
    made.note(describe(made.machine, FOLDER))
    made.run(CHANGE)
    made.back_up()
    yield made
    small.configure("turku-storage", snapshot_mode="auto", expiry_floor=3)
    small.settle(300)


def health(model: Model) -> dict[str, Any]:
    """Return what the API says of the fleet."""
    return dict(act(model, API, "health"))


def wait_for_health(model: Model) -> None:
    """Wait until all is well: some of it is reported by the machines in their own time."""
    model.wait(lambda each: health(each)["state"] == "OK", 240, f"for {health(model)} to mend")


def test_a_tree_changes_between_its_backups(vault: Vault) -> None:
    # Else the comparisons below would prove less than they say.
    first, second = vault.states.values()
    kinds = {entry.kind for entry in first.values()}
    assert kinds >= {"file", "folder", "link", "fifo", "socket", "character device", "block device"}
    assert any(entry.sparse for entry in first.values())
    assert any(entry.hard_links for entry in first.values())
    attributes = {name for entry in first.values() for name, _ in entry.xattrs}
    assert attributes >= {
        "user.comment",
        "trusted.turku",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
    }
    assert differences(first, second)


def test_a_backup_at_once_is_in_every_list(vault: Vault) -> None:
    assert {each["state"] for each in vault.snapshots()} == {"committed"}
    assert [each["id"] for each in reversed(vault.snapshots())] == vault.ids
    kept = act(vault.model, STORAGE, "list-snapshots", machine=MACHINE, source=SOURCE)["snapshots"]
    assert [each["id"] for each in kept] == vault.ids
    known = backups(vault.model, MACHINE, SOURCE)
    assert [each["outcome"] for each in known] == ["succeeded", "succeeded"]
    machines = act(vault.model, API, "list-machines")["machines"]
    assert {MACHINE, OTHER} <= {each["unit"] for each in machines}


def test_a_whole_source_comes_back_as_it_was(vault: Vault) -> None:
    said = vault.restore()
    assert said["snapshot"] == vault.ids[-1]
    assert differences(vault.latest, describe(vault.machine, said["target"])) == []


@pytest.mark.parametrize("by", ["id", "time"])
def test_an_older_snapshot_comes_back_as_it_was_then(vault: Vault, by: str) -> None:
    newer, older = vault.snapshots()[:2]
    wanted = older["id"]
    if by == "time":
        times = [datetime.fromisoformat(each["taken_at"]) for each in (older, newer)]
        wanted = (times[0] + (times[1] - times[0]) / 2).isoformat()
    said = vault.restore(snapshot=wanted, target=f"/srv/older-by-{by}")
    assert said["snapshot"] == older["id"]
    found = describe(vault.machine, said["target"])
    assert differences(vault.states[older["id"]], found) == []


def test_one_path_comes_back_alone(vault: Vault) -> None:
    vault.restore(snapshot=vault.ids[0], paths=["folder/deeper"], target="/srv/one")
    found = describe(vault.machine, "/srv/one")
    del found[b"."]
    assert differences(below(vault.states[vault.ids[0]], b"folder/deeper"), found) == []


def test_a_dry_run_changes_nothing_and_names_every_file(vault: Vault) -> None:
    before = describe(vault.machine, FOLDER)
    said = vault.restore(dry_run=True, target="/srv/never")
    vault.machine.run(["test", "!", "-e", "/srv/never"])
    assert named(said["changes"]) == set(vault.latest)
    assert vault.restore(dry_run=True, in_place=True)["changes"] == []
    assert differences(before, describe(vault.machine, FOLDER)) == []


def test_a_damaged_tree_is_put_right_in_its_place(vault: Vault) -> None:
    vault.run(DAMAGE)
    damaged = describe(vault.machine, FOLDER)
    wrong = {path for path, entry in vault.latest.items() if damaged.get(path) != entry}
    assert {b"large", b"owned", b"with acl", b"null device", b"folder/new file"} <= wrong

    said = vault.restore(in_place=True, dry_run=True)
    assert named(said["changes"]) == wrong
    assert differences(damaged, describe(vault.machine, FOLDER)) == []

    vault.restore(in_place=True)
    found = describe(vault.machine, FOLDER)
    assert differences(vault.latest, found) == ["unexpected: b'stray'"]
    vault.run(f"cd {FOLDER}; touch -r . /tmp/then; rm stray; touch -r /tmp/then .")


def test_an_order_of_the_api_restores_to_another_machine_which_may_then_go_on(
    vault: Vault,
) -> None:
    model, other = vault.model, vault.model.machine_of(OTHER)
    with pytest.raises(ActionFailed, match="may not restore machine"):
        act(model, agent_beside(model, OTHER), "list-snapshots", machine=MACHINE)

    order: dict[str, Any] = {"machine": MACHINE, "source": SOURCE, "to_machine": OTHER}
    wanted = act(model, API, "restore", **order)["id"]
    refused = act(model, API, "restore", **order, in_place=True)["id"]
    done = wait_for_orders(model, other, wanted, refused)
    assert done[wanted]["state"] == "done", done
    assert done[wanted]["to"].startswith("/var/lib/turku-agent/restore/")
    # This one ran as the agent's own service, with no more than what a service has.
    assert differences(vault.latest, describe(other, done[wanted]["to"])) == []
    assert done[refused]["state"] == "refused", done
    assert describe(other, FOLDER).keys() == {b"."}

    replacing = agent_beside(model, OTHER)
    listed = act(model, replacing, "list-snapshots", machine=MACHINE)["snapshots"]
    assert [each["id"] for each in reversed(listed)] == vault.ids
    said = act(
        model,
        replacing,
        "restore",
        machine=MACHINE,
        source=SOURCE,
        snapshot=vault.ids[0],
        target="/srv/replaced",
    )
    assert said["snapshot"] == vault.ids[0]
    assert differences(vault.states[vault.ids[0]], describe(other, "/srv/replaced")) == []


def test_the_storage_unit_restores_to_a_folder_of_its_own(vault: Vault) -> None:
    storage = vault.model.machine_of(STORAGE)
    wanted: dict[str, Any] = {"machine": MACHINE, "source": SOURCE, "target": "/srv/out"}
    act(vault.model, STORAGE, "restore", **wanted, dry_run=True)
    storage.run(["test", "!", "-e", "/srv/out"])
    act(vault.model, STORAGE, "restore", **wanted, snapshot=vault.ids[0])
    assert differences(vault.states[vault.ids[0]], describe(storage, "/srv/out")) == []
    storage.run(["rm", "-r", "/srv/out"])


def test_every_snapshot_can_be_proven(vault: Vault) -> None:
    said = act(vault.model, STORAGE, "verify", machine=MACHINE, source=SOURCE)
    assert {each["id"]: each["proven"] for each in said["verified"]} == dict.fromkeys(
        vault.ids, True
    )
    assert all(each["proven_at"] for each in vault.snapshots())


def test_trees_of_hard_links_hold_the_same_and_damage_in_one_is_found_told_and_expires(
    vault: Vault,
) -> None:
    model = vault.model
    model.configure("turku-storage", snapshot_mode="link-dest", expiry_floor=1)
    model.settle(300)
    vault.run(f"echo once >{FOLDER}/once")
    vault.back_up()
    vault.run(f"rm {FOLDER}/once; echo more >>{FOLDER}/plain")
    vault.back_up()
    assert [each["mode"] for each in reversed(vault.snapshots())] == [
        *("borg", "borg"),
        *("link-dest", "link-dest"),
    ]
    *_, third, fourth = vault.ids
    vault.restore(snapshot=third, target="/srv/third")
    assert differences(vault.states[third], describe(vault.machine, "/srv/third")) == []
    wait_for_health(model)

    storage = model.machine_of(STORAGE)
    file = f"/srv/turku-storage/data/*/machines/*/{SOURCE}/snapshots/{third}/once"
    storage.run(["sh", "-c", f"printf ONCE >$(echo {file})"])
    with pytest.raises(ActionFailed, match="1 of 4 snapshots"):
        act(model, STORAGE, "verify", machine=MACHINE, source=SOURCE)

    def is_told(each: Model) -> bool:
        problems = health(each)["checks"]["unproven"]["problems"]
        return [one["about"] for one in problems] == [f"{MACHINE}: {SOURCE} {third}"]

    model.wait(is_told, 240, "for the damage to be told")
    assert health(model)["state"] == "CRITICAL"

    vault.back_up()
    kept = [fourth, vault.ids[-1]]
    would = expire(vault, dry_run=True)
    assert would == {snapshot: "expired" for snapshot in vault.ids if snapshot not in kept}
    assert [each["id"] for each in reversed(vault.snapshots())] == vault.ids
    assert {each["state"] for each in vault.snapshots()} == {"committed"}
    assert expire(vault, now=True) == dict.fromkeys(would, "removed")
    assert [each["id"] for each in reversed(vault.snapshots())] == kept
    assert expire(vault, now=True) == {}
    wait_for_health(model)
    said = vault.restore(target="/srv/kept")
    assert differences(vault.latest, describe(vault.machine, said["target"])) == []


def test_a_source_that_is_gone_is_told_until_it_is_back(vault: Vault) -> None:
    vault.run(f"mv {FOLDER} /srv/away")
    with pytest.raises(ActionFailed, match=f"path {FOLDER} isn't there"):
        act(vault.model, vault.agent, "backup-now", sources=[SOURCE])
    with pytest.raises(ActionFailed, match=f"{FOLDER} isn't there"):
        act(vault.model, vault.agent, "check")
    said = health(vault.model)
    assert said["state"] == "WARNING"
    assert [each["about"] for each in said["checks"]["failing"]["problems"]] == [
        f"{MACHINE}: {SOURCE}"
    ]

    vault.run(f"mv /srv/away {FOLDER}")
    vault.back_up()
    assert act(vault.model, vault.agent, "check")["ok"]
    wait_for_health(vault.model)


def named(changes: list[str]) -> set[bytes]:
    """Return the paths in the lines of a dry run, each of which begins with what changes."""
    found = set()
    for line in changes:
        name = line.split(" ", 1)[1].partition(" -> ")[0].partition(" => ")[0]
        name = name.replace("\\#012", "\n")
        found.add(name.encode("utf-8", "surrogateescape").removesuffix(b"/"))
    return found


def expire(vault: Vault, **how: bool) -> dict[str, str]:
    """Expire the tree's snapshots, and return what became of each in the end."""
    said = act(vault.model, STORAGE, "expire", machine=MACHINE, source=SOURCE, **how)
    assert said["problems"] == []
    return {each["snapshot"]: each["state"] for each in said["changes"]}


def wait_for_orders(model: Model, machine: Machine, *ids: int) -> dict[int, dict[str, Any]]:
    """Let a machine check in until orders have ended, and return what became of them.

    The storage unit is not left to ask in its own time who may restore.
    """
    model.machine_of(STORAGE).run(["/opt/turku-storage/current/bin/turku-storage-update-config"])

    def ended(each: Model) -> dict[int, dict[str, Any]]:
        machine.run(["systemctl", "start", "turku-agent-ping.service"])
        listed = act(each, API, "list-restores")["restores"]
        return {one["id"]: one for one in listed if one["id"] in ids and one["ended"]}

    model.wait(lambda each: len(ended(each)) == len(ids), 240, "for the orders to end")
    return ended(model)

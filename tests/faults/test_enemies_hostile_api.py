"""An API that is the enemy's: what machines and storage units do and don't do at its word.

Its storage unit is the enemy's as well, as the security page says it may be.
"""

from __future__ import annotations

import copy
import random
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.attacked import NEWEST, Attacked, attacked_machine, restore_ill
from tests.faults.hostile import NASTY, places
from tests.faults.hostile_unit import ACTS
from tests.faults.tally import Tally, times
from tests.integration.storage.conftest import Machine, Unit, add_machine, api, machine, unit
from tests.support.stand_in_api import Answer
from turku_core.storage import authorized_keys

__all__ = ["api", "machine", "unit"]
"""Fixtures: a real storage unit with a stand-in for the API, which here lies."""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked_machine(tmp_path_factory.mktemp("attacked")) as made:
        yield made


def lie(dice: random.Random, truth: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with something else in one to four of its places."""
    told = copy.deepcopy(truth)
    for _ in range(dice.randint(1, 4)):
        place = dice.choice([each for each in places(told) if each])
        holder: Any = told
        for key in place[:-1]:
            holder = holder[key]
        what: Any = dice.choice([*NASTY, None, True, -1, 10**400, 1e308, [], {}, [[]], {"a": {}}])
        if isinstance(holder, dict) and dice.random() < 0.3:
            holder[dice.choice(NASTY)] = holder.pop(place[-1])
        else:
            holder[place[-1]] = what
    return told


def greedy(attacked: Attacked) -> dict[str, Any]:
    """Return sources that aren't the machine's, or aren't as it has them."""
    storage = attacked.unit.address()
    wide = {"filter": ["+ *", "!", "- a"], "exclude": [], "storage": storage}
    return {
        "docs": {**wide, "path": "/etc"},
        "etc": {**wide, "path": "/etc"},
        "outside": {**wide, "path": str(attacked.outside), "run_before_backup": "/bin/false"},
        "../outside": {**wide, "path": str(attacked.outside)},
    }


def test_an_api_that_names_other_paths_and_rules_gets_the_machines_own(
    attacked: Attacked, tally: Tally, dice: random.Random
) -> None:
    """With a storage unit of its own it gets what that gets by right, and no file more."""
    attacked.machine.api.answers["agent_ping_checkin"] = {
        "machine": {"scheduled_sources": greedy(attacked)}
    }
    done = attacked.suffer(ACTS["what a good one does"], dice)
    assert "source etc, which isn't configured here" in done.errors
    visit = attacked.unit.visits[-1]
    assert list(visit.request["sources"]) == ["docs"]
    got = {path.name for path in visit.loot.rglob("*")}
    assert got == {"a", "sub", "b", "to-outside", "folder-outside"}
    stolen = attacked.stolen()
    tally.note("a hostile API names other paths and rules", times=4, lost=len(stolen))
    assert stolen == []


def _order(dice: random.Random, attacked: Attacked) -> dict[str, Any]:
    restore = attacked.machine.state / "restore"
    inside = [f"{restore}/../../x", str(restore), f"{restore}-x/y", f"{restore}/docs"]
    targets = ["/etc", "/", str(attacked.outside), str(attacked.data), *inside, None]
    order: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "source": dice.choice(["docs", "docs", "other", "etc", "../x"]),
        "snapshot": dice.choice(["latest", NEWEST]),
        "target": dice.choice(targets),
        "in_place": dice.random() < 0.3,
        "dry_run": dice.random() < 0.2,
        "paths": dice.choice([[], ["a"], ["/etc"], ["../../etc"]]),
        "run_after_restore": "/bin/false",
    }
    return {key: value for key, value in order.items() if value is not None}


def test_an_api_that_orders_restores_to_anywhere_writes_into_the_restore_folder_alone(
    attacked: Attacked, tally: Tally, dice: random.Random
) -> None:
    count = times(1, 30)
    answers = attacked.machine.api.answers
    answers["agent_restore_report"] = {}
    answers["agent_ping_restore"] = {"machine": {"sources": greedy(attacked)}}
    state = attacked.machine.state
    before = {path.name for path in state.iterdir()}
    for number in range(count):
        # Between them two that are honest in form: these are carried out.
        order = _order(dice, attacked)
        if number % 15 == 0:
            order = {"id": str(uuid.uuid4()), "source": "docs", "snapshot": "latest"}
        answers["agent_ping_checkin"] = {
            "machine": {"scheduled_sources": {}, "restore_orders": [order]}
        }
        attacked.suffer(restore_ill(attacked), dice)
    reports = [each["order"] for each in attacked.machine.api.calls("agent_restore_report")]
    folder = str(state / "restore") + "/"
    strayed = [each for each in reports if not (each.get("target") or folder).startswith(folder)]
    assert any(each["outcome"] == "done" for each in reports)
    assert len(reports) <= count
    appeared = {path.name for path in state.iterdir()} - before
    assert appeared <= {"restore", "restore_orders", "handed-out", "checked-in"}, appeared
    stolen = attacked.stolen()
    tally.note("a hostile API orders restores to anywhere", times=count,
               lost=len(strayed) + len(stolen))  # fmt: skip
    assert strayed == []
    assert stolen == []


@pytest.mark.only_in_full
def test_whatever_an_api_answers_a_machine_goes_on_and_gives_no_more(
    attacked: Attacked, tally: Tally, dice: random.Random
) -> None:
    count = times(1, 40)
    truth = {
        "machine": {
            "scheduled_sources": {"docs": greedy(attacked)["docs"]},
            "restore_orders": [_order(dice, attacked)],
            "handed_out_at": "2026-03-11T12:00:00+00:00",
        }
    }
    answers = attacked.machine.api.answers
    refusals: list[Answer] = [{}, (500, "x"), (400, "\x1b[31m" * 500)]
    giant = {"machine": {"scheduled_sources": {}, "x": "y" * (65 * 2**20)}}
    for number in range(count):
        answers["agent_ping_checkin"] = giant if number == 0 else lie(dice, truth)
        answers["agent_ping_restore"] = lie(dice, {"machine": {"sources": greedy(attacked)}})
        answers["agent_restore_report"] = dice.choice(refusals)
        done = attacked.suffer(ACTS["what a good one does"], dice)
        assert number or "larger than" in done.errors, done
    stolen = attacked.stolen()
    tally.note("whatever a hostile API answers a machine", times=count, lost=len(stolen))
    assert stolen == []


# At a storage unit.


def kept(unit: Unit) -> dict[str, bytes]:
    """Return every file of committed snapshots, by name."""
    return {
        str(path.relative_to(unit.volume)): path.read_bytes()
        for path in unit.volume.rglob("*")
        if "/snapshots/" in str(path) and path.is_file() and not path.is_symlink()
    }


def trees(unit: Unit) -> dict[str, bytes]:
    """Return the files of the snapshots alone, without what is noted of these."""
    return {name: content for name, content in kept(unit).items() if not name.endswith(".json")}


def hostile_machines(dice: random.Random, mine: Machine) -> dict[str, Any]:
    """Return a list of machines that an enemy would send."""
    options = 'command="sh",no-pty ', 'environment="LD_PRELOAD=x" ', "cert-authority ", "@revoked "
    keys = [mine.public_key, *(f"{each}{mine.public_key}" for each in options),
            f"{mine.public_key}\nssh-ed25519 AAAA x", "ssh-rsa AAAA", *NASTY]  # fmt: skip
    names = [*NASTY, str(uuid.uuid4()), mine.uuid, "a/b", "x" * 300]
    listed = [mine.uuid.upper(), str(uuid.uuid4()), f"{mine.uuid}/..", "../../x", *NASTY]
    return {
        dice.choice(listed): {
            "unit_name": dice.choice(names),
            "service_name": dice.choice(names),
            "environment_name": dice.choice(names),
            "ssh_public_key": dice.choice(keys),
            "restore_from": {dice.choice(names): {"unit_name": dice.choice(names)}},
        }
        for _ in range(6)
    }


LINE = re.compile(
    re.escape(authorized_keys._OPTIONS)
    + r',command="[^"\n]*turku-storage-ping --root [^"\n]* [0-9a-f-]{36}" ssh-\S+ [A-Za-z0-9+/=]+'
)


@pytest.mark.only_in_full
def test_no_list_of_machines_removes_a_backup_or_lets_more_in_than_a_key_to_one_machine(
    unit: Unit, machine: Machine, tally: Tally, dice: random.Random
) -> None:
    assert machine.check_in().code == 0
    unit.drain()
    before = trees(unit)
    assert before
    beside = {path.name for path in unit.root.parent.iterdir()}
    count = times(1, 30)
    for number in range(count):
        listed: Any = {} if number == 0 else hostile_machines(dice, machine)
        unit.api.answers["storage_update_config"] = {
            "machines": listed, "retention": "last 0 days", "remove": [machine.uuid],
            "revision": dice.choice([*NASTY, 1, None]), "slots": 0, "expiry_grace_days": 0,
        }  # fmt: skip
        said = unit.run("turku-storage-update-config", code=None)
        assert "Traceback" not in said, said
        assert all(each.isprintable() or each == "\n" for each in said), said
        lines = (unit.state / ".ssh/authorized_keys").read_text().splitlines()[1:]
        assert [line for line in lines if LINE.fullmatch(line) is None] == []
        links = list((unit.state / "machines").iterdir())
        assert all(link.resolve().parent == unit.volume / "machines" for link in links)
        if number % 20 == 0:
            unit.drain()
    lost = {name for name, content in before.items() if trees(unit).get(name) != content}
    assert {path.name for path in unit.root.parent.iterdir()} == beside
    assert unit.run_json("list")["snapshots"]
    tally.note("lists of machines of a hostile API", times=count, lost=len(lost))
    assert lost == set()


@pytest.mark.only_in_full
def test_an_api_that_lets_a_key_of_its_own_in_reads_and_removes_nothing(
    unit: Unit, machine: Machine, tally: Tally
) -> None:
    """It says so on the page: who decides which key is a machine's can read its backups."""
    assert machine.check_in().code == 0
    unit.drain()
    [identity] = unit.snapshots(machine)
    before = kept(unit)
    enemy = add_machine(unit)
    unit.api.answers["storage_update_config"] = {
        "machines": {machine.uuid: {**machine.assigned(), "ssh_public_key": enemy.public_key}}
    }
    unit.run("turku-storage-update-config")
    unit.api.answers["storage_ping_checkin"] = {
        "machine": {"uuid": machine.uuid, "scheduled_sources": {}}
    }
    spoken = enemy.connect_without_tunnel({"action": "list"})
    assert identity in spoken.output, spoken
    for action in ("remove", "expire", "release", "delete", "verify"):
        said = enemy.connect_without_tunnel({"action": action, "source": "docs"})
        assert said.code != 0, said
    lost = {name for name, content in before.items() if kept(unit).get(name) != content}
    tally.note("a key of a hostile API's own at a storage unit", times=6, lost=len(lost))
    assert lost == set()


@pytest.mark.only_in_full
def test_whatever_an_api_answers_a_session_no_snapshot_goes_and_nothing_is_written_elsewhere(
    unit: Unit, machine: Machine, tally: Tally, dice: random.Random
) -> None:
    assert machine.check_in().code == 0
    unit.drain()
    before = trees(unit)
    beside = {path.name for path in unit.root.parent.iterdir()}
    truth = {
        "machine": {
            "uuid": machine.uuid,
            "scheduled_sources": {"docs": machine.source(retention="last 0 days")},
            "restore_from": {str(uuid.uuid4()): {"unit_name": "x"}},
        }
    }
    count = times(1, 30)
    for number in range(count):
        answer = lie(dice, truth)
        if number == 0:
            answer = {"machine": {**truth["machine"], "scheduled_sources": {
                "../docs": machine.source(), "docs": machine.source(retention="last 1 snapshots"),
            }}}  # fmt: skip
        unit.api.answers["storage_ping_checkin"] = answer
        unit.api.answers["storage_ping_source_update"] = dice.choice([{}, {"remove": "all"}])
        spoken = machine.check_in()
        assert spoken.code in (0, 1, 75), spoken
        assert "Unexpected error" not in spoken.output + spoken.errors
        said = unit.drain()
        assert "Traceback" not in said, said
        said = unit.run("turku-storage-expire", code=None)
        assert "Traceback" not in said, said
    assert "Traceback" not in unit.log
    lost = {name for name, content in before.items() if trees(unit).get(name) != content}
    machines = {path.name for path in (unit.volume / "machines").iterdir()}
    assert machines == {machine.uuid}
    assert {path.name for path in unit.root.parent.iterdir()} == beside
    tally.note("whatever a hostile API answers a session", times=count, lost=len(lost))
    assert lost == set()

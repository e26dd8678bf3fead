"""The runner keeps Juju's rules, shown by a charm of a few lines of shell.

The numbers are those of the rules in README.md. The charm writes down each hook that it runs; what
a hook is to do besides, a test leaves on the machine as a script.
"""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.model.runner.commands import run
from tests.model.runner.model import ActionFailed, Model, active
from tests.model.runner.turns import Turns

TINY = """\
name: tiny
peers: {ring: {interface: ring}}
provides: {out: {interface: thing}}
requires: {in: {interface: thing}}
storage:
  data: {type: filesystem, location: /srv/tiny}
  more: {type: filesystem, location: /srv/more, multiple: {range: 0-}}
"""
BESIDE = """\
name: beside
subordinate: true
requires:
  host: {interface: juju-info, scope: container}
  next: {interface: next, scope: container}
"""
ALSO_BESIDE = """\
name: also-beside
subordinate: true
requires: {host: {interface: juju-info, scope: container}}
provides: {next: {interface: next, scope: container}}
"""
OPTIONS = "options: {word: {type: string, default: none}}\n"
ACTIONS = """\
echo: {params: {text: {type: string, default: nothing}}, additionalProperties: false}
sh: {params: {code: {type: string}}, required: [code]}
fails: {}
"""
DISPATCH = """\
#!/bin/sh
hook=${JUJU_DISPATCH_PATH#hooks/}
unit=$(echo "$JUJU_UNIT_NAME" | tr / -)
echo "begin $unit" >>/root/turns
sleep 0.02
echo "$hook $JUJU_REMOTE_UNIT $JUJU_DEPARTING_UNIT" >>"/root/hooks-$unit"
case $JUJU_DISPATCH_PATH in
hooks/config-changed) status-set active "$(config-get word)" ;;
actions/echo) action-set said="$(action-get text)" ;;
actions/sh)
    said=$(sh -ec "$(action-get code)" 2>&1) || action-fail "$said"
    action-set said="$said" ;;
actions/fails) action-fail "It can't be done." ;;
esac
code=0
[ ! -e "/root/do-$hook" ] || { sh -e "/root/do-$hook" || code=1; }
echo "end $unit" >>/root/turns
exit $code
"""

LIFECYCLE = [
    "data-storage-attached",
    "install",
    "ring-relation-created",
    "leader-elected",
    "config-changed",
    "start",
]


def pack(folder: Path, name: str, metadata: str, extra: str = "") -> Path:
    """Pack a charm."""
    file = folder / f"{name}.charm"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.yaml", metadata)
        archive.writestr("config.yaml", OPTIONS)
        archive.writestr("actions.yaml", ACTIONS)
        entry = zipfile.ZipInfo("dispatch")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, DISPATCH.replace("code=0\n", f"code=0\n{extra}"))
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of the tiny charms."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "tiny": pack(folder, "tiny", TINY),
        "newer": pack(folder, "newer", TINY, "echo newer >/root/newer\n"),
        "beside": pack(folder, "beside", BESIDE),
        "also-beside": pack(folder, "also-beside", ALSO_BESIDE),
    }


@pytest.fixture
def model(image: Path, tiny: dict[str, Path]) -> Iterator[Model]:
    with Model(image, tiny) as made:
        yield made


@pytest.fixture(scope="module")
def pair(image: Path, tiny: dict[str, Path]) -> Iterator[Model]:
    """A model with `giver`, and two units of `taker` related to it."""
    with Model(image, tiny) as made:
        made.deploy("tiny", "giver")
        made.deploy("tiny", "taker", units=2)
        made.integrate("giver:out", "taker:in")
        made.settle(60)
        yield made


def hooks(model: Model, unit: str) -> list[str]:
    """Return the hooks that a unit has run, each with its remote and departing unit."""
    name = unit.replace("/", "-")
    lines = model.machine_of(unit).run(["cat", f"/root/hooks-{name}"]).splitlines()
    return [line.strip() for line in lines]


def let(model: Model, unit: str, hook: str, script: str) -> None:
    """Leave a script for a hook of a unit."""
    model.machine_of(unit).run(["tee", f"/root/do-{hook}"], given=script.encode())


def sh(model: Model, unit: str, code: str) -> str:
    """Run shell code with the hook tools in an action. Raises ActionFailed."""
    return str(model.run(unit, "sh", code=code)["said"])


def relation(model: Model, endpoint: str = "out") -> str:
    """Return the id of the relation of `giver` and `taker` as a unit of that end names it."""
    found = next(each for each in model.entities.relations.values() if len(each.ends) == 2)
    return f"{endpoint}:{found.id}"


def test_rule_1_what_happens_while_a_hook_fails_is_told_once_as_it_is_at_last(
    model: Model,
) -> None:
    model.deploy("tiny")
    model.settle(60)
    let(model, "tiny/0", "config-changed", "exit 1")
    model.configure("tiny", word="first")
    model.wait(lambda each: each.status()["tiny/0"][0] == "error", 30)
    model.configure("tiny", word="second")
    model.configure("tiny", word="third")
    let(model, "tiny/0", "config-changed", "config-get word >>/root/words")
    model.settle(60)
    assert model.machine_of("tiny/0").run(["cat", "/root/words"]) == "third\n"
    assert model.status()["tiny/0"] == ("active", "third")


def test_rule_2_the_order_of_a_new_unit_and_of_relations(pair: Model) -> None:
    first = hooks(pair, "giver/0")
    assert [each for each in first if each in LIFECYCLE] == LIFECYCLE
    assert first.index("out-relation-created") > first.index("install")
    for taker in ("taker/0", "taker/1"):
        joined = first.index(f"out-relation-joined {taker}")
        assert first[joined + 1] == f"out-relation-changed {taker}"
    assert "leader-settings-changed" in hooks(pair, "taker/1")
    assert "leader-elected" not in hooks(pair, "taker/1")
    assert "ring-relation-joined taker/1" in hooks(pair, "taker/0")

    pair.update_status()
    pair.settle(30)
    assert hooks(pair, "giver/0")[-1] == "update-status"


def test_rule_3_one_hook_at_a_time_runs_on_a_machine(model: Model) -> None:
    model.deploy("tiny")
    model.deploy("beside")
    model.deploy("also-beside")
    model.integrate("tiny:juju-info", "beside:host")
    model.integrate("tiny:juju-info", "also-beside:host")
    model.wait(lambda each: len(each.status()) == 3 and active(each), 60)
    turns = model.machine_of("tiny/0").run(["cat", "/root/turns"]).splitlines()
    assert len(set(turns)) == 6
    for begin, end in zip(turns[::2], turns[1::2], strict=True):
        assert (begin.split()[0], end) == ("begin", begin.replace("begin", "end"))


def test_rule_4_what_a_hook_writes_counts_when_it_ends_well(pair: Model) -> None:
    before = len(hooks(pair, "taker/0"))
    let(
        pair,
        "giver/0",
        "update-status",
        f"relation-set -r {relation(pair)} answer=half\nstate-set answer=half\n"
        f"open-port 99\nstatus-set maintenance trying\n"
        f"relation-get -r {relation(pair)} answer giver/0 >/root/own\nexit 1",
    )
    pair.update_status()
    pair.wait(
        lambda each: "giver/0" in each.status() and each.status()["giver/0"][0] == "error", 30
    )
    assert pair.machine_of("giver/0").run(["cat", "/root/own"]) == "half\n"
    assert sh(pair, "giver/0", "state-get answer; opened-ports") == ""
    assert sh(pair, "taker/0", f"relation-get -r {relation(pair, 'in')} answer giver/0") == ""
    assert len([each for each in hooks(pair, "taker/0")[before:] if "changed" in each]) == 0
    let(
        pair,
        "giver/0",
        "update-status",
        f"relation-set -r {relation(pair)} answer=whole\nstate-set answer=whole\nopen-port 99",
    )
    pair.settle(60)
    assert sh(pair, "giver/0", "state-get answer; opened-ports").split() == ["whole", "99/tcp"]
    assert sh(pair, "taker/0", f"relation-get -r {relation(pair, 'in')} answer giver/0") == "whole"
    assert "in-relation-changed giver/0" in hooks(pair, "taker/0")[before:]


def test_rule_4_a_status_counts_at_once_and_remote_data_are_those_of_the_beginning(
    pair: Model,
) -> None:
    sh(pair, "giver/0", f"relation-set -r {relation(pair)} seen=before")
    pair.settle(30)
    there = relation(pair, "in")
    let(
        pair,
        "taker/0",
        "update-status",
        f"status-set waiting inside\nwhile [ ! -e /root/go ]; do sleep 0.1; done\n"
        f"relation-get -r {there} seen giver/0 >/root/seen\nstatus-set active over",
    )
    pair.update_status()
    pair.wait(lambda each: each.status()["taker/0"] == ("waiting", "inside"), 30)
    sh(pair, "giver/0", f"relation-set -r {relation(pair)} seen=after")
    pair.machine_of("taker/0").run(["touch", "/root/go"])
    pair.settle(30)
    assert pair.machine_of("taker/0").run(["cat", "/root/seen"]) == "before\n"
    assert sh(pair, "taker/0", f"relation-get -r {there} seen giver/0") == "after"


def test_rule_5_a_failed_hook_waits_and_actions_run_meanwhile(model: Model) -> None:
    model.deploy("tiny")
    model.settle(60)
    let(model, "tiny/0", "update-status", "date +%s.%N >>/root/tries\nexit 1")
    model.update_status()
    tries = ["sh", "-c", "cat /root/tries 2>/dev/null || true"]
    machine = model.machine_of("tiny/0")
    model.wait(lambda _: len(machine.run(tries).split()) == 1, 30)
    assert model.run("tiny/0", "echo", text="meanwhile") == {"said": "meanwhile"}
    model.wait(lambda _: len(machine.run(tries).split()) == 2, 30)
    first, second = map(float, machine.run(tries).split())
    assert 5 <= second - first < 15
    with pytest.raises(ActionFailed, match="can't be done"):
        model.run("tiny/0", "fails")
    with pytest.raises(ActionFailed, match="not allowed"):
        model.run("tiny/0", "echo", other=1)
    with pytest.raises(ValueError, match="no action"):
        model.run("tiny/0", "unheard-of")


def test_rule_6_only_the_leader_writes_for_the_application(pair: Model) -> None:
    there = relation(pair, "in")
    sh(pair, "taker/0", f"relation-set --app -r {there} of=all")
    assert sh(pair, "giver/0", f"relation-get --app -r {relation(pair)} of taker") == "all"
    assert sh(pair, "taker/0", f"relation-get --app -r {there} of taker") == "all"
    with pytest.raises(ActionFailed, match="not the leader"):
        sh(pair, "taker/1", f"relation-set --app -r {there} of=one")
    with pytest.raises(ActionFailed, match="permission denied"):
        sh(pair, "taker/1", f"relation-get --app -r {there} of taker")
    with pytest.raises(ActionFailed, match="not the leader"):
        sh(pair, "taker/1", "secret-add word=x")

    pair.elect("taker/1")
    pair.settle(30)
    assert hooks(pair, "taker/1")[-1] == "leader-elected"
    assert sh(pair, "taker/1", f"relation-get --app -r {there} of taker") == "all"
    with pytest.raises(ActionFailed, match="not the leader"):
        sh(pair, "taker/0", f"relation-set --app -r {there} of=old")
    pair.elect("taker/0")
    pair.settle(30)


def test_rule_7_a_secret_is_read_by_whom_it_was_granted_to(pair: Model) -> None:
    secret = sh(pair, "giver/0", "secret-add word=first")
    with pytest.raises(ActionFailed, match="permission denied"):
        sh(pair, "taker/0", f"secret-get {secret} word")
    sh(pair, "giver/0", f"secret-grant {secret} -r {relation(pair)}")
    assert sh(pair, "taker/0", f"secret-get {secret} word") == "first"

    let(pair, "taker/0", "secret-changed", "echo $JUJU_SECRET_ID $JUJU_SECRET_REVISION >/root/told")
    sh(pair, "giver/0", f"secret-set {secret} word=second")
    pair.settle(30)
    assert pair.machine_of("taker/0").run(["cat", "/root/told"]) == f"{secret} 2\n"
    assert sh(pair, "taker/0", f"secret-get {secret} word") == "first"
    assert sh(pair, "taker/0", f"secret-get {secret} --peek word") == "second"
    assert sh(pair, "taker/0", f"secret-get {secret} --refresh word") == "second"
    assert "secret-changed" not in hooks(pair, "taker/1")

    sh(pair, "giver/0", f"secret-revoke {secret} -r {relation(pair)}")
    with pytest.raises(ActionFailed, match="permission denied"):
        sh(pair, "taker/0", f"secret-get {secret} word")


def test_rule_8_a_subordinate_lives_beside_its_principal_and_goes_before_it(model: Model) -> None:
    model.deploy("tiny", units=2)
    model.deploy("beside")
    model.deploy("also-beside")
    model.integrate("tiny:juju-info", "beside:host")
    model.integrate("tiny:juju-info", "also-beside:host")
    model.integrate("beside:next", "also-beside:next")
    model.wait(lambda each: len(each.status()) == 6 and active(each), 60)
    for unit in (each for each in model.entities.units() if each.principal is not None):
        assert model.machine_of(unit.name) is model.machine_of(str(unit.principal))
        assert [
            each.split()[1] for each in hooks(model, unit.name) if "host-relation-joined" in each
        ] == [unit.principal]
        (neighbour,) = [
            each.split()[1] for each in hooks(model, unit.name) if "next-relation-joined" in each
        ]
        assert model.entities.unit(neighbour).principal == unit.principal

    gone = {each.name for each in model.entities.units() if each.principal == "tiny/0"}
    machine = model.machine_of("tiny/0")
    model.remove_unit("tiny/0")
    model.wait(lambda each: "tiny/0" not in each.status(), 60)
    assert len(model.status()) == 3
    order = [unit for unit, hook in model.hooks_run if hook == "remove"]
    assert set(order[:2]) == gone and order[2] == "tiny/0"
    last = machine.run(["tail", "-n", "1", f"/root/hooks-{min(gone).replace('/', '-')}"])
    assert last.strip() == "remove"


def test_rule_9_a_unit_that_goes_is_told_so_and_still_sees_its_relations(model: Model) -> None:
    model.deploy("tiny", "giver")
    model.deploy("tiny", "taker", units=2)
    model.integrate("giver:out", "taker:in")
    model.settle(60)
    sh(model, "giver/0", f"relation-set -r {relation(model)} last=word")
    sh(model, "giver/0", f"relation-set --app -r {relation(model)} last=of-all")
    model.settle(60)
    there = relation(model, "in")
    for hook in ("stop", "in-relation-broken"):
        script = f"relation-get --app -r {there} last giver >>/root/in-{hook}"
        let(model, "taker/0", hook, script)
    machine = model.machine_of("taker/0")
    before = len(hooks(model, "taker/0"))
    model.remove_unit("taker/0")
    model.wait(lambda each: "taker/0" not in each.status(), 60)
    model.settle(60)
    lines = machine.run(["cat", "/root/hooks-taker-0"]).splitlines()[before:]
    assert [line.strip() for line in lines] == [
        "ring-relation-departed taker/1 taker/0",
        "ring-relation-broken",
        "in-relation-departed giver/0 taker/0",
        "in-relation-broken",
        "data-storage-detaching",
        "stop",
        "remove",
    ]
    for hook in ("stop", "in-relation-broken"):
        assert machine.run(["cat", f"/root/in-{hook}"]) == "of-all\n"
    assert "out-relation-departed taker/0 taker/0" in hooks(model, "giver/0")
    assert "leader-elected" in hooks(model, "taker/1")


def test_rule_10_a_new_charm_is_in_place_before_its_first_hook(model: Model) -> None:
    model.deploy("tiny")
    model.settle(60)
    machine = model.machine_of("tiny/0")
    made_by_it = "/var/lib/juju/agents/unit-tiny-0/charm/.unit-state.db"
    machine.run(["touch", made_by_it])
    model.upgrade("tiny", model.store["newer"])
    model.settle(60)
    assert hooks(model, "tiny/0")[-2:] == ["upgrade-charm", "config-changed"]
    assert machine.run(["cat", "/root/newer"]) == "newer\n"
    machine.run(["test", "-e", made_by_it])


def test_rule_11_storage_is_there_before_its_hook_and_goes_after_it(model: Model) -> None:
    model.deploy("tiny", storage={"data": "40M"})
    model.settle(60)
    machine = model.machine_of("tiny/0")
    where = ["findmnt", "-n", "-o", "FSTYPE,TARGET"]
    assert machine.run([*where, "/srv/tiny"]).split() == ["ext4", "/srv/tiny"]
    script = (
        "echo $JUJU_STORAGE_ID $JUJU_STORAGE_LOCATION >>/root/told\n"
        "mountpoint $JUJU_STORAGE_LOCATION\n"
    )
    let(model, "tiny/0", "more-storage-attached", script)
    let(model, "tiny/0", "more-storage-detaching", script)
    (one,) = model.add_storage("tiny/0", "more", "30M")
    (two,) = model.add_storage("tiny/0", "more")
    model.settle(60)
    places = [f"/srv/more/{each.rpartition('/')[2]}" for each in (one, two)]
    assert machine.run(["cat", "/root/told"]).split() == [one, places[0], two, places[1]]
    assert machine.run([*where, places[0]]).split() == ["ext4", places[0]]
    machine.run(
        ["sh", "-c", f"for each in /srv/tiny {' '.join(places)}; do echo kept >$each/file; done"]
    )
    machine.reboot()
    for place in ("/srv/tiny", *places):
        assert machine.run(["cat", f"{place}/file"]) == "kept\n"

    for each in (one, two):
        model.remove_storage("tiny/0", each)
    model.settle(60)
    assert hooks(model, "tiny/0")[-2:] == ["more-storage-detaching", "more-storage-detaching"]
    assert "/srv/more" not in machine.run(["findmnt", "-n", "-o", "TARGET"])


def test_who_is_alone_has_waited_for_everyone_and_everyone_waits(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    happened: list[str] = []
    go_on = threading.Event()

    def work(name: str) -> None:
        with turns.beside_others():
            happened.append(f"{name} begins")
            assert go_on.wait(30)
            happened.append(f"{name} ends")

    def measure() -> None:
        with turns.alone():
            happened.append("alone")

    with ThreadPoolExecutor() as pool:
        tasks = [pool.submit(work, name) for name in ("one", "two")]
        while len(happened) < 2:
            time.sleep(0.01)
        tasks.append(pool.submit(measure))
        time.sleep(0.2)
        tasks.append(pool.submit(work, "three"))
        time.sleep(0.2)
        assert set(happened) == {"one begins", "two begins"}
        go_on.set()
        for task in tasks:
            task.result()
    assert set(happened[2:4]) == {"one ends", "two ends"}
    assert happened[4:] == ["alone", "three begins", "three ends"]


def test_the_report_of_a_model_has_its_status_logs_and_journals(pair: Model) -> None:
    sh(pair, "giver/0", "juju-log 'a word to the log'; logger 'a word to the journal'")
    report = pair.report()
    assert "taker/1" in report
    assert "a word to the log" in report
    assert "a word to the journal" in report


def test_a_machine_that_is_cut_off_reaches_nobody(pair: Model) -> None:
    one, other = pair.machine_of("taker/0"), pair.machine_of("taker/1")
    ping = ["ping", "-c", "1", "-W", "1", other.address]
    one.run(ping)
    one.disconnect()
    assert " 1 received" not in one.run(ping, check=False)
    one.connect()
    pair.wait(lambda _: " 1 received" in one.run(ping, check=False), 20)


def test_a_machine_whose_plug_is_pulled_leaves_no_process_and_starts_again(model: Model) -> None:
    model.deploy("tiny")
    model.settle(60)
    machine = model.machine_of("tiny/0")
    inside = machine.run(["sh", "-c", "sleep 1234.5 >/dev/null 2>&1 & echo started"])
    assert inside == "started\n"
    machine.stop(kill=True)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert b"sleep\x001234.5\x00" not in running
    machine.start()
    assert model.run("tiny/0", "echo", text="back")["said"] == "back"


def test_nothing_of_a_model_is_left_when_it_is_closed(image: Path, tiny: dict[str, Path]) -> None:
    with Model(image, tiny) as model:
        model.deploy("tiny", storage={"data": "20M"})
        model.settle(60)
        folder, namespace = str(model.folder), model.network.name
        leader = int(run(["pgrep", "--full", "--newest", f"directory={folder}"]))
        assert namespace in run(["ip", "netns"])
        assert folder in Path("/proc/self/mounts").read_text()
        assert folder in run(["losetup", "--list"])
    assert namespace not in run(["ip", "netns"])
    assert folder not in Path("/proc/self/mounts").read_text()
    assert folder not in run(["losetup", "--list"])
    assert not Path(folder).exists()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{leader}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{leader}").exists()


def test_a_machine_of_another_model_keeps_no_disk_of_one_that_is_closed(
    model: Model, image: Path, tiny: dict[str, Path]
) -> None:
    with Model(image, tiny, "other", "10.77.2") as other:
        machine = other.machines[other.add_machine()]
        machine.attach_disk("/data", "20M")
        machine.reboot()
        # It boots while the host has the other one's disk mounted, and goes on when that is gone.
        model.add_machine()
        folder = str(other.folder)
    assert folder not in Path("/proc/self/mounts").read_text()
    assert folder not in run(["losetup", "--list"])
    assert not Path(folder).exists()

"""The runner keeps Juju's rules, shown by a charm of a few lines of shell."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.runner.model import ActionFailed, Model

TINY = """\
name: tiny
peers: {ring: {interface: ring}}
provides: {out: {interface: thing}}
requires: {in: {interface: thing}}
storage: {data: {type: filesystem, location: /srv/tiny}}
"""
BESIDE = """\
name: beside
subordinate: true
requires: {host: {interface: juju-info, scope: container}}
"""
OPTIONS = "options: {word: {type: string, default: none}}\n"
ACTIONS = """\
echo: {params: {text: {type: string, default: nothing}}, additionalProperties: false}
fails: {}
"""
DISPATCH = """\
#!/bin/sh
hook=${JUJU_DISPATCH_PATH#hooks/}
log=/root/hooks-$(echo "$JUJU_UNIT_NAME" | tr / -)
echo "$hook $JUJU_REMOTE_UNIT $JUJU_DEPARTING_UNIT" >>"$log"
[ -e "/root/break-$hook" ] && { state-set broken=yes; exit 1; }
case $JUJU_DISPATCH_PATH in
hooks/install) echo "installed on $(findmnt -n -o FSTYPE,TARGET /srv/tiny)" >/root/installed ;;
hooks/config-changed) status-set active "$(config-get word)" ;;
hooks/out-relation-created)
    if is-leader | grep -q True; then
        id=$(secret-add word=first)
        secret-grant "$id" -r "$JUJU_RELATION_ID"
        relation-set --app -r "$JUJU_RELATION_ID" secret="$id"
        state-set secret="$id"
    fi ;;
hooks/in-relation-changed)
    relation-set hello="$JUJU_UNIT_NAME"
    id=$(relation-get --app -r "$JUJU_RELATION_ID" secret "$JUJU_REMOTE_APP")
    [ -z "$id" ] || status-set active "$(secret-get --refresh "$id" word)" ;;
hooks/secret-changed) status-set active "$(secret-get --refresh "$JUJU_SECRET_ID" word)" ;;
actions/echo) action-set said="$(action-get text)" state="$(state-get broken)" ;;
actions/fails) action-fail "It can't be done." ;;
actions/*) ;;
esac
"""


def pack(folder: Path, name: str, metadata: str, extra: str = "") -> Path:
    """Pack a charm."""
    file = folder / f"{name}.charm"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.yaml", metadata)
        archive.writestr("config.yaml", OPTIONS)
        archive.writestr("actions.yaml", ACTIONS)
        entry = zipfile.ZipInfo("dispatch")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, DISPATCH + extra)
    return file


@pytest.fixture(scope="module")
def charms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("charms")
    return {
        "tiny": pack(folder, "tiny", TINY),
        "newer": pack(folder, "newer", TINY, "echo newer\n"),
        "beside": pack(folder, "beside", BESIDE),
    }


@pytest.fixture
def model(image: Path) -> Iterator[Model]:
    with Model(image) as made:
        yield made


def hooks(model: Model, unit: str) -> list[str]:
    """Return the hooks that a unit has run, each with its remote and departing unit."""
    name = unit.replace("/", "-")
    lines = model.machine_of(unit).run(["cat", f"/root/hooks-{name}"]).splitlines()
    return [line.strip() for line in lines]


def test_a_model_from_the_first_hook_to_the_last(model: Model, charms: dict[str, Path]) -> None:
    model.deploy(charms["tiny"], "giver")
    model.deploy(charms["tiny"], "taker", units=2)
    model.settle(60)
    assert hooks(model, "giver/0") == [
        "data-storage-attached",
        "install",
        "ring-relation-created",
        "leader-elected",
        "config-changed",
        "start",
    ]
    assert "/srv/tiny" in model.machine_of("giver/0").run(["cat", "/root/installed"])
    assert "leader-elected" not in hooks(model, "taker/1")
    assert "ring-relation-joined taker/1" in hooks(model, "taker/0")

    model.integrate("giver:out", "taker:in")
    model.settle(60)
    assert model.status()["taker/1"] == ("active", "first")
    told = hooks(model, "giver/0")
    joined = told.index("out-relation-joined taker/1")
    assert told[joined + 1] == "out-relation-changed taker/1"
    assert joined > told.index("out-relation-created")

    model.configure("taker", word="other")
    model.settle(60)
    assert model.status()["taker/0"] == ("active", "other")

    assert model.run("giver/0", "echo", text="a b") == {"said": "a b", "state": ""}
    assert model.run("giver/0", "echo")["said"] == "nothing"
    with pytest.raises(ActionFailed, match="can't be done"):
        model.run("giver/0", "fails")
    with pytest.raises(ActionFailed, match="not allowed"):
        model.run("giver/0", "echo", other=1)

    model.upgrade("giver", charms["newer"])
    model.settle(60)
    assert hooks(model, "giver/0")[-2:] == ["upgrade-charm", "config-changed"]

    model.remove_unit("taker/0")
    model.wait(lambda each: "taker/0" not in each.status(), 60)
    model.settle(60)
    assert "out-relation-departed taker/0 taker/0" in hooks(model, "giver/0")
    assert "leader-elected" in hooks(model, "taker/1")


def test_a_failed_hook_leaves_nothing_and_is_run_again(
    model: Model, charms: dict[str, Path]
) -> None:
    model.deploy(charms["tiny"], "tiny")
    model.settle(60)
    machine = model.machine_of("tiny/0")
    machine.run(["touch", "/root/break-config-changed"])
    model.configure("tiny", word="new")
    model.wait(lambda each: each.status()["tiny/0"][0] == "error", 30)
    assert model.run("tiny/0", "echo")["state"] == ""
    machine.run(["rm", "/root/break-config-changed"])
    model.settle(60)
    assert model.status()["tiny/0"] == ("active", "new")


def test_a_subordinate_lives_beside_its_principal_and_goes_before_it(
    model: Model, charms: dict[str, Path]
) -> None:
    model.deploy(charms["tiny"], "tiny")
    model.deploy(charms["beside"], "beside")
    model.integrate("tiny:juju-info", "beside:host")
    model.wait(lambda each: "beside/0" in each.status(), 60)
    model.settle(60)
    assert model.machine_of("beside/0") is model.machine_of("tiny/0")
    assert "host-relation-joined tiny/0" in hooks(model, "beside/0")
    machine = model.machine_of("tiny/0")
    model.remove_unit("tiny/0")
    model.wait(lambda each: not each.status(), 60)
    last = machine.run(["tail", "-n", "1", "/root/hooks-beside-0"]).strip()
    assert last == "remove"
    order = [unit for unit, hook in model.hooks_run if hook == "remove"]
    assert order == ["beside/0", "tiny/0"]


def test_a_machine_that_is_started_again_has_its_storage_and_answers(
    model: Model, charms: dict[str, Path]
) -> None:
    model.deploy(charms["tiny"], "tiny")
    model.settle(60)
    machine = model.machine_of("tiny/0")
    machine.run(["sh", "-c", "echo kept >/srv/tiny/file"])
    machine.reboot()
    assert machine.run(["cat", "/srv/tiny/file"]) == "kept\n"
    assert model.run("tiny/0", "echo", text="again")["said"] == "again"


def test_a_machine_that_is_cut_off_reaches_nobody(model: Model, charms: dict[str, Path]) -> None:
    model.deploy(charms["tiny"], "tiny", units=2)
    model.settle(60)
    one, other = model.machine_of("tiny/0"), model.machine_of("tiny/1")
    ping = ["ping", "-c", "1", "-W", "1", other.address]
    one.run(ping)
    one.disconnect()
    assert " 1 received" not in one.run(ping, check=False)
    one.connect()
    model.wait(lambda _: " 1 received" in one.run(ping, check=False), 20)


def test_a_machine_whose_plug_is_pulled_leaves_no_process_and_starts_again(
    model: Model, charms: dict[str, Path]
) -> None:
    model.deploy(charms["tiny"], "tiny")
    model.settle(60)
    machine = model.machine_of("tiny/0")
    inside = machine.run(["sh", "-c", "sleep 1234.5 >/dev/null 2>&1 & echo started"])
    assert inside == "started\n"
    machine.stop(kill=True)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert b"sleep\x001234.5\x00" not in running
    machine.start()
    assert model.run("tiny/0", "echo", text="back")["said"] == "back"

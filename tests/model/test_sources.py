"""Scenario 2. What is backed up is said in four places, and each of them counts.

A principal's file, the relation of one that knows Turku, the option, and the relation of one that
only knows the interface `backup`. What somebody says wrong is told where it stands, and costs
nobody a backup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.model.fleet import act, agent_beside
from tests.model.runner.model import Model

AGENT = "sources-agent"
"""An agent application of these tests' own, whose option is theirs to change."""

OPTION = "papers: {path: /srv/papers}"
RIGHT = {
    AGENT: {"sources": OPTION},
    "letters": {"file": "letters: {path: /srv/letters}"},
    "album": {"sources": '{"album": {"path": "/srv/album", "exclude": ["*.tmp"]}}'},
    "book": {"more-paths": ""},
}
"""What each application is configured with, as long as nobody makes a mistake."""

PRINCIPALS = ("letters/0", "album/0", "book/0", "book/1")
SAID = {
    ("letters/0", "letters"),
    ("album/0", "album"),
    ("book/0", "book-0"),
    ("book/1", "book-1"),
    *((machine, "papers") for machine in PRINCIPALS),
}
"""Each machine's sources: its principal's own, and that of the option."""


@pytest.fixture(scope="module")
def principals(small: Model) -> Model:
    """The small bundle with a principal of each kind."""
    small.deploy("turku-agent", AGENT, config=RIGHT[AGENT])
    small.integrate(f"{AGENT}:api", "turku-api:agents")
    small.deploy("asks-backup", "book", units=2, config=RIGHT["book"])
    small.deploy("drops-file", "letters", config=RIGHT["letters"])
    small.deploy("names-sources", "album", config=RIGHT["album"])
    for name in PRINCIPALS:
        script = 'mkdir /srv/papers; echo "a paper of $0" >/srv/papers/one'
        small.machine_of(name).run(["sh", "-c", script, name])
    small.settle(300)
    small.integrate("book:backup", f"{AGENT}:backup")
    small.integrate("book:juju-info", f"{AGENT}:host")
    small.integrate("letters:juju-info", f"{AGENT}:host")
    small.integrate("album:sources", f"{AGENT}:sources")
    small.settle(400)
    wait_for_sources(small, SAID)
    return small


@pytest.fixture
def as_it_was(principals: Model) -> Iterator[None]:
    """Put right what a test has let somebody say wrong."""
    yield
    for name, right in RIGHT.items():
        if principals.entities.applications[name].config != right:
            principals.configure(name, **right)
    look_again(principals)
    assert {agents_status(principals, name)[0] for name in PRINCIPALS} == {"active"}


def look_again(model: Model) -> None:
    """Let the agents see everything: files are only looked at when something happens."""
    model.settle(300)
    model.update_status(*(agent_beside(model, principal) for principal in PRINCIPALS))
    model.settle(300)


def wait_for_sources(model: Model, wanted: set[tuple[str, str]]) -> None:
    """Wait until each source of a machine has a good backup.

    The workload is asked itself: one action after another would keep the API's hooks waiting, and
    the machines with them.
    """
    command = ["/opt/turku-api/current/bin/turku-api", "list-sources", "--json"]

    def are_there(each: Model) -> bool:
        known = json.loads(each.machine_of("turku-api/0").run(command))
        return wanted <= {(one["machine"], one["source"]) for one in known if one["last_good"]}

    model.wait(are_there, 400, f"for backups of {sorted(wanted)}")


def agents_status(model: Model, principal: str) -> tuple[str, str]:
    """Return the status of the agent beside a principal's unit."""
    return model.status()[agent_beside(model, principal)]


def restored(model: Model, principal: str, source: str, path: str) -> str:
    """Restore a source of a machine, and return the text of one file of it."""
    said: dict[str, Any] = act(model, agent_beside(model, principal), "restore", source=source)
    return model.machine_of(principal).run(["cat", f"{said['target']}/{path}"])


def test_a_source_of_each_place_is_backed_up(principals: Model) -> None:
    assert restored(principals, "letters/0", "letters", "first") == "a letter of letters/0\n"
    assert restored(principals, "letters/0", "papers", "one") == "a paper of letters/0\n"
    assert restored(principals, "album/0", "album", "picture") == "a picture of album/0\n"
    listing = principals.machine_of("album/0").run(["ls", "/var/lib/turku-agent/restore/album/"])
    folder = f"/var/lib/turku-agent/restore/album/{listing.strip()}"
    assert principals.machine_of("album/0").run(["ls", folder]) == "picture\n"


@pytest.mark.parametrize("number", [0, 1])
def test_a_charm_that_only_knows_backup_has_each_units_dump_backed_up_and_its_scripts_run(
    principals: Model, number: int
) -> None:
    unit, tag = f"book/{number}", f"unit-book-{number}"
    machine = principals.machine_of(unit)
    scripts = machine.run(["cat", "/var/log/book-scripts"]).splitlines()
    assert scripts[:2] == [f"run-before-backup {tag}", f"run-after-backup {tag}"]
    # What the last script removes was there for the backup, under this unit's own name.
    machine.run(["test", "!", "-e", f"/srv/{tag}/dump"])
    source = f"book-{number}"
    assert restored(principals, unit, source, f"srv/{tag}/dump/page") == f"written by {unit}\n"
    assert restored(principals, unit, source, "etc/book.conf") == f"settings of {unit}\n"
    assert machine.run(["cat", "/var/log/book-scripts"]).splitlines() == scripts

    machine.run(["sh", "-c", "echo spoiled >/srv/book/page"])
    act(principals, agent_beside(principals, unit), "restore", source=source, in_place=True)
    assert machine.run(["cat", "/srv/book/page"]) == f"written by {unit}\n"
    assert machine.run(["cat", "/var/log/book-scripts"]).splitlines() == [
        *scripts,
        f"run-before-restore {tag}",
        f"run-after-restore {tag}",
    ]


@pytest.mark.usefixtures("as_it_was")
def test_a_script_that_one_unit_lacks_is_told_there_and_its_backup_goes_on(
    principals: Model,
) -> None:
    script = "/var/lib/juju/agents/unit-book-1/charm/scripts/run-before-backup"
    machine = principals.machine_of("book/1")
    machine.run(["mv", script, "/tmp/script"])
    look_again(principals)
    kind, words = agents_status(principals, "book/1")
    assert kind == "blocked"
    assert "relation backup of book: run-before-backup" in words
    assert f"no program {script} on book/1" in words
    assert agents_status(principals, "book/0")[0] == "active"
    said = act(principals, agent_beside(principals, "book/1"), "backup-now", sources=["book-1"])
    assert said["sources"]["book-1"]["outcome"] == "success"
    machine.run(["mv", "/tmp/script", script])


@pytest.mark.usefixtures("as_it_was")
def test_what_principals_say_wrong_is_told_where_it_stands_and_disturbs_no_other(
    principals: Model,
) -> None:
    file = "letters: {path: /srv/letters}\nnotes: {path: /srv/papers}\nbad: {path: srv}\n"
    relation = (
        '{"album": {"path": "/srv/album"}, "frames": {"path": "/srv/papers"}, '
        '"bad": {"path": "/srv", "retention": "for ever"}}'
    )
    principals.configure("letters", file=file)
    principals.configure("album", sources=relation)
    principals.configure("book", more_paths=",srv/relative")
    look_again(principals)
    told = {name: agents_status(principals, name) for name in PRINCIPALS}
    assert {kind for kind, _ in told.values()} == {"blocked"}
    assert "/etc/turku-agent/sources.d/drops-file.yaml, line 3" in told["letters/0"][1], told
    assert "relation sources of album/0: source 'bad': retention" in told["album/0"][1], told
    for unit in ("book/0", "book/1"):
        assert told[unit][1].startswith("relation backup of book: fileset"), told

    # What stands beside it in the same place counts, and what held before still does.
    wait_for_sources(principals, {("letters/0", "notes"), ("album/0", "frames")})
    for name, sources in (
        ("letters/0", {"letters", "notes", "papers"}),
        ("album/0", {"album", "frames", "papers"}),
        ("book/0", {"book-0", "papers"}),
    ):
        said = act(principals, agent_beside(principals, name), "backup-now")["sources"]
        assert {source: each["outcome"] for source, each in said.items()} == dict.fromkeys(
            sources, "success"
        )


@pytest.mark.usefixtures("as_it_was")
def test_an_option_that_is_wrong_is_told_and_disturbs_no_other(principals: Model) -> None:
    principals.configure(AGENT, sources="papers: {path: /srv/papers}\nbad: {path: [}\n")
    principals.settle(300)
    for name in PRINCIPALS:
        kind, words = agents_status(principals, name)
        assert kind == "blocked"
        assert "option sources, line 2" in words
    said = act(principals, agent_beside(principals, "letters/0"), "backup-now")["sources"]
    assert {source: each["outcome"] for source, each in said.items()} == {
        "letters": "success",
        "papers": "success",
    }

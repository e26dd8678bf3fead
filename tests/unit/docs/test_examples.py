"""What the documents tell people to type exists: programs, options, actions, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_house import helps_of, scripts
from tests.unit.docs.documents import (
    DOCUMENTS,
    TREE,
    Command,
    anchors,
    blocks,
    code_lines,
    commands,
    inner_command,
    links,
    parse,
)
from turku_core.agent.sources import check_sources

CHARMS = ("turku-api", "turku-agent", "turku-storage")
DJANGO = {"migrate", "changepassword", "dumpdata", "loaddata", "shell", "check", "help"}
"""Commands of turku-api that are Django's own."""

JUJU = {
    "add-model", "add-relation", "add-storage", "add-unit", "attach-storage", "bootstrap", "config",
    "consume", "debug-log", "deploy", "destroy-model", "detach-storage", "exec", "expose", "grant",
    "integrate", "offer", "refresh", "remove-application", "remove-relation", "remove-unit",
    "resolved", "run", "scp", "show-operation", "show-unit", "ssh", "status", "storage",
    "storage-pools", "switch", "version", "wait-for",
}  # fmt: skip
"""The commands of Juju 3.6 that the documents may use."""

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "int": int, "integer": int, "boolean": bool, "array": list,
}  # fmt: skip
PLACEHOLDER = re.compile(r"[A-Z][A-Z-]*")


@cache
def helps(script: str) -> dict[str, str]:
    return helps_of(script)


@cache
def charm(name: str) -> dict[str, Any]:
    text = (TREE / "charms" / name / "charmcraft.yaml").read_text("utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def charm_of(application: str) -> dict[str, Any] | None:
    """Return the charm of an application, which documents call by its charm's name."""
    return charm(application) if application in CHARMS else None


def all_commands() -> list[Command]:
    return [command for path in DOCUMENTS for command in commands(path)]


def problems_of_script(words: tuple[str, ...]) -> Iterator[str]:
    """Say what a command line of a console script names that it doesn't have."""
    script, *arguments = words
    known = helps(script)
    command = next((word for word in arguments if not word.startswith("-")), "")
    has_commands = len(known) > 1
    unknown = has_commands and command not in {*known, *DJANGO}
    if unknown and not PLACEHOLDER.fullmatch(command):
        yield f"{script} has no command {command}"
        return
    text = known[""] + known.get(command, "")
    choices = re.search(r"\{([a-z,-]+)\}", known[""])
    if choices and not has_commands and command and command not in choices[1].split(","):
        yield f"{script} takes no {command}"
    for word in arguments:
        option = re.match(r"-{1,2}[a-z][a-z-]*", word)
        if option and not re.search(rf"(?<![\w-]){option[0]}(?![\w-])", text):
            yield f"{script} {command}: no option {option[0]}".replace(" :", ":")


def problems_of_juju(command: Command) -> Iterator[str]:
    """Say what a command line of Juju names that our charms don't have."""
    verb, *rest = command.words[1:] or ("",)
    if verb not in JUJU and not PLACEHOLDER.fullmatch(verb):
        yield f"juju {verb} is none of the commands that documents use"
    words = [word for word in rest if not word.startswith("-")]
    if verb == "run":
        yield from _problems_of_run(words, command.synopsis)
    elif verb == "config":
        yield from _problems_of_config(words)
    elif verb in ("integrate", "remove-relation", "offer"):
        yield from _problems_of_endpoints(words)
    elif verb == "add-storage":
        yield from _problems_of_storage(words)
    elif verb == "deploy":
        yield from _problems_of_deploy(words, rest)


def _problems_of_run(words: list[str], synopsis: bool) -> Iterator[str]:
    units = [word for word in words if re.fullmatch(r"[a-z-]+/(\d+|leader)", word)]
    for unit in units:
        ours = charm_of(unit.partition("/")[0])
        if ours is None:
            continue
        name, *given = words[words.index(units[-1]) + 1 :]
        action = ours["actions"].get(name)
        if action is None:
            yield f"{ours['name']} has no action {name}"
            continue
        parameters = action.get("params", {})
        values = dict(each.partition("=")[::2] for each in given)
        for key, value in values.items():
            if key not in parameters:
                yield f"{ours['name']} {name} has no parameter {key}"
            elif not synopsis or value.strip("."):
                yield from _problems_of_value(f"{name} {key}", parameters[key], value)
        for key in set(action.get("required", [])) - set(values):
            yield f"{ours['name']} {name} needs {key}"


def _problems_of_value(where: str, schema: dict[str, Any], text: str) -> Iterator[str]:
    if PLACEHOLDER.fullmatch(text):
        return
    value = yaml.safe_load(text)
    if not isinstance(value, TYPES[schema["type"]]):
        yield f"{where}: {text} isn't of the type {schema['type']}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {text} is none of {schema['enum']}"
    elif "maximum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        yield f"{where}: {text} is out of range"


def _problems_of_config(words: list[str]) -> Iterator[str]:
    ours = charm_of(words[0]) if words else None
    if ours is None:
        return
    options = ours["config"]["options"]
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in options:
            if not PLACEHOLDER.fullmatch(key):
                yield f"{ours['name']} has no option {key}"
        elif ours["name"] == "turku-agent" and key == "sources":
            yield from problems_of_sources(yaml.safe_load(value), "option sources")
        elif equals and value and options[key]["type"] != "string":
            yield from _problems_of_value(f"option {key}", options[key], value)


def problems_of_sources(values: Any, where: str) -> list[str]:
    """Say what is wrong with sources, given as in a file of ``sources.d``."""
    return list(check_sources(values, {}, where).problems)


def _problems_of_endpoints(words: list[str]) -> Iterator[str]:
    for word in words:
        application, _, endpoints = word.rpartition("/")[2].partition(":")
        ours = charm_of(application.rpartition(".")[2])
        if ours is None or not endpoints:
            continue
        there = {**ours.get("provides", {}), **ours.get("requires", {})}
        for endpoint in endpoints.split(","):
            if endpoint not in there:
                yield f"{ours['name']} has no endpoint {endpoint}"


def _problems_of_storage(words: list[str]) -> Iterator[str]:
    ours = charm_of(words[0].partition("/")[0])
    for word in words[1:] if ours else []:
        name = word.partition("=")[0]
        if ours is not None and name not in ours["storage"]:
            yield f"{ours['name']} has no storage {name}"


def _problems_of_deploy(words: list[str], rest: list[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("./") and word.endswith(".yaml") and not (TREE / word).exists():
            yield f"{word} isn't there"
    ours = next((charm(name) for name in CHARMS if any(f"/{name}_" in w for w in words)), None)
    if ours is None:
        return
    for flag, value in pairwise(rest):
        key = value.partition("=")[0]
        if flag == "--config" and key not in ours["config"]["options"]:
            yield f"{ours['name']} has no option {key}"
        if flag == "--storage" and key not in ours["storage"]:
            yield f"{ours['name']} has no storage {key}"


def test_every_command_line_of_ours_in_the_documents_exists() -> None:
    problems = []
    checked = 0
    for command in all_commands():
        inner = inner_command(command.words)
        if inner and inner[0] in scripts():
            checked += 1
            problems += [f"{command.place}: {each}" for each in problems_of_script(inner)]
    assert problems == []
    assert checked > 50


def test_every_juju_command_line_in_the_documents_names_what_the_charms_have() -> None:
    problems = []
    checked = 0
    for command in all_commands():
        if command.words[0] == "juju" and len(command.words) > 1:
            checked += 1
            problems += [f"{command.place}: {each}" for each in problems_of_juju(command)]
    assert problems == []
    assert checked > 50


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(TREE)))
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target, anchor in links(path.read_text("utf-8")):
        there = (path.parent / target) if target else path
        if not there.exists():
            broken.append(target)
        elif anchor and anchor not in anchors(there.read_text("utf-8")):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_every_source_that_a_document_shows_is_valid() -> None:
    problems = []
    checked = 0
    for path in DOCUMENTS:
        for number, block in blocks(path.read_text("utf-8")):
            try:
                values = yaml.safe_load(block)
            except yaml.YAMLError:
                continue
            if isinstance(values, dict) and all(
                isinstance(each, dict) and "path" in each for each in values.values()
            ):
                checked += 1
                problems += problems_of_sources(values, f"{path.relative_to(TREE)}:{number}")
    assert problems == []
    assert checked


def test_every_document_is_in_the_index() -> None:
    index = TREE / "docs/README.md"
    listed = {(index.parent / target).resolve() for target, _ in links(index.read_text("utf-8"))}
    assert {path for path in DOCUMENTS if path != index} - listed == set()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("turku-agent-ping --no-such", "turku-agent-ping: no option --no-such"),
        ("turku-agent-ping --restor", "turku-agent-ping: no option --restor"),
        ("turku-storage erase", "turku-storage has no command erase"),
        ("turku-storage list --target x", "turku-storage list: no option --target"),
        ("turku-update-config frobnicate", "turku-update-config takes no frobnicate"),
        ("turku-api retire web/0 --hard", "turku-api retire: no option --hard"),
    ],
)
def test_a_command_line_that_does_not_exist_is_found(line: str, problem: str) -> None:
    assert list(problems_of_script(parse(line))) == [problem]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("juju run turku-agent/0 restor source=a", "turku-agent has no action restor"),
        ("juju run turku-agent/0 restore", "turku-agent restore needs source"),
        ("juju run turku-agent/0 check deep=true", "turku-agent check has no parameter deep"),
        (
            "juju run turku-agent/0 backup-now sources=etc",
            "backup-now sources: etc isn't of the type array",
        ),
        (
            "juju run turku-api/leader create-registration-key name=a kind=c",
            "create-registration-key kind: c is none of ['machine', 'storage']",
        ),
        (
            "juju run turku-api/leader list-backups machine=a limit=0",
            "list-backups limit: 0 is out of range",
        ),
        (
            "juju config turku-agent sources='{etc: {}}'",
            "option sources: source 'etc': path is missing.",
        ),
        ("juju config turku-api zone=UTC", "turku-api has no option zone"),
        ("juju config turku-storage slots=many", "option slots: many isn't of the type int"),
        ("juju integrate turku-agent:apis turku-api", "turku-agent has no endpoint apis"),
        ("juju offer turku-api:agents,storage", "turku-api has no endpoint storage"),
        ("juju add-storage turku-storage/0 volume=1T", "turku-storage has no storage volume"),
        ("juju deploy ./bundles/none.yaml", "./bundles/none.yaml isn't there"),
        (
            "juju deploy ./build/turku-storage_ubuntu@24.04-amd64.charm --storage disks=1T",
            "turku-storage has no storage disks",
        ),
        ("juju relate a b", "juju relate is none of the commands that documents use"),
    ],
)  # fmt: skip
def test_a_juju_command_line_that_does_not_exist_is_found(line: str, problem: str) -> None:
    assert list(problems_of_juju(Command("here", parse(line), False))) == [problem]


def test_code_is_what_is_indented_fenced_or_a_span_but_not_what_a_program_prints() -> None:
    text = "Say `a b`.\n\n    c \\\n      d\n\n```\ne\n```\n\n```text\nf\n```\n  - g\n    h\n"
    assert list(code_lines(text)) == [(1, "a b"), (3, "c  d"), (7, "e")]


def test_a_block_is_what_stands_together() -> None:
    text = "A:\n\n    a:\n      b: 1\n\nB `c`:\n\n```yaml\nd: 1\n```\n"
    assert [block.strip() for _, block in blocks(text)] == ["a:\n  b: 1", "d: 1"]


def test_a_command_may_come_after_a_prompt_a_folder_or_juju() -> None:
    assert parse("# sudo A=1 /opt/x/bin/turku-api health | less") == ("turku-api", "health")
    assert parse("turku-api set-filter-set junk <<'END'") == ("turku-api", "set-filter-set", "junk")
    assert inner_command(parse("juju ssh web/0 sudo /opt/x/turku-agent-ping --list")) == (
        "turku-agent-ping",
        "--list",
    )
    assert inner_command(parse("juju exec --unit web/0 -- turku-agent-ping --list")) == (
        "turku-agent-ping",
        "--list",
    )


def test_every_file_of_the_library_that_a_document_names_is_there() -> None:
    missing = []
    for path in DOCUMENTS:
        for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", path.read_text("utf-8")):
            if not any((TREE / top / name).exists() for top in ("lib/turku_core", ".")):
                missing.append(f"{path.relative_to(TREE)}: {name}")
    assert missing == []

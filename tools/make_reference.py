"""Write the reference pages of the charms and of their relations from the files that define them.

    python tools/make_reference.py            write the pages
    python tools/make_reference.py --check    write nothing; exit code 1 if a page isn't up to date

The charms' pages are made from charms/*/charmcraft.yaml, the relations' from the classes of
turku_core.relations and their docstrings. Nothing is added here but the order and the words around.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import yaml

from turku_core import relations
from turku_core.credentials import PublicKey
from turku_core.fields import FieldError
from turku_core.relations import (
    AgentUnit,
    ApiAccess,
    BackupRequest,
    PrincipalSources,
    StorageUnit,
)

TREE = Path(__file__).resolve().parent.parent
REFERENCE = Path("docs/reference")
CHARMS = ("turku-api", "turku-agent", "turku-storage")

_MADE = "<!-- Made by `make reference` from {source}; what is changed here is lost. -->\n"
_LINE_MAX = 100
_ROLES = ("provides", "requires", "peers")
_TYPES = {
    "string": "text",
    "int": "whole number",
    "integer": "whole number",
    "float": "number",
    "number": "number",
    "boolean": "`true` or `false`",
    "array": "list",
    "object": "mapping",
}


# Markdown


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a cell's line breaks become spaces."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(value: object) -> str:
    return f"`{value}`"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n")) + "\n"


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"{title}\n", *(part for part in parts if part)])


# The charms


def charm_page(name: str, charm: Mapping[str, Any]) -> str:
    """Return the reference page of a charm.

    Args:
        name: The charm's folder below ``charms/``.
        charm: What stands in its ``charmcraft.yaml``.
    """
    sections = [
        _section(
            f"# The charm {name}",
            _MADE.format(source=f"charms/{name}/charmcraft.yaml"),
            _paragraphs(charm["description"]),
            table(("", ""), list(_facts(charm))),
        ),
        _section("## Options", _options(name, charm)),
        _section("## Relations", _relations(charm)),
        _section("## Storage", _storage(charm)) if charm.get("storage") else "",
        _section("## Actions", _ACTIONS, *_actions(name, charm)),
    ]
    return "\n".join(section for section in sections if section)


def _facts(charm: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "runs on", ", ".join(sorted(_bases(charm)))
    yield "needs", ", ".join(f"`{each}`" for each in charm.get("assumes", []))
    if charm.get("subordinate"):
        yield "kind", "subordinate: it goes beside each unit of the applications it is related to"


def _bases(charm: Mapping[str, Any]) -> set[str]:
    """Return the bases with their architectures, such as ``ubuntu@24.04 (amd64, arm64)``."""
    found: dict[str, list[str]] = {}
    for platform in charm["platforms"]:
        base, _, architecture = platform.rpartition(":")
        found.setdefault(base or charm["base"], []).append(architecture)
    return {f"{base} ({', '.join(each)})" for base, each in found.items()}


def _options(name: str, charm: Mapping[str, Any]) -> str:
    rows = [
        (
            _code(option),
            _type(values),
            _default(values),
            values["description"],
        )
        for option, values in charm.get("config", {}).get("options", {}).items()
    ]
    options = table(("option", "type", "default", "meaning"), rows)
    return f"Set with `juju config {name} OPTION=VALUE`.\n\n{options}"


def _type(values: Mapping[str, Any]) -> str:
    if "enum" in values:
        return " or ".join(_code(each) for each in values["enum"])
    kind = _TYPES[values["type"]]
    if "minimum" in values or "maximum" in values:
        low, high = values.get("minimum"), values.get("maximum")
        between = f" from {low} to {high}" if high is not None else f", at least {low}"
        return kind + between
    if values["type"] == "array":
        return f"list of {_TYPES[values['items']['type']]}"
    return kind


def _default(values: Mapping[str, Any]) -> str:
    if "default" not in values:
        return ""
    default = values["default"]
    if default == "":
        return "empty"
    return _code(default if isinstance(default, str) else json.dumps(default))


def _relations(charm: Mapping[str, Any]) -> str:
    rows = []
    for role in _ROLES:
        for endpoint, values in charm.get(role, {}).items():
            remarks = [
                *(["on the same machine"] if values.get("scope") == "container" else []),
                *([f"at most {values['limit']}"] if "limit" in values else []),
                *(["optional"] if values.get("optional") else []),
            ]
            rows.append(
                (
                    _code(endpoint),
                    _code(values["interface"]),
                    ", ".join(["peer" if role == "peers" else role, *remarks]),
                    values.get("description", ""),
                )
            )
    known = "What is carried over them is in [the relations](relations.md).\n"
    return table(("endpoint", "interface", "side", "meaning"), rows) + "\n" + known


def _storage(charm: Mapping[str, Any]) -> str:
    rows = [
        (
            _code(name),
            values["type"],
            _how_many(values),
            values.get("minimum-size", ""),
            _code(values["location"]) if "location" in values else "",
            values["description"],
        )
        for name, values in charm["storage"].items()
    ]
    return table(("name", "type", "how many", "at least", "mounted at", "meaning"), rows)


def _how_many(values: Mapping[str, Any]) -> str:
    low, dash, high = str(values.get("multiple", {}).get("range", "1")).partition("-")
    if not dash:
        return low
    return f"{low} to {high}" if high else f"{low} or more"


_ACTIONS = """\
Run with `juju run UNIT ACTION KEY=VALUE...`. Juju reads values as YAML, so that a list is written
`paths='[etc/hosts, srv]'`. It waits for a minute unless told otherwise (`--wait=1h`); the action
goes on all the same, and `juju show-operation` shows how it went. Every action answers with
`result`, for a person, and `json`, for a program; one that fails says why in a sentence.
"""


def _actions(name: str, charm: Mapping[str, Any]) -> Iterator[str]:
    for action, values in charm["actions"].items():
        parameters = values.get("params", {})
        required = values.get("required", [])
        words = [
            *(f"{each}=..." for each in required),
            *(f"[{each}=...]" for each in parameters if each not in required),
        ]
        rows = [
            (
                _code(parameter),
                _type(each),
                "required" if parameter in required else _default(each),
                each["description"],
            )
            for parameter, each in parameters.items()
        ]
        yield _section(
            f"### {action}",
            _paragraphs(values["description"]),
            _usage(f"juju run {name}/0 {action}", words),
            table(("parameter", "type", "default", "meaning"), rows) if rows else "",
        )


def _usage(command: str, words: Sequence[str]) -> str:
    """Return a command as an indented block, broken where it would be too long."""
    lines = [f"    {command}"]
    for word in words:
        if len(lines[-1]) + len(word) + 3 > _LINE_MAX:
            lines[-1] += " \\"
            lines.append("      ")
        lines[-1] += f" {word}"
    return "\n".join(lines) + "\n"


# The relations


class Databag(Protocol):
    """What the classes of `turku_core.relations` have in common."""

    def to_databag(self) -> dict[str, str]:
        """Return what one side writes."""
        ...

    @classmethod
    def from_databag(cls, databag: Mapping[str, str]) -> object:
        """Take in what the other side wrote."""
        ...


@dataclass(frozen=True)
class Example:
    """Two databags of a class that differ in every attribute: the first is shown."""

    shown: Databag
    other: Databag


def _key(letter: str) -> PublicKey:
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAI" + letter * 42 + "A"
    return PublicKey.parse(f"ssh-ed25519 {blob}")


_SCRIPTS = ("run-before-backup", "run-after-backup", "run-before-restore", "run-after-restore")

EXAMPLES = (
    Example(
        ApiAccess(
            ("https://192.0.2.10/v1", "https://192.0.2.11/v1"),
            "-----BEGIN CERTIFICATE-----\n...",
            "agents-3",
            "secret:d0eqfjnmp25c76m2a1t0",
        ),
        ApiAccess(("https://192.0.2.12/v1",), "-----BEGIN CERTIFICATE-----\n", "a", "secret:a"),
    ),
    Example(
        AgentUnit("6ba7b810-9dad-41d1-80b4-00c04fd430c8", _key("B"), "web/0"),
        AgentUnit("6ba7b810-9dad-41d1-80b4-00c04fd430c9", _key("C"), "web/1"),
    ),
    Example(
        StorageUnit("turku-storage-0", "192.0.2.20", 22, (_key("D"),)),
        StorageUnit("turku-storage-1", "192.0.2.21", 2222, (_key("E"),)),
    ),
    Example(
        PrincipalSources({"srv": {"path": "/srv", "frequency": "daily, 2000-0600"}}),
        PrincipalSources({}),
    ),
    Example(
        BackupRequest(("/srv/data", "/etc/app"), {key: f"/opt/app/{key}" for key in _SCRIPTS}),
        BackupRequest(("/srv",), {}),
    ),
)


def relations_page() -> str:
    """Return the reference page of the relations."""
    head = _section(
        "# The relations",
        _MADE.format(source="lib/turku_core/relations.py"),
        "What the charms write into their relations' databags. Each value is text; where the type "
        "says JSON,\nthe text is that. A databag that is still empty belongs to a side that isn't "
        "ready yet. Keys that a\nside doesn't know are passed over, and `version` is the schema's: "
        f"`{relations.SCHEMA}`. Every value is checked by\nthe side that reads it.\n",
        "The registration key itself is never in a databag: it is the content of the Juju secret "
        "that\n`registration_secret_id` names, under the key `secret`, and granted to that one "
        "relation.\n",
        _overview(),
    )
    return "\n".join([head, *map(_databag_section, EXAMPLES)])


def writers() -> list[tuple[str, str, str, str]]:
    """Return the rows of the table in the module's docstring: relation, interface, who, class."""
    rows: list[tuple[str, str, str, str]] = []
    for line in (inspect.getdoc(relations) or "").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 4 or cells[3] in ("class", "---"):
            continue
        relation, interface = cells[:2] if cells[0] else rows[-1][:2]
        rows.append((relation, interface, cells[2], cells[3].strip("`")))
    return rows


def _overview() -> str:
    rows = [
        (relation.replace(" - ", " – "), _code(interface), who, f"[{cls}](#{cls.lower()})")
        for relation, interface, who, cls in writers()
    ]
    return table(("relation", "interface", "who writes", "what"), rows)


def _databag_section(example: Example) -> str:
    cls = type(example.shown)
    summary, meanings = read_docstring(inspect.getdoc(cls) or "")
    who = ", ".join(
        f"{writer} over `{interface}`" for _, interface, writer, name in writers()
        if name == cls.__name__
    )  # fmt: skip
    bag = example.shown.to_databag()
    keys = keys_of(example)
    rows = [
        (
            ", ".join(map(_code, keys[name])),
            _databag_type([bag[key] for key in keys[name]]),
            "yes" if _is_required(cls, bag, keys[name]) else "",
            meaning,
        )
        for name, meaning in meanings.items()
    ]
    shown = "".join(f"    {key}: {json.dumps(value)[1:-1]}\n" for key, value in bag.items())
    return _section(
        f"## {cls.__name__}",
        f"{summary}\n",
        f"Written by {who}.\n",
        table(("key", "type", "required", "meaning"), rows),
        "For example:\n",
        shown.replace('\\"', '"'),
    )


def keys_of(example: Example) -> dict[str, list[str]]:
    """Return which keys of the databag each attribute of the class is written to."""
    shown = cast(Any, example.shown)
    before = shown.to_databag()
    found = {}
    for each in dataclasses.fields(shown):
        changed = dataclasses.replace(shown, **{each.name: getattr(example.other, each.name)})
        after = changed.to_databag()
        found[each.name] = [key for key in before if before[key] != after.get(key)]
    return found


def _is_required(cls: type[Databag], bag: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Say whether the other side can't do without these keys."""
    try:
        return cls.from_databag({k: v for k, v in bag.items() if k not in keys}) is None
    except FieldError:
        return True


def _databag_type(values: Sequence[str]) -> str:
    kinds = {list: "JSON list", dict: "JSON object", int: "whole number"}
    try:
        return kinds[type(json.loads(values[0]))]
    except (ValueError, KeyError):
        return "text"


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return a class's docstring without its attributes, and their meanings by name."""
    summary, _, attributes = text.partition("\n\nAttributes:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.splitlines():
        begins = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if begins:
            names = begins[1].split(", ")
            meanings |= dict.fromkeys(names, begins[2])
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return _plain(summary), {name: _plain(text) for name, text in meanings.items()}


def _plain(text: str) -> str:
    """Return a docstring's text for who doesn't read Python: None is a key that is left out."""
    return re.sub(r"\bNone\b", "left out", text.replace("``", "`")).strip()


# The program


def pages() -> dict[Path, str]:
    """Return what every page made here should hold, by its path in the tree."""
    made = {}
    for name in CHARMS:
        charm = yaml.safe_load((TREE / "charms" / name / "charmcraft.yaml").read_text("utf-8"))
        made[REFERENCE / f"charm-{name}.md"] = charm_page(name, charm)
    made[REFERENCE / "relations.md"] = relations_page()
    return made


def outdated() -> dict[Path, str]:
    """Return the pages that don't hold what they should, with what they should hold."""
    return {
        path: text
        for path, text in pages().items()
        if not (TREE / path).exists() or (TREE / path).read_text("utf-8") != text
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what isn't up to date, or only say so, and return the exit code."""
    parser = argparse.ArgumentParser(description="Write the reference pages of charms, relations.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if there is any")
    check = parser.parse_args(arguments).check
    changed = outdated()
    for path, text in changed.items():
        if check:
            print(f"{path} is not up to date: make reference", file=sys.stderr)
        else:
            (TREE / path).write_text(text, "utf-8")
            print(f"wrote {path}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())

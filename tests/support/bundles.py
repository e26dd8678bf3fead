"""What is wrong with a bundle: by its schema, by itself, and by the charms that it names.

The schema says where its rules are from. The rest are the checks of Juju's own verifier (the same
file of Juju) that a schema can't say, and those that Juju makes only when it deploys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tools.charm_packages import TREE
from tools.pack_charms import BASES, Build, file_name, read_project

SCHEMA = Path(__file__).with_name("juju_bundle.schema.json")

_TYPES = {"string": str, "int": int, "float": float, "boolean": bool}

FOREIGN: dict[str, dict[str, Any]] = {
    "ubuntu": {"name": "ubuntu"},
    "postgresql": {
        "name": "postgresql",
        "provides": {"database": {"interface": "postgresql_client"}},
    },
}
"""What is used of charms that come from Charmhub."""

Bundle = Mapping[str, Any]
Charm = Mapping[str, Any]


def read(name: str) -> dict[str, Any]:
    """Return one of our bundles."""
    bundle: dict[str, Any] = yaml.safe_load((TREE / "bundles" / name).read_text("utf-8"))
    return bundle


def problems(bundle: Bundle) -> list[str]:
    """Return what is wrong with a bundle, in sentences; a bundle in ``bundles/`` is meant."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    wrong = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(bundle)]
    if wrong:
        return wrong  # what follows relies on the forms
    charms = {name: _charm(app["charm"]) for name, app in bundle["applications"].items()}
    return [
        *(f"{name}: there is no charm {bundle['applications'][name]['charm']}"
          for name, charm in charms.items() if charm is None),
        *_of_placement(bundle),
        *_of_applications(bundle, {name: charm for name, charm in charms.items() if charm}),
        *_of_relations(bundle, {name: charm for name, charm in charms.items() if charm}),
    ]  # fmt: skip


def _charm(path: str) -> Charm | None:
    """Return what a charm says of itself: one that `make charms` builds, or one that we know."""
    if not path.startswith("."):
        return FOREIGN.get(path)
    file = (TREE / "bundles" / path).resolve()
    name = file.name.partition("_")[0]
    if file.parent != TREE / "build" or not (TREE / "charms" / name).is_dir():
        return None
    project = read_project(name)
    builds = (platform.split(":") for platform in project["platforms"])
    names = {file_name(name, Build.of(base, arch)) for base, arch in builds if base in BASES}
    return project if file.name in names else None


def _of_placement(bundle: Bundle) -> Iterator[str]:
    applications = bundle["applications"]
    machines = {str(name) for name in bundle.get("machines", {})}
    used = set()
    for name, application in applications.items():
        places = application.get("to", [])
        if len(places) > application.get("num_units", 0):
            yield f"{name}: more places than units"
        for place in places:
            where, _, unit = place.rpartition(":")[2].partition("/")
            if where.isdigit():
                used.add(where)
                if where not in machines:
                    yield f"{name}: there is no machine {where}"
            elif where != "new" and where not in applications:
                yield f"{name}: it is placed beside {where}, which isn't in the bundle"
            elif unit and int(unit) >= applications[where].get("num_units", 0):
                yield f"{name}: there is no unit {place}"
    yield from (f"machine {name}: nothing is placed on it" for name in sorted(machines - used))


def _of_applications(bundle: Bundle, charms: Mapping[str, Charm]) -> Iterator[str]:
    for name, charm in charms.items():
        application = bundle["applications"][name]
        is_local = application["charm"].startswith(".")
        base = application.get("base", bundle.get("default-base"))
        if charm.get("subordinate") and ("num_units" in application or "to" in application):
            yield f"{name}: a subordinate has neither units nor places of its own"
        if not charm.get("subordinate") and not application.get("num_units"):
            yield f"{name}: no units"
        if is_local and f"_{base}-" not in application["charm"]:
            yield f"{name}: {application['charm']} isn't packed for {base}"
        if not is_local and "channel" not in application:
            yield f"{name}: no channel"
        yield from (f"{name}: {text}" for text in _of_options(application, charm))
        yield from (f"{name}: {text}" for text in _of_storage(application, charm))


def _of_options(application: Mapping[str, Any], charm: Charm) -> Iterator[str]:
    known = charm.get("config", {}).get("options", {})
    for option, value in application.get("options", {}).items():
        if option not in known:
            yield f"there is no option {option}"
        elif type(value) is not _TYPES[known[option]["type"]]:
            yield f"the option {option} is {known[option]['type']}"


def _of_storage(application: Mapping[str, Any], charm: Charm) -> Iterator[str]:
    known = charm.get("storage", {})
    for name, directive in application.get("storage", {}).items():
        if name not in known:
            yield f"there is no storage {name}"
            continue
        counts = [int(word) for word in directive.split(",") if word.isdigit()]
        count = counts[0] if counts else 1
        least, most = _times(str(known[name].get("multiple", {}).get("range", "1")))
        if count < least or (most is not None and count > most):
            yield f"there can't be {count} of the storage {name}"


def _times(text: str) -> tuple[int, int | None]:
    """Return the least and the largest count of a range: ``2``, ``0-1``, ``1-`` or ``1+``."""
    least, dash, most = text.replace("+", "-").partition("-")
    if most:
        return int(least), int(most)
    return int(least), None if dash else int(least)


def _of_relations(bundle: Bundle, charms: Mapping[str, Charm]) -> Iterator[str]:
    seen = set()
    for pair in bundle.get("relations", []):
        both = " and ".join(pair)
        applications = [endpoint.partition(":")[0] for endpoint in pair]
        for name in applications:
            if name not in bundle["applications"]:
                yield f"{both}: {name} isn't in the bundle"
        if applications[0] == applications[1]:
            yield f"{both}: an application isn't related to itself"
        if frozenset(pair) in seen:
            yield f"{both}: related twice"
        seen.add(frozenset(pair))
        ends = [_end(endpoint, charms) for endpoint in pair]
        for endpoint, end in zip(pair, ends, strict=True):
            if end is None:
                yield f"{both}: there is no endpoint {endpoint}"
        if ends[0] is not None and ends[1] is not None:
            if {ends[0][0], ends[1][0]} != {"provides", "requires"}:
                yield f"{both}: not a provider and a requirer"
            if ends[0][1] != ends[1][1]:
                yield f"{both}: the interfaces are {ends[0][1]} and {ends[1][1]}"


def _end(endpoint: str, charms: Mapping[str, Charm]) -> tuple[str, str] | None:
    """Return the role and the interface of a relation's end; we name both ends in full."""
    application, _, name = endpoint.partition(":")
    charm = charms.get(application, {})
    for role in ("provides", "requires"):
        if name in charm.get(role, {}):
            return role, charm[role][name]["interface"]
    # Every charm has this one by nature.
    return ("provides", "juju-info") if name == "juju-info" and charm else None

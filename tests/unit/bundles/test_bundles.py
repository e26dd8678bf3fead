"""The bundles hold against Juju's rules and the charms' own files; wrong ones don't."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.support.bundles import problems, read
from turku_core.agent.sources import check_sources

NAMES = ["turku.yaml", "turku-ha.yaml"]
Bundle = dict[str, Any]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_ours_is_valid(name: str) -> None:
    assert problems(read(name)) == []


def test_the_small_bundle_is_one_unit_of_each_and_a_machine_to_back_up() -> None:
    applications = read("turku.yaml")["applications"]
    assert {name: app.get("num_units") for name, app in applications.items()} == {
        "turku-api": 1, "turku-storage": 1, "turku-agent": None, "ubuntu": 1,
    }  # fmt: skip


def test_the_larger_bundle_has_two_of_each_with_postgresql_and_block_storage() -> None:
    bundle = read("turku-ha.yaml")
    applications = bundle["applications"]
    assert applications["turku-api"]["num_units"] == 2
    assert applications["turku-storage"]["num_units"] == 2
    assert "volumes" in applications["turku-storage"]["storage"]
    assert ["turku-api:database", "postgresql:database"] in bundle["relations"]


@pytest.mark.parametrize("name", NAMES)
def test_the_sources_in_a_bundle_are_such_as_an_agent_takes(name: str) -> None:
    given = yaml.safe_load(read(name)["applications"]["turku-agent"]["options"]["sources"])
    checked = check_sources(given, {}, name)
    assert list(checked.sources) == ["etc"]
    assert checked.problems == ()


def put(*path: str | int, value: object) -> Callable[[Bundle], None]:
    """Return what puts a value into a bundle at a path."""

    def change(bundle: Bundle) -> None:
        at: Any = bundle
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def take(*path: str | int) -> Callable[[Bundle], None]:
    """Return what takes the value at a path out of a bundle."""

    def change(bundle: Bundle) -> None:
        at: Any = bundle
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


A = "applications"
API = "../build/turku-api_ubuntu@24.04-amd64.charm"

WRONG = {
    "no applications": (take(A), "'applications' is a required property"),
    "a slip of the pen": (put("aplications", value={}), "was unexpected"),
    "an unknown field": (put(A, "ubuntu", "num-units", value=1), "was unexpected"),
    "no charm": (take(A, "ubuntu", "charm"), "'charm' is a required property"),
    "a bad name": (put(A, "Turku_API", value={"charm": "x"}), "does not match"),
    "units in words": (put(A, "ubuntu", "num_units", value="one"), "is not of type"),
    "fewer than none": (put(A, "ubuntu", "num_units", value=-1), "is less than the minimum"),
    "a series for a base": (put("default-base", value="noble"), "does not match"),
    "a bad channel": (put(A, "ubuntu", "channel", value="newest"), "does not match"),
    "storage as a mapping": (put(A, "turku-api", "storage", value={"data": {}}), "not of type"),
    "a relation of three": (put("relations", 0, value=["a", "b", "c"]), "is too long"),
    "a relation of one": (put("relations", 0, value=["turku-api:agents"]), "is too short"),
    "an endpoint in bad form": (put("relations", 0, value=["a::b", "c"]), "does not match"),
    "a charm that isn't built": (
        put(A, "turku-api", "charm", value="../build/turku-api_amd64.charm"),
        "there is no charm",
    ),
    "a charm for another base": (
        put(A, "turku-agent", "base", value="ubuntu@22.04"),
        "isn't packed for ubuntu@22.04",
    ),
    "a base that a charm isn't for": (
        put(A, "turku-api", "charm", value=API.replace("24.04", "22.04")),
        "there is no charm",
    ),
    "a charm of an absent store": (put(A, "ubuntu", "charm", value="ubunutu"), "there is no charm"),
    "no channel": (take(A, "ubuntu", "channel"), "no channel"),
    "a principal without units": (take(A, "turku-api", "num_units"), "turku-api: no units"),
    "units of a subordinate": (put(A, "turku-agent", "num_units", value=1), "a subordinate has"),
    "an option that isn't there": (
        put(A, "turku-agent", "options", value={"souces": ""}),
        "there is no option souces",
    ),
    "an option of another type": (
        put(A, "turku-storage", "options", value={"slots": "ten"}),
        "the option slots is int",
    ),
    "storage that isn't there": (
        put(A, "turku-storage", "storage", value={"volume": "1G"}),
        "there is no storage volume",
    ),
    "too much storage": (
        put(A, "turku-storage", "storage", value={"data": "2,1G"}),
        "there can't be 2 of the storage data",
    ),
    "an application that isn't there": (
        put("relations", 0, value=["turku-api:agents", "agent:api"]),
        "agent isn't in the bundle",
    ),
    "an endpoint that isn't there": (
        put("relations", 0, value=["turku-api:agent", "turku-agent:api"]),
        "there is no endpoint turku-api:agent",
    ),
    "ends that don't fit": (
        put("relations", 0, value=["turku-api:agents", "turku-storage:api"]),
        "the interfaces are turku_agent and turku_storage",
    ),
    "two requirers": (
        put("relations", 0, value=["turku-storage:api", "turku-agent:api"]),
        "not a provider and a requirer",
    ),
    "a relation to itself": (
        put("relations", 0, value=["turku-api:agents", "turku-api:storages"]),
        "isn't related to itself",
    ),
    "a relation twice": (
        put("relations", 0, value=["turku-agent:api", "turku-api:agents"]),
        "related twice",
    ),
    "a machine that isn't there": (put(A, "ubuntu", "to", value=["0"]), "there is no machine 0"),
    "a machine that nothing is on": (put("machines", value={"0": None}), "nothing is placed on it"),
    "a place beside a stranger": (
        put(A, "ubuntu", "to", value=["lxd:mysql"]),
        "isn't in the bundle",
    ),
    "a place beside a unit too many": (
        put(A, "ubuntu", "to", value=["turku-api/1"]),
        "there is no unit turku-api/1",
    ),
    "more places than units": (
        put(A, "ubuntu", "to", value=["new", "new"]),
        "more places than units",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bundle_that_is_wrong_is_refused_for_that(what: str) -> None:
    change, words = WRONG[what]
    bundle = copy.deepcopy(read("turku.yaml"))
    change(bundle)
    found = problems(bundle)
    assert any(words in problem for problem in found), found


def test_machines_and_places_that_fit_are_taken() -> None:
    bundle = copy.deepcopy(read("turku.yaml"))
    bundle["machines"] = {"0": {"base": "ubuntu@24.04", "constraints": "mem=2G"}}
    bundle["applications"]["turku-api"]["to"] = ["lxd:0"]
    bundle["applications"]["turku-storage"]["to"] = ["turku-api/0"]
    bundle["applications"]["ubuntu"]["to"] = ["new"]
    assert problems(bundle) == []

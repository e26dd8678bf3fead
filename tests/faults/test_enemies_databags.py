"""Databags of foreign charms, on every relation of the three charms: hooks of the real charms.

Whatever stands in one: the hook ends well, the status says a sentence, no secret of ours goes
anywhere, and what the other side says is taken whole or not at all. When it comes to its senses,
everything is as if it had never said anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import sqlite3
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ops import testing

from tests.faults import hostile
from tests.faults.parsers import KEY, SETTINGS, UUID
from tests.faults.tally import FULL, SEED, Tally, times
from tests.support.agent_unit import AgentUnit, use_stand_in_host
from tests.support.api_unit import Api, first_state, stand_in_for_systemd
from tests.support.api_unit import content as content_of
from tests.support.workload import use_this_environment
from tests.unit.charms.storage.conftest import ACCESS, Systemd, Unit
from tests.unit.charms.storage.conftest import KEY as STORAGE_KEY
from turku_charm import host
from turku_core.agent.sources import load_sources
from turku_core.credentials import PublicKey
from turku_core.relations import AgentUnit as AgentUnitBag
from turku_core.relations import ApiAccess, PrincipalSources, StorageUnit

STATUSES = ("active", "waiting", "blocked", "maintenance")
SENTENCE_MAX = 1000

Databag = dict[str, str]


@st.composite
def databags(draw: st.DrawFn, example: Databag) -> Databag:
    """Draw a databag like `example`: changed as a whole, or inside the JSON of its values."""
    bag: Any = dict(example)
    structured = [key for key, value in bag.items() if value[:1] in "[{"]
    kind = draw(st.sampled_from(("inside", "outside", "both")))
    if structured and kind != "outside":
        key = draw(st.sampled_from(structured))
        bag[key] = json.dumps(draw(hostile.changed(json.loads(bag[key]))))
    if not structured or kind != "inside":
        bag = draw(hostile.changed(bag))
    bag = bag if isinstance(bag, dict) else {"version": str(bag)}
    # Juju carries text in UTF-8 under names of the usual kind, and nothing else.
    return {
        key: value
        for key, value in bag.items()
        if isinstance(value, str) and _is_utf_8(value) and re.fullmatch(r"[\w.-]{1,60}", key)
    }


def _is_utf_8(text: str) -> bool:
    return not re.search("[\ud800-\udfff\0]", text)


@dataclass
class Side:
    """A unit of one of our charms, with a relation on which the enemy speaks.

    Attributes:
        hear: Runs the hook of a change, with this databag on the other side.
        state: Returns the unit's state afterwards.
        content: Returns what the unit keeps on its machine.
        secrets: What must not be in a databag of ours.
        check: Looks for what is half-taken; gets the databag.
    """

    hear: Callable[[Databag], None]
    state: Callable[[], testing.State]
    content: Callable[[], Any]
    secrets: tuple[str, ...]
    check: Callable[[Databag], None]


def _ours(state: testing.State) -> str:
    """Return all that the unit says over its relations."""
    said = []
    for relation in state.relations:
        for bag in (relation.local_app_data, relation.local_unit_data):
            values: Mapping[str, str] = bag
            said += [f"{key}={values[key]}" for key in values]
    return "\n".join(said)


def _with(relation: Any, where: str, bag: Databag) -> Any:
    """Return a relation on which the other side says something."""
    if where == "remote_units_data":
        return dataclasses.replace(relation, remote_units_data={0: bag})
    if where == "peers_data":
        return dataclasses.replace(relation, peers_data={1: bag})
    return dataclasses.replace(relation, **{where: bag})


@dataclass(frozen=True)
class Place:
    """An end of a relation, and what an honest other side writes there.

    Attributes:
        kind: Which class of ops.testing it is.
        where: Which of the other side's databags.
    """

    charm: str
    endpoint: str
    where: str
    example: Databag
    kind: Any = testing.Relation


_STORAGE_BAG = StorageUnit("store-1", "192.0.2.1", 22, (PublicKey.parse(KEY),)).to_databag()
_COS = {"config": json.dumps({"metadata": {"model": "m"}, "metrics_alert_rules": {}})}
_DATABASE = {"endpoints": "192.0.2.5:5432", "database": "turku", "username": "u",
             "password": "a-password", "secret-user": "secret:x", "version": "16",
             "tls": "True", "tls-ca": "x", "requested-secrets": '["username"]'}  # fmt: skip
_CERTIFICATES = {
    "certificates": json.dumps([{"certificate": "-----BEGIN CERTIFICATE-----", "ca": "x",
                                 "chain": ["x"], "certificate_signing_request": "x"}])
}  # fmt: skip
_PEER = {"address": "192.0.2.7", "version": "1", "urls": '["https://192.0.2.7/v1"]'}

PLACES = (
    Place("agent", "api", "remote_app_data", ApiAccess(
        ("https://127.0.0.1:9/v1",), None, "agents-7", "secret:9m4e2mr0ui3e8a215n4g").to_databag()),
    Place("agent", "sources", "remote_unit_data",
          PrincipalSources({"docs": SETTINGS}).to_databag(), testing.SubordinateRelation),
    Place("agent", "backup", "remote_app_data",
          {"fileset": "/srv/a,/srv/b", "run-before-backup": "/usr/bin/true"}),
    Place("agent", "cos-agent", "remote_units_data", _COS),
    Place("storage", "api", "remote_app_data", ACCESS.to_databag()),
    Place("storage", "cos-agent", "remote_units_data", _COS),
    Place("api", "agents", "remote_units_data",
          AgentUnitBag(UUID, PublicKey.parse(KEY), "web/0").to_databag()),
    Place("api", "storages", "remote_units_data", _STORAGE_BAG),
    Place("api", "website", "remote_units_data", {"hostname": "x", "port": "443"}),
    Place("api", "cos-agent", "remote_units_data", _COS),
    Place("api", "database", "remote_app_data", _DATABASE),
    Place("api", "certificates", "remote_app_data", _CERTIFICATES),
    Place("api", "cluster", "peers_data", _PEER, testing.PeerRelation),
)  # fmt: skip


def _agent_side(place: Place, root: Path, monkeypatch: pytest.MonkeyPatch) -> Side:
    use_stand_in_host(monkeypatch)
    root.mkdir()
    agent = AgentUnit(root)
    if place.endpoint == "api":
        relation: Any = agent.api
        agent.join()
        place.example["registration_secret_id"] = agent.secret.id
    else:
        relation = place.kind(place.endpoint, remote_app_name="stranger")
        agent.join(relation)

    def hear(bag: Databag) -> None:
        new = _with(relation, place.where, bag)
        others = [each for each in agent.state.relations if each.id != relation.id]
        agent.run("relation_changed", new, relations=[*others, new])

    before: list[dict[str, Any]] = []

    def check(bag: Databag) -> None:
        found = load_sources(agent.path("etc/turku-agent/sources.d"))
        assert found.problems == ()
        taken = {key: agent.configuration().get(key) for key in ("api_url", "api_auth_name")}
        if place.endpoint == "api":
            assert _is_taken_whole(bag, taken, before)
        before.append(taken)

    identity = agent.path("var/lib/turku-agent/config.d/identity.json")
    secret: str = json.loads(identity.read_text())["machine_secret"]
    return Side(hear, lambda: agent.state, agent.content, (agent.key, secret), check)


def _is_taken_whole(bag: Databag, taken: dict[str, Any], before: list[dict[str, Any]]) -> bool:
    """Say whether what stands there is this databag's, or all of it what stood there before."""
    try:
        access = ApiAccess.from_databag(bag)
    except ValueError:
        access = None
    if access is not None:
        urls = list(access.urls)
        whole = {"api_url": urls if len(urls) > 1 else urls[0]}
        if taken["api_url"] in (urls, whole["api_url"]):
            return bool(taken["api_auth_name"] == access.registration_key)
    return not before or taken == before[-1]


def _storage_side(place: Place, root: Path, monkeypatch: pytest.MonkeyPatch) -> Side:
    use_this_environment(monkeypatch)
    systemd = Systemd()
    for name in ("install_packages", "is_running", "restart", "stop"):
        monkeypatch.setattr(host, name, getattr(systemd, name))
    monkeypatch.setattr("storage_service.SETTLED_SECONDS", 0.0)
    unit = Unit(root, systemd)
    unit.install()
    unit.relate()
    relation: Any = unit.relation
    if place.endpoint != "api":
        relation = place.kind(place.endpoint, remote_app_name="stranger")
        unit.run(unit.on.relation_created(relation), relations=[unit.relation, relation])

    def hear(bag: Databag) -> None:
        old = unit.state.get_relation(relation.id)
        new = _with(old, place.where, bag)
        others = [each for each in unit.state.relations if each.id != relation.id]
        unit.run(unit.on.relation_changed(new), relations=[*others, new])

    before: list[dict[str, Any]] = []

    def check(bag: Databag) -> None:
        found = unit.configuration()
        taken = {key: found.get(key) for key in ("api_url", "api_auth_name")}
        if place.endpoint == "api":
            assert _is_taken_whole(bag, taken, before)
        before.append(taken)

    content = partial(_files, unit.root / "etc/turku-storage")
    return Side(hear, lambda: unit.state, content, (STORAGE_KEY,), check)


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text("utf-8", "replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _api_side(place: Place, root: Path, monkeypatch: pytest.MonkeyPatch, started: Api) -> Side:
    systemd = stand_in_for_systemd(monkeypatch)
    shutil.copytree(started.root, root, symlinks=True)
    systemd.running |= started.systemd.running
    api = Api(root, systemd, state=started.state)
    if place.endpoint == "cluster":
        relation: Any = api.peers
    else:
        relation = place.kind(place.endpoint, remote_app_name="stranger")
        api.run(api.on.relation_created(relation), **api.with_relations(relation))

    def hear(bag: Databag) -> None:
        new = _with(api.relation(relation), place.where, bag)
        api.run(api.on.relation_changed(new), **api.with_relations(new))

    known: set[str] = set()

    def check(bag: Databag) -> None:
        """See that the database knows of nobody but of whom a databag that is valid has said."""
        with contextlib.suppress(ValueError):
            if (machine := AgentUnitBag.from_databag(bag)) is not None:
                known.add(machine.machine_uuid)
        with contextlib.suppress(ValueError):
            if (unit := StorageUnit.from_databag(bag)) is not None:
                known.add(unit.name)
        place_of_database = root / "var/lib/turku-api/turku.sqlite3"
        with contextlib.closing(sqlite3.connect(place_of_database)) as database:
            rows = database.execute(
                "select machine_uuid || storage_name from turku_api_announcement"
            ).fetchall()
        assert {name for [name] in rows} <= known

    secrets = tuple(
        value
        for each in api.state.secrets
        for value in content_of(each).values()
        # A certificate is public.
        if not value.startswith("-----BEGIN CERTIFICATE")
    )
    content = partial(_files, root / "etc/turku-api")
    return Side(hear, lambda: api.state, content, secrets, check)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A leader of the API's that serves; each test has a copy."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        systemd = stand_in_for_systemd(monkeypatch)
        api = Api(tmp_path_factory.mktemp("started"), systemd, state=first_state())
        api.start_up()
        yield api


@pytest.fixture
def make_side(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Place], Side]:
    def make(place: Place) -> Side:
        root = tmp_path / "root"
        if place.charm == "agent":
            return _agent_side(place, root, monkeypatch)
        if place.charm == "storage":
            return _storage_side(place, root, monkeypatch)
        return _api_side(place, root, monkeypatch, request.getfixturevalue("started"))

    return make


# The API's hooks each run a handful of Django's commands.
QUICK = [place for place in PLACES if place.charm != "api"]
TRIED = PLACES if FULL else [QUICK[SEED % len(QUICK)]]
COUNTS = {"agent": 40, "storage": 25, "api": 15}


@pytest.mark.parametrize("place", TRIED, ids=lambda place: f"{place.charm}:{place.endpoint}")
def test_whatever_a_foreign_charm_writes_the_hook_ends_well_and_says_a_sentence(
    make_side: Callable[[Place], Side], tally: Tally, place: Place
) -> None:
    side = make_side(place)
    side.hear(place.example)
    side.check(place.example)
    honest = side.content()
    tried = 0

    @seed(SEED)
    @settings(
        max_examples=times(4, COUNTS[place.charm]),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bag=databags(place.example))
    def attempt(bag: Databag) -> None:
        nonlocal tried
        tried += 1
        side.hear(bag)
        status = side.state().unit_status
        assert status.name in STATUSES
        assert len(status.message) < SENTENCE_MAX
        assert all(each in string.printable[:-5] or each.isprintable() for each in status.message)
        assert status.name == "active" or status.message.endswith((".", ")")), status
        said = _ours(side.state())
        assert [secret for secret in side.secrets if secret in said] == []
        side.check(bag)

    attempt()
    side.hear(place.example)
    left = {name for name in side.content() if side.content()[name] != honest.get(name)}
    tally.note("databags of foreign charms, in hooks", times=tried, lost=len(left))
    assert left == set()

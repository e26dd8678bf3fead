"""Sources from three places: what is valid is backed up, and the rest is named with its place."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from ops import testing

from agent_sources import Place, resolve
from tests.support.agent_unit import AgentUnit, Host
from turku_core.relations import PrincipalSources


def names(sources: dict[str, Any] | None, unit: int = 0) -> testing.SubordinateRelation:
    """Return a `sources` relation whose principal asks for these sources; None: nothing yet."""
    databag = {} if sources is None else PrincipalSources(sources).to_databag()
    return testing.SubordinateRelation(
        "sources", remote_app_name="web", remote_unit_id=unit, remote_unit_data=databag
    )


def changed(
    agent: AgentUnit, relation: testing.SubordinateRelation, **databag: str
) -> testing.SubordinateRelation:
    """Let the principal write something else."""
    new = dataclasses.replace(relation, remote_unit_data=databag)
    others = [each for each in agent.state.relations if each.id != relation.id]
    agent.run("relation_changed", new, relations=[*others, new])
    return new


def test_files_the_relation_and_the_option_are_merged(agent: AgentUnit, on_host: Host) -> None:
    agent.drop("web.yaml", "web: {path: /srv/web}\n")
    agent.join(names({"db": {"path": "/srv/db"}}), sources="etc: {path: /etc}")
    assert agent.sources() == {"db": {"path": "/srv/db"}}
    assert agent.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}
    assert agent.status == testing.ActiveStatus("No backup yet.")
    assert on_host.told() == 1


def test_a_principals_file_that_changes_is_noticed_and_never_touched(
    agent: AgentUnit, on_host: Host
) -> None:
    path = agent.drop("web.yaml", "web: {path: /srv/web}\n")
    agent.join()
    on_host.told()
    agent.run("update_status")
    assert on_host.told() == 0
    path.write_text("web: {path: /srv/other}\n")
    modified = path.stat().st_mtime_ns
    agent.run("update_status")
    assert on_host.told() == 1
    assert path.stat().st_mtime_ns == modified


def test_a_bad_file_of_a_principals_is_named_with_its_line_and_stops_nothing_else(
    agent: AgentUnit, on_host: Host
) -> None:
    path = agent.drop("web.yaml", "web:\n  path: /srv/web\n  frequency: dayly\n")
    agent.join(sources="etc: {path: /etc}")
    assert agent.status.name == "blocked"
    assert agent.status.message.startswith(f"{path}, line 3: source 'web': frequency")
    assert agent.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}
    assert on_host.told() == 1


def test_the_option_names_its_line(agent: AgentUnit) -> None:
    agent.join(sources="etc:\n  path: /etc\nweb:\n  path: /srv\n  retention: lots\n")
    assert agent.status.message.startswith("option sources, line 5: source 'web': retention")
    assert agent.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("etc: {path: /etc", "option sources, line 1: this is not valid YAML"),
        ("[etc]", "option sources must hold a mapping"),
        ("{1: {path: /etc}}", "option sources: the key 1 must be text"),
        (
            "etc: {path: /etc}\netc: {path: /x}",
            "option sources, line 2: the key 'etc' stands twice",
        ),
        ("etc: /etc", "option sources, line 1: source 'etc'"),
        ("etc: {path: etc}", "option sources, line 1: source 'etc': path must be an absolute"),
        ("etc: {path: /etc, exlude: [a]}", "source 'etc': exlude is not a setting"),
        ("../etc: {path: /etc}", "option sources, line 1: source '../etc'"),
    ],
)
def test_an_option_that_is_not_understood_says_why(
    agent: AgentUnit, option: str, words: str
) -> None:
    agent.join(sources=option)
    assert agent.status.name == "blocked"
    assert words in agent.status.message


def test_a_slip_of_the_pen_ends_no_backup(agent: AgentUnit, on_host: Host) -> None:
    agent.join(sources="{etc: {path: /etc}, web: {path: /srv/web}}")
    on_host.told()
    before = agent.sources("charm-turku-agent.json")
    for slip in ("{etc: {path: /etc}, web: {path: /srv/web, frequency: dayly}}", "{etc: {path"):
        agent.run("config_changed", config={"sources": slip})
        assert agent.status.name == "blocked"
        assert agent.sources("charm-turku-agent.json") == before
    assert on_host.told() == 0
    agent.run("config_changed", config={"sources": "{etc: {path: /etc}}"})
    assert agent.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}
    assert agent.status.name == "active"


def test_a_relation_that_is_not_understood_says_whose_it_is(agent: AgentUnit) -> None:
    relation = names({"db": {"path": "/srv/db"}})
    agent.join(relation)
    for databag, words in (
        ({"sources": "["}, "relation sources of web/0: sources: must be JSON"),
        ({"sources": '["a"]'}, "relation sources of web/0: sources"),
        ({"sources": '{"db": {"path": "db"}}'}, "relation sources of web/0: source 'db': path"),
    ):
        relation = changed(agent, relation, **databag)
        assert agent.status.name == "blocked"
        assert words in agent.status.message
        assert agent.sources() == {"db": {"path": "/srv/db"}}


def test_a_principal_that_says_nothing_yet_is_waited_for_and_one_that_says_none_has_none(
    agent: AgentUnit,
) -> None:
    relation = names({"db": {"path": "/srv/db"}})
    agent.join(relation, sources="etc: {path: /etc}")
    relation = changed(agent, relation)
    assert agent.sources() == {"db": {"path": "/srv/db"}}
    relation = changed(agent, relation, sources="{}")
    assert agent.sources() == {}
    relation = changed(agent, relation, sources=json.dumps({"db": {"path": "/srv/db"}}))
    agent.run("relation_broken", relation)
    assert agent.sources() == {}


def test_a_relation_made_anew_keeps_the_source(agent: AgentUnit) -> None:
    first = names({"db": {"path": "/srv/db"}})
    agent.join(first)
    agent.run("relation_broken", first)
    second = names({"db": {"path": "/srv/db"}})
    agent.run("relation_changed", second, relations=[agent.host, agent.api_says(), second])
    assert agent.sources() == {"db": {"path": "/srv/db"}}
    assert agent.status.name == "active"


def test_a_name_that_two_places_define_is_an_error_that_names_both(agent: AgentUnit) -> None:
    path = agent.drop("web.yaml", "# ours\nweb: {path: /srv/web}\n")
    agent.join(names({"db": {"path": "/srv/db"}}), sources="{web: {path: /x}, db: {path: /y}}")
    assert agent.sources("charm-turku-agent.json") == {}
    warnings = [entry.message for entry in agent.context.juju_log if entry.level == "WARNING"]
    assert (
        f"option sources, line 1: source 'web' is defined in {path}, line 2 as well: give one of "
        "them another name; until then the latter counts."
    ) in warnings
    assert (
        "option sources, line 1: source 'db' is defined in relation sources of web/0 as well: "
        "give one of them another name; until then the latter counts."
    ) in warnings
    assert agent.status.name == "blocked"


def test_two_files_that_define_a_name_are_named(agent: AgentUnit) -> None:
    first = agent.drop("a.yaml", "web: {path: /srv/web}\n")
    second = agent.drop("b.json", '{"web": {"path": "/srv/other"}}')
    agent.join()
    assert agent.status.name == "blocked"
    warnings = [entry.message for entry in agent.context.juju_log if entry.level == "WARNING"]
    assert any(
        f"{second}, line 1: source 'web' is defined in {first}, line 1 as well" in warning
        for warning in warnings
    )


def test_a_file_may_add_to_a_source_of_another_place(agent: AgentUnit) -> None:
    agent.drop("zz-local.yaml", "etc: {retention: last 30 days}\n")
    agent.join(sources="etc: {path: /etc}")
    assert agent.sources("charm-turku-agent.json") == {"etc": {"path": "/etc"}}
    assert agent.status.name == "active"


def test_without_any_source_it_says_what_is_waited_for(agent: AgentUnit) -> None:
    agent.join()
    assert agent.status.name == "waiting"
    assert "option sources" in agent.status.message


def test_places_are_resolved_in_order_and_only_what_is_bad_is_left_out() -> None:
    places = [
        Place("a", "place a", {"one": {"path": "/1"}, "bad": {"path": "1"}}),
        Place("b", "place b", {"one": {"path": "/2"}, "two": {"path": "/2"}}),
        Place("c", "place c", None, problems=("place c is broken.",)),
    ]
    resolved = resolve(places, {}, {"two": "a file"})
    assert {key: dict(place.sources) for key, place in resolved.places.items()} == {
        "a": {"one": {"path": "/1"}}, "b": {}, "c": {},
    }  # fmt: skip
    assert [problem.partition(":")[0] for problem in resolved.problems] == [
        "place a", "place b", "place b", "place c is broken.",
    ]  # fmt: skip

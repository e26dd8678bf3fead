"""The charm author's guide: a charm written after it is understood by turku-agent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from ops import testing

from tests.support.agent_unit import AgentUnit
from turku_core.agent.sources import check_sources
from turku_core.relations import PrincipalSources

GUIDE = Path(__file__).parents[4] / "docs/how-to/charm-authors.md"


def blocks(language: str, having: str) -> list[str]:
    """Return the guide's code in a language that has these words in it."""
    found = re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text("utf-8"), re.M | re.S)
    return [text for text in found if having in text]


def test_the_guides_charm_is_understood(agent: AgentUnit) -> None:
    (code,) = blocks("python", "class PostgresqlCharm")
    (metadata,) = blocks("yaml", "turku_sources")
    names: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    charm = names["PostgresqlCharm"]
    charm.__module__ = __name__
    context = testing.Context(charm, meta={"name": "postgresql", **yaml.safe_load(metadata)})
    relation = testing.SubordinateRelation("turku", remote_app_name="turku-agent")
    state = context.run(context.on.relation_created(relation), testing.State(relations=[relation]))
    databag: Any = state.get_relation(relation.id).local_unit_data
    stated = PrincipalSources.from_databag(databag)
    assert stated is not None and set(stated.sources) == {"postgresql-data"}

    theirs = testing.SubordinateRelation("sources", remote_app_name="web", remote_unit_data=databag)
    agent.join(theirs)
    assert agent.sources() == dict(stated.sources)
    assert agent.status.name == "active"


def test_the_guides_file_is_valid() -> None:
    (text,) = blocks("yaml", "postgresql-data:")
    checked = check_sources(yaml.safe_load(text), {}, GUIDE)
    assert checked.problems == ()
    assert set(checked.sources) == {"postgresql-data"}

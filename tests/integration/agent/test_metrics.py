"""A machine's metrics, as its agent's work changes them."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.integration.agent.stand_ins import AgentMachine


def measured(machine: AgentMachine, name: str) -> float | None:
    """Return the value of a metric without labels; None when there is none."""
    done = machine.run("turku-agent-ping", "--metrics")
    assert done.code == 0, done
    found = re.search(rf"^{name} (\S+)$", done.output, re.MULTILINE)
    return None if found is None else float(found[1])


def test_a_check_in_counts_when_the_api_answers(machine: AgentMachine) -> None:
    name = "turku_agent_last_checkin_timestamp_seconds"
    assert measured(machine, name) is None
    before = time.time()
    assert machine.run("turku-agent-ping").code == 0
    seen = measured(machine, name)
    assert seen is not None
    assert before - 1 <= seen <= time.time()
    machine.api.down()
    assert machine.run("turku-agent-ping").code == 75
    assert measured(machine, name) == seen


def test_an_answer_that_says_how_the_sources_fare_is_measured(
    machine: AgentMachine, tree: Path
) -> None:
    machine.add_source("docs", tree)
    status = {"state": "failing", "failures": 2, "overdue_since": "2026-11-22T10:00:00+00:00"}
    machine.api.answers["agent_status"] = {"machine": {"sources": {"docs": status}}}
    assert machine.run("turku-update-config").code == 0
    output = machine.run("turku-agent-ping", "--metrics").output
    assert 'turku_agent_source_failures{source="docs"} 2\n' in output
    labels = '{source="docs",kind="failing"}'
    assert f"turku_agent_source_behind_since_timestamp_seconds{labels} 1795341600\n" in output
    assert "turku_agent_sources 1\n" in output


def test_http_is_for_metrics_alone_and_needs_a_connection(machine: AgentMachine) -> None:
    assert machine.run("turku-agent-ping", "--http").code == 2
    done = machine.run("turku-agent-ping", "--metrics", "--http")
    assert done.code == 2
    assert "standard input is no connection" in done.errors

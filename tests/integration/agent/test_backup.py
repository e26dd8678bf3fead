"""A whole check-in with a session: real ssh, sshd and rsync."""

from __future__ import annotations

from pathlib import Path

from tests.integration.agent.stand_ins import AgentMachine, StandInUnit


def mirror(unit: StandInUnit, source: str) -> Path:
    return unit.folder / "mirrors" / source


def test_what_is_due_is_pulled_over_the_tunnel(
    machine: AgentMachine, unit: StandInUnit, tree: Path
) -> None:
    machine.add_source("docs", tree)
    done = machine.run("turku-agent-ping", "-v")
    assert done.code == 0, done
    assert (mirror(unit, "docs") / "sub/b").read_text() == "beta"
    assert (mirror(unit, "docs") / "link").readlink() == Path("/etc/hostname")
    (request,) = unit.requests()
    assert request["action"] == "checkin"
    assert set(request["sources"]) == {"docs"}
    assert machine.leftovers() == []
    assert machine.children() == []

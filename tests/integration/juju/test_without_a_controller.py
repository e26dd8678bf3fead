"""The tests on a Juju controller say clearly that there is none, in their own environment.

``juju`` is a script here that answers as the real client does when it has no controller, or one.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.juju import is_active, units_of, why_there_is_no_controller

TREE = Path(__file__).resolve().parent.parent.parent.parent
PYTEST = TREE / ".venv/juju/bin/pytest"


def put_juju(folder: Path, answer: str, code: int = 0) -> Path:
    """Put a `juju` into a folder that answers this to everything."""
    folder.mkdir(exist_ok=True)
    juju = folder / "juju"
    juju.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
    juju.chmod(0o755)
    return folder


def run_juju_tests(path: str, *options: str) -> str:
    """Run them as ``tox -e juju`` does, and return what they print."""
    assert PYTEST.exists(), "It has no environment: `make other-environments` makes it."
    done = subprocess.run(
        [PYTEST, "--confcutdir=tests/juju", "tests/juju", *options],
        cwd=TREE,
        env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_juju_every_test_on_it_is_skipped_with_a_clear_word() -> None:
    said = run_juju_tests("/nowhere")
    assert "There is no Juju here: install its client and bootstrap a controller." in said
    assert re.search(r"=+ \d+ skipped in ", said)


def test_without_a_controller_every_test_on_it_is_skipped_with_a_clear_word(
    tmp_path: Path,
) -> None:
    bin_folder = put_juju(tmp_path / "bin", '{"controllers": null, "current-controller": ""}')
    said = run_juju_tests(f"{bin_folder}:/usr/bin:/bin")
    assert "Juju has no controller here: bootstrap one (juju bootstrap)." in said
    assert re.search(r"=+ \d+ skipped in ", said)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ('{"controllers": {"lxd": {}}, "current-controller": "lxd"}', 0, None),
        ('{"controllers": {"lxd": {}}, "current-controller": "lxd"}', 1, "no controller"),
        ('{"controllers": null}', 0, "no controller"),
        ("ERROR", 1, "no controller"),
    ],
)
def test_a_controller_is_what_juju_says_is_the_current_one(
    answer: str, code: int, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{put_juju(tmp_path / 'bin', answer, code)}:/usr/bin:/bin")
    said = why_there_is_no_controller()
    assert said is None if words is None else said is not None and words in said


def test_with_a_controller_every_test_is_collected_to_run(tmp_path: Path) -> None:
    bin_folder = put_juju(tmp_path / "bin", '{"current-controller": "lxd"}')
    said = run_juju_tests(f"{bin_folder}:/usr/bin:/bin", "--collect-only", "-q")
    assert "test_the_bundle_deploys_and_becomes_active" in said
    assert "skipped" not in said


def runs_of_actions() -> list[tuple[str, list[str]]]:
    """Return the actions that the tests on a controller run, each with its parameters' names."""
    module = ast.parse((TREE / "tests/juju/test_deployment.py").read_text("utf-8"))
    calls = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "run"
    ]
    found = []
    for call in calls:
        # The text of an f-string begins with its parameter's name.
        first = [word.values[0] if isinstance(word, ast.JoinedStr) else word for word in call.args]
        words = [str(word.value) for word in first[1:] if isinstance(word, ast.Constant)]
        found.append((words[0], [word.partition("=")[0] for word in words[1:]]))
    return found


def test_the_tests_on_a_controller_run_actions_that_the_charms_have() -> None:
    actions: dict[str, list[dict[str, Any]]] = {}
    for path in TREE.glob("charms/*/charmcraft.yaml"):
        for name, action in yaml.safe_load(path.read_text("utf-8"))["actions"].items():
            actions.setdefault(name, []).append(action)
    runs = runs_of_actions()
    assert len(runs) > 8
    for name, given in runs:
        fitting = [
            action
            for action in actions.get(name, [])
            if set(action.get("required", [])) <= set(given) <= set(action.get("params", {}))
        ]
        assert fitting, f"no charm has an action {name} that takes {given}"


def test_subordinates_are_found_beside_their_principals() -> None:
    active = {"workload-status": {"current": "active"}, "juju-status": {"current": "idle"}}
    waiting = {**active, "workload-status": {"current": "waiting"}}
    applications = {
        "ubuntu": {"units": {"ubuntu/0": {**active, "subordinates": {"turku-agent/0": active}}}},
        "late": {"units": {"late/0": {**active, "subordinates": {"turku-agent/1": waiting}}}},
        "turku-agent": {"units": None},
    }
    assert set(units_of(applications, "turku-agent")) == {"turku-agent/0", "turku-agent/1"}
    assert is_active(applications, "ubuntu")
    assert not is_active(applications, "turku-agent")
    assert not is_active(applications, "nobody")

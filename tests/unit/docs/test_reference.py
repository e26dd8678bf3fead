"""The generated pages of the reference say what the charms' own files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools import make_reference

TREE = Path(__file__).resolve().parents[3]
CHARM = {
    "description": "It is\na charm.\n\nTwo paragraphs.",
    "base": "ubuntu@24.04",
    "platforms": {"amd64": None, "ubuntu@22.04:arm64": None},
    "assumes": ["juju >= 3.6"],
    "subordinate": True,
    "requires": {
        "host": {"interface": "juju-info", "scope": "container", "description": "Beside it."},
        "api": {"interface": "turku_agent", "limit": 1, "optional": True},
    },
    "storage": {
        "disks": {"type": "block", "description": "Disks.", "multiple": {"range": "0-"}},
        "data": {"type": "filesystem", "description": "One.", "location": "/srv/data"},
    },
    "config": {
        "options": {
            "zone": {"type": "string", "default": "UTC", "description": "Where|when."},
            "name": {"type": "string", "default": "", "description": "What."},
        }
    },
    "actions": {
        "restore": {
            "description": "Restore.",
            "params": {
                "paths": {"type": "array", "items": {"type": "string"}, "description": "Which."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 9, "description": "Few."},
                "kind": {"type": "string", "enum": ["a", "b"], "default": "a", "description": "K."},
                "source": {"type": "string", "description": "What."},
            },
            "required": ["source"],
        }
    },
}
PAGE = """\
# The charm turku-x

<!-- Made by `make reference` from charms/turku-x/charmcraft.yaml; what is changed here is lost. -->

It is a charm.

Two paragraphs.

|  |  |
| --- | --- |
| runs on | ubuntu@22.04 (arm64), ubuntu@24.04 (amd64) |
| needs | `juju >= 3.6` |
| kind | subordinate: it goes beside each unit of the applications it is related to |

## Options

Set with `juju config turku-x OPTION=VALUE`.

| option | type | default | meaning |
| --- | --- | --- | --- |
| `zone` | text | `UTC` | Where\\|when. |
| `name` | text | empty | What. |

## Relations

| endpoint | interface | side | meaning |
| --- | --- | --- | --- |
| `host` | `juju-info` | requires, on the same machine | Beside it. |
| `api` | `turku_agent` | requires, at most 1, optional |  |

What is carried over them is in [the relations](relations.md).

## Storage

| name | type | how many | at least | mounted at | meaning |
| --- | --- | --- | --- | --- | --- |
| `disks` | block | 0 or more |  |  | Disks. |
| `data` | filesystem | 1 |  | `/srv/data` | One. |

## Actions

"""
ACTION = """\
### restore

Restore.

    juju run turku-x/0 restore source=... [paths=...] [limit=...] [kind=...]

| parameter | type | default | meaning |
| --- | --- | --- | --- |
| `paths` | list of text |  | Which. |
| `limit` | whole number from 1 to 9 |  | Few. |
| `kind` | `a` or `b` | `a` | K. |
| `source` | text | required | What. |
"""


@pytest.mark.parametrize("path", make_reference.pages())
def test_each_generated_page_is_up_to_date(path: Path) -> None:
    assert (TREE / path).read_text("utf-8") == make_reference.pages()[path], "make reference"


def test_a_charms_page_tells_its_file_in_full() -> None:
    page = make_reference.charm_page("turku-x", CHARM)
    assert page.startswith(PAGE)
    assert page.endswith(ACTION)


@pytest.mark.parametrize("name", make_reference.CHARMS)
def test_a_charms_page_names_everything_that_an_operator_can_type(name: str) -> None:
    charm = yaml.safe_load((TREE / "charms" / name / "charmcraft.yaml").read_text("utf-8"))
    page = (TREE / make_reference.REFERENCE / f"charm-{name}.md").read_text("utf-8")
    endpoints = {e for role in ("provides", "requires", "peers") for e in charm.get(role, {})}
    names = {*charm["config"]["options"], *endpoints, *charm.get("storage", {})}
    for action, values in charm["actions"].items():
        assert f"### {action}\n" in page
        names |= set(values.get("params", {}))
    assert {each for each in names if f"| `{each}` |" not in page} == set()


def test_every_class_of_the_relations_is_on_their_page() -> None:
    classes = {cls for *_, cls in make_reference.writers()}
    assert classes == {type(each.shown).__name__ for each in make_reference.EXAMPLES}


@pytest.mark.parametrize(
    "example", make_reference.EXAMPLES, ids=lambda each: type(each.shown).__name__
)
def test_the_databag_that_is_shown_is_one_that_the_other_side_reads(
    example: make_reference.Example,
) -> None:
    bag = example.shown.to_databag()
    assert type(example.shown).from_databag(bag) == example.shown


@pytest.mark.parametrize(
    "example", make_reference.EXAMPLES, ids=lambda each: type(each.shown).__name__
)
def test_every_key_of_a_databag_but_the_version_has_its_meaning(
    example: make_reference.Example,
) -> None:
    explained = [key for keys in make_reference.keys_of(example).values() for key in keys]
    assert {*explained, "version"} >= set(example.shown.to_databag())


def test_an_attributes_meaning_may_go_on_and_may_be_two_attributes() -> None:
    summary, meanings = make_reference.read_docstring(
        "What it is.\n\nAttributes:\n"
        "    host, port: Where\n        it is, or None.\n    name: ``x``.\n"
    )
    assert summary == "What it is."
    both = "Where it is, or left out."
    assert meanings == {"host": both, "port": both, "name": "`x`."}


def test_the_program_writes_what_is_old_and_with_check_only_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in make_reference.CHARMS:
        folder = tmp_path / "charms" / name
        folder.mkdir(parents=True)
        (folder / "charmcraft.yaml").write_text(json.dumps(CHARM), "utf-8")
    (tmp_path / make_reference.REFERENCE).mkdir(parents=True)
    monkeypatch.setattr(make_reference, "TREE", tmp_path)
    assert make_reference.main(["--check"]) == 1
    assert "charm-turku-api.md is not up to date: make reference" in capsys.readouterr().err
    assert make_reference.main([]) == 0
    assert make_reference.main(["--check"]) == 0


def test_the_program_runs_by_itself() -> None:
    command = [sys.executable, "tools/make_reference.py", "--check"]
    assert subprocess.run(command, cwd=TREE, check=False).returncode == 0

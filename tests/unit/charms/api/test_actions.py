"""The actions, with the real programs on a real database."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import yaml
from ops import testing

from api_actions import ACTIONS, ROTATE, RotateKey
from tests.support.api_unit import Api
from tests.support.charms import CHARMS
from turku_charm.programs import Programs

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
FILL = f"""
from datetime import timedelta
from django.utils import timezone
from turku_core.api.models import *
now = timezone.now()
storage = StorageUnit.objects.create(
    name="backup-0", secret_hash="x" * 64, ssh_ping_host="192.0.2.9", ssh_ping_port=22
)
machine = Machine.objects.create(
    uuid="{UUID}", unit_name="web/0", secret_hash="x" * 64,
    ssh_public_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ", last_checkin_at=now,
)
source = Source.objects.create(
    machine=machine, name="docs", path="/srv/docs", storage=storage, last_success_at=now,
    next_due_at=now + timedelta(days=1), since=now,
)
"""


@pytest.fixture
def filled(serving: Api) -> Api:
    """The API with one machine, which has one source, on one storage unit."""
    serving.programs.run("turku-api", "shell", "-c", FILL)
    return serving


def test_create_admin_shows_a_password_that_works(serving: Api) -> None:
    made = serving.act("create-admin", username="anna")
    assert made["password"] in serving.text
    code = (
        "from django.contrib.auth import authenticate;"
        f"print(authenticate(username='anna', password='{made['password']}'))"
    )
    printed = serving.programs.run("turku-api", "shell", "-c", code)
    assert printed.splitlines()[-1] == "anna"


def test_list_machines_shows_machines_and_their_sources(filled: Api) -> None:
    found = filled.act("list-machines")
    assert [row["unit"] for row in found["machines"]] == ["web/0"]
    assert [row["source"] for row in found["sources"]] == ["docs"]
    assert "UNIT" in filled.text and "web/0" in filled.text
    assert "LAST GOOD" in filled.text and "docs" in filled.text


def test_list_machines_shows_those_that_are_retired_only_when_asked(filled: Api) -> None:
    filled.programs.run("turku-api", "retire", "web/0")
    assert filled.act("list-machines")["machines"] == []
    assert [row["state"] for row in filled.act("list-machines", all=True)["machines"]] == [
        "retired"
    ]


def test_list_backups_of_a_machine_without_any_says_so(filled: Api) -> None:
    assert filled.act("list-backups", machine="web/0", source="docs", limit=5) == {"backups": []}
    assert filled.text == "There is no such record."


def test_a_restore_is_ordered_for_any_machine(filled: Api) -> None:
    order = filled.act("restore", machine="web/0", source="docs", paths=["a b", "c"], dry_run=True)
    assert (order["machine"], order["source"], order["snapshot"]) == ("web/0", "docs", "latest")
    assert order["paths"] == ["a b", "c"]
    assert "fetches it at its next check-in" in filled.text
    restores = filled.act("list-restores")["restores"]
    assert [row["id"] for row in restores] == [order["id"]]


def test_a_restore_that_nobody_has_carried_out_yet_is_no_failure(filled: Api) -> None:
    order = filled.act("restore", machine=UUID, source="docs", target="/srv/back", wait=1)
    assert order["ended"] is None
    assert order["to"] == "/srv/back"


def test_backup_now_makes_sources_due(filled: Api) -> None:
    assert filled.act("backup-now", machine="web/0")["sources"] == ["docs"]
    assert "docs" in filled.text


def test_pause_and_resume_take_a_machine_a_source_or_a_storage_unit(filled: Api) -> None:
    subjects: list[dict[str, Any]] = [
        {"machine": "web/0"},
        {"machine": "web/0", "source": "docs"},
        {"storage": "backup-0"},
    ]
    for subject in subjects:
        assert filled.act("pause", **subject)["paused"] is True
        assert filled.act("resume", **subject)["paused"] is False
    assert filled.text == "backup-0 is resumed."


def test_a_key_for_hosts_outside_juju_is_shown_once_and_survives_the_relations(
    serving: Api,
) -> None:
    made = serving.act("create-registration-key", name="metal", kind="storage")
    assert made["kind"] == "storage"
    assert made["secret"] in serving.text
    relation = testing.Relation("agents", remote_app_name="agent")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    assert serving.keys() == {"metal": "active", f"agents-{relation.id}": "active"}
    rotated = serving.act("rotate-registration-key", name="metal")
    assert rotated["secret"] != made["secret"]


def test_a_relations_key_is_rotated_over_the_relation_and_never_shown(serving: Api) -> None:
    relation = testing.Relation("agents", remote_app_name="agent")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    name = f"agents-{relation.id}"
    before = serving.content_of(relation)["secret"]
    assert serving.act("rotate-registration-key", name=name) == {"name": name, "handed_over": True}
    after = serving.content_of(relation)["secret"]
    assert after != before
    assert after not in serving.text
    code = (
        "from turku_core.api.models import RegistrationKey as K;"
        "from turku_core.credentials import secret_matches;"
        f"key = K.objects.get(name='{name}');"
        f"print([secret_matches(s, key.secret_hash) for s in ('{before}', '{after}')])"
    )
    printed = serving.programs.run("turku-api", "shell", "-c", code)
    assert printed.splitlines()[-1] == "[False, True]"


def test_what_a_key_was_before_it_was_rotated_is_removed_when_nobody_reads_it(
    serving: Api,
) -> None:
    relation = testing.Relation("agents", remote_app_name="agent")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    serving.act("rotate-registration-key", name=f"agents-{relation.id}")
    # ops.testing counts a secret's revisions from 1 in each hook, so the former one is 0.
    serving.run(serving.on.secret_remove(serving.secret_of(relation), revision=0))
    assert serving.context.removed_secret_revisions == [0]


def test_health_answers_also_when_the_fleet_is_not_well(filled: Api) -> None:
    serving_well = filled.act("health")
    assert "state" in serving_well
    filled.programs.run(
        "turku-api",
        "shell",
        "-c",
        "from turku_core.api.models import StorageUnit as S;"
        "S.objects.update(last_checkin_at='2020-01-01T00:00:00Z')",
    )
    assert filled.act("health")["state"] == "CRITICAL"
    assert "CRITICAL" in filled.text


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("create-admin", {"username": "a b"}, "username: must be a name"),
        ("list-backups", {"machine": ""}, "machine: must be"),
        ("list-backups", {"machine": "--all"}, "machine: must be a machine's UUID"),
        ("list-backups", {"machine": "web/0", "source": "../x"}, "source: must be a name"),
        ("list-backups", {"machine": "web/0", "limit": 0}, "limit: must be a whole number"),
        ("list-restores", {"limit": 5000}, "limit: must be a whole number"),
        ("restore", {"machine": "web/0", "source": ""}, "source: must be a name"),
        ("restore", {"machine": "web/0", "source": "d", "to_machine": " "}, "to-machine: must"),
        ("restore", {"machine": "web/0", "source": "d", "snapshot": "a b"}, "snapshot: must"),
        ("restore", {"machine": "web/0", "source": "d", "paths": ["../etc"]}, "paths[0]: must"),
        ("restore", {"machine": "web/0", "source": "d", "target": "srv"}, "target: must be an"),
        (
            "restore",
            {"machine": "web/0", "source": "d", "target": "/srv", "in_place": True},
            "give one of them",
        ),
        ("restore", {"machine": "web/0", "source": "d", "wait": -1}, "wait: must be a whole"),
        ("backup-now", {"machine": "web/0", "sources": ["--all"]}, "sources[0]: must be a name"),
        ("pause", {}, "say either machine=NAME or storage=NAME"),
        ("pause", {"machine": "web/0", "storage": "backup-0"}, "say either"),
        ("resume", {"storage": "backup-0", "source": "docs"}, "say machine=NAME as well"),
        ("create-registration-key", {"name": "agents-7"}, "is kept for a relation's key"),
        ("create-registration-key", {"name": "k", "kind": "human"}, "kind: must be machine or"),
        ("rotate-registration-key", {"name": ""}, "name: must be a name"),
    ],
)
def test_a_bad_parameter_is_refused_with_a_sentence(
    name: str, params: dict[str, Any], says: str
) -> None:
    parameters = ACTIONS[name][0] if name in ACTIONS else RotateKey
    with pytest.raises(ValueError, match=re.escape(says)):
        parameters(**params)


def test_a_bad_parameter_fails_an_action_before_anything_is_done(
    serving: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(Programs, "run", lambda *words, **_: ran.append(words))
    sentence = serving.failure("restore", machine="web/0", source="docs", paths=["../etc"])
    assert "paths[0]: must be a path inside the source" in sentence
    assert "say either machine=NAME or storage=NAME" in serving.failure("pause")
    assert ran == []


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("list-backups", {"machine": "web/9"}, "There is no machine web/9"),
        ("backup-now", {"machine": "web/0", "sources": ["none"]}, "has no source none"),
        ("restore", {"machine": "web/9", "source": "docs"}, "There is no machine web/9"),
        ("pause", {"storage": "backup-9"}, "There is no storage unit backup-9"),
        ("rotate-registration-key", {"name": "nobody"}, "key nobody; there are: none."),
        ("rotate-registration-key", {"name": "agents-99"}, "there are: none."),
    ],
)
def test_what_is_not_there_fails_with_a_sentence(
    filled: Api, name: str, params: dict[str, Any], says: str
) -> None:
    assert says in filled.failure(name, **params)


@pytest.mark.parametrize("name", ["health", "list-machines", "create-admin"])
def test_an_action_on_a_unit_that_does_not_serve_fails_and_says_why(api: Api, name: str) -> None:
    api.run(api.on.leader_elected(), storages=[])
    sentence = api.failure(name)
    assert sentence.startswith("turku-api/0 doesn't serve: The storage data isn't attached")


def test_only_the_leader_rotates_a_relations_key(serving: Api) -> None:
    relation = testing.Relation("agents", remote_app_name="agent")
    serving.run(serving.on.relation_created(relation), **serving.with_relations(relation))
    serving.run(serving.on.update_status(), leader=False)
    sentence = serving.failure("rotate-registration-key", name=f"agents-{relation.id}")
    assert "turku-api/leader" in sentence


def test_every_action_of_charmcraft_yaml_is_answered() -> None:

    from api_actions import ACTIONS
    from tests.support.charms import CHARMS

    text = (CHARMS / "turku-api/charmcraft.yaml").read_text("utf-8")
    assert set(yaml.safe_load(text)["actions"]) == {*ACTIONS, ROTATE}


def test_every_parameter_of_charmcraft_yaml_is_taken_with_its_default() -> None:

    import yaml

    from api_actions import ACTIONS, RotateKey

    text = (CHARMS / "turku-api/charmcraft.yaml").read_text("utf-8")
    for name, action in yaml.safe_load(text)["actions"].items():
        parameters = ACTIONS[name][0] if name in ACTIONS else RotateKey
        taken = {field.name.replace("_", "-"): field.default for field in fields(parameters)}
        params = action.get("params", {})
        assert set(taken) == set(params), name
        for key, schema in params.items():
            if "default" in schema:
                default = tuple(schema["default"]) if schema["type"] == "array" else (
                    schema["default"]
                )  # fmt: skip
                assert taken[key] == default, f"{name} {key}"

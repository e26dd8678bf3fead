"""What a storage unit tells the API of itself, and what it makes of the answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from turku_core import fields
from turku_core.credentials import make_ssh_key_pair
from turku_core.errors import ConfigurationError
from turku_core.protocol.messages import RunningSession, StorageConfig, StorageLogin
from turku_core.storage.registration import (
    AnswerNotValid,
    Known,
    ensure_identity,
    make_request,
    parse_answer,
    read_known,
    session_command,
)
from turku_core.storage.settings import Paths, Settings, read_settings

A = "11111111-1111-4111-8111-111111111111"
B = "22222222-2222-4222-8222-222222222222"
KEY = " ".join(make_ssh_key_pair("x")[1].split()[:2])


def settings(root: Path, **values: Any) -> Settings:
    """Return the settings of a unit with one host key."""
    folder = root / "etc/turku-storage/config.d"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "var/lib/turku-storage").mkdir(parents=True, exist_ok=True)
    whole = {"ssh_ping_host": "unit.example.com", "ssh_ping_host_keys": [KEY], **values}
    (folder / "a.json").write_text(json.dumps(whole))
    return read_settings(root)


def machine(**values: Any) -> dict[str, Any]:
    """Return a machine as the API answers it."""
    return {
        "unit_name": "web/0", "service_name": "web", "environment_name": "prod", "comment": "",
        "ssh_public_key": KEY, **values,
    }  # fmt: skip


def test_an_identity_is_made_once_and_kept_private(tmp_path: Path) -> None:
    made = ensure_identity(settings(tmp_path))
    assert len(made.login.secret) >= 43
    fields.name(made.login.name, "name")
    path = made.paths.identity
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_identity(read_settings(tmp_path)).login == made.login


def test_programs_that_start_together_have_one_identity(tmp_path: Path) -> None:
    read = settings(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure_identity(read).login, range(16)))
    assert set(made) == {ensure_identity(read_settings(tmp_path)).login}


def test_a_name_of_the_operators_is_not_replaced(tmp_path: Path) -> None:
    made = ensure_identity(settings(tmp_path, name="storage-1"))
    assert made.login.name == "storage-1"
    assert list(json.loads(made.paths.identity.read_text())) == ["secret", "checksum"]


def test_a_name_of_the_operators_that_is_gone_is_not_replaced(tmp_path: Path) -> None:
    ensure_identity(settings(tmp_path, name="storage-1"))
    with pytest.raises(ConfigurationError, match="no name"):
        ensure_identity(settings(tmp_path))
    assert ensure_identity(settings(tmp_path, name="storage-1")).login.name == "storage-1"


def test_a_damaged_identity_is_not_taken_for_another_unit(tmp_path: Path) -> None:
    made = ensure_identity(settings(tmp_path))
    path = made.paths.identity
    path.write_text(path.read_text().replace(made.login.name, f"{made.login.name[:-1]}z"))
    with pytest.raises(ConfigurationError, match="damaged"):
        read_settings(tmp_path)


def test_the_request_is_v1s_with_what_is_ours_added(tmp_path: Path) -> None:
    unit = ensure_identity(
        settings(tmp_path, api_auth_name="key", api_auth_secret="12345678", ssh_ping_user="turku")
    )
    request = make_request(
        unit,
        space_mib=(1000.5, 400.25),
        high_water_mark=60,
        running=[RunningSession(A, ("docs",))],
        known_revision="7",
    )
    config = StorageConfig.from_json(request["storage"])
    assert StorageLogin.from_json(request) == unit.login
    assert request["auth"] == {"name": "key", "secret": "12345678"}
    assert (config.space_total, config.space_available, config.slots) == (1000.5, 400.25, 10)
    assert config.high_water_mark == 60
    assert (config.ssh_ping_user, config.ssh_ping_port, config.known_revision) == ("turku", 22, "7")
    assert config.running == (RunningSession(A, ("docs",)),)
    assert "leases" in config.capabilities


def test_an_unchanged_answer_changes_nothing() -> None:
    known, _ = parse_answer({"machines": {A: machine()}, "revision": "7"}, Known())
    same, problems = parse_answer({"machines": {}, "unchanged": True, "revision": "7"}, known)
    assert same is known
    assert problems == []


def test_an_answer_of_an_older_api_is_the_whole_list() -> None:
    known, _ = parse_answer({"machines": {A: machine()}}, Known("7", {}))
    assert (known.revision, list(known.machines)) == (None, [A])


def test_prior_art_35_one_bad_machine_does_not_block_the_rest() -> None:
    machines = {
        A: machine(),
        "../../etc": machine(),
        B: machine(ssh_public_key=f"{KEY}\n{KEY}"),
        "33333333-3333-4333-8333-333333333333": machine(unit_name="a\nb"),
        "44444444-4444-4444-8444-444444444444": [],
        "55555555-5555-4555-8555-555555555555": {},
    }
    known, problems = parse_answer({"machines": machines}, Known())
    assert list(known.machines) == [A]
    assert len(problems) == 5
    assert all(problem.isprintable() for problem in problems)


@pytest.mark.parametrize("answer", [{}, {"machines": []}, {"machines": None}, {"revision": 7}])
def test_an_answer_without_a_list_changes_nothing(answer: dict[str, Any]) -> None:
    with pytest.raises(AnswerNotValid):
        parse_answer(answer, Known())


def test_prior_art_25_a_broken_list_on_disk_is_fetched_anew(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    assert read_known(path) == Known()
    for content in (b"", b"[]", b'{"machines": 3}', b"\xff"):
        path.write_bytes(content)
        assert read_known(path) == Known()
    known, _ = parse_answer({"machines": {A: machine()}, "revision": "7"}, Known())
    path.write_text(json.dumps(known.to_json()))
    assert read_known(path) == known


def test_the_forced_command_is_the_script_beside_this_one(tmp_path: Path) -> None:
    (tmp_path / "turku-storage-ping").touch()
    program = str(tmp_path / "turku-storage-worker")
    assert session_command(Paths(Path("/")), program) == [str(tmp_path / "turku-storage-ping")]
    assert session_command(Paths(Path("/srv/a b")), program)[1:] == ["--root", "/srv/a b"]


def test_an_installation_that_is_not_whole_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ConfigurationError, match="turku-storage-ping"):
        session_command(Paths(Path("/")), str(tmp_path / "turku-storage-worker"))

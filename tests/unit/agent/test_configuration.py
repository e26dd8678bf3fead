"""The agent's settings, sources and identity, read from files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from turku_core.agent.identity import (
    ForeignIdentity,
    NoIdentity,
    ensure_identity,
    load_identity,
)
from turku_core.agent.settings import Locations, RegistrationKey, load_settings
from turku_core.agent.sources import load_sources
from turku_core.credentials import make_ssh_key_pair
from turku_core.errors import ConfigurationError

URL = "https://turku.example.com/v1"


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    return Locations(tmp_path)


def configure(locations: Locations, name: str = "10.json", **values: Any) -> None:
    locations.configuration.mkdir(parents=True, exist_ok=True)
    (locations.configuration / name).write_text(json.dumps(values))


def test_files_merge_in_name_order_json_and_yaml(locations: Locations) -> None:
    configure(locations, "10.json", api_url=URL, unit_name="first", environment_name="e")
    (locations.configuration / "20.yaml").write_text("unit_name: second\npublished: false\n")
    settings = load_settings(locations)
    assert settings.unit_name == "second"
    assert settings.environment_name == "e"
    assert settings.published is False
    assert settings.api_urls == (URL,)


def test_several_urls_and_a_registration_key(locations: Locations) -> None:
    configure(
        locations,
        api_url=[URL, f"{URL}/", "http://10.0.0.1/v1"],
        api_auth_name="fleet",
        api_auth_secret="a-secret-of-it",
    )
    settings = load_settings(locations)
    assert settings.api_urls == (URL, "http://10.0.0.1/v1")
    assert settings.registration_key == RegistrationKey("fleet", "a-secret-of-it")
    assert "a-secret-of-it" not in repr(settings)


@pytest.mark.parametrize(
    ("auth", "wire"),
    [
        ("an-old-secret", "an-old-secret"),
        ({"name": "n", "secret": "an-old-secret"}, {"name": "n", "secret": "an-old-secret"}),
    ],
)
def test_the_older_form_of_the_key_is_read(locations: Locations, auth: Any, wire: Any) -> None:
    configure(locations, api_url=URL, api_auth=auth)
    key = load_settings(locations).registration_key
    assert key is not None
    assert key.to_json() == wire


def test_keys_of_fielded_configurations_that_arent_ours_are_passed_over(
    locations: Locations,
) -> None:
    configure(locations, api_url=URL, rsync_command="rsync", lock_dir="/x", unit_name="")
    assert load_settings(locations).unit_name == os.uname().nodename


def test_the_gonogo_program_may_be_a_list(locations: Locations) -> None:
    configure(locations, api_url=URL, gonogo_program=["/bin/test", "-e", "/x"])
    assert load_settings(locations).gonogo_program == ("/bin/test", "-e", "/x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_url": "turku.example.com"}, "api_url"),
        ({"api_url": "https://user:pw@turku.example.com"}, "api_url"),
        ({"api_url": 7}, "api_url"),
        ({"api_url": []}, "No API is configured"),
        ({"api_url": URL, "published": "yes"}, "published"),
        ({"api_url": URL, "api_auth_secret": "short"}, "api_auth_secret"),
        ({"api_url": URL, "gonogo_program": "rm -rf /"}, "gonogo_program"),
        ({"api_url": URL, "restore_path": "relative"}, "restore_path"),
    ],
)
def test_a_value_that_isnt_valid_is_named_with_its_file(
    locations: Locations, values: dict[str, Any], words: str
) -> None:
    configure(locations, **values)
    with pytest.raises(ConfigurationError, match=words) as caught:
        load_settings(locations)
    assert str(locations.configuration) in str(caught.value)


def test_yaml_is_imported_only_for_a_yaml_file(locations: Locations) -> None:
    configure(locations, api_url=URL)
    code = (
        "import sys; from pathlib import Path\n"
        "from turku_core.agent.settings import Locations, load_settings\n"
        f"load_settings(Locations(Path({str(locations.root)!r})))\n"
        "assert 'yaml' not in sys.modules, 'yaml is loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def write_sources(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_sources_merge_and_keep_their_hooks_to_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "sources.d"
    write_sources(folder, "10.json", '{"docs": {"path": "/srv", "run_before_backup": "/bin/x"}}')
    write_sources(folder, "20.yaml", "docs:\n  exclude: ['*.o']\nmail:\n  path: /mail\n")
    loaded = load_sources(folder)
    assert loaded.problems == ()
    docs = loaded.sources["docs"]
    assert docs.settings.exclude == ("*.o",)
    assert docs.hooks.run_before_backup == Path("/bin/x")
    assert docs.hooks.timeout == 3600
    assert "run_before_backup" not in docs.settings.to_json()
    assert set(loaded.sources) == {"docs", "mail"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("path: srv", "path must be an absolute path"),
        ("frequency: daily", "path is missing"),
        ("path: /x\n  frequency: dayly", "frequency"),
        ("path: /x\n  retention: last day", "retention"),
        ("path: /x\n  filter: ['merge /etc/passwd']", "filter"),
        ("path: /x\n  filter: ['dir-merge x']", "filter"),
        ('path: /x\n  exclude: ["a\\nb"]', "exclude"),
        ("path: /x\n  snapshot_mode: zfs", "snapshot_mode"),
        ("path: /x\n  bwlimit: fast", "bwlimit"),
        ("path: /x\n  shared_service: 'yes'", "shared_service"),
        ("path: /x\n  run_before_backup: rm -rf /", "run_before_backup"),
        ("path: /x\n  hook_timeout: 0", "hook_timeout"),
        ("path: /x\n  pathh: /y", "pathh is not a setting"),
    ],
)
def test_prior_art_35_a_bad_source_is_named_and_hides_no_other(
    tmp_path: Path, settings: str, words: str
) -> None:
    folder = tmp_path / "sources.d"
    write_sources(folder, "10.yaml", f"bad:\n  {settings}\ngood:\n  path: /srv\n")
    write_sources(folder, "20.json", "{")
    loaded = load_sources(folder)
    assert set(loaded.sources) == {"good"}
    problem, broken = sorted(loaded.problems)
    assert words in problem
    assert "10.yaml, line " in problem
    assert "source 'bad'" in problem
    assert "20.json, line 1" in broken
    with pytest.raises(ConfigurationError):
        loaded.checked()


@pytest.mark.parametrize("name", ["../../../root/.ssh", "a/b", ".hidden", "-o", "x" * 65, "a b"])
def test_prior_art_01_a_sources_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sources.d"
    write_sources(folder, "10.json", json.dumps({name: {"path": "/srv"}}))
    loaded = load_sources(folder)
    assert loaded.sources == {}
    assert "name" in loaded.problems[0]


def test_without_an_identity_it_is_said_what_to_do(locations: Locations) -> None:
    with pytest.raises(NoIdentity, match="turku-update-config"):
        load_identity(locations)


def test_an_identity_is_made_once_and_hides_its_secret(locations: Locations) -> None:
    identity = ensure_identity(locations)
    assert ensure_identity(locations) == identity
    assert load_identity(locations) == identity
    assert identity.secret not in repr(identity)


def test_a_lost_part_of_the_key_pair_is_made_again(locations: Locations) -> None:
    identity = ensure_identity(locations)
    key = identity.public_key()
    (locations.state / "ssh_key.pub").unlink()
    assert ensure_identity(locations).public_key().line == key.line
    (locations.state / "ssh_key").unlink()
    assert ensure_identity(locations).public_key().line != key.line


def test_prior_art_26_a_file_that_was_cut_off_is_never_taken_for_an_identity(
    locations: Locations,
) -> None:
    identity = ensure_identity(locations)
    path = locations.identity / "identity.json"
    (locations.identity / ".identity.json.abc.tmp").write_text('{"machine_uuid": "')
    assert load_identity(locations) == identity
    path.write_text(json.dumps({"machine_uuid": identity.uuid}))
    with pytest.raises(ConfigurationError, match="machine_secret"):
        ensure_identity(locations)


def test_a_damaged_identity_is_not_taken_for_another_machine(locations: Locations) -> None:
    identity = ensure_identity(locations)
    path = locations.identity / "identity.json"
    other = identity.uuid[:-1] + ("0" if identity.uuid[-1] != "0" else "1")
    path.write_text(path.read_text().replace(identity.uuid, other))
    with pytest.raises(ConfigurationError, match="damaged"):
        ensure_identity(locations)


def test_a_damaged_public_key_is_derived_anew(locations: Locations) -> None:
    key = ensure_identity(locations).public_key()
    other = make_ssh_key_pair("turku-agent")[1]
    for content in (other, other[:40], ""):
        (locations.state / "ssh_key.pub").write_text(content)
        assert ensure_identity(locations).public_key().line == key.line


def test_prior_art_05_an_identity_knows_the_machine_it_was_made_on(locations: Locations) -> None:
    machine_id = locations.machine_id
    machine_id.parent.mkdir()
    identity = ensure_identity(locations)
    # An identity from before, or one made while there was no ID, learns it.
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    assert ensure_identity(locations) == identity
    machine_id.write_text("fedcba9876543210fedcba9876543210\n")
    with pytest.raises(ForeignIdentity, match="--new-identity"):
        load_identity(locations)
    with pytest.raises(ForeignIdentity):
        ensure_identity(locations)
    new = ensure_identity(locations, new=True)
    assert new.uuid != identity.uuid
    assert load_identity(locations) == new

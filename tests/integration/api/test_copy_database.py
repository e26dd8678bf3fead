"""Moving a lived-in API from SQLite to a real PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api.server import configure, serving, turku_api
from tests.integration.api.test_serving import Fleet
from tests.support.postgresql import Cluster

DATABASE = "var/lib/turku-api/turku.sqlite3"


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A machine and a storage unit that an API on SQLite knew, and more; it has stopped since."""
    with serving(tmp_path_factory.mktemp("lived-in")) as server:
        fleet = Fleet(server)
        assert fleet.register_unit().status_code == 200
        assert fleet.register_machine().status_code == 200
        assert fleet.check_in() == {}
        server.command("create-admin")
        server.command("create-registration-key", "later")
    return fleet


@pytest.fixture
def fleet(tmp_path: Path, lived_in: Fleet) -> Fleet:
    """The same, in a test's own folder."""
    shutil.copytree(lived_in.server.root, tmp_path, dirs_exist_ok=True)
    return lived_in


@pytest.fixture
def database(tmp_path: Path, cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A new database, for which the API is configured and migrated now."""
    url = cluster.create_database(f"copy_{abs(hash(request.node.nodeid))}")
    configure(tmp_path, database_url=url)
    assert turku_api(tmp_path, "migrate").returncode == 0
    return url


def copy(root: Path, path: Path | None = None) -> Any:
    """Copy the old database, or another one, as JSON; or what was said about why not."""
    done = turku_api(root, "copy-database", "--from", str(path or root / DATABASE), "--json")
    return json.loads(done.stdout) if done.returncode == 0 else (done.returncode, done.stderr)


def dump(root: Path) -> Any:
    """Every row of the configured database, with its primary key."""
    done = turku_api(root, "dumpdata")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    return sorted(rows, key=lambda row: (row["model"], row["pk"]))


def digests(root: Path) -> dict[str, str]:
    """What SQLite's files hold; readers leave an empty log behind, and an index of it."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (root / DATABASE).parent.glob("turku.sqlite3*")
        if not path.name.endswith("-shm") and path.stat().st_size
    }


def test_everything_is_there_afterwards_and_goes_on(
    tmp_path: Path, fleet: Fleet, cluster: Cluster
) -> None:
    before, files = dump(tmp_path), digests(tmp_path)
    url = cluster.create_database("moved")
    configure(tmp_path, database_url=url)
    assert turku_api(tmp_path, "migrate").returncode == 0
    copied = copy(tmp_path)["copied"]
    assert copied["turku_api_machine"] == copied["turku_api_storageunit"] == 1
    assert copied["auth_user"] == 1
    assert dump(tmp_path) == before
    assert digests(tmp_path) == files
    with serving(tmp_path, database_url=url) as server:
        fleet.server = server
        assert fleet.check_in() == {}
        # New rows get numbers of their own.
        fleet.machine["uuid"] = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
        assert fleet.register_machine().status_code == 200
        server.command("create-registration-key", "newest")


@pytest.mark.usefixtures("fleet", "database")
def test_a_database_in_use_is_never_copied_into(tmp_path: Path) -> None:
    copy(tmp_path)
    before = dump(tmp_path)
    code, said = copy(tmp_path)
    assert code == 1
    assert "in use already, it has 1 users, 3 registration keys, 1 storage units" in said
    assert dump(tmp_path) == before


@pytest.mark.usefixtures("fleet", "database")
def test_keys_that_the_charm_has_made_already_are_no_obstacle(tmp_path: Path) -> None:
    keys = {"keys": [{"name": "agents-1", "kind": "machine", "secret": "0123456789abcdef"}]}
    done = turku_api(tmp_path, "sync-registration-keys", input=json.dumps(keys))
    assert done.returncode == 0, done.stderr
    assert copy(tmp_path)["copied"]["turku_api_registrationkey"] == 3


@pytest.mark.usefixtures("fleet", "database")
def test_databases_that_were_not_migrated_alike_are_not_mixed(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("DELETE FROM django_migrations WHERE name = '0002_announcements'")
    before = dump(tmp_path)
    code, said = copy(tmp_path)
    assert code == 1
    assert "lacks the migrations turku_api.0002_announcements" in said
    assert dump(tmp_path) == before


@pytest.mark.usefixtures("fleet", "database")
def test_a_row_that_postgresql_refuses_leaves_the_new_database_empty(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("UPDATE turku_api_source SET comment = ?", ["x" * 2000])
    before = dump(tmp_path)
    code, said = copy(tmp_path)
    assert code == 1
    assert "refuses a row of the table turku_api_source: value too long" in said
    assert dump(tmp_path) == before


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("content", [None, b"", b"not a database" * 1000])
def test_a_file_that_is_no_database_of_turkus_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    other = tmp_path / "other"
    if content is not None:
        other.write_bytes(content)
    code, said = copy(tmp_path, other)
    assert code == 2
    assert str(other) in said and "Traceback" not in said
    assert content is None or other.read_bytes() == content


def test_without_postgresql_there_is_nowhere_to_copy_to(tmp_path: Path) -> None:
    assert turku_api(tmp_path, "migrate").returncode == 0
    code, said = copy(tmp_path)
    assert code == 2
    assert "set database_url to the new one first" in said

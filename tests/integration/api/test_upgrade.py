"""A database of the first release is brought up to date, and what it knew goes on."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests.integration.api.server import configure, serving, turku_api
from tests.support.postgresql import Cluster
from turku_core import credentials

FIRST_RELEASE = "0001_initial"

# With the tables' own old description, since today's models know columns that weren't there.
FILL = f"""
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
loader = MigrationExecutor(connection).loader
apps = loader.project_state(("turku_api", "{FIRST_RELEASE}")).apps
key = apps.get_model("turku_api", "RegistrationKey").objects.create(
    name="machines", kind="machine", secret_hash="%(key_hash)s"
)
apps.get_model("turku_api", "Machine").objects.create(
    uuid="%(uuid)s", secret_hash="%(secret_hash)s", registration_key=key, unit_name="web/0",
    ssh_public_key="%(ssh_public_key)s", ssh_key_fingerprint="SHA256:old",
)
apps.get_model("turku_api", "StorageUnit").objects.create(
    name="store-1", secret_hash="", ssh_ping_host="store-1", ssh_ping_user="turku-storage"
)
"""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_the_first_release_knew_goes_on(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    options = {}
    if database == "postgresql":
        options["database_url"] = cluster.create_database("first_release")
    configure(tmp_path, **options)
    machine = {"uuid": str(uuid.uuid4()), "secret": credentials.make_secret()}
    key_secret = credentials.make_secret()
    values = {
        "uuid": machine["uuid"],
        "secret_hash": credentials.hash_secret(machine["secret"]),
        "key_hash": credentials.hash_secret(key_secret),
        "ssh_public_key": credentials.make_ssh_key_pair("")[1].strip(),
    }
    for words in (("migrate", "turku_api", FIRST_RELEASE), ("shell", "-c", FILL % values)):
        done = turku_api(tmp_path, *words)
        assert done.returncode == 0, done.stderr

    with serving(tmp_path, **options) as server:
        answer = server.post("agent_ping_checkin", {"machine": machine})
        assert answer.json() == {"machine": {"scheduled_sources": {}}}
        newcomer = {
            "uuid": str(uuid.uuid4()),
            "secret": credentials.make_secret(),
            "unit_name": "web/1",
            "ssh_public_key": credentials.make_ssh_key_pair("")[1],
        }
        # A key of before needs no announcement.
        request = {"auth": {"name": "machines", "secret": key_secret}, "machine": newcomer}
        assert server.post("update_config", request).status_code == 200
        names = {row["unit"] for row in json.loads(server.command("list-machines", "--json"))}
        assert names == {"web/0", "web/1"}
        (unit,) = json.loads(server.command("list-storages", "--json"))
        assert (unit["name"], unit["state"]) == ("store-1", "full")

"""APIs on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.api.server import Server, serving
from tests.support.postgresql import Cluster, running_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A private PostgreSQL cluster."""
    with running_cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A served API, once on SQLite and once on PostgreSQL."""
    options = {}
    if request.param == "postgresql":
        running: Cluster = request.getfixturevalue("cluster")
        name = f"turku_{abs(hash(request.node.nodeid))}"
        options["database_url"] = running.create_database(name)
    with serving(tmp_path, **options) as served:
        yield served

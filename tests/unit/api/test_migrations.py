"""Migrations keep what was there."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor


@pytest.mark.django_db(transaction=True)
def test_a_backup_that_was_asked_for_before_the_upgrade_is_made_after_it(now: datetime) -> None:
    executor = MigrationExecutor(connection)
    newest = executor.loader.graph.leaf_nodes("turku_api")
    try:
        executor.migrate([("turku_api", "0003_restore_orders")])
        old = executor.loader.project_state([("turku_api", "0003_restore_orders")]).apps
        machine = old.get_model("turku_api", "Machine").objects.create(
            uuid="6ba7b810-9dad-41d1-80b4-00c04fd430c8", unit_name="web/0"
        )
        for name, due_now in (("asked", True), ("other", False)):
            old.get_model("turku_api", "Source").objects.create(
                machine=machine, name=name, path="/srv", since=now, due_now=due_now
            )
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(newest)
    new = executor.loader.project_state(newest).apps
    sources = new.get_model("turku_api", "Source").objects.order_by("name")
    assert [bool(source.requested_at) for source in sources] == [True, False]

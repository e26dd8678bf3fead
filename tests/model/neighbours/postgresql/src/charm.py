#!/usr/bin/env python3
"""A charm that stands for Canonical's `postgresql`, which can't be had without its store.

The server is real: Debian's PostgreSQL, on this machine, with TLS. What the relation carries is
written after what that charm writes today (data_interfaces v0): flat keys in the application's
databag, and the user and the TLS in a secret each, of which the databag has the ids. It has one
unit where that charm has replicas and a failover; it makes its certificate itself, where that one
asks a neighbour; and it serves only requirers that want their credentials in secrets.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

import ops

ENDPOINT = "database"
PORT = 5432
CLUSTER = Path("/etc/postgresql/15/main")
KEY, CERTIFICATE = CLUSTER / "server.key", CLUSTER / "server.crt"
OPTIONS = f"""\
listen_addresses = '*'
ssl_cert_file = '{CERTIFICATE}'
ssl_key_file = '{KEY}'
# Who changed which tables, for a test to read.
log_statement = 'ddl'
log_line_prefix = '%m %h '
"""


class PostgresqlCharm(ops.CharmBase):
    """Runs one PostgreSQL and gives a database to each relation."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on.install, self._on_install)
        framework.observe(self.on[ENDPOINT].relation_changed, self._on_changed)

    def _on_install(self, _: ops.InstallEvent) -> None:
        _run(
            *("openssl", "req", "-x509", "-nodes", "-days", "365", "-subj", "/CN=postgresql"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", f"subjectAltName=IP:{self._address}"),
            *("-keyout", str(KEY), "-out", str(CERTIFICATE)),
        )
        _run("chown", "postgres:postgres", str(KEY), str(CERTIFICATE))
        (CLUSTER / "conf.d/charm.conf").write_text(OPTIONS, "utf-8")
        with (CLUSTER / "pg_hba.conf").open("a", encoding="utf-8") as rules:
            rules.write("hostssl all all all scram-sha-256\n")
        _run("systemctl", "enable", "--now", "postgresql")
        self.unit.set_workload_version(_sql("SHOW server_version").split()[0])
        self.unit.status = ops.ActiveStatus("Primary")

    def _on_changed(self, event: ops.RelationChangedEvent) -> None:
        asked = event.relation.data[event.app]
        answer = event.relation.data[self.app]
        if not self.unit.is_leader() or not asked.get("database") or "secret-user" in answer:
            return
        database, user = asked["database"], f"relation-{event.relation.id}"
        password = secrets.token_urlsafe(24)
        _sql(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{password}'")
        _sql(f'CREATE DATABASE "{database}" OWNER "{user}"')
        place = f"{self._address}:{PORT}"
        user_secret = {
            "username": user,
            "password": password,
            "uris": f"postgresql://{user}:{password}@{place}/{database}",
        }
        tls_secret = {"tls": "True", "tls-ca": CERTIFICATE.read_text("ascii")}
        answer.update(
            {
                "data": json.dumps({key: asked[key] for key in sorted(asked)}),
                "database": database,
                "endpoints": place,
                "secret-user": self._share(event.relation, "user", user_secret),
                "secret-tls": self._share(event.relation, "tls", tls_secret),
                "version": _sql("SHOW server_version").split()[0],
            }
        )

    def _share(self, relation: ops.Relation, group: str, content: Mapping[str, str]) -> str:
        """Put into a secret what the requirer asked to have there, and let it read that."""
        wanted = json.loads(relation.data[relation.app]["requested-secrets"])
        said = {key: value for key, value in content.items() if key in wanted}
        secret = self.app.add_secret(said, label=f"{ENDPOINT}.{relation.id}.{group}.secret")
        secret.grant(relation)
        assert secret.id is not None
        return secret.id

    @property
    def _address(self) -> str:
        binding = self.model.get_binding(ENDPOINT)
        assert binding is not None
        return str(binding.network.ingress_address)


def _sql(statement: str) -> str:
    return _run("runuser", "-u", "postgres", "--", "psql", "-qAtc", statement)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    return done.stdout.strip()


if __name__ == "__main__":
    ops.main(PostgresqlCharm)

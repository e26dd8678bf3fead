"""A small world around the API for its tests: machines, storage units and a clock to be set."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from turku_core import credentials
from turku_core.api import clock, limits
from turku_core.api.models import KeyKind, Machine, RegistrationKey, Source, StorageUnit

GIB = 1024.0


@dataclass(frozen=True)
class Answer:
    """What the API answered."""

    status: int
    text: str

    @property
    def json(self) -> dict[str, Any]:
        """The answer to a call that succeeded."""
        assert self.status == 200, self.text
        answer: dict[str, Any] = json.loads(self.text)
        return answer


@dataclass
class AgentCaller:
    """A machine as the API sees it: what it sends, kept so that a test can change a field."""

    world: World
    uuid: str
    secret: str
    config: dict[str, Any]

    @property
    def login(self) -> dict[str, Any]:
        """Its credentials, as at every call."""
        return {"machine": {"uuid": self.uuid, "secret": self.secret}}

    @property
    def row(self) -> Machine:
        """Its row."""
        return Machine.objects.get(uuid=self.uuid)

    def source(self, name: str = "docs") -> Source:
        """The row of one of its sources."""
        return Source.objects.select_related("machine", "storage", "lease_storage").get(
            machine__uuid=self.uuid, name=name
        )

    def update(self, *, auth: Any = None, **changes: Any) -> Answer:
        """Send ``update_config`` with some fields changed."""
        self.config.update(changes)
        request = {"machine": {**self.login["machine"], **self.config}}
        if auth is not None:
            request["auth"] = auth
        return self.world.call("update_config", request)

    def check_in(self) -> dict[str, Any]:
        """Check in as fielded agents do; the scheduled sources."""
        answer = self.world.call("agent_ping_checkin", self.login).json
        scheduled: dict[str, Any] = answer["machine"]["scheduled_sources"]
        return scheduled

    def check_in_since(self, last: str | None) -> tuple[dict[str, Any], str | None]:
        """Check in, and say of when the last answer with sources is; the sources, and of when."""
        machine = {**self.login["machine"], "last_handed_out_at": last}
        answer = self.world.call("agent_ping_checkin", {"machine": machine}).json["machine"]
        return answer["scheduled_sources"], answer.get("handed_out_at", last)

    def restore(self) -> dict[str, Any]:
        """Ask for a restore; the machine of the answer."""
        machine: dict[str, Any] = self.world.call("agent_ping_restore", self.login).json["machine"]
        return machine


@dataclass
class UnitCaller:
    """A storage unit as the API sees it."""

    world: World
    name: str
    secret: str
    config: dict[str, Any]

    @property
    def login(self) -> dict[str, Any]:
        """Its credentials, as at every call."""
        return {"storage": {"name": self.name, "secret": self.secret}}

    @property
    def row(self) -> StorageUnit:
        """Its row."""
        return StorageUnit.objects.get(name=self.name)

    def update(self, *, auth: Any = None, **changes: Any) -> Answer:
        """Send ``storage_update_config`` with some fields changed."""
        self.config.update(changes)
        request = {"storage": {**self.login["storage"], **self.config}}
        if auth is not None:
            request["auth"] = auth
        return self.world.call("storage_update_config", request)

    def open_session(self, agent: AgentCaller, action: str | None = None) -> Answer:
        """Say that a machine has a session."""
        request: dict[str, Any] = {**self.login, "machine": {"uuid": agent.uuid}}
        if action is not None:
            request["action"] = action
        return self.world.call("storage_ping_checkin", request)

    def report(self, agent: AgentCaller, sources: dict[str, Any]) -> Answer:
        """Report what became of sources."""
        machine = {"uuid": agent.uuid, "sources": sources}
        return self.world.call("storage_ping_source_update", {**self.login, "machine": machine})

    def report_run(self, agent: AgentCaller, name: str = "docs", **changes: Any) -> Answer:
        """Report a good run that began a minute ago, or what `changes` make of it."""
        end = self.world.now.timestamp()
        result = {
            "success": True,
            "snapshot": f"{self.world.now:%Y%m%dT%H%M%SZ}",
            "summary": "",
            "time_begin": end - 60,
            "time_end": end,
            **changes,
        }
        return self.report(agent, {name: result})


@dataclass
class World:
    """The API over HTTP, and what stands around it."""

    now: datetime
    monkeypatch: pytest.MonkeyPatch
    client: Client = field(default_factory=lambda: Client(raise_request_exception=True))
    machine_key: str = ""
    storage_key: str = ""

    def __post_init__(self) -> None:
        _, self.machine_key = RegistrationKey.create_with_secret("machines")
        _, self.storage_key = RegistrationKey.create_with_secret("storages", KeyKind.STORAGE)
        self.monkeypatch.setattr(clock, "now", lambda: self.now)
        # What other tests do with their clocks doesn't count. Those of other processes may have
        # the same folder: pytest-django reads the settings that xdist's first process has chosen.
        known = f"clock-{os.getpid()}.json"
        self.monkeypatch.setattr(clock, "FILE", known)
        (settings.DATA_FOLDER / known).unlink(missing_ok=True)
        for name in ("_failures", "logins"):
            self.monkeypatch.setattr(limits, name, limits.Budgets(limits.FAILURES_AT_ONCE, 1.0))

    def pass_time(self, **duration: float) -> datetime:
        """Let time go by (the arguments of a timedelta) and return the present."""
        self.now += timedelta(**duration)
        return self.now

    def call(self, name: str, payload: Any) -> Answer:
        """Make a v1 call."""
        return self.call_with(self.client, name, payload)

    @staticmethod
    def call_with(client: Client, name: str, payload: Any) -> Answer:
        """Make a v1 call with a client of one's own, as a thread needs it."""
        response = client.post(f"/v1/{name}", json.dumps(payload), content_type="application/json")
        return Answer(response.status_code, response.content.decode())

    def agent(
        self, unit_name: str = "web/0", *, register: bool = True, **config: Any
    ) -> AgentCaller:
        """Make a machine with one source, ``docs``, and register it."""
        sources = config.pop("sources", {"docs": {"path": "/srv/docs"}})
        agent = AgentCaller(
            self,
            str(uuid.uuid4()),
            credentials.make_secret(),
            {
                "unit_name": unit_name,
                "ssh_public_key": make_public_key(unit_name),
                "sources": sources,
                **config,
            },
        )
        if register:
            assert agent.update(auth=self.auth()).status == 200
        return agent

    def auth(self) -> dict[str, str]:
        """The machines' registration key."""
        return {"name": "machines", "secret": self.machine_key}

    def unit(self, name: str = "store-1", *, register: bool = True, **config: Any) -> UnitCaller:
        """Make a storage unit of 100 GiB, empty, and register it."""
        unit = UnitCaller(
            self,
            name,
            credentials.make_secret(),
            {
                "ssh_ping_host": f"{name}.example.com",
                "ssh_ping_port": 22,
                "ssh_ping_user": "turku-storage",
                "ssh_ping_host_keys": [make_public_key(name)],
                "space_total": 100 * GIB,
                "space_available": 100 * GIB,
                **config,
            },
        )
        if register:
            auth = {"name": "storages", "secret": self.storage_key}
            assert unit.update(auth=auth).status == 200
        return unit

    def backed_up(self, agent: AgentCaller, unit: UnitCaller) -> None:
        """Take a machine through one whole backup of everything that is due."""
        unit.update()
        for name in agent.check_in():
            unit.open_session(agent)
            assert unit.report_run(agent, name).status == 200


def make_public_key(comment: str) -> str:
    """Make the line of a new SSH public key."""
    return credentials.make_ssh_key_pair(comment)[1]

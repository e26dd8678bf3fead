"""Everything that takes apart what another party or a file says: what it takes, and how it refuses.

Nothing of the tests' own tools is imported here: the coverage-guided fuzzer uses the same table in
an environment of its own.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from turku_core import fields, relations
from turku_core.agent import backup as agent_backup
from turku_core.agent import checkin, snapshots
from turku_core.agent.restore import Report as RestoreReportOfAgent
from turku_core.agent.restore import _take_result
from turku_core.agent.session import parse_event
from turku_core.agent.settings import Locations, load_settings
from turku_core.agent.sources import check_sources
from turku_core.configuration import read_text
from turku_core.credentials import PublicKey
from turku_core.cron import CronExpression
from turku_core.errors import TurkuError
from turku_core.protocol import messages, restore_orders, status
from turku_core.retention import Policy
from turku_core.schedule import Schedule
from turku_core.storage import manifest, queue, records, reports
from turku_core.storage.listeners import parse_table
from turku_core.storage.registration import Known, parse_answer
from turku_core.storage.session import parse_permission
from turku_core.storage.session_request import parse_request
from turku_core.storage.settings import read_settings

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFKVwiUmdN9K4fXTMQhaWz3F3gWBXJAsGN3lpGHFX3cq"
SECRET = "correct-horse-battery-staple"
NOW = datetime(2026, 3, 11, 12, tzinfo=timezone.utc)

REFUSALS = (ValueError, TurkuError)
"""How a parser may say no. `FieldError` is a ValueError; anything else is a defect."""

STORAGE = {
    "name": "store-1",
    "ssh_ping_host": "store.example.com",
    "ssh_ping_host_keys": [KEY],
    "ssh_ping_port": 22,
    "ssh_ping_user": "turku-storage",
}
SETTINGS = {
    "path": "/srv/data",
    "frequency": "daily, 0100-0500",
    "retention": "last 5 days, earliest of month",
    "comment": "a comment",
    "filter": ["- *.tmp", "merge defaults"],
    "exclude": ["/cache"],
    "bwlimit": "2.5m",
    "snapshot_mode": "borg",
    "preserve_hard_links": True,
    "shared_service": False,
    "large_rotating_files": False,
    "large_modifying_files": False,
}
SOURCE = {key: value for key, value in SETTINGS.items() if key not in ("frequency", "comment")} | {
    "filter": ["- *.tmp"],
    "storage": STORAGE,
}
FORMER = {
    "unit_name": "web/0",
    "environment_name": "prod",
    "service_name": "web",
    "until": "2026-03-12T00:00:00+00:00",
}
ORDER = {
    "id": UUID,
    "source": "docs",
    "machine": UUID,
    "snapshot": "20260311T120000Z",
    "paths": ["a/b", "/srv/data/c"],
    "target": "/var/lib/turku-agent/restore/x",
    "dry_run": True,
}
SNAPSHOT = {
    "machine": UUID,
    "source": "docs",
    "id": "20260311T120000Z",
    "taken_at": "2026-03-11T12:00:00+00:00",
    "state": "committed",
    "partial": False,
    "mode": "borg",
    "bytes": 10,
    "files": 2,
    "expires_for_good_at": "2026-03-18T12:00:00+00:00",
    "proven_at": 1773230400,
    "damaged": None,
}
REPORT = {
    "success": True,
    "snapshot": "20260311T120000Z",
    "summary": "two\nlines",
    "time_begin": 1773230400.5,
    "time_end": 1773230460,
    "partial": False,
    "bytes_stored": 1,
    "bytes_total": 2,
    "files_total": 3,
    "snapshots": [
        {"name": "20260311T120000Z", "state": "damaged", "proven_at": 1.5, "error": "bad\nbits"}
    ],
}


@dataclass(frozen=True)
class Parser:
    """One of them.

    Attributes:
        name: What it takes apart, and on whose side.
        parse: Takes a value of the kind of `example`; returns what it found, or refuses.
        example: A value that it accepts: JSON, or text.
        free: Names of fields that may hold several lines of text.
    """

    name: str
    parse: Callable[[Any], Any]
    example: Any
    free: frozenset[str] = frozenset()


def _events_of_a_backup(value: Any) -> Any:
    event = parse_event(value if isinstance(value, str) else json.dumps(value))
    agent_backup.progress_words(event)
    job: Any = type("Job", (), {"storage": type("S", (), {"name": "store-1"}), "sources": ()})
    agent_backup._take(event, job, {})
    return None


def _events_of_a_restore(value: Any) -> Any:
    event = parse_event(value if isinstance(value, str) else json.dumps(value))
    report = _empty_report()
    _take_result(event, report)
    return None


def _empty_report() -> RestoreReportOfAgent:
    values: dict[str, Any] = {}
    for each in dataclasses.fields(RestoreReportOfAgent):
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            values[each.name] = None
    return RestoreReportOfAgent(**values)


def _snapshot(value: Any) -> Any:
    address = messages.StorageAddress.from_json(STORAGE, "storage")
    found = snapshots.Snapshot.from_json(value, address)
    found.to_json()
    return found


def _due(value: Any) -> Any:
    due = checkin._with_orders(checkin.sources_of(value, "scheduled_sources"), value)
    return due.sources, due.orders


def _machines(value: Any) -> Any:
    known, _ = parse_answer(fields.mapping(value, "answer"), Known())
    json.dumps(known.to_json())
    return known


def _permission(value: Any) -> Any:
    permission = parse_permission(fields.mapping(value, "answer"), UUID)
    return permission.scheduled, permission.restore_from


def _mapping(parse: Callable[[Mapping[str, Any]], Any]) -> Callable[[Any], Any]:
    return lambda value: parse(fields.mapping(value, "request"))


def _placed(parse: Callable[[object, str], Any]) -> Callable[[Any], Any]:
    return lambda value: parse(value, "place")


def _databag(parse: Callable[[Mapping[str, str]], Any]) -> Callable[[Any], Any]:
    def databag(value: Any) -> Any:
        bag = fields.mapping(value, "databag")
        # Juju carries text and nothing else.
        return parse({key: each for key, each in bag.items() if isinstance(each, str)})

    return databag


def _configuration(read: Callable[[Path], Any], folder: str, suffix: str) -> Callable[[Any], Any]:
    """Return a parser of a whole configuration file, in its folder below a root."""

    def parse(value: Any) -> Any:
        text = value if isinstance(value, str) else json.dumps(value)
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / folder).mkdir(parents=True)
            content = text.encode("utf-8", "surrogatepass")
            (root / folder / f"50-test{suffix}").write_bytes(content)
            read(root)

    return parse


def _agent_settings(root: Path) -> None:
    load_settings(Locations(root))


def _sources(value: Any) -> Any:
    checked = check_sources(fields.mapping(value, "sources"), {}, "here")
    for problem in checked.problems:
        json.dumps(problem)
    return {
        name: dataclasses.replace(source, origin="") for name, source in checked.sources.items()
    }


def _manifest(value: Any) -> None:
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "manifest")
        packed = gzip.compress(raw, 1)
        # Whole, without the form, and with what comes after the header of the form.
        for content in (packed, raw, packed[:10] + raw):
            path.write_bytes(content)
            manifest.read(path)


def _record(value: Any) -> Any:
    record = records.Record.from_json(fields.mapping(value, "record"))
    record.to_json()
    return None


def _schedule(value: Any) -> None:
    schedule = Schedule.parse(value)
    due = schedule.next_due("key", NOW)
    if due.tzinfo is None or due < NOW:
        raise AssertionError(f"{value!r} is due at {due}")


def _policy(value: Any) -> None:
    times = [NOW.replace(day=day) for day in range(1, 11)]
    if not Policy.parse(value).keep(times, NOW) <= set(times):
        raise AssertionError(f"{value!r} keeps what isn't there")


def _lines_of_proc(value: Any) -> None:
    list(parse_table(str(value).splitlines()))


def _file(kind: str) -> Callable[[Any], Any]:
    def parse(value: Any) -> None:
        # Only read here: what its values may be is checked by whoever takes them out.
        read_text(Path(f"50-test{kind}"), value)

    return parse


def _text_of(check: Callable[[object, str], Any]) -> Callable[[Any], Any]:
    return lambda value: check(value, "field")


_API_ACCESS = relations.ApiAccess(
    ("https://192.0.2.10/v1",),
    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "agents-1",
    "secret:9m4e2mr0ui3e8a215n4g",
).to_databag()
_RUN = {"machine": UUID, "sources": ["docs"]}

MESSAGES = (
    # On the API's side.
    Parser("an agent's login", _mapping(messages.MachineLogin.from_json),
           {"machine": {"uuid": UUID, "secret": SECRET}}),
    Parser("a storage unit's login", _mapping(messages.StorageLogin.from_json),
           {"storage": {"name": "store-1", "secret": SECRET}}),
    Parser("a newcomer's registration key", _placed(messages.Auth.from_json),
           {"name": "agents", "secret": SECRET}),
    Parser("a machine's configuration", _placed(messages.MachineConfig.from_json),
           {"unit_name": "web/0", "ssh_public_key": KEY, "environment_name": "prod",
            "service_name": "web", "comment": "c", "published": True,
            "sources": {"docs": SETTINGS}}),
    Parser("a storage unit's configuration", _placed(messages.StorageConfig.from_json),
           {**{key: value for key, value in STORAGE.items() if key != "name"},
            "space_total": 1024.5, "space_available": 1000, "published": True, "slots": 3,
            "high_water_mark": 80, "known_revision": "x", "capabilities": ["leases"],
            "running": [_RUN]}),
    Parser("a storage unit's report", _placed(messages.source_updates_from_json),
           {"docs": REPORT}, frozenset({"summary", "error"})),
    Parser("orders at work", _mapping(restore_orders.running_orders_from_json),
           {"running_orders": [UUID]}),
    Parser("how an order went", _placed(restore_orders.RestoreReport.from_json),
           {"id": UUID, "outcome": "done", "message": "m", "snapshot": "20260311T120000Z",
            "target": "/r", "files": 1, "bytes": 2, "changes": [">f"]},
           frozenset({"message"})),
    # On the agent's side.
    Parser("what is due at a check-in", _mapping(_due),
           {"machine": {"scheduled_sources": {"docs": SOURCE}, "restore_orders": [ORDER]}}),
    Parser("what may be restored",
           _mapping(lambda value: checkin.sources_of(value, "sources").sources),
           {"machine": {"sources": {"docs": SOURCE}}}),
    Parser("a restore order", _placed(restore_orders.RestoreOrder.from_json), ORDER),
    Parser("the state of sources", _placed(status.statuses_from_json),
           {"docs": {"state": "good", "last_good": "2026-03-11T12:00:00+00:00",
                     "next_due": "2026-03-12T12:00:00Z", "overdue_since": None, "problem": "p",
                     "failures": 0, "last_proven": None, "requested": False}},
           frozenset({"problem"})),
    Parser("a snapshot in a unit's list", _snapshot, SNAPSHOT, frozenset({"damaged"})),
    Parser("an event of a backup", _events_of_a_backup,
           {"event": "progress", "source": "docs", "bytes": 3, "percent": 40.5,
            "outcome": "success", "message": "m"}),
    Parser("an event of a restore", _events_of_a_restore,
           {"event": "result", "ok": True, "files": 1, "bytes": 2, "message": "m"}),
    # On the storage unit's side.
    Parser("the list of machines", _machines,
           {"revision": "r", "machines": {UUID: {
               "unit_name": "web/0", "environment_name": "prod", "service_name": None,
               "comment": "c", "ssh_public_key": KEY, "restore_from": {UUID: FORMER}}}}),
    Parser("what a session may do", _permission,
           {"machine": {"uuid": UUID, "scheduled_sources": {"docs": SOURCE},
                        "restore_from": {UUID: FORMER}}}),
    Parser("a session's request", lambda value: parse_request(
               value if isinstance(value, bytes) else json.dumps(value).encode()),
           {"action": "restore", "port": 50000, "verbose": True, "events": True,
            "sources": {"docs": {"username": "turku-1", "password": SECRET}},
            "cancelled": {"other": "its hook\nsaid no"},
            "restore": {"machine": UUID, "source": "docs", "snapshot": "latest",
                        "paths": ["a/b", "/srv/x"], "dry_run": True, "checksum": False}},
           frozenset({"cancelled"})),
    # What the storage unit itself wrote down, on a disk that may have been tampered with.
    Parser("a waiting report", lambda value: reports.Report.from_json(value) and None,
           {"uuid": UUID, "sources": {"docs": REPORT}}),
    Parser("a waiting job", lambda value: queue.Job.from_json(value) and None,
           {"machine": UUID, "source": "docs", "volume": "main", "snapshot": "20260311T120000Z",
            "queued_at": "2026-03-11T12:00:00+00:00"}),
    Parser("a snapshot's record", _record,
           {"machine": UUID, "source": "docs", "id": "20260311T120000Z",
            "taken_at": "2026-03-11T12:00:00+00:00", "time_end": "2026-03-11T12:01:00+00:00",
            "mode": "borg"}),
)  # fmt: skip

DATABAGS = (
    Parser("the API's databag", _databag(relations.ApiAccess.from_databag), _API_ACCESS,
           frozenset({"ca_certificate"})),
    Parser("an agent unit's databag", _databag(relations.AgentUnit.from_databag),
           relations.AgentUnit(UUID, PublicKey.parse(KEY), "web/0").to_databag()),
    Parser("a storage unit's databag", _databag(relations.StorageUnit.from_databag),
           relations.StorageUnit(
               "store-1", "192.0.2.1", 22, (PublicKey.parse(KEY),)).to_databag()),
    Parser("a principal's sources", _databag(lambda bag: _principal(bag)),
           relations.PrincipalSources({"docs": SETTINGS}).to_databag()),
    Parser("a backup interface's databag", _databag(relations.BackupRequest.from_databag),
           {"fileset": "/srv/a,/srv/b", "run-before-backup": "/usr/bin/x"}),
)  # fmt: skip


def _principal(bag: Mapping[str, str]) -> Any:
    found = relations.PrincipalSources.from_databag(bag)
    return None if found is None else _sources(dict(found.sources))


_AGENT = {
    "api_url": ["https://a.example.com/v1", "https://b.example.com/v1"],
    "api_ca_certificate": "/etc/turku-agent/ca.crt",
    "api_auth_name": "agents",
    "api_auth_secret": SECRET,
    "environment_name": "prod",
    "service_name": "web",
    "unit_name": "web/0",
    "published": True,
    "gonogo_program": ["/usr/bin/go", "-x"],
    "restore_path": "/srv/restore",
    "restore_orders": "none",
    "log_level": "info",
}
_UNIT = {
    "api_url": "https://a.example.com/v1",
    "api_auth": {"name": "storages", "secret": SECRET},
    "name": "store-1",
    "secret": SECRET,
    **{key: value for key, value in STORAGE.items() if key != "name"},
    "published": True,
    "snapshot_mode": "borg",
    "default_retention": "last 5 days",
    "volumes": {"main": {"path": "/srv/backups", "accept_new": True, "mount_required": False}},
    "slots": 3,
    "expiry_floor": 3,
    "expiry_grace_days": 7,
    "verify_interval_days": 30,
    "io_timeout_seconds": 600,
    "log_level": "info",
}
_YAML = (
    "docs:\n  path: /srv/data\n  exclude: ['*.tmp', \"a\\tb\"]\n  comment: |\n    one\n"
    "  hook_timeout: 0x3c\n  published: yes\nmore: {path: /x, bwlimit: 1:30}\n? key\n: [1, 2.5e3]\n"
)

CONFIGURATIONS = (
    Parser("the agent's configuration",
           _configuration(_agent_settings, "etc/turku-agent/config.d", ".json"), _AGENT),
    Parser("sources.d", _sources,
           {"docs": {**SETTINGS, "run_before_backup": "/usr/bin/x", "hook_timeout": 60}}),
    Parser("the storage unit's configuration",
           _configuration(read_settings, "etc/turku-storage/config.d", ".json"), _UNIT),
)  # fmt: skip

TEXTS = (
    Parser("a YAML file", _file(".yaml"), _YAML),
    Parser("a JSON file", _file(".json"), json.dumps({"docs": SETTINGS})),
    Parser("the bytes of a YAML configuration",
           _configuration(_agent_settings, "etc/turku-agent/config.d", ".yaml"),
           "api_url: https://a.example.com/v1\nunit_name: web\n"),
    Parser("a schedule", _schedule, "cron H(0-15)/5 1,2 1-5/2 * MON-FRI"),
    Parser("a schedule in words", _schedule, "monday, 2300-0500"),
    Parser("a cron expression", lambda text: CronExpression.parse(text), "H */2 1 1-6 MON"),
    Parser("a retention policy", _policy, "last 5 days, earliest of 2 months, last 3 snapshots"),
    Parser("an SSH public key", lambda text: PublicKey.parse(text), f"{KEY} a comment"),
    Parser("a host", _text_of(fields.host), "store-1.example.com"),
    Parser("an address to listen on", _text_of(fields.listen_address), "[2001:db8::1]:9520"),
    Parser("a filter rule", _text_of(fields.filter_rule), "-,s! *.tmp"),
    Parser("a time", _text_of(fields.moment), "2026-03-11T12:00:00.5+01:00"),
    Parser("a bandwidth", _text_of(fields.bandwidth), "2.5MiB"),
    Parser("a snapshot's name", lambda text: records.time_of_id(
               fields.snapshot_id(text, "id")) and None, "20260311T120000Z"),
    Parser("a line of the session's output", _events_of_a_backup, '{"event": "message"}'),
    Parser("the kernel's list of sockets", _lines_of_proc,
           "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000"),
    Parser("a manifest", _manifest,
           'turku manifest 1\n["a", "aa", "", 1, 2, 3]\n'),
)  # fmt: skip


ALL = (*MESSAGES, *DATABAGS, *CONFIGURATIONS, *TEXTS)


def strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in what a parser returned, with the name of the field that holds it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from strings(key, name)
            yield from strings(each, name)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from strings(each, name)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from strings(getattr(value, field.name), field.name)


def check(parser: Parser, value: Any) -> bool:
    """Let a parser take a value apart; whether it took it.

    Raises:
        AssertionError: What it let through would be a second line somewhere, or its refusal could
            drive a terminal. Any other error is the parser's own defect.
    """
    try:
        found = parser.parse(value)
    except REFUSALS as error:
        words = str(error)
        if isinstance(error, fields.FieldError) and not words.isprintable():
            raise AssertionError(f"{parser.name}: {words!a} isn't for a terminal") from error
        return False
    for name, text in strings(found):
        many_lines = name in parser.free
        if "\0" in text or (not many_lines and ("\n" in text or "\r" in text)):
            raise AssertionError(f"{parser.name}: {name} may hold {text!a}")
    return True

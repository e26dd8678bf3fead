"""What an agent asks of a session: one JSON object, and then a line with a single dot.

Everything in it is hostile. Size and time are bounded before anything is parsed.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from turku_core import fields
from turku_core.errors import TurkuError

REQUEST_BYTES_MAX = 1024 * 1024
"""A thousand sources with their passwords are a tenth of it."""

REQUEST_SECONDS = 60.0
ACTIONS = ("checkin", "restore", "list")
RESTORE_MODULE = "turku-restore"
LATEST = "latest"

_BLOCK = 65536
_END = b"."


class RequestNotValid(TurkuError):
    """The agent's request isn't what the protocol says."""


@dataclass(frozen=True)
class Login:
    """The user name and password of an agent's rsync daemon, good for one session."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class RestoreWish:
    """What an agent wants restored, unattended.

    Attributes:
        machine: Whose snapshot; None is the machine's own.
        source: The source's name.
        snapshot: An id, ``latest``, ``mirror``, or an ISO 8601 time.
        paths: Relative to the source's folder, or absolute below its path; none means all.
        dry_run: Only say what would change.
        checksum: Compare the content of every file, whatever size and time say.
    """

    machine: str | None
    source: str
    snapshot: str = LATEST
    paths: tuple[str, ...] = ()
    dry_run: bool = False
    checksum: bool = False


@dataclass(frozen=True)
class Request:
    """A request that has been checked.

    Attributes:
        port: Where the tunnel to the agent's rsync daemon ends on this host's loopback.
        sources: The logins of the daemon's modules, by name.
        problems: A sentence for each module that was left out because it isn't valid.
        cancelled: Why the agent itself can't back a source up, by name: its path isn't there, or a
            hook said no. It goes on the record as the source's failure.
        events: Whether the agent reads JSON events; otherwise it shows lines of text.
        restore: None in a restore means that the agent waits for an administrator.
    """

    action: str
    port: int | None
    sources: Mapping[str, Login]
    problems: tuple[str, ...] = ()
    cancelled: Mapping[str, str] = field(default_factory=dict)
    verbose: bool = False
    events: bool = False
    restore: RestoreWish | None = None


def read_request(
    descriptor: int,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    seconds: float = REQUEST_SECONDS,
    bytes_max: int = REQUEST_BYTES_MAX,
) -> bytes:
    """Read up to the line with the single dot.

    Raises:
        RequestNotValid: It doesn't come in time, is too long, or breaks off.
    """
    deadline = time.monotonic() + seconds
    data = bytearray()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP)
    line = 0
    while True:
        line, ended = _skip_lines(data, line)
        if ended:
            return bytes(data[:line])
        if len(data) > bytes_max:
            raise RequestNotValid(f"The request is longer than {bytes_max} bytes.")
        left = deadline - time.monotonic()
        if left <= 0:
            raise RequestNotValid(f"The request was not complete after {seconds:.0f} seconds.")
        if cancelled():
            raise RequestNotValid("The session ended before the request was complete.")
        if poller.poll(min(left, 0.5) * 1000):
            block = os.read(descriptor, _BLOCK)
            if not block:
                raise RequestNotValid(
                    "The request broke off: it must end with a line of a single dot."
                )
            data += block


def _skip_lines(data: bytearray, start: int) -> tuple[int, bool]:
    """Return where the line with the dot begins and True, or where the last begun line begins."""
    while (end := data.find(b"\n", start)) != -1:
        if data[start:end].rstrip(b"\r") == _END:
            return start, True
        start = end + 1
    return start, False


def parse_request(data: bytes) -> Request:
    """Check a request. Unknown fields are ignored.

    Raises:
        RequestNotValid: It can't be used; the message names the field.
    """
    try:
        values = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise RequestNotValid("The request is not valid JSON.") from error
    try:
        return _parse(fields.mapping(values, "request"))
    except fields.FieldError as error:
        raise RequestNotValid(f"The request is not valid: {error}.") from error


def _parse(values: Mapping[str, Any]) -> Request:
    action = fields.required(values, "action")
    if action not in ACTIONS:
        raise fields.FieldError("action", f"must be one of {', '.join(ACTIONS)}")
    sources, problems = _logins(fields.optional(values, "sources", fields.mapping, {}))
    wish = values.get("restore")
    return Request(
        action=action,
        port=None
        if action == "list" and values.get("port") is None
        else fields.port(fields.required(values, "port"), "port"),
        sources=sources,
        problems=tuple(problems),
        cancelled=fields.optional(values, "cancelled", _reasons, {}),
        verbose=fields.optional(values, "verbose", fields.boolean, False),
        events=fields.optional(values, "events", fields.boolean, False),
        restore=None if wish is None or action != "restore" else _wish(wish, "restore"),
    )


def _logins(sources: Mapping[str, Any]) -> tuple[dict[str, Login], list[str]]:
    """Check the modules one by one: a name that isn't valid never stops the others."""
    if len(sources) > fields.SOURCES_MAX:
        raise fields.FieldError("sources", f"must have at most {fields.SOURCES_MAX} sources")
    good, problems = {}, []
    for name, value in sources.items():
        try:
            module = fields.name(name, "source name")
            place = f"sources.{module}"
            login = fields.mapping(value, place)
            good[module] = Login(
                fields.name(fields.required(login, "username", place), f"{place}.username"),
                fields.secret(fields.required(login, "password", place), f"{place}.password"),
            )
        except fields.FieldError as error:
            problems.append(f"A source of the request is left out: {error}.")
    return good, problems


def _reasons(value: object, place: str) -> dict[str, str]:
    reasons = fields.mapping(value, place)
    if len(reasons) > fields.SOURCES_MAX:
        raise fields.FieldError(place, f"must have at most {fields.SOURCES_MAX} sources")
    return {
        fields.name(name, f"{place}, source name"): fields.long_text(reason, f"{place}.{name}")
        for name, reason in reasons.items()
    }


def _wish(value: object, place: str) -> RestoreWish:
    wish = fields.mapping(value, place)
    return RestoreWish(
        machine=fields.optional(wish, "machine", fields.uuid, None, place),
        source=fields.name(fields.required(wish, "source", place), f"{place}.source"),
        snapshot=fields.optional(wish, "snapshot", _snapshot, LATEST, place),
        paths=fields.optional(wish, "paths", _paths, (), place),
        dry_run=fields.optional(wish, "dry_run", fields.boolean, False, place),
        checksum=fields.optional(wish, "checksum", fields.boolean, False, place),
    )


def _snapshot(value: object, place: str) -> str:
    """Check a snapshot's id or a time: no slash, nothing that begins like an option."""
    return fields.snapshot_id(value, place)


def _paths(value: object, place: str) -> tuple[str, ...]:
    return fields.items(value, place, _wished_path, 10_000)


def _wished_path(value: object, place: str) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return fields.absolute_path(value, place)
    return fields.relative_path(value, place)

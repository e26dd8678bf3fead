"""The calls of the v1 protocol over HTTP: what comes in is bounded, parsed and answered."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt

from turku_core.api import clock, limits
from turku_core.api.agent_status import agent_status
from turku_core.api.backup_requests import agent_backup_now
from turku_core.api.checkin import agent_ping_checkin, agent_ping_restore
from turku_core.api.counts import health
from turku_core.api.refusals import NotHere, NotYet, Refused, TooMany
from turku_core.api.registration import update_config
from turku_core.api.reports import storage_ping_source_update
from turku_core.api.restore_orders import agent_restore_report
from turku_core.api.sessions import storage_ping_checkin
from turku_core.api.storage_registration import storage_update_config
from turku_core.fields import FieldError, shown
from turku_core.protocol.messages import REQUEST_BYTES_MAX

log = logging.getLogger(__name__)

Call = Callable[[Mapping[str, Any], datetime], dict[str, Any]]

SMALL = 64 * 1024
_one_large_at_a_time = threading.Lock()
"""In each worker. 8 MiB of JSON from anybody may take 200 MiB of memory."""

TRIES = 3
UNDONE = ("40001", "40P01")
"""PostgreSQL's serialization failure and deadlock (its Appendix A, class 40)."""


def answer(request: HttpRequest, call: Call, bytes_max: int) -> HttpResponse:
    """Answer one call.

    Args:
        request: What came in.
        call: The function behind the call's name.
        bytes_max: The largest request that the call may need; a larger one isn't read.
    """
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    payload: dict[str, Any] = {}
    try:
        body = _read(request, bytes_max)
        with _one_large_at_a_time if len(body) > SMALL else contextlib.nullcontext():
            payload = _parse(body)
            with limits.counted(_address(request), payload):
                answered = _persistently(call, payload)
        return HttpResponse(json.dumps(answered), content_type="application/json")
    except FieldError as error:
        return _refusal(request, payload, 400, str(error))
    except Refused:
        return _refusal(request, payload, 403, "Bad credentials")
    except TooMany:
        # The budget's end was logged; a line for each would be what a flood is after.
        words = "Too many bad credentials come from your address; try again later."
        refusal = _refusal(request, payload, 429, words, logging.DEBUG)
        refusal["Retry-After"] = str(limits.RETRY_SECONDS)
        return refusal
    except NotHere as error:
        return _refusal(request, payload, 404, str(error))
    except NotYet as error:
        # Nothing that anyone has to look at, and each newcomer asks several times.
        return _refusal(request, payload, 503, str(error), logging.INFO)
    except (DatabaseError, InterfaceError) as error:
        if not _is_outside(error):
            raise
        # A line, and no traceback: while the database is away, every machine calls here.
        log.error(
            "%s of %s: the database can't serve it: %s",
            request.path_info,
            _who(payload),
            " ".join(str(error).split()),
            exc_info=log.isEnabledFor(logging.DEBUG),
        )
        return _text(503, "The API's database can't serve the call now; try again.")


def _is_outside(error: Exception) -> bool:
    """Say whether the database is to blame, and not what was asked of it.

    SQLite calls a damaged file by the error that all others are kinds of.
    """
    return isinstance(error, (OperationalError, InterfaceError)) or type(error) is DatabaseError


def _refusal(
    request: HttpRequest,
    payload: Mapping[str, Any],
    status: int,
    reason: str,
    level: int = logging.WARNING,
) -> HttpResponse:
    log.log(
        level,
        "%s of %s at %s: %d: %s",
        request.path_info,
        _who(payload),
        _address(request),
        status,
        " ".join(reason.split()),
    )
    return _text(status, reason)


def _address(request: HttpRequest) -> str:
    return str(request.META.get("REMOTE_ADDR") or "an unknown address")


def _who(payload: Mapping[str, Any]) -> str:
    """Return whom a request says it is of, for the log; nothing of it has been checked."""
    said = []
    for role, key in (("storage", "name"), ("machine", "uuid")):
        one = payload.get(role)
        if isinstance(one, dict) and isinstance(one.get(key), str):
            said.append(f"{role} {shown(one[key])}")
    return ", ".join(said) or "somebody"


def _persistently(call: Call, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Call again when the database had to choose a victim between two transactions.

    Every call writes in transactions that may be repeated: one that was undone left nothing.
    """
    for _ in range(TRIES - 1):
        try:
            return call(payload, clock.now())
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) not in UNDONE:
                raise
            log.warning("repeating a call after: %s", error)
    return call(payload, clock.now())


def _read(request: HttpRequest, bytes_max: int) -> bytes:
    """Return the request's body, or raise a `FieldError` that says what was expected."""
    if request.content_type != "application/json":
        raise FieldError("Content-Type", "must be application/json")
    length = request.META.get("CONTENT_LENGTH") or "0"
    # Before a byte is read; a body that is sent in chunks has no length, and counts as empty.
    if not length.isdigit() or len(length) > 12 or int(length) > bytes_max:
        raise FieldError("The request", f"must be at most {bytes_max} bytes long")
    try:
        return request.body
    except UnreadablePostError as error:
        raise FieldError("The request", "must be a JSON object in UTF-8") from error


def _parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body, or raise a `FieldError` that says what was expected."""
    try:
        payload = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (RecursionError, ValueError) as error:
        raise FieldError("The request", "must be a JSON object in UTF-8") from error
    if not isinstance(payload, dict):
        raise FieldError("The request", "must be a JSON object")
    return payload


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _text(status: int, text: str) -> HttpResponse:
    content = text.encode("utf-8", "backslashreplace")
    response = HttpResponse(content, status=status, content_type="text/plain; charset=utf-8")
    # Django would add an error for every 503; what there is to say has been said.
    response._has_been_logged = True  # type: ignore[attr-defined]  # django.utils.log.log_response
    return response


def _view(call: Call, bytes_max: int) -> Callable[[HttpRequest], HttpResponse]:
    return csrf_exempt(partial(answer, call=call, bytes_max=bytes_max))


CALLS: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "health": _view(health, SMALL),
    "update_config": _view(update_config, REQUEST_BYTES_MAX),
    "agent_ping_checkin": _view(agent_ping_checkin, SMALL),
    "agent_ping_restore": _view(agent_ping_restore, SMALL),
    "agent_restore_report": _view(agent_restore_report, REQUEST_BYTES_MAX),
    "agent_status": _view(agent_status, SMALL),
    "agent_backup_now": _view(agent_backup_now, SMALL),
    "storage_update_config": _view(storage_update_config, REQUEST_BYTES_MAX),
    "storage_ping_checkin": _view(storage_ping_checkin, SMALL),
    "storage_ping_source_update": _view(storage_ping_source_update, REQUEST_BYTES_MAX),
}

"""The forced command: from what sshd gives it to a session that is served and ended."""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from turku_core import fields
from turku_core.commandline import set_log_level
from turku_core.errors import BAD_USAGE, FAILED, ConfigurationError, TurkuError
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.lifeline import Lifeline
from turku_core.storage.session import Session, check_in
from turku_core.storage.session_request import Request, parse_request, read_request
from turku_core.storage.session_restore import list_snapshots, restore
from turku_core.storage.settings import Paths, Settings, read_settings
from turku_core.storage.snapshots import Environment
from turku_core.storage.voice import Voice
from turku_core.storage.volumes import Volumes

logger = logging.getLogger(__name__)

LOG_BYTES_MAX = 8 * 1024 * 1024
_SYSLOG = Path("/dev/log")


def make_catalogue(settings: Settings) -> Catalogue:
    """Return the catalogue of a unit's volumes."""
    state = settings.paths.state
    return Catalogue(Volumes(settings.volumes, state), state)


def serve(root: Path, machine: str, clock: Callable[[], datetime]) -> int:
    """Serve one session on standard input and output, and return the exit code.

    Args:
        root: The storage unit's root.
        machine: The machine's UUID, as the forced command names it.
        clock: Returns the time now, aware.
    """
    lifeline = Lifeline(1)
    try:
        uuid = fields.uuid(machine, "machine")
    except fields.FieldError as error:
        raise ConfigurationError(f"{error}.") from error
    with lifeline.watch():
        voice = Voice(1, lifeline.end)
        try:
            request = parse_request(read_request(0, lifeline.cancelled))
            voice = Voice(1, lifeline.end, events=request.events)
            for problem in request.problems:
                voice.message(problem)
            session = _make_session(root, uuid, request, voice, lifeline, clock)
            logger.info("machine %s: session for %s begins", uuid, request.action)
            code = _ACTIONS[request.action](session)
        except (TurkuError, fields.FieldError) as error:
            code = _refuse(voice, uuid, error)
        except OSError as error:
            logger.exception("machine %s: unexpected error", uuid)
            _say_why(voice, f"The storage unit can't use its own files: {error.strerror}.")
            code = FAILED
        except Exception as error:
            logger.exception("machine %s: unexpected error", uuid)
            _say_why(voice, f"Unexpected error: {type(error).__name__}.")
            code = FAILED
        if lifeline.reason:
            logger.warning("machine %s: %s", uuid, lifeline.reason)
        logger.info("machine %s: session ends with %s", uuid, code)
    return code


_ACTIONS: dict[str, Callable[[Session], int]] = {
    "checkin": check_in,
    "restore": restore,
    "list": list_snapshots,
}


def _make_session(
    root: Path,
    machine: str,
    request: Request,
    voice: Voice,
    lifeline: Lifeline,
    clock: Callable[[], datetime],
) -> Session:
    settings = read_settings(root)
    if settings.log_level is not None:
        set_log_level(settings.log_level)
    return Session(
        settings=settings,
        machine=machine,
        request=request,
        catalogue=make_catalogue(settings),
        environment=Environment(settings.paths.state),
        voice=voice,
        lifeline=lifeline,
        clock=clock,
    )


def _refuse(voice: Voice, machine: str, error: TurkuError | fields.FieldError) -> int:
    """Say why the session ends; what is wrong with this unit's own files is only logged."""
    logger.error("machine %s: %s", machine, error)
    if isinstance(error, ConfigurationError):
        _say_why(voice, "The storage unit's configuration is wrong; its log says how.")
    else:
        _say_why(voice, str(error))
    if isinstance(error, fields.FieldError) or error.exit_code == BAD_USAGE:
        return FAILED
    return error.exit_code


def _say_why(voice: Voice, sentence: str) -> None:
    """Say why a session ends as an event and, for a person to see, on standard error."""
    voice.result(ok=False, message=sentence)
    if voice.events:
        Voice(2, lambda _: None).message(sentence)


def set_up_logging(paths: Paths) -> None:
    """Send the session's log to syslog or, in a Turku in a folder of its own, to a file there.

    Standard error isn't the place: the agent reads it.
    """
    handler: logging.Handler
    if paths.root == Path("/") and _SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(
            str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON
        )
        form = f"turku-storage-ping[{os.getpid()}]: %(levelname)s %(name)s: %(message)s"
    else:
        _rotate(paths.session_log)
        handler = logging.FileHandler(
            paths.session_log, encoding="utf-8", errors="backslashreplace"
        )
        form = f"%(asctime)s {os.getpid()} %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(_OneLine(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel(logging.WARNING)


class _OneLine(logging.Formatter):
    """Keeps an event on one line, whatever a machine made part of it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _rotate(path: Path) -> None:
    try:
        if path.stat().st_size > LOG_BYTES_MAX:
            path.rename(path.with_suffix(".log.1"))
    except FileNotFoundError:
        return

"""A session: what the storage unit does while one agent's SSH connection lasts.

The agent has been let in by its key, whose forced command names the machine. What it asks is
checked, its due sources are pulled over its tunnel and frozen, and then it may go; the worker does
the rest. Nothing that happens here is silent: each source's outcome is told to the agent and, when
it is a failure, to the API.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from turku_core import fields
from turku_core.errors import DONE, FAILED, TRY_AGAIN_LATER, TryAgainLater, TurkuError
from turku_core.protocol.messages import (
    BackupResult,
    FormerMachine,
    Source,
    SourceUpdate,
    restore_from_json,
)
from turku_core.storage import trouble
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.lifeline import Lifeline
from turku_core.storage.listeners import find_tunnel, read_listeners
from turku_core.storage.lost_runs import noted
from turku_core.storage.mirror import Daemon, Outcome, PullOptions, Received, pull
from turku_core.storage.queue import Job, Queue
from turku_core.storage.registration import AnswerNotValid
from turku_core.storage.reports import Report, Spool, summary_text
from turku_core.storage.session_request import Login, Request
from turku_core.storage.settings import Settings
from turku_core.storage.slots import hold_slot
from turku_core.storage.snapshots import Environment, Taken, get_mode, resolve_mode
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.voice import Voice

logger = logging.getLogger(__name__)

CALL = "storage_ping_checkin"
API_SECONDS = (10.0, 60.0)
"""To connect, and without a byte of the answer."""


class VolumeTrouble(TurkuError):
    """No volume can take the source: somebody has to act, however often it is tried."""


@dataclass(frozen=True)
class Permission:
    """What the API says in this session of what the machine may do.

    Attributes:
        scheduled: The sources that are to be backed up now.
        restore_from: The other machines whose snapshots it may restore.
        problems: A sentence for each source that can't be backed up as the API describes it.
    """

    scheduled: Mapping[str, Source]
    restore_from: Mapping[str, FormerMachine]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Session:
    """One agent's connection and everything that serves it.

    Attributes:
        machine: The machine's UUID, from the forced command.
        clock: Returns the time now, aware.
    """

    settings: Settings
    machine: str
    request: Request
    catalogue: Catalogue
    environment: Environment
    voice: Voice
    lifeline: Lifeline
    clock: Callable[[], datetime]

    @property
    def queue(self) -> Queue:
        """The worker's queue."""
        return Queue(self.settings.paths.queue)

    @property
    def spool(self) -> Spool:
        """The reports to the API."""
        return Spool(self.settings.paths.reports)

    def daemon(self, module: str, login: Login) -> Daemon:
        """Return the agent's rsync daemon, after a look at who really listens at its port.

        Raises:
            NotATunnel: It isn't a tunnel of this session.
        """
        assert self.request.port is not None
        return Daemon(
            port=self.request.port,
            module=module,
            username=login.username,
            password=login.password,
            host=find_tunnel(read_listeners(), self.request.port, os.geteuid()),
        )


def ask_api(session: Session) -> Permission:
    """Ask the API what the machine may do in this session.

    Raises:
        ApiUnreachable, ApiRefused, ApiNotFound, ApiInvalid: Its answer, or none.
        AnswerNotValid: The answer can't be used.
        ConfigurationError: It isn't known where the API is, or who this unit is.
    """
    login = session.settings.login
    answer = session.settings.make_client(API_SECONDS).call(
        CALL,
        {
            "storage": {"name": login.name, "secret": login.secret},
            "machine": {"uuid": session.machine},
            "action": session.request.action,
        },
    )
    try:
        return parse_permission(answer, session.machine)
    except fields.FieldError as error:
        raise AnswerNotValid(f"The API's answer to {CALL} can't be used: {error}.") from error


def parse_permission(answer: Mapping[str, object], machine: str) -> Permission:
    """Check the API's answer; a source whose values aren't valid never stops the others.

    Raises:
        FieldError: The answer isn't of the protocol's form, or is about another machine.
    """
    values = fields.mapping(fields.required(answer, "machine"), "machine")
    if fields.uuid(values.get("uuid", machine), "machine.uuid") != machine:
        raise fields.FieldError("machine.uuid", f"must be {machine}")
    named = fields.optional(values, "scheduled_sources", fields.mapping, {}, "machine")
    scheduled, problems = {}, {}
    for key, value in named.items():
        try:
            name = fields.name(key, "source name")
        except fields.FieldError as error:
            logger.error("machine %s: a source is left out: %s", machine, error)
            continue
        try:
            scheduled[name] = Source.from_json(value, f"scheduled_sources.{name}")
        except fields.FieldError as error:
            problems[name] = f"The source can't be backed up as it is described: {error}."
    return Permission(
        scheduled,
        fields.optional(values, "restore_from", restore_from_json, {}, "machine"),
        problems,
    )


def check_in(session: Session) -> int:
    """Back up the sources that are due and that the agent serves; return the exit code.

    Raises:
        SlotsFull: As many sessions as there are slots are at work.
        ApiUnreachable, ApiRefused, ApiNotFound, ApiInvalid: The API doesn't let it.
    """
    names = sorted(session.request.sources)
    paths = session.settings.paths
    with hold_slot(paths.slots, session.settings.slots, session.machine, names):
        permission = ask_api(session)
        for name in names:
            if name not in permission.scheduled and name not in permission.problems:
                session.voice.source(name, "later", "The API has no backup of it due here now.")
        outcomes = [
            fail(session, name, session.clock(), problem)
            for name, problem in permission.problems.items()
        ]
        for name, source in permission.scheduled.items():
            login = session.request.sources.get(name)
            reason = session.request.cancelled.get(name)
            if reason is not None:
                outcomes.append(fail(session, name, session.clock(), reason))
            elif login is None:
                session.voice.message(f"{name}: it is due, but this session doesn't serve it.")
            elif session.lifeline.cancelled():
                break
            else:
                outcomes.append(back_up(session, name, source, login))
    return exit_code(outcomes)


def exit_code(outcomes: list[Outcome]) -> int:
    """Return what a session ends with: a failure counts before what is only to come back."""
    if Outcome.FAILED in outcomes:
        return FAILED
    return TRY_AGAIN_LATER if Outcome.LATER in outcomes else DONE


def back_up(session: Session, name: str, source: Source, login: Login) -> Outcome:
    """Pull and freeze one source, and leave the commit to the worker.

    Whatever goes wrong is said and reported, and stays with this source.
    """
    began = session.clock()
    try:
        with noted(session.settings.paths.runs, session.machine, name, began):
            received = _pull_and_freeze(session, name, source, login, began)
    except VolumeTrouble as error:
        return fail(session, name, began, str(error))
    except TryAgainLater as error:
        logger.info("machine %s source %s: later: %s", session.machine, name, error)
        session.voice.source(name, Outcome.LATER.value, str(error))
        return Outcome.LATER
    except (TurkuError, OSError) as error:
        return fail(session, name, began, str(error))
    except Exception as error:
        logger.exception("machine %s source %s: unexpected error", session.machine, name)
        return fail(session, name, began, f"Unexpected error: {type(error).__name__}: {error}.")
    if not received.usable:
        reason = session.lifeline.reason or received.message
        return fail(session, name, began, reason, received.outcome)
    logger.info(
        "machine %s source %s: %s: %s",
        session.machine, name, received.outcome.value, received.message,
    )  # fmt: skip
    session.voice.source(name, received.outcome.value, received.message)
    return received.outcome


def _open_folder(session: Session, name: str) -> SourceFolder:
    try:
        return session.catalogue.open(session.machine, name)
    except TryAgainLater as error:
        raise VolumeTrouble(str(error)) from error


def _pull_and_freeze(
    session: Session, name: str, source: Source, login: Login, began: datetime
) -> Received:
    folder = _open_folder(session, name)
    mode = get_mode(
        resolve_mode(
            source.snapshot_mode,
            folder.volume.snapshot_mode or session.settings.snapshot_mode,
            large_files=source.large_rotating_files or source.large_modifying_files,
            volume_path=folder.volume.path,
        ),
        session.environment,
    )
    state, volume = session.settings.paths.state, folder.volume.name
    with trouble.noticed(state, volume), folder.lock() as lock:
        target = mode.prepare(folder, _wish(source))
        received = pull(
            session.daemon(name, login),
            target,
            make_options(source),
            on_progress=lambda count, percent: session.voice.progress(name, count, percent),
            cancelled=session.lifeline.cancelled,
            hold=[lock],
            io_timeout=session.settings.io_timeout,
        )
        if not received.usable:
            trouble.note_if(state, volume, received.message)
        else:
            taken = Taken(
                taken_at=began,
                time_end=session.clock(),
                received=received,
                path=source.path,
                retention=source.retention,
            )
            pending = mode.freeze(folder, taken)
            session.queue.add(
                Job(session.machine, name, pending.record.id, queued_at=session.clock())
            )
    return received


def _wish(source: Source) -> str:
    """Return what the machine, or the API, asks for of how to keep a source's snapshots."""
    has_large_files = source.large_rotating_files or source.large_modifying_files
    return f"{source.snapshot_mode or 'any'}{', large files' if has_large_files else ''}"


def make_options(source: Source) -> PullOptions:
    """Return how a source is to be pulled, from what the API says of it."""
    return PullOptions(
        filter=source.filter,
        exclude=source.exclude,
        bwlimit=source.bwlimit or None,
        preserve_hard_links=source.preserve_hard_links,
    )


def fail(
    session: Session,
    name: str,
    began: datetime,
    message: str,
    outcome: Outcome = Outcome.FAILED,
) -> Outcome:
    """Say that a source's backup failed, and report it to the API through the spool.

    The report comes first: the agent may be gone.
    """
    logger.error("machine %s source %s: %s", session.machine, name, message)
    result = BackupResult(
        success=False,
        time_begin=began.timestamp(),
        time_end=session.clock().timestamp(),
        summary=summary_text(message),
    )
    try:
        session.spool.add(Report(session.machine, {name: SourceUpdate(result)}), session.clock())
    except OSError as error:
        # A full disk, most likely: the other sources may still be told, and tried.
        logger.error("machine %s source %s: can't be reported: %s", session.machine, name, error)
    session.voice.source(name, outcome.value, message)
    return outcome

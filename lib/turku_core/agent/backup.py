"""Backing up what is due on one storage unit: hooks, one session, hooks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from turku_core.agent.hooks import HookFailed, run_hook
from turku_core.agent.identity import Identity
from turku_core.agent.processes import Interrupted, Stop, printable
from turku_core.agent.rsync_daemon import MODULE_PATH_BYTES_MAX, make_module, make_rules
from turku_core.agent.session import ComeBackLater, Event, SessionPlan, run_session
from turku_core.agent.settings import Locations
from turku_core.agent.sources import LocalSource
from turku_core.commandline import human_size
from turku_core.errors import TurkuError
from turku_core.protocol.messages import Source, StorageAddress

logger = logging.getLogger(__name__)

_COUNT_MAX = 2**63

_WORDS = {"received": "success", "partial": "partial", "failed": "failed", "later": "later"}


@dataclass(frozen=True)
class DueSource:
    """A source that is due: what the machine configures, and what the API answered."""

    local: LocalSource
    announced: Source


@dataclass(frozen=True)
class BackupJob:
    """The sources that are due on one storage unit."""

    storage: StorageAddress
    sources: tuple[DueSource, ...]


@dataclass(frozen=True)
class Outcome:
    """How a source's backup went.

    Attributes:
        word: ``success``, ``partial`` (some files could not be read), ``failed``, ``later`` (the
            storage unit had no time) or ``cancelled`` (a hook said no, or the path isn't there).
        message: A sentence about it; empty when all is well.
    """

    word: str
    message: str = ""


def back_up(
    job: BackupJob,
    *,
    locations: Locations,
    identity: Identity,
    stop: Stop,
    on_progress: Callable[[str], None],
) -> dict[str, Outcome]:
    """Back up the job's sources and return how each of them went. It doesn't raise for what fails.

    The hooks before run first, so that no storage unit waits for them. A source whose hook fails
    is left out of the session, and the storage unit is told why, for the record. The hooks after
    run for every source whose turn had come, whatever happened in between.

    Args:
        job: What to back up, and where to.
        locations: Where the agent keeps its files.
        identity: Who the machine is.
        stop: Ends it early.
        on_progress: Gets a line now and then that says how far it is.
    """
    cancelled: dict[str, str] = {}
    begun: list[DueSource] = []
    outcomes: dict[str, Outcome] = {}
    try:
        for each in job.sources:
            begun.append(each)
            reason = _prepare(each.local, stop)
            if reason is not None:
                cancelled[each.local.name] = reason
        plan = _make_plan(job, cancelled)
        outcomes = _hold_session(plan, job, locations, identity, stop, on_progress)
    except Interrupted:
        outcomes = failed_outcomes(job, "The backup was interrupted.")
    finally:
        outcomes |= {name: Outcome("cancelled", reason) for name, reason in cancelled.items()}
        for each in begun:
            _conclude(each.local, outcomes.get(each.local.name, Outcome("failed")))
    for name, outcome in outcomes.items():
        _log(job.storage, name, outcome)
    return outcomes


def failed_outcomes(job: BackupJob, message: str) -> dict[str, Outcome]:
    """Return the outcomes of a job of which nothing came."""
    return {each.local.name: Outcome("failed", message) for each in job.sources}


def _prepare(source: LocalSource, stop: Stop) -> str | None:
    """Make a source ready; return why it can't be backed up, or None."""
    hook = source.hooks.run_before_backup
    if hook is not None:
        try:
            run_hook(
                hook,
                source=source.name,
                path=source.path,
                timeout=source.hooks.timeout,
                stop=stop,
            )
        except HookFailed as error:
            return str(error)
    return path_problem(source.path)


def path_problem(path: Path) -> str | None:
    """Return a sentence when a source's folder can't be read at all, or None."""
    if len(os.fsencode(path)) > MODULE_PATH_BYTES_MAX:
        return (
            f"The source's path {printable(os.fspath(path))} is longer than the "
            f"{MODULE_PATH_BYTES_MAX} bytes that rsync's daemon takes: name a folder above it."
        )
    if path.is_dir() and os.access(path, os.R_OK | os.X_OK):
        return None
    what = "isn't there" if not path.exists() else "can't be read as a folder"
    shown = printable(os.fspath(path))
    return f"The source's path {shown} {what}: mend the path or the source's file in sources.d."


def _conclude(source: LocalSource, outcome: Outcome) -> None:
    hook = source.hooks.run_after_backup
    if hook is None:
        return
    # Even when the agent is being stopped: the hook may have to set a database free again.
    never = Stop()
    try:
        run_hook(
            hook,
            source=source.name,
            path=source.path,
            timeout=source.hooks.timeout,
            stop=never,
            outcome=outcome.word,
        )
    except HookFailed as error:
        logger.warning("source %s: %s", source.name, error)
    finally:
        never.close()


def _make_plan(job: BackupJob, cancelled: Mapping[str, str]) -> SessionPlan:
    modules = [
        make_module(
            each.local.name,
            each.local.path,
            make_rules(each.local.settings, each.announced.filter),
        )
        for each in job.sources
        if each.local.name not in cancelled
    ]
    details = {"cancelled": dict(cancelled)} if cancelled else {}
    return SessionPlan(job.storage, "checkin", modules, details)


def _hold_session(
    plan: SessionPlan,
    job: BackupJob,
    locations: Locations,
    identity: Identity,
    stop: Stop,
    on_progress: Callable[[str], None],
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}

    def on_event(event: Event) -> None:
        if event["event"] == "progress":
            on_progress(f"{event.get('source', '')}: {progress_words(event)}")
        else:
            _take(event, job, outcomes)

    # A unit of v1 says nothing of single sources; its exit code then speaks for all of them.
    rest = Outcome("success")
    try:
        run_session(
            plan, key=identity.ssh_key, run_folder=locations.run, stop=stop, on_event=on_event
        )
    except ComeBackLater as error:
        rest = Outcome("later", str(error))
    except TurkuError as error:
        rest = Outcome("failed", str(error))
    return {module.name: outcomes.get(module.name, rest) for module in plan.modules}


def progress_words(event: Event) -> str:
    """Return how far a storage unit says it is, such as ``1.5 GiB, 40 %``."""
    count, percent = _number(event, "bytes"), _number(event, "percent")
    words = []
    if count is not None:
        words.append(human_size(count) or "")
    if percent is not None:
        words.append(f"{percent:.0f} %")
    return ", ".join(words)


def _number(event: Event, key: str) -> float | None:
    """Return what the storage unit counted; what can't be a count is none."""
    value = event.get(key)
    # Not a number, as a float may be, is in no range.
    if isinstance(value, (int, float)) and 0 <= value <= _COUNT_MAX:
        return float(value)
    return None


def _take(event: Event, job: BackupJob, outcomes: dict[str, Outcome]) -> None:
    """Note what the storage unit says; it can only speak of sources of this session."""
    kind = event["event"]
    if kind == "source":
        name, word = event.get("source"), _WORDS.get(str(event.get("outcome")))
        if word is not None and any(name == each.local.name for each in job.sources):
            said = event.get("message")
            outcomes[str(name)] = Outcome(word, printable(said) if isinstance(said, str) else "")
    elif kind == "message":
        logger.info(
            "storage unit %s: %s", job.storage.name, printable(str(event.get("message", "")))
        )


def _log(storage: StorageAddress, name: str, outcome: Outcome) -> None:
    level = logging.WARNING if outcome.word in ("failed", "cancelled", "partial") else logging.INFO
    logger.log(
        level,
        "storage unit %s: source %s: %s. %s",
        storage.name,
        name,
        outcome.word,
        outcome.message,
    )

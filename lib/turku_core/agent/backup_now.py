"""Backing up at once, whatever the schedules say: ask for it, and see it through."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import chain, repeat
from pathlib import Path

from turku_core import fields
from turku_core.agent.backup import Outcome
from turku_core.agent.checkin import CHECKIN_SECONDS, Due, Sessions, check_in_and_note, jobs_of
from turku_core.agent.identity import Identity
from turku_core.agent.locks import held
from turku_core.agent.processes import Stop
from turku_core.agent.settings import Locations
from turku_core.agent.sources import load_sources
from turku_core.agent.status import ask_status
from turku_core.configuration import ensure_private_folder
from turku_core.errors import DONE, FAILED, TRY_AGAIN_LATER, TryAgainLater, TurkuError
from turku_core.fields import FieldError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import Source

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0
"""How long to wait in all for a turn: another check-in at work, a storage unit without a slot."""

PAUSES_SECONDS = (1.0, 2.0, 5.0)
"""Between check-ins while there is no turn; the last one again and again."""

_LOCK_PAUSE_SECONDS = 0.5


def back_up_now(
    locations: Locations, identity: Identity, client: Client, names: Sequence[str]
) -> tuple[int, dict[str, Outcome]]:
    """Back up sources of this machine at once, and say how each of them went.

    A storage unit that is busy is waited for, but not for ever. What doesn't get its turn in that
    time stays due: a later check-in backs it up.

    Args:
        locations: Where the agent keeps its files.
        identity: Who the machine is.
        client: Of the API.
        names: The sources; none: every one that can be backed up.

    Returns:
        The exit code, and the outcome of each source; ``later`` for those that had no turn.

    Raises:
        TurkuError: The API doesn't know a source, or says that it can't be backed up now.
    """
    wanted = _ask(client, identity, names)
    deadline = time.monotonic() + WAIT_SECONDS
    ensure_private_folder(locations.run)
    with _turn(locations.run / "ping.lock", deadline):
        stop = Stop()
        sessions = Sessions(locations, identity, stop)
        try:
            effort = _Effort(locations, identity, client, sessions)
            outcomes = effort.see_through(wanted, deadline - time.monotonic())
        finally:
            sessions.finish()
            stop.close()
    return _exit_code(outcomes.values()), outcomes


def _ask(client: Client, identity: Identity, names: Sequence[str]) -> set[str]:
    request = {"machine": identity.login(), "sources": list(names)}
    answer = client.call("agent_backup_now", request)
    try:
        machine = fields.mapping(fields.required(answer, "machine"), "machine")
        listed = fields.required(machine, "sources", "machine")
        return set(fields.items(listed, "machine.sources", fields.name, fields.SOURCES_MAX))
    except FieldError as error:
        raise TurkuError(f"The API's answer is not valid: {error}.") from error


@contextmanager
def _turn(lock: Path, deadline: float) -> Iterator[None]:
    """Be the one check-in at work, as soon as the one that is has ended."""
    while True:
        with held(lock, wait=False) as alone:
            if alone:
                yield
                return
        if time.monotonic() > deadline:
            raise TryAgainLater(
                "Another turku-agent-ping is still at work. The sources are due, so it, or the "
                "next one, backs them up; turku-agent-ping --status says how they fare."
            )
        time.sleep(_LOCK_PAUSE_SECONDS)


class _Effort:
    """Check-ins and sessions until the wanted sources have been handled, or time is up."""

    def __init__(
        self,
        locations: Locations,
        identity: Identity,
        client: Client,
        sessions: Sessions,
    ) -> None:
        self._locations = locations
        self._identity = identity
        self._client = client
        self._sessions = sessions
        self._put_off: dict[str, Source] = {}

    def see_through(self, wanted: Collection[str], patience: float) -> dict[str, Outcome]:
        """Return how each wanted source went, after waiting at most `patience` seconds for turns.

        The time that sessions take doesn't count: a first backup may take days.
        """
        outcomes: dict[str, Outcome] = {}
        for pause in chain(PAUSES_SECONDS, repeat(PAUSES_SECONDS[-1])):
            outcomes |= self._round()
            pending = {name for name in wanted if _is_pending(outcomes.get(name))}
            if pending:
                outcomes |= self._handled_elsewhere(pending)
                pending = {name for name in pending if _is_pending(outcomes.get(name))}
            if not pending or patience <= 0:
                break
            time.sleep(pause)
            patience -= pause
        # What else was due was backed up beside them; its record tells of it.
        return {name: outcomes[name] for name in sorted(wanted)}

    def _round(self) -> dict[str, Outcome]:
        """Check in once, and hold the sessions that follow from it."""
        outcomes = self._begin(self._check_in())
        while not self._sessions.wait(CHECKIN_SECONDS):
            outcomes |= self._begin(self._check_in())
        # A storage unit without a free slot leaves the source with us: it isn't handed out again.
        done = self._sessions.outcomes
        self._put_off = {
            name: source for name, source in self._put_off.items() if _is_pending(done.get(name))
        }
        return outcomes | done

    def _check_in(self) -> Due:
        try:
            return check_in_and_note(
                self._locations, self._client, self._identity, self._sessions.running_orders
            )
        except TurkuError as error:
            # What has been handed out is worth more than this call, and it comes again.
            logger.warning("%s", error)
            return Due({})

    def _begin(self, due: Due) -> dict[str, Outcome]:
        own = load_sources(self._locations.sources)
        self._put_off |= due.sources
        for problem in (*own.problems, *due.problems):
            logger.warning("%s", problem)
        jobs, _ = jobs_of(Due(self._put_off), own.sources, self._sessions.running)
        self._sessions.begin(jobs)
        # They were handed out to this process, so nobody else would carry them out.
        self._sessions.begin_orders(due.orders)
        strangers = {name for name in due.sources if name not in own.sources}
        for name in strangers:
            del self._put_off[name]
        return {
            name: Outcome("failed", "It isn't configured here; turku-update-config says so.")
            for name in strangers
        }

    def _handled_elsewhere(self, names: Collection[str]) -> dict[str, Outcome]:
        """Return how sources went that another process or machine backed up meanwhile.

        For the others it is said what keeps them waiting.
        """
        now = datetime.now(timezone.utc)
        try:
            status = ask_status(self._client, self._identity, self._locations, now)
        except TurkuError as error:
            return {name: Outcome("later", str(error)) for name in names}
        found = {}
        for name in names:
            present = status.sources.get(name)
            if present is None:
                found[name] = Outcome("failed", "The API doesn't know the source any more.")
            elif present.failures:
                found[name] = Outcome("failed", present.problem)
            elif present.requested:
                found[name] = Outcome("later", present.problem)
            else:
                found[name] = Outcome("success")
        return found


def _is_pending(outcome: Outcome | None) -> bool:
    return outcome is None or outcome.word == "later"


def _exit_code(outcomes: Collection[Outcome]) -> int:
    words = {outcome.word for outcome in outcomes}
    if words & {"failed", "cancelled"}:
        return FAILED
    return TRY_AGAIN_LATER if "later" in words else DONE

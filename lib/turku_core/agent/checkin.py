"""The check-in: what is due, and the sessions that follow from it."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turku_core import fields
from turku_core.commandline import Progress
from turku_core.configuration import remove_left_overs, write_durably
from turku_core.errors import DONE, FAILED, TRY_AGAIN_LATER, TurkuError
from turku_core.fields import FieldError
from turku_core.protocol.client import Client
from turku_core.protocol.messages import Source, StorageAddress, come_back_seconds

# Whatever only a session needs is imported when there is one: an idle check-in runs on thousands
# of machines every five minutes.
if TYPE_CHECKING:
    from turku_core.agent.backup import BackupJob, Outcome
    from turku_core.agent.identity import Identity
    from turku_core.agent.processes import Stop
    from turku_core.agent.settings import Locations
    from turku_core.agent.sources import LocalSource
    from turku_core.protocol.restore_orders import RestoreOrder

logger = logging.getLogger(__name__)

CHECKIN_SECONDS = 300.0
"""How often to check in again while sessions run, so that a long first backup doesn't keep other
sources waiting."""

COME_BACK_SECONDS_MAX = 120.0
"""How long a ping goes on coming back altogether, as the API asks it to while something due only
waits for its storage unit; then it leaves that to the next ping."""

SESSIONS_MAX = 4
GONOGO_SECONDS = 240.0


@dataclass(frozen=True)
class Due:
    """What a check-in answered.

    Attributes:
        sources: The sources that are due, by name; each has its storage unit.
        problems: A sentence for each one that can't be used.
        orders: The restores that were ordered for this machine.
        come_back_seconds: When to ask again, because something is due and only waits for its
            storage unit; None: it isn't so.
        handed_out_at: When the API handed the sources out, by its own clock.
    """

    sources: Mapping[str, Source]
    problems: tuple[str, ...] = ()
    orders: tuple[RestoreOrder, ...] = ()
    come_back_seconds: float | None = None
    handed_out_at: datetime | None = None


def check_in(
    client: Client,
    identity: Identity,
    running_orders: Sequence[str] = (),
    last_handed_out_at: datetime | None = None,
) -> Due:
    """Ask the API what is due.

    Args:
        client: Of the API.
        identity: Who the machine is.
        running_orders: The ids of the restore orders that are being carried out.
        last_handed_out_at: Of the last answer with sources, so that the API knows which were lost.

    Raises:
        TurkuError: The call failed, see `turku_core.protocol.client`.
    """
    known = None if last_handed_out_at is None else last_handed_out_at.isoformat()
    machine: dict[str, object] = {**identity.login(), "last_handed_out_at": known}
    if running_orders:
        machine["running_orders"] = list(running_orders)
    answer = client.call("agent_ping_checkin", {"machine": machine})
    due = _with_orders(sources_of(answer, "scheduled_sources"), answer)
    try:
        pause = fields.optional(answer["machine"], "come_back_seconds", come_back_seconds, None)
        at = fields.optional(answer["machine"], "handed_out_at", fields.moment, None)
    except FieldError as error:
        problem = f"The API's answer is not valid: {error}."
        return replace(due, problems=(*due.problems, problem))
    return replace(due, come_back_seconds=pause, handed_out_at=at)


def _with_orders(due: Due, answer: Mapping[str, Any]) -> Due:
    listed = answer["machine"].get("restore_orders")
    if not listed:
        return due
    from turku_core.protocol.restore_orders import orders_from_json

    orders, problems = orders_from_json(listed, "machine.restore_orders")
    invalid = tuple(f"The API's answer is not valid: {problem}" for problem in problems)
    return replace(due, orders=tuple(orders), problems=(*due.problems, *invalid))


def sources_of(answer: Mapping[str, object], key: str) -> Due:
    """Take the sources out of an answer; one that isn't valid doesn't hide the others."""
    try:
        machine = fields.mapping(fields.required(answer, "machine"), "machine")
        listed = fields.mapping(machine.get(key) or {}, f"machine.{key}")
    except FieldError as error:
        raise TurkuError(f"The API's answer is not valid: {error}.") from error
    sources = {}
    problems = []
    for name, value in listed.items():
        try:
            place = f"source {fields.name(name, 'source name')}"
            source = Source.from_json(value, place)
            if source.storage is None:
                raise FieldError(f"{place}.storage", "is missing")
            sources[name] = source
        except FieldError as error:
            problems.append(f"The API's answer is not valid: {error}.")
    return Due(sources, tuple(problems))


def is_go(program: Sequence[str]) -> bool:
    """Run the go/no-go program and say whether it lets the check-in go ahead (exit code 0)."""
    if not program:
        return True
    try:
        result = subprocess.run(
            program,
            stdin=subprocess.DEVNULL,
            # What it says on its way isn't ours to mail to anyone; its errors are.
            stdout=subprocess.DEVNULL,
            timeout=GONOGO_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TurkuError(
            f"The go/no-go program {program[0]} took longer than {GONOGO_SECONDS:.0f} seconds."
        ) from None
    except OSError as error:
        raise TurkuError(
            f"The go/no-go program {program[0]} can't be run: {error.strerror}; mend "
            "gonogo_program."
        ) from error
    return result.returncode == 0


def jobs_of(
    due: Due, own: Mapping[str, LocalSource], running: Iterable[str] = ()
) -> tuple[list[BackupJob], list[str]]:
    """Return a job per storage unit for what is due, and a sentence for what isn't ours.

    Only a source that the machine itself configures is ever opened, and only its own path: neither
    is taken from the API.

    Args:
        due: What the API says is due.
        own: The machine's own sources.
        running: Names of sources that a session is already backing up.
    """
    from turku_core.agent.backup import BackupJob, DueSource

    busy = set(running)
    by_storage: dict[StorageAddress, list[DueSource]] = {}
    problems = []
    for name, announced in due.sources.items():
        local = own.get(name)
        if local is None:
            problems.append(
                f"The API asks for source {name}, which isn't configured here; "
                "turku-update-config tells it so."
            )
        elif name not in busy:
            assert announced.storage is not None
            by_storage.setdefault(announced.storage, []).append(DueSource(local, announced))
    return [BackupJob(storage, tuple(each)) for storage, each in by_storage.items()], problems


class Sessions:
    """Runs backup jobs side by side, a thread each, and collects their outcomes.

    Restores that were ordered run beside them, one after the other.
    """

    def __init__(self, locations: Locations, identity: Identity, stop: Stop) -> None:
        self._locations = locations
        self._identity = identity
        self._stop = stop
        self._ended: queue.Queue[threading.Thread] = queue.Queue()
        self._threads: dict[threading.Thread, set[str]] = {}
        self._progress = Progress()
        self._showing = threading.Lock()
        self._orders: dict[str, RestoreOrder] = {}
        self._one_restore = threading.Lock()
        self.outcomes: dict[str, Outcome] = {}

    @property
    def running(self) -> set[str]:
        """The names of the sources that sessions are working on."""
        return set().union(*self._threads.values())

    @property
    def running_orders(self) -> list[str]:
        """The ids of the restore orders that are being carried out or wait for their turn."""
        return list(self._orders)

    def begin_orders(self, orders: Iterable[RestoreOrder]) -> None:
        """Carry orders out, in a thread of their own; those that are at work already go on."""
        new = [order for order in orders if order.id not in self._orders]
        if new:
            self._orders |= {order.id: order for order in new}
            thread = threading.Thread(target=self._carry_out, args=(new,), name="restore orders")
            self._threads[thread] = set()
            thread.start()

    def _carry_out(self, orders: Sequence[RestoreOrder]) -> None:
        from turku_core.agent.orders import handle_order
        from turku_core.agent.processes import Interrupted

        try:
            with self._one_restore:
                for order in orders:
                    handle_order(order, self._locations, self._identity, self._stop)
                    del self._orders[order.id]
        except Interrupted:
            logger.info("the restore was interrupted; the API hands the order out again")
        except TurkuError as error:
            logger.warning("a restore order could not be handled: %s", error)
        except Exception:
            logger.exception("a restore order could not be handled")
        finally:
            for order in orders:
                self._orders.pop(order.id, None)
            self._ended.put(threading.current_thread())

    def begin(self, jobs: Iterable[BackupJob]) -> None:
        """Start as many of the jobs as there is room for; the API hands the others out again."""
        for job in jobs:
            if len(self._threads) >= SESSIONS_MAX:
                logger.info("storage unit %s: no room for one more session now", job.storage.name)
                return
            # Programs that a thread starts are killed when the thread ends (see
            # `processes.make_guarded_command`), so each session has a thread of its own.
            thread = threading.Thread(target=self._run, args=(job,), name=job.storage.name)
            self._threads[thread] = {each.local.name for each in job.sources}
            thread.start()

    def _run(self, job: BackupJob) -> None:
        from turku_core.agent.backup import back_up, failed_outcomes

        try:
            outcomes = back_up(
                job,
                locations=self._locations,
                identity=self._identity,
                stop=self._stop,
                on_progress=self._show,
            )
        except Exception as error:
            logger.exception("storage unit %s: the session failed", job.storage.name)
            outcomes = failed_outcomes(job, str(error))
        self.outcomes.update(outcomes)
        self._ended.put(threading.current_thread())

    def _show(self, line: str) -> None:
        with self._showing:
            self._progress.show(line)

    def wait(self, seconds: float) -> bool:
        """Wait until all sessions have ended or the time is up; return whether they have ended."""
        deadline = time.monotonic() + seconds
        while self._threads:
            try:
                thread = self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            thread.join()
            del self._threads[thread]
        return True

    def finish(self) -> None:
        """Stop whatever runs, and wait for it."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._progress.clear()


def ping(
    locations: Locations, identity: Identity, client: Client
) -> tuple[int, dict[str, Outcome]]:
    """Check in, back up what is due, and check in again as long as sessions run.

    Returns:
        The exit code, and how each source that was due went.

    Raises:
        TurkuError: A check-in failed before any session had begun.
    """
    _sweep(locations)
    _send_order_reports(locations, identity, client)
    until = time.monotonic() + COME_BACK_SECONDS_MAX
    due = check_in_and_note(locations, client, identity)
    while not due.sources and not due.problems and not due.orders:
        pause = _pause(due, until)
        if pause is None:
            logger.info("nothing is due")
            return DONE if due.come_back_seconds is None else TRY_AGAIN_LATER, {}
        logger.info("the API asks to come back in %.0f s", pause)
        # A signal ends the ping with an exception, so also this pause.
        time.sleep(pause)
        due = check_in_and_note(locations, client, identity)
    from turku_core.agent.processes import Stop

    stop = Stop()
    sessions = Sessions(locations, identity, stop)
    try:
        failed = _begin(locations, due, sessions)
        while True:
            pause = _pause(due, until)
            began = time.monotonic()
            if sessions.wait(CHECKIN_SECONDS if pause is None else pause):
                if pause is None:
                    break
                time.sleep(max(0.0, began + pause - time.monotonic()))
            due = _check_in_again(locations, client, identity, sessions)
            failed |= _begin(locations, due, sessions)
    finally:
        sessions.finish()
        stop.close()
    return _exit_code(failed, sessions.outcomes), sessions.outcomes


def _pause(due: Due, until: float) -> float | None:
    """Return for how long to wait before the next check-in, if the API asked for one.

    Args:
        due: What the last one answered.
        until: When we no longer come back, as `time.monotonic` counts.
    """
    left = until - time.monotonic()
    if due.come_back_seconds is None or left <= 0:
        return None
    return min(due.come_back_seconds, left)


def _sweep(locations: Locations) -> None:
    """Remove what a killed agent left behind, which is next to never there."""
    for folder in (locations.state, locations.orders):
        remove_left_overs(folder)
    try:
        left = any(entry.is_dir() for entry in os.scandir(locations.run / "sessions"))
    except FileNotFoundError:
        return
    if left:
        from turku_core.agent.session import sweep_sessions

        sweep_sessions(locations.run)


def _send_order_reports(locations: Locations, identity: Identity, client: Client) -> None:
    """Tell the API of restores that it has no report of, which is next to never."""
    try:
        left = any(os.scandir(locations.orders))
    except FileNotFoundError:
        return
    if left:
        from turku_core.agent.orders import send_reports

        send_reports(locations, identity, client)


def _begin(locations: Locations, due: Due, sessions: Sessions) -> bool:
    """Start sessions for what is due; return whether something of it can't be done at all."""
    from turku_core.agent.sources import load_sources

    own = load_sources(locations.sources)
    jobs, unknown = jobs_of(due, own.sources, sessions.running)
    for problem in (*own.problems, *due.problems, *unknown):
        logger.warning("%s", problem)
    sessions.begin(jobs)
    sessions.begin_orders(due.orders)
    return bool(own.problems or due.problems)


def check_in_and_note(
    locations: Locations, client: Client, identity: Identity, running: Sequence[str] = ()
) -> Due:
    """Check in, and note when it was, for the metrics, and what was heard of, for the next one."""
    last = _last_handed_out_at(locations.handed_out)
    due = check_in(client, identity, running, last)
    locations.checked_in.touch(mode=0o600)
    # The clocks of several API units may differ.
    if due.handed_out_at is not None and (last is None or due.handed_out_at > last):
        write_durably(locations.handed_out, due.handed_out_at.isoformat() + "\n", 0o600)
    return due


def _last_handed_out_at(path: Path) -> datetime | None:
    try:
        return fields.moment(path.read_text("ascii").strip(), "handed out")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s can't be read: %s", path, error)
        return None


def _check_in_again(
    locations: Locations, client: Client, identity: Identity, sessions: Sessions
) -> Due:
    try:
        return check_in_and_note(locations, client, identity, sessions.running_orders)
    except TurkuError as error:
        # The sessions that run are worth more than this call, and it comes again.
        logger.warning("%s", error)
        return Due({})


def _exit_code(failed: bool, outcomes: Mapping[str, Outcome]) -> int:
    words = {outcome.word for outcome in outcomes.values()}
    if failed or words & {"failed", "cancelled"}:
        return FAILED
    return TRY_AGAIN_LATER if "later" in words else DONE

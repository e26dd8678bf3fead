"""Restores that were ordered at the API: what this machine allows, and how it carries one out.

The API is not trusted with more than the machine's own configuration says (``restore_orders``).
In the restore folder an order gets a folder that is new or empty, so that it never mixes with
what lies there, and no hook runs: nothing of the machine's own is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.agent.identity import Identity
from turku_core.agent.processes import Interrupted, Stop, printable
from turku_core.agent.restore import (
    RestoringAgent,
    Task,
    Wish,
    carry_out,
    find_task,
    require_own_folders,
)
from turku_core.agent.session import SessionFailed
from turku_core.agent.settings import Locations, OrdersAllowed, Settings, load_settings
from turku_core.checked_json import dumps, read_json
from turku_core.configuration import ensure_private_folder, sync_folder, write_durably
from turku_core.errors import ConfigurationError, TryAgainLater, TurkuError
from turku_core.fields import FieldError
from turku_core.protocol.client import ApiInvalid, ApiNotFound, Client
from turku_core.protocol.restore_orders import (
    CHANGE_CHARACTERS_MAX,
    CHANGES_MAX,
    RestoreOrder,
    RestoreReport,
)

logger = logging.getLogger(__name__)

_MESSAGE_CHARACTERS_MAX = 4000


class OrderRefused(TurkuError):
    """This machine doesn't allow the order."""


def handle_order(order: RestoreOrder, locations: Locations, identity: Identity, stop: Stop) -> None:
    """Carry an order out, and tell the API how that went. Doesn't raise for what fails.

    What was carried out is noted before the API is told: until it knows, the next check-in tells
    it again, and the order isn't carried out another time.

    Raises:
        ConfigurationError: The agent's configuration isn't valid.
        Interrupted: The agent was told to stop. The order is handed out again.
    """
    settings = load_settings(locations)
    journal = Journal(locations.orders)
    report = journal.report(order.id)
    if report is None:
        report = _carry_out(order, settings, locations.root, journal, stop)
        journal.write_report(report)
    level = logging.INFO if report.outcome in ("done", "later") else logging.WARNING
    logger.log(level, "restore order %s: %s. %s", order.id, report.outcome, report.message)
    # The check-ins that go on meanwhile have a client of their own; one isn't for two threads.
    _send(report, journal, identity, Client(settings.api_urls, settings.api_ca_certificate))


def send_reports(locations: Locations, identity: Identity, client: Client) -> None:
    """Tell the API of the orders that it has no report of yet."""
    journal = Journal(locations.orders)
    for report in journal.reports():
        _send(report, journal, identity, client)


def _send(report: RestoreReport, journal: Journal, identity: Identity, client: Client) -> None:
    request = {"machine": identity.login(), "order": report.to_json()}
    try:
        client.call("agent_restore_report", request)
    except (ApiNotFound, ApiInvalid) as error:
        # It will never take it: the order was pruned, or its database is another one.
        logger.warning("restore order %s: the report was not wanted: %s", report.id, error)
    except TurkuError as error:
        logger.warning("restore order %s: the report is sent later: %s", report.id, error)
        return
    journal.forget(report.id)


def _carry_out(
    order: RestoreOrder, settings: Settings, root: Path, journal: Journal, stop: Stop
) -> RestoreReport:
    try:
        require_allowed(order, settings)
        return _restore(order, settings, root, journal, stop)
    except OrderRefused as error:
        return _failed(order, "refused", error)
    except TryAgainLater as error:
        return _failed(order, "later", error)
    except Interrupted:
        raise
    except (TurkuError, OSError) as error:
        return _failed(order, "failed", error)
    except Exception as error:
        logger.exception("restore order %s: unexpected error", order.id)
        return _failed(order, "failed", error)


def _failed(order: RestoreOrder, outcome: str, error: Exception) -> RestoreReport:
    message = printable(str(error), _MESSAGE_CHARACTERS_MAX)
    return RestoreReport(order.id, outcome, message or type(error).__name__)


def _restore(
    order: RestoreOrder, settings: Settings, root: Path, journal: Journal, stop: Stop
) -> RestoreReport:
    agent = RestoringAgent.load(root)
    try:
        task = find_task(agent, wish_of(order), stop)
    except SessionFailed as error:
        # Nothing was begun: the storage unit can't be reached, or doesn't know the machine yet.
        raise TryAgainLater(str(error)) from error
    if settings.restore_orders is not OrdersAllowed.ANYWHERE:
        task = dataclasses.replace(_inside(task, order, settings, journal), hooks_of=None)
    elif order.target is None and not order.in_place:
        task = _inside(task, order, settings, journal)
    journal.begin(order.id, task.folder)
    report = carry_out(agent, task, stop, on_progress=lambda line: None)
    return RestoreReport(
        id=order.id,
        outcome="done",
        message=printable(report.message, _MESSAGE_CHARACTERS_MAX),
        snapshot=task.snapshot.id,
        target=printable(str(task.folder), fields.PATH_BYTES_MAX - 3),
        files=report.files,
        bytes=report.bytes,
        changes=tuple(
            printable(change, CHANGE_CHARACTERS_MAX - 3) for change in report.changes[:CHANGES_MAX]
        ),
    )


def wish_of(order: RestoreOrder) -> Wish:
    """Return what an order wants, as a restore of this machine understands it."""
    return Wish(
        source=order.source,
        machine=order.machine,
        snapshot=order.snapshot,
        paths=order.paths,
        target=None if order.target is None else Path(order.target),
        in_place=order.in_place,
        dry_run=order.dry_run,
    )


def require_allowed(order: RestoreOrder, settings: Settings) -> None:
    """See that the machine's configuration allows an order, as far as the order itself tells.

    Raises:
        OrderRefused: It doesn't; the sentence names the option.
    """
    allowed = settings.restore_orders
    if allowed is OrdersAllowed.ANYWHERE:
        return
    if allowed is OrdersAllowed.NONE:
        raise OrderRefused("This machine carries out no restore orders (restore_orders: none).")
    # Also a dry run opens the folder to the storage unit for writing.
    if order.in_place:
        raise OrderRefused(
            "This machine allows restore orders into its restore folder only, not in place "
            "(restore_orders: restore-folder)."
        )
    top = settings.restore_path.absolute()
    if order.target is not None and top not in Path(order.target).parents:
        raise OrderRefused(
            f"This machine allows restore orders into its restore folder {top} only, not into "
            f"{printable(order.target)} (restore_orders: restore-folder)."
        )


def _inside(task: Task, order: RestoreOrder, settings: Settings, journal: Journal) -> Task:
    """Return the task with a folder inside the restore folder that is this order's alone.

    Raises:
        OrderRefused: The folder leads elsewhere, or holds what another restore brought.
    """
    top = settings.restore_path.absolute()
    folder = task.folder
    if order.target is None and not _is_own(folder, order, journal):
        # That snapshot was restored before. In a folder beside it nothing is mixed or lost.
        folder = folder.with_name(f"{folder.name}-{order.id[:8]}")
    try:
        require_own_folders(folder, top)
    except ConfigurationError as error:
        raise OrderRefused(str(error)) from error
    if not _is_own(folder, order, journal):
        raise OrderRefused(
            f"The folder {printable(str(folder))} holds something already, with which a restore "
            "order does not mix: order it with another target."
        )
    return dataclasses.replace(task, folder=folder)


def _is_own(folder: Path, order: RestoreOrder, journal: Journal) -> bool:
    """Say whether a folder is new, empty, or the one that the order was begun in."""
    return journal.folder(order.id) == folder or not _holds_something(folder)


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True


class Journal:
    """The orders that were begun, and the reports that the API doesn't have yet: a file for each.

    Args:
        folder: Where the files are; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, order: str) -> Path:
        return self._folder / f"{order}.json"

    def _write(self, order: str, values: Mapping[str, Any]) -> None:
        ensure_private_folder(self._folder)
        write_durably(self._path(order), dumps(values), 0o600)

    def _read(self, order: str) -> dict[str, Any]:
        try:
            return read_json(self._path(order))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s can't be read: %s", self._path(order), error)
            return {}

    def begin(self, order: str, folder: Path) -> None:
        """Note that an order is being carried out, and where its files go."""
        self._write(order, {"folder": str(folder)})

    def folder(self, order: str) -> Path | None:
        """Return where the files of an order went that was begun before, if it was."""
        folder = self._read(order).get("folder")
        return Path(folder) if isinstance(folder, str) else None

    def write_report(self, report: RestoreReport) -> None:
        """Keep a report until the API has it; the folder of an order for later is kept too."""
        folder = self._read(report.id).get("folder")
        self._write(report.id, {"folder": folder, "report": report.to_json()})

    def report(self, order: str) -> RestoreReport | None:
        """Return the report of an order that has ended here, or None."""
        value = self._read(order).get("report")
        if value is None:
            return None
        try:
            report = RestoreReport.from_json(value, "report")
        except FieldError as error:
            logger.warning("%s: %s", self._path(order), error)
            return None
        return None if report.outcome == "later" else report

    def reports(self) -> Iterator[RestoreReport]:
        """Yield the reports that the API doesn't have yet."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._folder.glob("*.json")):
                report = self.report(path.stem)
                if report is not None:
                    yield report

    def forget(self, order: str) -> None:
        """Remove what is known of an order, now that the API has its report."""
        with contextlib.suppress(FileNotFoundError):
            self._path(order).unlink()
            sync_folder(self._folder)

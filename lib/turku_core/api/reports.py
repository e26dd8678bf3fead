"""``storage_ping_source_update``: how runs ended, and what became of snapshots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db import transaction
from django.db.models import Max
from django.utils.timezone import get_default_timezone

from turku_core import fields
from turku_core.api import due, holds, leases, logins, records
from turku_core.api.models import (
    Assignment,
    Machine,
    Outcome,
    Snapshot,
    SnapshotState,
    Source,
    StorageUnit,
)
from turku_core.api.refusals import NotHere
from turku_core.fields import FieldError, join, required
from turku_core.protocol import messages
from turku_core.protocol.messages import BackupResult, SourceUpdate

log = logging.getLogger(__name__)

PLACE = "machine.sources"
LAST_MOMENT = datetime(9999, 1, 1, tzinfo=timezone.utc)

CLOCKS_DIFFER_BY = timedelta(minutes=5)
"""How far the clock of a storage unit may be from ours for its times to be compared with ours."""


def storage_ping_source_update(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Put what a storage unit reports on the record.

    The same report again changes nothing. A source that isn't valid, or isn't the unit's, doesn't
    keep the others from being recorded; the answer then says what was wrong.

    Raises:
        Refused: The storage unit isn't who it says.
        NotHere: The machine, or a source, isn't on this unit.
        FieldError: A report isn't valid.
    """
    unit = logins.storage_unit_of(request)
    sent_at = _sent_at(fields.mapping(request["storage"], "storage"))
    body = fields.mapping(required(request, "machine"), "machine")
    uuid = fields.uuid(required(body, "uuid", "machine"), "machine.uuid")
    updates, errors = _read_updates(required(body, "sources", "machine"))
    machine_id = (
        Assignment.objects.filter(machine__uuid=uuid, storage=unit)
        .values_list("machine", flat=True)
        .first()
    )
    if machine_id is None:
        raise NotHere(f"machine {uuid} has nothing on storage unit {unit.name}")
    with transaction.atomic():
        machine = Machine.objects.select_for_update(no_key=True).get(pk=machine_id)
        missing = [
            name
            for name, update in updates.items()
            if not _record(machine, name, unit, update, sent_at, now)
        ]
        due.refresh_machine(machine)
    if errors:
        raise FieldError("; ".join(map(str, errors)), "the rest is on the record")
    if missing:
        raise NotHere(
            f"machine {uuid} has no source {', '.join(missing)} on storage unit {unit.name}; "
            "the rest is on the record"
        )
    return {}


def _sent_at(storage: Mapping[str, Any]) -> datetime | None:
    """Return what the unit's clock showed when it sent the request, if it says so."""
    epoch = fields.optional(storage, "time", fields.number, None, "storage")
    if epoch is None or epoch > LAST_MOMENT.timestamp():
        return None
    return _moment(epoch)


def _read_updates(value: object) -> tuple[dict[str, SourceUpdate], list[FieldError]]:
    sources = fields.mapping(value, PLACE)
    if len(sources) > fields.SOURCES_MAX:
        raise FieldError(PLACE, f"must have at most {fields.SOURCES_MAX} sources")
    valid: dict[str, SourceUpdate] = {}
    errors = []
    for name, update in sources.items():
        try:
            fields.name(name, f"{PLACE}, source name")
            valid[name] = _read_update(update, join(PLACE, name))
        except FieldError as error:
            errors.append(error)
    return valid, errors


def _read_update(value: object, place: str) -> SourceUpdate:
    update = messages.SourceUpdate.from_json(value, place)
    times = [("snapshots", each.proven_at) for each in update.snapshots]
    if update.result is not None:
        times += [("time_begin", update.result.time_begin), ("time_end", update.result.time_end)]
    if update.hold is not None:
        times.append(("hold", update.hold.since))
    for field, epoch in times:
        if epoch is not None and epoch > LAST_MOMENT.timestamp():
            raise FieldError(join(place, field), "must be a time in seconds since 1970")
    return update


def _moment(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, timezone.utc)


def _record(
    machine: Machine,
    name: str,
    unit: StorageUnit,
    update: SourceUpdate,
    sent_at: datetime | None,
    now: datetime,
) -> bool:
    """Record what is said of one source; False when it isn't this unit's to speak of."""
    sources = machine.sources.select_related("storage", "lease_storage").filter(name=name)
    source = sources.select_for_update(no_key=True, of=("self",)).first()
    if source is None:
        return False
    source.machine = machine
    if update.result is not None:
        if unit.pk not in (source.storage_id, source.lease_storage_id):
            return False
        _record_result(source, unit, update.result, sent_at, now)
    if update.snapshots:
        _record_snapshots(source, unit, update.snapshots, now)
    if update.hold is not None:
        if update.hold.held and unit.pk not in (source.storage_id, source.lease_storage_id):
            return False
        holds.record_hold(source, unit, update.hold, now)
    return True


def _outcome_of(result: BackupResult) -> Outcome:
    if not result.success:
        return Outcome.FAILED
    return Outcome.PARTIAL if result.partial else Outcome.SUCCEEDED


def _record_result(
    source: Source,
    unit: StorageUnit,
    result: BackupResult,
    sent_at: datetime | None,
    now: datetime,
) -> None:
    began, ended = _moment(result.time_begin), _moment(result.time_end)
    is_new = records.add_backup(
        source,
        unit,
        _outcome_of(result),
        snapshot=result.snapshot or "",
        summary=result.summary,
        time_begin=began,
        time_end=ended,
        bytes_stored=result.bytes_stored,
        bytes_total=result.bytes_total,
        files_total=result.files_total,
        recorded_at=now,
    )
    if not is_new:
        return
    began, ended = _by_our_clock(source, began, ended, sent_at, now)
    if result.success:
        _note_success(source, began, now)
        if result.snapshot:
            _add_snapshot(source, unit, result, now)
    else:
        _note_failure(source, result, began, now)
    if source.leased_at is None or ended >= source.leased_at - CLOCKS_DIFFER_BY:
        # Not by the late report of an earlier run, while a new one is going on.
        leases.release(source)
    source.save(
        update_fields=[
            *("last_success_at", "last_failure_at", "failures", "problem", "requested_at"),
            *("leased_at", "lease_until", "lease_storage"),
        ]
    )
    due.refresh(source, now)


def _by_our_clock(
    source: Source, began: datetime, ended: datetime, sent_at: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """Return when a run began and ended as our clock had it.

    That is when the unit says, but for a run that can't have been then, and can have been by the
    difference between its clock and ours: else the run of a unit whose clock is wrong would never
    end its lease, nor count for its period, and be made again and again. Nor did it begin in the
    window before the one in which it was handed out. On the record stay the unit's own times, by
    which the same report is known when it comes again.
    """

    def can_be(moment: datetime) -> bool:
        earliest = source.leased_at or moment
        return earliest - CLOCKS_DIFFER_BY <= moment <= now + CLOCKS_DIFFER_BY

    off = timedelta() if sent_at is None else now - sent_at
    try:
        if not can_be(began) and can_be(began + off):
            began, ended = began + off, ended + off
    except OverflowError:
        pass
    return (_in_its_window(source, began) if can_be(began) else began), ended


def _in_its_window(source: Source, began: datetime) -> datetime:
    """Return when a run began, but not before the window in which it was handed out."""
    if source.leased_at is None or began >= source.leased_at:
        return began
    try:
        schedule = due.parse_schedule(source.frequency)
    except ValueError:
        return began
    window = schedule.window(
        due.schedule_key(source), source.leased_at.astimezone(get_default_timezone())
    )
    return began if window is None or began >= window[0] else source.leased_at


def _note_success(source: Source, began: datetime, now: datetime) -> None:
    # A unit whose clock is ahead must not keep the source from being due until then.
    began = min(began, now)
    if source.last_success_at is None or source.last_success_at < began:
        source.last_success_at = began
    source.failures = 0
    source.problem = ""
    if source.requested_at is not None and (source.leased_at or began) >= source.requested_at:
        # Not by a run that was going on when the backup was asked for.
        source.requested_at = None


def _note_failure(source: Source, result: BackupResult, began: datetime, now: datetime) -> None:
    if source.last_success_at is not None and began < source.last_success_at <= now:
        # An old report, come late: things have gone well since.
        return
    source.failures += 1
    source.last_failure_at = now
    reason = result.summary.strip().splitlines()[-1:] or ["the storage unit gave no reason"]
    source.problem = f"The last run failed: {reason[0]}"[: records.PROBLEM_CHARACTERS_MAX]
    log.warning("machine %s, source %s: %s", source.machine, source.name, source.problem)


def _add_snapshot(source: Source, unit: StorageUnit, result: BackupResult, now: datetime) -> None:
    Snapshot.objects.get_or_create(
        source=source,
        storage=unit,
        name=result.snapshot,
        defaults={
            **records.subject(source, unit),
            "state": SnapshotState.COMMITTED,
            "partial": result.partial,
            "taken_at": _moment(result.time_begin),
            "bytes_stored": result.bytes_stored,
            "reported_at": now,
        },
    )


def _record_snapshots(
    source: Source, unit: StorageUnit, states: Sequence[messages.SnapshotState], now: datetime
) -> None:
    """Take over the states of snapshots, many at once; those not named stay as they are."""
    subject = {"source": source, **records.subject(source, unit)}
    newest = {state.name: state for state in states}
    rows = [
        Snapshot(
            **subject,
            name=state.name,
            state=state.state,
            proven_at=None if state.proven_at is None else _moment(state.proven_at),
            error=state.error or "",
            reported_at=now,
        )
        for state in newest.values()
    ]
    Snapshot.objects.bulk_create(
        rows,
        batch_size=50,
        update_conflicts=True,
        unique_fields=["source", "storage", "name"],
        update_fields=["state", "proven_at", "error", "reported_at"],
    )
    proven = [_moment(state.proven_at) for state in states if state.proven_at is not None]
    if proven:
        _note_proven(source, min(max(proven), now))
    damaged = [state for state in newest.values() if state.state == SnapshotState.DAMAGED]
    if damaged:
        _note_damage(source, unit, damaged, now)


def _note_proven(source: Source, proven_at: datetime) -> None:
    """Remember when the source was proven last: the snapshot may be gone soon."""
    if source.last_proven_at is None or source.last_proven_at < proven_at:
        source.last_proven_at = proven_at
        source.save(update_fields=["last_proven_at"])


def _note_damage(
    source: Source, unit: StorageUnit, damaged: Sequence[messages.SnapshotState], now: datetime
) -> None:
    """Take a run whose snapshot is damaged for a failed one, so that it is made again."""
    held = Snapshot.objects.filter(source=source, taken_at__isnull=False)
    newest = held.filter(storage=unit, name__in=[state.name for state in damaged])
    if source.last_success_at is None:
        return
    if not newest.filter(taken_at__gte=source.last_success_at).exists():
        return
    good = held.filter(state__in=(SnapshotState.COMMITTED, SnapshotState.EXPIRED))
    source.last_success_at = good.aggregate(newest=Max("taken_at"))["newest"]
    source.failures += 1
    source.last_failure_at = now
    reason = damaged[0].error or "its files have changed"
    source.problem = f"The newest snapshot is damaged: {reason}"[: records.PROBLEM_CHARACTERS_MAX]
    source.save(update_fields=["last_success_at", "failures", "last_failure_at", "problem"])
    due.refresh(source, now)

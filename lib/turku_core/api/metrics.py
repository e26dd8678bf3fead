"""What is measured of the fleet, from the database; see the table in `turku_core.metrics`.

What is retired, unpublished or paused is silent here, as it is in `health`: no sample of it could
raise an alarm. However large the fleet is, so many queries are made and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from django.db.models import Count, F, Min, Q, Sum
from django.db.models.functions import Coalesce

from turku_core import __version__
from turku_core.api.health import used_percent
from turku_core.api.holds import wanted_holds
from turku_core.api.models import (
    Backup,
    Machine,
    Outcome,
    Snapshot,
    SnapshotState,
    Source,
    StorageUnit,
)
from turku_core.api.models.backups import GOOD_OUTCOMES
from turku_core.api.overdue import (
    Kind,
    find_behind,
    last_successes,
    wanted_machines,
    wanted_sources,
)
from turku_core.api.proofs import Kind as Unproven
from turku_core.api.proofs import find_unproven
from turku_core.api.states import machine_state
from turku_core.metrics.exposition import Samples
from turku_core.metrics.table import API

RECENT = timedelta(hours=24)
"""Over how long the runs are counted."""

MACHINE_STATES = ("active", "paused", "unpublished", "disabled", "retired")
_MIB = 1024 * 1024


def metrics_text(now: datetime) -> str:
    """Return the answer to a scrape.

    Raises:
        DatabaseError: The database doesn't answer.
    """
    samples = Samples(API)
    samples.add("turku_api_info", 1, version=__version__)
    sources = list(wanted_sources().select_related("machine").order_by("pk"))
    _add_machines(samples)
    _add_sources(samples, sources)
    _add_behind(samples, now)
    _add_last_backups(samples, {source.pk: source for source in sources})
    _add_snapshots(samples, {source.pk: source for source in sources}, now)
    _add_holds(samples)
    _add_recent(samples, now)
    _add_storage(samples, now)
    return samples.text()


def machine_labels(machine: Machine) -> dict[str, str]:
    """Return the labels by which a machine is known: its name for people, its UUID for sure."""
    return {
        "machine": machine.unit_name,
        "machine_uuid": machine.uuid,
        "environment": machine.environment_name,
        "service": machine.service_name,
    }


def source_labels(source: Source) -> dict[str, str]:
    """Return the labels of a source, whose machine should have been read with it."""
    return {**machine_labels(source.machine), "source": source.name}


def _add_machines(samples: Samples) -> None:
    fields = ("active", "published", "paused", "retired_at")
    states = Counter(machine_state(machine) for machine in Machine.objects.only("pk", *fields))
    for state in MACHINE_STATES:
        samples.add("turku_api_machines", states[state], state=state)
    for machine in wanted_machines().order_by("pk"):
        samples.add(
            "turku_api_machine_last_checkin_timestamp_seconds",
            machine.last_checkin_at or machine.registered_at,
            **machine_labels(machine),
        )


def _add_sources(samples: Samples, sources: Sequence[Source]) -> None:
    samples.add("turku_api_sources", len(sources))
    successes = last_successes(sources)
    for source in sources:
        labels = source_labels(source)
        samples.add(
            "turku_api_source_last_success_timestamp_seconds", successes[source.pk], **labels
        )
        samples.add("turku_api_source_failures", source.failures, **labels)


def _add_behind(samples: Samples, now: datetime) -> None:
    behind = find_behind(now)
    counts = Counter(each.kind for each in behind)
    for kind in Kind:
        samples.add("turku_api_sources_behind", counts[kind], kind=kind.value)
    for each in behind:
        samples.add(
            "turku_api_source_behind_since_timestamp_seconds",
            each.since,
            **source_labels(each.source),
            kind=each.kind.value,
        )


def _add_last_backups(samples: Samples, sources: Mapping[int, Source]) -> None:
    # By the machine as well: that is what the records have an index for.
    newest = Backup.objects.filter(
        outcome__in=GOOD_OUTCOMES,
        machine=F("source__machine"),
        time_begin=F("source__last_success_at"),
    )
    for backup in newest.order_by("pk"):
        source = sources.get(backup.source_id) if backup.source_id is not None else None
        if source is None:
            continue
        labels = source_labels(source)
        took = (backup.time_end - backup.time_begin).total_seconds()
        samples.add("turku_api_source_last_backup_bytes", backup.bytes_total, **labels)
        samples.add("turku_api_source_last_backup_stored_bytes", backup.bytes_stored, **labels)
        samples.add("turku_api_source_last_backup_duration_seconds", took, **labels)


def _add_snapshots(samples: Samples, sources: Mapping[int, Source], now: datetime) -> None:
    committed = Q(state=SnapshotState.COMMITTED)
    held = (
        Snapshot.objects.filter(source__isnull=False, storage__active=True, storage__paused=False)
        .exclude(state=SnapshotState.REMOVED)
        .order_by()
        .values_list("source")
        .annotate(
            unproven_since=Min(Coalesce("proven_at", "taken_at"), filter=committed),
            damaged=Count("pk", filter=Q(state=SnapshotState.DAMAGED)),
        )
    )
    unproven = Counter((each.snapshot.source_id, each.kind) for each in find_unproven(now))
    for key, unproven_since, damaged in held:
        source = sources.get(key)
        if source is not None:
            labels = source_labels(source)
            samples.add(
                "turku_api_source_unproven_since_timestamp_seconds", unproven_since, **labels
            )
            samples.add("turku_api_source_damaged_snapshots", damaged, **labels)
            failed, overdue = unproven[key, Unproven.FAILED], unproven[key, Unproven.OVERDUE]
            samples.add("turku_api_source_drills_failed", failed or None, **labels)
            samples.add("turku_api_source_drills_overdue", overdue or None, **labels)
    for source in sources.values():
        samples.add(
            "turku_api_source_last_proven_timestamp_seconds",
            source.last_proven_at,
            **source_labels(source),
        )


def _add_holds(samples: Samples) -> None:
    shares: dict[Source, float] = {}
    for hold in wanted_holds():
        share = 1.0 if hold.share is None else hold.share
        shares[hold.source] = max(share, shares.get(hold.source, 0.0))
    for source, share in shares.items():
        samples.add("turku_api_source_held_changed_ratio", share, **source_labels(source))


def _add_recent(samples: Samples, now: datetime) -> None:
    rows = (
        Backup.objects.filter(recorded_at__gt=now - RECENT)
        .order_by()
        .values_list("outcome")
        .annotate(Count("pk"), Sum("bytes_stored"))
    )
    found = {outcome: (runs, stored or 0) for outcome, runs, stored in rows}
    for outcome in Outcome.values:
        samples.add("turku_api_backups", found.get(outcome, (0, 0))[0], outcome=outcome)
    stored = sum(found.get(outcome, (0, 0))[1] for outcome in GOOD_OUTCOMES)
    samples.add("turku_api_backups_stored_bytes", stored)


def _add_storage(samples: Samples, now: datetime) -> None:
    units = StorageUnit.objects.filter(active=True, published=True, paused=False).annotate(
        sessions=Count("leased_sources", filter=Q(leased_sources__lease_until__gt=now))
    )
    for unit in units:
        storage = unit.name
        seen = unit.last_checkin_at or unit.registered_at
        samples.add("turku_api_storage_last_checkin_timestamp_seconds", seen, storage=storage)
        samples.add("turku_api_storage_size_bytes", unit.space_total * _MIB, storage=storage)
        samples.add("turku_api_storage_free_bytes", unit.space_available * _MIB, storage=storage)
        used = used_percent(unit) / 100
        samples.add("turku_api_storage_used_ratio", used, storage=storage)
        mark = unit.mark / 100
        samples.add("turku_api_storage_high_water_ratio", mark, storage=storage)
        samples.add("turku_api_storage_sessions", unit.sessions, storage=storage)
        samples.add("turku_api_storage_slots", unit.slots, storage=storage)

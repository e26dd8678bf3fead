"""What is measured of a storage unit, from what lies on it; see the table in `turku_core.metrics`.

A scrape must not read every record of every snapshot: of each source it keeps what it found, and
reads again only where a file was made, replaced or removed since (which changes the folder's time).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from turku_core import __version__, fields
from turku_core.configuration import write_durably
from turku_core.fields import FieldError
from turku_core.metrics.exposition import Samples
from turku_core.metrics.table import STORAGE
from turku_core.storage import holds, slots
from turku_core.storage.catalogue import Catalogue
from turku_core.storage.ping import make_catalogue
from turku_core.storage.queue import Queue
from turku_core.storage.records import Record, SourceState
from turku_core.storage.registration import read_known
from turku_core.storage.reports import Spool
from turku_core.storage.settings import Settings
from turku_core.storage.source_folder import SourceFolder
from turku_core.storage.volumes import VolumeError
from turku_core.storage.worker import read_loops

logger = logging.getLogger(__name__)

KEPT = "metrics.json"
"""The file in the unit's state with what the last scrape found of each source."""

STATES = ("good", "partial", "damaged", "expired")
_SETTLED_NANOSECONDS = 2_000_000_000
"""A folder whose time is younger may change once more without it showing in its time."""


@dataclass(frozen=True)
class Held:
    """What is known of one source's snapshots. Times are epoch seconds, None for never.

    Attributes:
        counts: How many snapshots there are in each of `STATES`.
        last_success: When the newest one that isn't damaged was taken.
        last_bytes: How large its tree is.
        stored_bytes: What all of them added to the volume.
        last_proven: When one was last proven.
        unproven_since: Since when one that isn't expired or damaged has not been proven.
        held_share: What share of its files changed, from 0 to 1, if its expiry is held for that.
        drills_failed: How many that aren't expired or damaged could not be proven when tried last.
        last_restored: When a drill last restored all of the source.
    """

    counts: Mapping[str, int]
    last_success: float | None = None
    last_bytes: int | None = None
    stored_bytes: int = 0
    last_proven: float | None = None
    unproven_since: float | None = None
    held_share: float | None = None
    drills_failed: int = 0
    last_restored: float | None = None


def metrics_text(settings: Settings) -> str:
    """Return the answer to a scrape. Raises TurkuError."""
    samples = Samples(STORAGE)
    catalogue = make_catalogue(settings)
    machines = read_known(settings.paths.known_machines).machines
    samples.add("turku_storage_info", 1, version=__version__)
    samples.add("turku_storage_machines", len(machines))
    interval = settings.cycle.snapshots.total_seconds()
    samples.add("turku_storage_verify_interval_seconds", interval)
    _add_volumes(samples, settings, catalogue)
    _add_work(samples, settings)
    names = {uuid: machine.unit_name for uuid, machine in machines.items()}
    found = look(catalogue.folders(), catalogue, settings.paths.state / KEPT)
    for (volume, machine, source), held in sorted(found.items()):
        labels = {"machine": names.get(machine, machine), "machine_uuid": machine}
        _add_source(samples, held, {"volume": volume, **labels, "source": source})
    return samples.text()


def _add_volumes(samples: Samples, settings: Settings, catalogue: Catalogue) -> None:
    for volume in settings.volumes:
        labels = {"volume": volume.name}
        try:
            space = catalogue.volumes.space(volume)
        except VolumeError as error:
            logger.info("%s", error)
            samples.add("turku_storage_volume_mounted", 0, **labels)
            continue
        samples.add("turku_storage_volume_mounted", 1, **labels)
        samples.add("turku_storage_volume_size_bytes", space.total, **labels)
        samples.add("turku_storage_volume_free_bytes", space.available, **labels)
        samples.add("turku_storage_volume_used_ratio", space.used_pct / 100, **labels)
        mark = volume.high_water_pct / 100
        samples.add("turku_storage_volume_high_water_ratio", mark, **labels)


def _add_work(samples: Samples, settings: Settings) -> None:
    paths = settings.paths
    samples.add("turku_storage_sessions", len(slots.running(paths.slots)))
    samples.add("turku_storage_slots", settings.slots)
    jobs = Queue(paths.queue).jobs()
    samples.add("turku_storage_commits_waiting", len(jobs))
    samples.add("turku_storage_commits_failing", sum(1 for job in jobs if job.error))
    samples.add("turku_storage_reports_waiting", Spool(paths.reports).waiting())
    samples.add("turku_storage_reports_refused", Spool(paths.reports).refused())
    for name, loop in read_loops(paths.worker_state).items():
        samples.add("turku_storage_worker_round_timestamp_seconds", loop.ended_at, loop=name)
        samples.add("turku_storage_worker_round_failed", int(bool(loop.error)), loop=name)


def _add_source(samples: Samples, held: Held, labels: Mapping[str, str]) -> None:
    prefix = "turku_storage_source_"
    samples.add(f"{prefix}last_success_timestamp_seconds", held.last_success, **labels)
    for state in STATES:
        samples.add(f"{prefix}snapshots", held.counts.get(state, 0), **labels, state=state)
    samples.add(f"{prefix}last_backup_bytes", held.last_bytes, **labels)
    samples.add(f"{prefix}stored_bytes", held.stored_bytes, **labels)
    samples.add(f"{prefix}last_proven_timestamp_seconds", held.last_proven, **labels)
    samples.add(f"{prefix}unproven_since_timestamp_seconds", held.unproven_since, **labels)
    samples.add(f"{prefix}held_changed_ratio", held.held_share, **labels)
    samples.add(f"{prefix}drills_failed", held.drills_failed, **labels)
    samples.add(f"{prefix}last_restored_timestamp_seconds", held.last_restored, **labels)


def look(
    folders: Sequence[SourceFolder], catalogue: Catalogue, kept_file: Path
) -> dict[tuple[str, str, str], Held]:
    """Return what is known of each source, by volume, machine and source.

    Args:
        folders: The sources' folders; one source may have one in each layout.
        catalogue: Reads what has changed.
        kept_file: Where what was found is kept for the next time.
    """
    kept = _read_kept(kept_file)
    now = time.time_ns()
    found: dict[str, dict[str, Any]] = {}
    merged: dict[tuple[str, str, str], Held] = {}
    for folder in folders:
        stamp = _stamp(folder)
        place = str(folder.snapshots)
        entry = kept.get(place)
        held = None if entry is None or entry.get("stamp") != stamp else _held(entry)
        if held is None:
            held = summary(catalogue.records(folder)[0], folder.state())
            hold = holds.read(folder).hold
            held = replace(held, held_share=None if hold is None else hold.share)
        if now - max(stamp) > _SETTLED_NANOSECONDS:
            found[place] = {"stamp": stamp, **asdict(held)}
        key = (folder.volume.name, folder.machine, folder.source)
        merged[key] = _together(merged[key], held) if key in merged else held
    if found != kept:
        write_durably(kept_file, json.dumps(found))
    return merged


def _stamp(folder: SourceFolder) -> list[int]:
    """Return the times of a source's folders, 0 for one that has gone."""
    times = []
    for path in (folder.snapshots, folder.path):
        try:
            times.append(path.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return times


def summary(records: Iterable[Record], state: SourceState) -> Held:
    """Return what a source's records, the oldest first, and its state come to."""
    held = Held(
        dict.fromkeys(STATES, 0),
        last_proven=_seconds(state.proven_at),
        last_restored=_seconds(state.restored_at),
    )
    for record in records:
        held = _together(held, _of_one(record))
    return held


def _of_one(record: Record) -> Held:
    state = "partial" if record.partial else "good"
    if record.damaged is not None:
        state = "damaged"
    if record.expired_at is not None:
        state = "expired"
    held = Held(
        counts={state: 1},
        stored_bytes=record.bytes_stored or 0,
        last_proven=_seconds(record.proven_at),
    )
    if record.damaged is None:
        held = replace(
            held, last_success=record.taken_at.timestamp(), last_bytes=record.bytes_total
        )
    if state in ("good", "partial"):
        held = replace(
            held,
            # What has no checksums of its making can only be read.
            unproven_since=_seconds(record.proven_at or record.checked_at or record.taken_at),
            drills_failed=int(record.unproven is not None),
        )
    return held


def _together(first: Held, second: Held) -> Held:
    newer = max((first, second), key=lambda held: held.last_success or 0)
    return Held(
        counts={
            state: first.counts.get(state, 0) + second.counts.get(state, 0) for state in STATES
        },
        last_success=newer.last_success,
        last_bytes=newer.last_bytes,
        stored_bytes=first.stored_bytes + second.stored_bytes,
        last_proven=_latest(first.last_proven, second.last_proven),
        unproven_since=min(
            (held.unproven_since for held in (first, second) if held.unproven_since is not None),
            default=None,
        ),
        held_share=_latest(first.held_share, second.held_share),
        drills_failed=first.drills_failed + second.drills_failed,
        last_restored=_latest(first.last_restored, second.last_restored),
    )


def _latest(*times: float | None) -> float | None:
    return max((time for time in times if time is not None), default=None)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _read_kept(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the last scrape found; a file that can't be read is as good as none."""
    try:
        values = fields.mapping(json.loads(path.read_bytes()), KEPT)
        return {place: fields.mapping(entry, place) for place, entry in values.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s can't be read and is made anew: %s", path, error)
        return {}


def _held(entry: Mapping[str, Any]) -> Held | None:
    """Return what is kept of a source, or None when it isn't what it should be."""
    try:
        counts = fields.mapping(fields.required(entry, "counts"), "counts")
        return Held(
            counts={state: fields.integer(counts.get(state, 0), state) for state in STATES},
            last_success=_kept_number(entry, "last_success"),
            last_bytes=None
            if entry.get("last_bytes") is None
            else fields.integer(entry["last_bytes"], "last_bytes"),
            stored_bytes=fields.integer(fields.required(entry, "stored_bytes"), "stored_bytes"),
            last_proven=_kept_number(entry, "last_proven"),
            unproven_since=_kept_number(entry, "unproven_since"),
            held_share=_kept_number(entry, "held_share"),
            drills_failed=fields.integer(fields.required(entry, "drills_failed"), "drills_failed"),
            last_restored=_kept_number(entry, "last_restored"),
        )
    except FieldError:
        return None


def _kept_number(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    return None if value is None else fields.number(value, key)

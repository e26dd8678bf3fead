"""What is measured of a machine, from its own files; see the table in `turku_core.metrics`.

A scrape asks nobody: how the sources fare is what the API said last, and when it said so is
measured too.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone

from turku_core import __version__
from turku_core.agent.settings import Locations
from turku_core.agent.sources import load_sources
from turku_core.agent.status import Status, read_status
from turku_core.metrics.exposition import Samples
from turku_core.metrics.table import AGENT


def metrics_text(locations: Locations) -> str:
    """Return the answer to a scrape."""
    samples = Samples(AGENT)
    samples.add("turku_agent_info", 1, version=__version__)
    samples.add("turku_agent_last_checkin_timestamp_seconds", _last_checkin(locations))
    own = load_sources(locations.sources)
    samples.add("turku_agent_sources", len(own.sources))
    samples.add("turku_agent_sources_invalid", len(own.problems))
    samples.add("turku_agent_sessions", _sessions(locations))
    status = read_status(locations)
    if status is not None:
        _add_status(samples, status)
    return samples.text()


def _last_checkin(locations: Locations) -> datetime | None:
    try:
        return datetime.fromtimestamp(locations.checked_in.stat().st_mtime, timezone.utc)
    except FileNotFoundError:
        return None


def _sessions(locations: Locations) -> int:
    try:
        return sum(1 for entry in os.scandir(locations.run / "sessions") if entry.is_dir())
    except FileNotFoundError:
        return 0


def _add_status(samples: Samples, status: Status) -> None:
    samples.add("turku_agent_status_timestamp_seconds", status.asked_at)
    prefix = "turku_agent_source_"
    for name, each in sorted(status.sources.items()):
        samples.add(f"{prefix}last_success_timestamp_seconds", each.last_good, source=name)
        samples.add(f"{prefix}next_due_timestamp_seconds", each.next_due, source=name)
        if each.is_behind:
            since = each.overdue_since
            samples.add(
                f"{prefix}behind_since_timestamp_seconds", since, source=name, kind=each.state
            )
        samples.add(f"{prefix}failures", each.failures, source=name)
        samples.add(f"{prefix}last_proven_timestamp_seconds", each.last_proven, source=name)
        samples.add(f"{prefix}held", int(bool(each.held)), source=name)
        if each.unproven is not None:
            samples.add(
                f"{prefix}unproven_since_timestamp_seconds",
                each.unproven_since,
                source=name,
                kind=each.unproven,
            )

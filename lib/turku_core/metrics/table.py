"""What is measured: the one table that the programs and the reference page are made from.

Times are gauges in seconds since 1970, and rules make ages of them: so an age is right at the
moment of evaluation, however old the scrape. What has never happened has no sample. No label holds
a secret; a machine's UUID lets nobody in.
"""

from __future__ import annotations

from turku_core.metrics.exposition import Metric

_SECONDS = "seconds since 1970"
_RATIO = "0 to 1"
_MACHINE = ("machine", "machine_uuid", "environment", "service")
_SOURCE = (*_MACHINE, "source")
_HELD = ("volume", "machine", "machine_uuid", "source")

API = (
    Metric("turku_api_info", "always 1", ("version",), "The release of turku-api"),
    Metric(
        "turku_api_machines",
        "count",
        ("state",),
        "Machines by state: active, paused, unpublished, disabled or retired",
    ),
    Metric(
        "turku_api_sources",
        "count",
        (),
        "Sources that are to be backed up: neither retired, unpublished nor paused",
    ),
    Metric(
        "turku_api_sources_behind",
        "count",
        ("kind",),
        "Sources without the backup that they should have: overdue, failing or missed",
    ),
    Metric(
        "turku_api_machine_last_checkin_timestamp_seconds",
        _SECONDS,
        _MACHINE,
        "When the machine last checked in, or registered if it never has",
    ),
    Metric(
        "turku_api_source_last_success_timestamp_seconds",
        _SECONDS,
        _SOURCE,
        "When the last good backup of the source's data began, by whichever machine of a shared "
        "service",
    ),
    Metric(
        "turku_api_source_behind_since_timestamp_seconds",
        _SECONDS,
        (*_SOURCE, "kind"),
        "Since when the source lacks a backup, and the kind: overdue, failing or missed; no sample "
        "when it lacks none",
    ),
    Metric(
        "turku_api_source_failures",
        "count",
        _SOURCE,
        "How many runs of the source have failed in a row",
    ),
    Metric(
        "turku_api_source_last_backup_bytes",
        "bytes",
        _SOURCE,
        "How large the source's tree was at its last good backup",
    ),
    Metric(
        "turku_api_source_last_backup_stored_bytes",
        "bytes",
        _SOURCE,
        "What the last good backup added to its volume",
    ),
    Metric(
        "turku_api_source_last_backup_duration_seconds",
        "seconds",
        _SOURCE,
        "How long the last good backup took",
    ),
    Metric(
        "turku_api_source_last_proven_timestamp_seconds",
        _SECONDS,
        _SOURCE,
        "When a snapshot of the source was last proven to be restorable",
    ),
    Metric(
        "turku_api_source_unproven_since_timestamp_seconds",
        _SECONDS,
        _SOURCE,
        "Since when one of the source's snapshots has not been proven: the longest of them",
    ),
    Metric(
        "turku_api_source_held_changed_ratio",
        _RATIO,
        _SOURCE,
        "Which share of the source's files changed or went, so that its expiry is held; no sample "
        "when it isn't. Also of sources that the machine has withdrawn since",
    ),
    Metric(
        "turku_api_source_damaged_snapshots",
        "count",
        _SOURCE,
        "Snapshots of the source that were found damaged",
    ),
    Metric(
        "turku_api_source_drills_failed",
        "count",
        _SOURCE,
        "Snapshots of the source whose last restore drill could not be made; no sample when there "
        "is none",
    ),
    Metric(
        "turku_api_source_drills_overdue",
        "count",
        _SOURCE,
        "Snapshots of the source that weren't proven within twice their storage unit's interval; "
        "no sample when there is none",
    ),
    Metric(
        "turku_api_backups",
        "count",
        ("outcome",),
        "Runs that ended in the last 24 hours, by outcome: succeeded, partial, failed or missed",
    ),
    Metric(
        "turku_api_backups_stored_bytes",
        "bytes",
        (),
        "What the good runs of the last 24 hours added to the volumes",
    ),
    Metric(
        "turku_api_storage_last_checkin_timestamp_seconds",
        _SECONDS,
        ("storage",),
        "When the storage unit last reported, or registered if it never has",
    ),
    Metric(
        "turku_api_storage_size_bytes",
        "bytes",
        ("storage",),
        "The storage unit's space, all its volumes together",
    ),
    Metric(
        "turku_api_storage_free_bytes",
        "bytes",
        ("storage",),
        "What of it new sources may take",
    ),
    Metric("turku_api_storage_used_ratio", _RATIO, ("storage",), "How full the storage unit is"),
    Metric(
        "turku_api_storage_high_water_ratio",
        _RATIO,
        ("storage",),
        "From how full on the storage unit gets no new sources",
    ),
    Metric(
        "turku_api_storage_sessions",
        "count",
        ("storage",),
        "Sources that are being backed up to the storage unit now",
    ),
    Metric(
        "turku_api_storage_slots",
        "count",
        ("storage",),
        "How many sessions the storage unit serves at once",
    ),
)

AGENT = (
    Metric("turku_agent_info", "always 1", ("version",), "The release of turku-agent"),
    Metric(
        "turku_agent_last_checkin_timestamp_seconds",
        _SECONDS,
        (),
        "When the API last answered a check-in of this machine",
    ),
    Metric("turku_agent_sources", "count", (), "Sources that the machine configures"),
    Metric(
        "turku_agent_sources_invalid",
        "count",
        (),
        "What is wrong in the files of sources.d: while it is not 0, the API isn't told of changes",
    ),
    Metric("turku_agent_sessions", "count", (), "Sessions with storage units at work now"),
    Metric(
        "turku_agent_status_timestamp_seconds",
        _SECONDS,
        (),
        "When the API last said how the sources fare: what follows is as of then",
    ),
    Metric(
        "turku_agent_source_last_success_timestamp_seconds",
        _SECONDS,
        ("source",),
        "When the last good backup of the source began",
    ),
    Metric(
        "turku_agent_source_next_due_timestamp_seconds",
        _SECONDS,
        ("source",),
        "When the source's next backup is due",
    ),
    Metric(
        "turku_agent_source_behind_since_timestamp_seconds",
        _SECONDS,
        ("source", "kind"),
        "Since when the source lacks a backup, and the kind: overdue, failing or missed; no sample "
        "when it lacks none",
    ),
    Metric(
        "turku_agent_source_failures",
        "count",
        ("source",),
        "How many runs of the source have failed in a row",
    ),
    Metric(
        "turku_agent_source_last_proven_timestamp_seconds",
        _SECONDS,
        ("source",),
        "When a snapshot of the source was last proven to be restorable",
    ),
    Metric(
        "turku_agent_source_held",
        "0 or 1",
        ("source",),
        "Whether the source's expiry is held, because far more of its files than usual changed",
    ),
    Metric(
        "turku_agent_source_unproven_since_timestamp_seconds",
        _SECONDS,
        ("source", "kind"),
        "Since when a snapshot of the source isn't proven, and the kind: damaged, drill-failed or "
        "drill-overdue; no sample when all are",
    ),
)

STORAGE = (
    Metric("turku_storage_info", "always 1", ("version",), "The release of turku-storage"),
    Metric("turku_storage_machines", "count", (), "Machines whose SSH keys are let in"),
    Metric(
        "turku_storage_verify_interval_seconds",
        "seconds",
        (),
        "In which time each snapshot is to be proven again",
    ),
    Metric(
        "turku_storage_volume_mounted",
        "0 or 1",
        ("volume",),
        "Whether the volume is mounted; one that isn't has no other samples",
    ),
    Metric("turku_storage_volume_size_bytes", "bytes", ("volume",), "The volume's space"),
    Metric(
        "turku_storage_volume_free_bytes",
        "bytes",
        ("volume",),
        "What the storage unit may still write to the volume",
    ),
    Metric(
        "turku_storage_volume_used_ratio",
        _RATIO,
        ("volume",),
        "How full the volume is, in space or in inodes, whichever is fuller",
    ),
    Metric(
        "turku_storage_volume_high_water_ratio",
        _RATIO,
        ("volume",),
        "From how full on the volume takes no new sources",
    ),
    Metric("turku_storage_sessions", "count", (), "Sessions that are backing up now"),
    Metric("turku_storage_slots", "count", (), "How many sessions are served at once"),
    Metric("turku_storage_commits_waiting", "count", (), "Snapshots that are yet to be made"),
    Metric(
        "turku_storage_commits_failing",
        "count",
        (),
        "How many of them have failed and are tried again",
    ),
    Metric("turku_storage_reports_waiting", "count", (), "Reports that the API doesn't have yet"),
    Metric(
        "turku_storage_reports_refused",
        "count",
        (),
        "Reports that the API refused, and that lie in reports/refused",
    ),
    Metric(
        "turku_storage_worker_round_timestamp_seconds",
        _SECONDS,
        ("loop",),
        "When a round of one of the worker's loops last ended, well or not",
    ),
    Metric(
        "turku_storage_worker_round_failed",
        "0 or 1",
        ("loop",),
        "Whether that round failed; turku-storage usage says why",
    ),
    Metric(
        "turku_storage_source_last_success_timestamp_seconds",
        _SECONDS,
        _HELD,
        "When the session of the source's newest undamaged snapshot began",
    ),
    Metric(
        "turku_storage_source_snapshots",
        "count",
        (*_HELD, "state"),
        "The source's snapshots by state: good, partial, damaged, or expired and not yet removed",
    ),
    Metric(
        "turku_storage_source_last_backup_bytes",
        "bytes",
        _HELD,
        "How large the tree of the source's newest undamaged snapshot is",
    ),
    Metric(
        "turku_storage_source_stored_bytes",
        "bytes",
        _HELD,
        "What the source's snapshots added to the volume when they were made, all together",
    ),
    Metric(
        "turku_storage_source_last_proven_timestamp_seconds",
        _SECONDS,
        _HELD,
        "When a snapshot of the source was last proven to be restorable",
    ),
    Metric(
        "turku_storage_source_unproven_since_timestamp_seconds",
        _SECONDS,
        _HELD,
        "Since when one of the source's snapshots has not been proven: the longest of them",
    ),
    Metric(
        "turku_storage_source_held_changed_ratio",
        _RATIO,
        _HELD,
        "Which share of the source's files changed or went, so that its expiry is held; no sample "
        "when it isn't",
    ),
    Metric(
        "turku_storage_source_drills_failed",
        "count",
        _HELD,
        "Snapshots of the source whose last restore drill could not be made",
    ),
    Metric(
        "turku_storage_source_last_restored_timestamp_seconds",
        _SECONDS,
        _HELD,
        "When a restore drill last restored all of the source",
    ),
)

TABLES = {"turku-api": API, "turku-agent": AGENT, "turku-storage": STORAGE}
"""The metrics of each program, by the charm that publishes them."""

"""The record of every backup, and the snapshots that the storage units say they hold.

Rows here outlive what they speak of: the names are kept in them, and a machine, source or
storage unit that is deleted leaves them behind.
"""

from __future__ import annotations

from django.db import models

from turku_core.api.models.machines import Machine, Source
from turku_core.api.models.storage_units import StorageUnit


class Outcome(models.TextChoices):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    MISSED = "missed"


GOOD_OUTCOMES = (Outcome.SUCCEEDED, Outcome.PARTIAL)
"""A partial backup is a run of its period too: what can't be read today can't in an hour."""


class Subject(models.Model):
    """What a record is about, by reference while it exists and by name for good."""

    machine = models.ForeignKey(Machine, null=True, blank=True, on_delete=models.SET_NULL)
    source = models.ForeignKey(Source, null=True, blank=True, on_delete=models.SET_NULL)
    storage = models.ForeignKey(StorageUnit, null=True, blank=True, on_delete=models.SET_NULL)
    machine_uuid = models.CharField(max_length=36, db_index=True)
    environment_name = models.CharField(max_length=255, blank=True)
    service_name = models.CharField(max_length=255, blank=True)
    unit_name = models.CharField(max_length=255)
    source_name = models.CharField(max_length=255)
    storage_name = models.CharField(max_length=255, blank=True)

    class Meta:
        abstract = True


class Backup(Subject):
    """One run of one source, or (`Outcome.MISSED`) a window that went by without one."""

    outcome = models.CharField(max_length=16, choices=Outcome.choices)
    snapshot = models.CharField(max_length=255, blank=True)
    summary = models.TextField(blank=True)
    time_begin = models.DateTimeField()
    time_end = models.DateTimeField()
    bytes_stored = models.BigIntegerField(null=True, blank=True)
    bytes_total = models.BigIntegerField(null=True, blank=True)
    files_total = models.BigIntegerField(null=True, blank=True)
    recorded_at = models.DateTimeField()

    class Meta:
        ordering = ["-time_begin"]
        get_latest_by = "time_begin"
        indexes = [
            # For pruning in bulk, oldest first.
            models.Index(fields=["recorded_at"], name="turku_backup_recorded"),
            models.Index(fields=["-time_begin"], name="turku_backup_begin"),
            models.Index(fields=["machine", "-time_begin"], name="turku_backup_machine"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["source", "snapshot", "time_begin", "outcome"], name="turku_backup_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.unit_name}: {self.source_name} {self.time_begin:%Y-%m-%d %H:%M}"

    @property
    def is_good(self) -> bool:
        """Whether the run left a snapshot to restore from."""
        return self.outcome in GOOD_OUTCOMES


class SnapshotState(models.TextChoices):
    """What a storage unit says of a snapshot."""

    COMMITTED = "committed"
    EXPIRED = "expired"
    REMOVED = "removed"
    DAMAGED = "damaged"


class Snapshot(Subject):
    """A snapshot on a storage unit, as the unit last reported it."""

    name = models.CharField(max_length=255)
    state = models.CharField(max_length=16, choices=SnapshotState.choices)
    partial = models.BooleanField(default=False)
    taken_at = models.DateTimeField(null=True, blank=True)
    proven_at = models.DateTimeField(
        null=True, blank=True, help_text="When the unit last proved that it can be restored."
    )
    error = models.TextField(blank=True)
    bytes_stored = models.BigIntegerField(null=True, blank=True)
    reported_at = models.DateTimeField()

    class Meta:
        ordering = ["-name"]
        indexes = [
            models.Index(fields=["state", "reported_at"], name="turku_snapshot_state"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["source", "storage", "name"], name="turku_snapshot_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.unit_name}: {self.source_name} {self.name}"

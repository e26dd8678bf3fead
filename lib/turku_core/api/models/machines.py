"""Machines and their sources."""

from __future__ import annotations

from datetime import datetime

from django.db import models
from django.db.models import Q

from turku_core.api.models.registration_keys import RegistrationKey
from turku_core.api.models.storage_units import StorageUnit


class Machine(models.Model):
    """A host with an agent.

    `active` is the operator's word: a machine that isn't active (retired, or its registration
    key disabled with its machines) is answered 403. `published` is the machine's own word.
    `paused` stops its backups, and nothing else.
    """

    uuid = models.CharField(max_length=36, unique=True)
    secret_hash = models.CharField(max_length=64, editable=False)
    registration_key = models.ForeignKey(
        RegistrationKey,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="machines",
    )
    unit_name = models.CharField(max_length=255)
    environment_name = models.CharField(max_length=255, blank=True)
    service_name = models.CharField(max_length=255, blank=True)
    comment = models.CharField(max_length=1024, blank=True)
    ssh_public_key = models.CharField(max_length=4096)
    ssh_key_fingerprint = models.CharField(max_length=64, editable=False)
    version = models.CharField(max_length=64, blank=True)
    published = models.BooleanField(default=True, help_text="What the machine says of itself.")
    active = models.BooleanField(
        default=True, help_text="A machine that isn't active is answered 403."
    )
    paused = models.BooleanField(
        default=False, help_text="A paused machine makes no backups; restores still work."
    )
    retired_at = models.DateTimeField(null=True, blank=True, editable=False)
    withdrawn = models.BooleanField(
        default=False,
        editable=False,
        help_text="Retired because no unit announces it any more; the next one takes it back.",
    )
    registered_at = models.DateTimeField(auto_now_add=True)
    last_checkin_at = models.DateTimeField(null=True, blank=True, editable=False)
    next_due_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="The earliest time at which a check-in may hand out a source.",
    )
    next_order_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="The earliest time at which a check-in may hand out a restore order.",
    )

    class Meta:
        ordering = ["environment_name", "service_name", "unit_name"]
        indexes = [
            models.Index(fields=["environment_name", "service_name"], name="turku_machine_service"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["ssh_key_fingerprint"],
                condition=Q(active=True, published=True),
                name="turku_machine_one_key",
                violation_error_message="Another active machine uses this SSH public key.",
            ),
        ]

    def __str__(self) -> str:
        return self.unit_name

    @property
    def is_active(self) -> bool:
        """Whether both sides want the machine backed up, so that storage units know its key."""
        return self.active and self.published

    def retire(self, now: datetime, *, withdrawn: bool = False) -> None:
        """Let the machine go: no more calls, sessions or alerts; its backups stay.

        Args:
            now: The time that is noted.
            withdrawn: No unit announces it any more; the next one that does takes it back.
        """
        self.active = False
        self.withdrawn = withdrawn
        self.retired_at = now
        self.next_due_at = None
        self.save(update_fields=["active", "withdrawn", "retired_at", "next_due_at"])


class Assignment(models.Model):
    """A machine may open sessions with a storage unit, because a source of it is (or was) there.

    `announced_key` is the fingerprint of the machine's SSH key that the unit has fetched: until
    it is the machine's present one, the unit's sshd would refuse the machine.
    """

    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="assignments")
    storage = models.ForeignKey(StorageUnit, on_delete=models.CASCADE, related_name="assignments")
    announced_key = models.CharField(max_length=64, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["machine", "storage"], name="turku_assignment_once"),
        ]

    def __str__(self) -> str:
        return f"{self.machine} on {self.storage}"


class Source(models.Model):
    """A named directory tree of a machine with its schedule and retention.

    The first group of fields is what the agent sends; the second what an operator says; the
    third what the API keeps to know when the source is due and who works on it.
    """

    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="sources")
    name = models.CharField(max_length=255)
    path = models.CharField(max_length=4096)
    frequency = models.CharField(max_length=1024)
    retention = models.CharField(max_length=1024)
    comment = models.CharField(max_length=1024, blank=True)
    filter = models.JSONField(default=list, blank=True)
    exclude = models.JSONField(default=list, blank=True)
    bwlimit = models.CharField(max_length=32, blank=True)
    snapshot_mode = models.CharField(max_length=32, blank=True)
    preserve_hard_links = models.BooleanField(default=True)
    shared_service = models.BooleanField(default=False)
    large_rotating_files = models.BooleanField(default=False)
    large_modifying_files = models.BooleanField(default=False)
    published = models.BooleanField(
        default=True, help_text="Whether the machine's configuration still names it."
    )

    paused = models.BooleanField(
        default=False, help_text="A paused source is not backed up; restores still work."
    )
    requested_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="Since when a backup is wanted whatever the schedule says; none: it isn't.",
    )

    storage = models.ForeignKey(
        StorageUnit, null=True, blank=True, on_delete=models.SET_NULL, related_name="sources"
    )
    since = models.DateTimeField(
        editable=False, help_text="From when on the schedule counts: no window before was missed."
    )
    next_due_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_success_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When the last good backup began."
    )
    last_failure_at = models.DateTimeField(null=True, blank=True, editable=False)
    failures = models.PositiveIntegerField(
        default=0, editable=False, help_text="How many runs failed in a row."
    )
    last_proven_at = models.DateTimeField(
        "last proven",
        null=True,
        blank=True,
        editable=False,
        help_text="When files of a snapshot of it were last restored and compared, and were good.",
    )
    missed_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The end of the last window missed."
    )
    problem = models.CharField(
        max_length=1024,
        blank=True,
        editable=False,
        help_text="Why the source isn't being backed up, in a sentence.",
    )
    leased_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When it was handed out."
    )
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    lease_storage = models.ForeignKey(
        StorageUnit,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="leased_sources",
    )

    class Meta:
        ordering = ["machine_id", "name"]
        indexes = [
            models.Index(fields=["lease_storage", "lease_until"], name="turku_source_leases"),
            models.Index(fields=["next_due_at"], name="turku_source_due"),
            models.Index(
                fields=["name"], condition=Q(shared_service=True), name="turku_source_shared"
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["machine", "name"], name="turku_source_once"),
        ]

    def __str__(self) -> str:
        return f"{self.machine}: {self.name}"

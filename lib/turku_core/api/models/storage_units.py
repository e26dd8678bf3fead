"""Storage units."""

from __future__ import annotations

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from turku_core.api.models.registration_keys import RegistrationKey

DEFAULT_SLOTS = 10


class StorageUnit(models.Model):
    """A host running turku-storage, as it last described itself.

    What the unit says of itself: the ``ssh_ping_*`` fields, the space in MiB, `published`,
    `slots`, `told_high_water_mark`. What an operator says: `active`, `paused`, `high_water_mark`.
    """

    name = models.CharField(max_length=255, unique=True)
    secret_hash = models.CharField(max_length=64, editable=False)
    registration_key = models.ForeignKey(
        RegistrationKey,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="storage_units",
    )
    ssh_ping_host = models.CharField(max_length=255)
    ssh_ping_port = models.PositiveIntegerField(default=22)
    ssh_ping_user = models.CharField(max_length=64)
    ssh_ping_host_keys = models.JSONField(default=list)
    space_total = models.FloatField(default=0, help_text="MiB")
    space_available = models.FloatField(default=0, help_text="MiB")
    high_water_mark = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Percent of the space used, from which on no new source is placed here. "
        "Empty: as the unit itself says.",
    )
    told_high_water_mark = models.PositiveSmallIntegerField(null=True, editable=False)
    told_verify_interval_days = models.FloatField(null=True, editable=False)
    slots = models.PositiveIntegerField(
        default=DEFAULT_SLOTS, help_text="How many sessions the unit serves at once."
    )
    version = models.CharField(max_length=64, blank=True)
    capabilities = models.JSONField(default=list, blank=True)
    published = models.BooleanField(default=True, help_text="What the unit says of itself.")
    active = models.BooleanField(
        default=True,
        help_text="A unit that isn't active is out of service for good: it is answered 403, and "
        "its sources are placed on other units. To stop it for a while, pause it.",
    )
    withdrawn = models.BooleanField(
        default=False,
        editable=False,
        help_text="Not active because no unit announces it any more; the next one takes it back.",
    )
    paused = models.BooleanField(
        default=False, help_text="A paused unit gets no sessions for backups; restores still work."
    )
    comment = models.CharField(max_length=1024, blank=True)
    registered_at = models.DateTimeField(auto_now_add=True)
    last_checkin_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def mark(self) -> int:
        """The high-water mark in force, in percent: an operator's, else the unit's own."""
        default: int = settings.TURKU_DEFAULT_HIGH_WATER_MARK
        return self.high_water_mark or self.told_high_water_mark or default

    @property
    def is_at_high_water_mark(self) -> bool:
        """Whether no new source may be placed here; a unit that has told no space is full."""
        if self.space_total <= 0:
            return True
        used = self.space_total - self.space_available
        return used * 100 >= self.mark * self.space_total

    @property
    def renews_leases(self) -> bool:
        """Whether the unit says, at each update, which sessions are alive."""
        return "leases" in self.capabilities

    def deactivate(self, *, withdrawn: bool = False) -> None:
        """Put the unit out of service: its sources are placed elsewhere, its records stay.

        Args:
            withdrawn: No unit announces it any more; the next one that does takes it back.
        """
        self.active = False
        self.withdrawn = withdrawn
        self.save(update_fields=["active", "withdrawn"])

    def activate(self) -> None:
        """Take the unit back into service; sources that are still on it stay there."""
        self.active = True
        self.withdrawn = False
        self.save(update_fields=["active", "withdrawn"])

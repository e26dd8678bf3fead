"""Announcements: who may register with a key that comes from a relation."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from turku_core.api.models.registration_keys import RegistrationKey


class Announcement(models.Model):
    """A unit of a relation says which machine, or which storage unit, it runs on.

    A machine registers with a relation's key only when a unit of that relation has announced it,
    and only with the SSH key that was announced. When no unit announces it any more, it is gone.
    """

    key = models.ForeignKey(RegistrationKey, on_delete=models.CASCADE, related_name="announcements")
    unit = models.CharField(max_length=255, help_text="The unit that says so, such as agent/0.")
    machine_uuid = models.CharField(max_length=36, blank=True, db_index=True)
    ssh_public_key = models.CharField(max_length=4096, blank=True)
    ssh_key_fingerprint = models.CharField(max_length=64, blank=True)
    unit_name = models.CharField(max_length=255, blank=True)
    storage_name = models.CharField(max_length=255, blank=True, db_index=True)
    announced_at = models.DateTimeField()

    class Meta:
        ordering = ["key", "unit"]
        constraints = [
            models.UniqueConstraint(fields=["key", "unit"], name="turku_announcement_once"),
            models.CheckConstraint(
                condition=~Q(machine_uuid="") ^ ~Q(storage_name=""),
                name="turku_announcement_of_one",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.unit} ({self.key})"

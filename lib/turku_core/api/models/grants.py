"""Restore grants: a machine may restore another one's snapshots, for a while."""

from __future__ import annotations

from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import models

from turku_core.api.models.machines import Machine


class RestoreGrant(models.Model):
    """`machine` may list and restore what was backed up of `from_machine`, until `until`.

    It ends by itself; nothing needs to be done, and no running program is relied on.
    """

    machine = models.ForeignKey(
        Machine, null=True, on_delete=models.SET_NULL, related_name="restore_grants"
    )
    from_machine = models.ForeignKey(
        Machine, null=True, on_delete=models.SET_NULL, related_name="restore_grants_given"
    )
    machine_uuid = models.CharField(max_length=36, editable=False)
    from_machine_uuid = models.CharField(max_length=36, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=255, blank=True)
    until = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-until"]

    def __str__(self) -> str:
        return f"{self.machine_uuid} from {self.from_machine_uuid} until {self.until:%Y-%m-%d}"

    def clean(self) -> None:
        """Refuse a grant that would mean nothing."""
        if self.machine_id is not None and self.machine_id == self.from_machine_id:
            raise ValidationError("A machine restores its own snapshots without a grant.")

    def save(self, *args: object, **kwargs: object) -> None:
        """Keep both names with the grant, so that it can be read when a machine is gone."""
        if self.machine is not None:
            self.machine_uuid = self.machine.uuid
        if self.from_machine is not None:
            self.from_machine_uuid = self.from_machine.uuid
        super().save(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    def end(self, now: datetime) -> None:
        """End the grant at once."""
        self.until = min(self.until, now)
        self.save(update_fields=["until"])

"""Holds: sources of which nothing expires, because far more than usual changed."""

from __future__ import annotations

from django.db import models

from turku_core.api.models.machines import Source
from turku_core.api.models.storage_units import StorageUnit


class Hold(models.Model):
    """What a storage unit says of a source whose expiry it holds.

    It is here to be seen. The unit itself keeps the hold, and only an operator of the unit ends
    it: then the row goes.
    """

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="holds")
    storage = models.ForeignKey(StorageUnit, on_delete=models.CASCADE, related_name="holds")
    since = models.DateTimeField(help_text="When the snapshot was taken that changed so much.")
    snapshot = models.CharField(max_length=255, blank=True)
    reason = models.CharField(max_length=1024, blank=True)
    share = models.FloatField(
        null=True, blank=True, help_text="Which share of the files changed, from 0 to 1."
    )
    reported_at = models.DateTimeField()

    class Meta:
        ordering = ["-since"]
        constraints = [
            models.UniqueConstraint(fields=["source", "storage"], name="turku_hold_once"),
        ]

    def __str__(self) -> str:
        return str(self.source)

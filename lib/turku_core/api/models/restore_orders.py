"""Restore orders: a machine is to restore a snapshot, and to report how that went."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from turku_core.api.models.machines import Machine


class OrderState(models.TextChoices):
    """Where an order stands."""

    ORDERED = "ordered"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    LAPSED = "lapsed"
    CANCELLED = "cancelled"


OPEN_STATES = (OrderState.ORDERED, OrderState.RUNNING)
"""The states of an order that may still be handed out."""


def make_uuid() -> str:
    """Return a new UUID; a migration names this function, so it stays where it is."""
    return str(uuid.uuid4())


class RestoreOrder(models.Model):
    """`machine` is to restore a snapshot of `from_machine`, which may be itself.

    The machine knows the order by `uuid`: a number would begin again in a new database, and the
    machine carries an order out once. `not_before` is when it may be handed out (again): while it
    is being carried out, that is the end of its lease.
    """

    uuid = models.CharField(max_length=36, unique=True, default=make_uuid, editable=False)
    machine = models.ForeignKey(
        Machine, null=True, on_delete=models.SET_NULL, related_name="restore_orders"
    )
    machine_uuid = models.CharField(max_length=36)
    unit_name = models.CharField(max_length=255)
    from_machine = models.ForeignKey(
        Machine, null=True, on_delete=models.SET_NULL, related_name="restore_orders_given"
    )
    from_machine_uuid = models.CharField(max_length=36)
    from_unit_name = models.CharField(max_length=255)
    source_name = models.CharField(max_length=255)
    snapshot = models.CharField(max_length=255)
    paths = models.JSONField(default=list)
    target = models.CharField(max_length=4096, blank=True)
    in_place = models.BooleanField(default=False)
    dry_run = models.BooleanField(default=False)
    ordered_at = models.DateTimeField()
    ordered_by = models.CharField(max_length=255, blank=True)

    state = models.CharField(max_length=16, choices=OrderState.choices, default=OrderState.ORDERED)
    not_before = models.DateTimeField()
    handed_out_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    ended_at = models.DateTimeField(null=True)
    message = models.TextField(blank=True)
    restored_snapshot = models.CharField(max_length=255, blank=True)
    restored_to = models.CharField(max_length=4096, blank=True)
    files = models.BigIntegerField(null=True)
    bytes = models.BigIntegerField(null=True)
    changes = models.JSONField(default=list)

    class Meta:
        ordering = ["-pk"]
        indexes = [
            models.Index(
                fields=["machine", "not_before"],
                condition=Q(state__in=[state.value for state in OPEN_STATES]),
                name="turku_order_open",
            ),
            # For pruning in bulk, oldest first.
            models.Index(fields=["ordered_at"], name="turku_order_ordered"),
        ]

    def __str__(self) -> str:
        return f"{self.source_name} of {self.from_unit_name} to {self.unit_name}"

    @property
    def is_open(self) -> bool:
        """Whether its end isn't known yet."""
        return self.state in OPEN_STATES

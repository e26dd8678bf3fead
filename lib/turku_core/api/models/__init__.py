"""The tables, a file for each subject."""

from __future__ import annotations

from turku_core.api.models.announcements import Announcement
from turku_core.api.models.backups import Backup, Outcome, Snapshot, SnapshotState
from turku_core.api.models.filter_sets import FilterSet
from turku_core.api.models.grants import RestoreGrant
from turku_core.api.models.holds import Hold
from turku_core.api.models.machines import Assignment, Machine, Source
from turku_core.api.models.registration_keys import KeyKind, RegistrationKey
from turku_core.api.models.restore_orders import OrderState, RestoreOrder
from turku_core.api.models.storage_units import StorageUnit

__all__ = [
    "Announcement",
    "Assignment",
    "Backup",
    "FilterSet",
    "Hold",
    "KeyKind",
    "Machine",
    "OrderState",
    "Outcome",
    "RegistrationKey",
    "RestoreGrant",
    "RestoreOrder",
    "Snapshot",
    "SnapshotState",
    "Source",
    "StorageUnit",
]

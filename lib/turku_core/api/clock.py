"""The one place where the API reads the clock; everything behind it is given the time."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone


def now() -> datetime:
    """Return the present time, aware, in the configured time zone (schedules are local)."""
    return timezone.localtime()

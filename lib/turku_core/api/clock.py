"""The one place where the API reads the clock; everything behind it is given the time."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """Return the present time in UTC, in which times can be added to and compared."""
    return datetime.now(timezone.utc)

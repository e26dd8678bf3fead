"""The one place where the API reads the clock; everything behind it is given the time."""

from __future__ import annotations

from datetime import datetime, timezone

from django.conf import settings

from turku_core.clock import FILE, observe_clock


def now() -> datetime:
    """Return the present time in UTC, in which times can be added to and compared."""
    return datetime.now(timezone.utc)


def problem(now: datetime, *, is_right: bool = False) -> str | None:
    """Return why the clock can't be trusted to say what is old; None when it can.

    Args:
        now: What it says.
        is_right: An operator's word that it is right, which holds from now on.
    """
    return observe_clock(settings.DATA_FOLDER / FILE, now, is_right=is_right)

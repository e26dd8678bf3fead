"""``health``: whether this API can serve, which means that it reaches its database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from turku_core.api.models import Machine, Source, StorageUnit


def health(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Answer what is active; records of backups aren't counted, there may be millions."""
    return {
        "healthy": True,
        "date": now.isoformat(),
        "counts": {
            "machines": Machine.objects.filter(active=True, published=True).count(),
            "sources": Source.objects.filter(published=True, machine__active=True).count(),
            "storage_units": StorageUnit.objects.filter(active=True, published=True).count(),
        },
    }

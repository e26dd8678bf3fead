"""``turku-api list-registration-keys``."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, OuterRef, Subquery
from django.db.models.functions import Coalesce

from turku_core.api.management.command import ListingCommand
from turku_core.api.models import Announcement, RegistrationKey


class Command(ListingCommand):
    """Lists the keys, never their secrets."""

    help = "List the registration keys and how many registered with each."
    headings = ("name", "kind", "state", "registered", "created", "comment")
    nothing = "There is no registration key; `turku-api create-registration-key` makes one."

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each key."""
        announced = (
            Announcement.objects.filter(key=OuterRef("pk"))
            .order_by()
            .values("key")
            .annotate(count=Count("pk"))
            .values("count")
        )
        keys = RegistrationKey.objects.annotate(
            machine_count=Count("machines", distinct=True),
            storage_count=Count("storage_units", distinct=True),
            # By itself: joined with the machines, a relation's thousands would be millions.
            announced_count=Coalesce(Subquery(announced), 0),
        ).order_by("name")
        return [
            {
                "name": key.name,
                "kind": key.kind,
                "state": "active" if key.active else "disabled",
                "from relation": key.from_relation,
                "announced": key.announced_count,
                "registered": key.machine_count + key.storage_count,
                "created": key.created_at,
                "comment": key.comment,
            }
            for key in keys
        ]

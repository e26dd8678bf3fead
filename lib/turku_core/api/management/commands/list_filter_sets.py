"""``turku-api list-filter-sets``."""

from __future__ import annotations

from typing import Any

from turku_core.api.management.command import ListingCommand
from turku_core.api.models import FilterSet


class Command(ListingCommand):
    """Lists the filter sets."""

    help = "List the filter sets, which sources use as `merge NAME`."
    headings = ("name", "rules", "comment")
    nothing = "There is no filter set; `turku-api set-filter-set` makes one."

    def rows(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each set; a table counts the rules, JSON has them."""
        return [
            {
                "name": each.name,
                "rules": each.rules if options["json"] else len(each.rules),
                "comment": each.comment,
            }
            for each in FilterSet.objects.all()
        ]

"""Filter sets: rsync rules that the API keeps for all machines."""

from __future__ import annotations

from django.db import models


class FilterSet(models.Model):
    """Named rsync filter rules, spliced in where a source says ``merge NAME``."""

    name = models.CharField(max_length=128, unique=True)
    rules = models.JSONField(
        default=list, help_text='A list of rsync filter rules, such as ["- *.tmp", "- /cache/"].'
    )
    comment = models.CharField(max_length=1024, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Hold the rules to what an agent's rules are held to, and refuse cycles."""
        from turku_core.api.filters import check_filter_set

        check_filter_set(self)

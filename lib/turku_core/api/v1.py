"""The calls of the v1 protocol."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

CALLS: dict[str, Callable[[HttpRequest], HttpResponse]] = {}

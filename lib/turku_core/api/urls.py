"""Where everything is: the protocol under ``/v1/``, the administration site under ``/admin/``."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from turku_core.api import v1

urlpatterns = [
    *(path(f"v1/{name}", view) for name, view in v1.CALLS.items()),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(pattern_name="admin:index", permanent=False)),
]

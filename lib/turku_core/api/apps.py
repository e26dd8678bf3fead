"""What Django needs to know of the application."""

from __future__ import annotations

from django.apps import AppConfig


class ApiConfig(AppConfig):
    """The application under its short label, which the tables' names begin with."""

    name = "turku_core.api"
    label = "turku_api"
    verbose_name = "Turku"
    default_auto_field = "django.db.models.BigAutoField"

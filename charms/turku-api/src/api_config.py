"""The charm's options, checked, and the workload's options that follow from them."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from turku_core import fields
from turku_core.fields import FieldError
from turku_core.retention import Policy
from turku_core.schedule import Schedule

DAYS_MAX = 36500
SLOTS_MAX = 10000


@dataclass(frozen=True)
class ApiConfig:
    """The options of charmcraft.yaml under their names.

    Raises:
        ValueError: An option isn't what it should be; the message names it and gives an example.
    """

    external_url: str
    session_slots: int
    time_zone: str
    default_schedule: str
    default_retention: str
    record_retention_days: int
    log_level: str

    def __post_init__(self) -> None:
        """Refuse what the API could not be run with."""
        if self.external_url:
            _check_url(self.external_url)
        if not 0 <= self.session_slots <= SLOTS_MAX:
            raise ValueError(f"session-slots: must be 0 (no bound) to {SLOTS_MAX}, such as 8.")
        if self.time_zone not in zoneinfo.available_timezones():
            raise ValueError(
                f"time-zone: {fields.shown(self.time_zone)} is none; try Europe/Helsinki or UTC."
            )
        _check("default-schedule", Schedule.parse, self.default_schedule, "daily, 2000-0600")
        _check("default-retention", Policy.parse, self.default_retention, "last 5 days")
        if not 1 <= self.record_retention_days <= DAYS_MAX:
            raise ValueError(f"record-retention-days: must be 1 to {DAYS_MAX}, such as 400.")
        if self.log_level not in fields.LOG_LEVELS:
            raise ValueError(
                f"log-level: must be one of {', '.join(fields.LOG_LEVELS)}, such as warning."
            )

    @property
    def external_host(self) -> str | None:
        """The host name or address of the external URL."""
        return urlsplit(self.external_url).hostname if self.external_url else None

    @property
    def external_base(self) -> str | None:
        """The base URL of the protocol at the external URL."""
        if not self.external_url:
            return None
        return self.external_url.rstrip("/").removesuffix("/v1") + "/v1"

    def values(self) -> dict[str, Any]:
        """Return the workload's options that need nothing else."""
        return {
            "time_zone": self.time_zone,
            "default_frequency": self.default_schedule,
            "default_retention": self.default_retention,
            "record_retention_days": self.record_retention_days,
            "session_slots": self.session_slots,
            "log_level": self.log_level,
        }


def _check(option: str, parse: Any, text: str, example: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}; such as: {example}.") from error


def _check_url(text: str) -> None:
    example = "such as https://turku.example.com"
    try:
        url = urlsplit(text)
        fields.host(url.hostname or "", "external-url")
        _ = url.port  # a ValueError of its own
    except (ValueError, FieldError) as error:
        raise ValueError(f"external-url: is no URL that machines could use; {example}.") from error
    if url.scheme != "https" or url.username is not None or url.query or url.fragment:
        raise ValueError(
            f"external-url: must be an https:// URL without login or query, {example}."
        )

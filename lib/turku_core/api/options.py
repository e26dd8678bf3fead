"""The options of ``etc/turku-api/config.d``, checked and typed."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from turku_core import fields
from turku_core.configuration import Merged, read_folder
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError
from turku_core.retention import Policy
from turku_core.schedule import Schedule

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What an operator may choose for the API.

    Attributes:
        database_url: ``postgresql://user:password@host:port/name``; without it, SQLite.
        time_zone: The IANA name of the zone that schedules are local to.
        default_frequency: The schedule of a source that names none.
        default_retention: The retention policy of a source that names none.
        default_high_water_mark: That of storage units that don't tell their own, in percent.
        record_retention_days: How long records of backups are kept, in days.
        session_slots: How many sessions a storage unit is sent at once, at most; 0: as many as it
            says itself.
        migrate_on_start: Whether `serve --migrate` brings the database up to date; in a cluster one
            unit does it for all (`migrate`).
        log_level: From which level on the log is written: debug, info, warning or error.
        allowed_hosts: The names under which the administration site answers.
        debug: Django's debug mode; never on a machine that others can reach.
    """

    database_url: str | None = None
    time_zone: str = "UTC"
    default_frequency: str = "daily"
    default_retention: str = "last 5 days, earliest of month"
    default_high_water_mark: int = 80
    record_retention_days: int = 400
    session_slots: int = 0
    migrate_on_start: bool = True
    log_level: str = "warning"
    allowed_hosts: tuple[str, ...] = ("*",)
    debug: bool = False


def read_options(folder: Path) -> Options:
    """Read the options from the files of `folder`; keys that aren't listed here are left alone.

    Raises:
        ConfigurationError: A value isn't what its option takes; the message names the file.
    """
    merged = read_folder(folder)
    default = Options()
    return Options(
        database_url=_option(merged, "database_url", _database_url, default.database_url),
        time_zone=_option(merged, "time_zone", _time_zone, default.time_zone),
        default_frequency=_option(
            merged, "default_frequency", _frequency, default.default_frequency
        ),
        default_retention=_option(
            merged, "default_retention", _retention, default.default_retention
        ),
        default_high_water_mark=_option(
            merged, "default_high_water_mark", _percent, default.default_high_water_mark
        ),
        record_retention_days=_option(
            merged, "record_retention_days", _days, default.record_retention_days
        ),
        session_slots=_option(merged, "session_slots", _slots, default.session_slots),
        migrate_on_start=_option(merged, "migrate_on_start", _boolean, default.migrate_on_start),
        log_level=_option(merged, "log_level", _log_level, default.log_level),
        allowed_hosts=_option(merged, "allowed_hosts", _hosts, default.allowed_hosts),
        debug=_option(merged, "debug", _boolean, default.debug),
    )


def database_settings(url: str) -> dict[str, Any]:
    """Return the entry of Django's ``DATABASES`` for a PostgreSQL URL (libpq's connection URI).

    ``?host=/run/postgresql`` names the folder of a Unix socket; other parameters are libpq's.
    """
    parts = urlsplit(url)
    parameters = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": parameters.pop("user", unquote(parts.username or "")),
        "PASSWORD": parameters.pop("password", unquote(parts.password or "")),
        "HOST": parameters.pop("host", unquote(parts.hostname or "")),
        "PORT": parameters.pop("port", str(parts.port or "")),
        "OPTIONS": parameters,
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }


def _option(merged: Merged, name: str, check: Callable[[Any], T], default: T) -> T:
    if name not in merged.values:
        return default
    try:
        return check(merged.values[name])
    except ValueError as error:
        raise ConfigurationError(f"{merged.origin(name)}: {name}: {error}.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text")
    return value


def _database_url(value: Any) -> str:
    parts = urlsplit(_text(value))
    if parts.scheme not in {"postgresql", "postgres"} or not parts.path.strip("/"):
        raise ValueError("expected postgresql://user:password@host:port/name")
    _ = parts.port  # A ValueError of its own for a port that is no number.
    return str(value)


def _time_zone(value: Any) -> str:
    if _text(value) not in zoneinfo.available_timezones():
        raise ValueError("expected the name of a time zone, such as Europe/Helsinki")
    return str(value)


def _frequency(value: Any) -> str:
    Schedule.parse(_text(value))
    return str(value)


def _retention(value: Any) -> str:
    Policy.parse(_text(value))
    return str(value)


def _days(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 36500:
        raise ValueError("expected a number of days from 1 to 36500")
    return value


def _percent(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise ValueError("expected a percentage from 1 to 100")
    return value


def _slots(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10_000:
        raise ValueError("expected a number of sessions from 0 (each unit's own) to 10000")
    return value


def _log_level(value: Any) -> str:
    try:
        return fields.log_level(value, "log_level")
    except FieldError as error:
        raise ValueError(error.expected) from error


def _hosts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(host, str) and host for host in value):
        raise ValueError('expected a list of host names, such as ["turku.example.com"]')
    return tuple(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value

"""Django's settings, from ``etc/turku-api/config.d`` below the folder ``TURKU_API_ROOT``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from turku_core.api.options import database_settings, read_options
from turku_core.api.secret_key import read_or_make_secret_key
from turku_core.configuration import ensure_private_folder

ROOT = Path(os.environ.get("TURKU_API_ROOT", "/"))
CONFIGURATION_FOLDER = ROOT / "etc/turku-api/config.d"
DATA_FOLDER = ROOT / "var/lib/turku-api"
ensure_private_folder(DATA_FOLDER)
OPTIONS = read_options(CONFIGURATION_FOLDER)

SECRET_KEY = read_or_make_secret_key(DATA_FOLDER)
DEBUG = OPTIONS.debug
ALLOWED_HOSTS = list(OPTIONS.allowed_hosts)

SQLITE: dict[str, Any] = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": str(DATA_FOLDER / "turku.sqlite3"),
    "CONN_MAX_AGE": None,
    "OPTIONS": {
        # A transaction takes the write lock when it begins: it waits its turn there, and can't
        # fail half-way because another writer came first.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;",
    },
}
DATABASES = {"default": database_settings(OPTIONS.database_url) if OPTIONS.database_url else SQLITE}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "turku_core.api",
]
MIDDLEWARE = [
    # First: a v1 call goes from here straight to its view, past all that follows.
    "turku_core.api.middleware.ProtocolFirst",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "turku_core.api.urls"
WSGI_APPLICATION = "turku_core.api.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTHENTICATION_BACKENDS = ["turku_core.api.passwords.OneAtATime"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    # v1.py says who was refused and why; Django would only repeat that somebody was.
    "loggers": {"django.request": {"level": "ERROR"}},
}

LANGUAGE_CODE = "en"
TIME_ZONE = OPTIONS.time_zone
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = "turku_core.api.formats"
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True
SESSION_COOKIE_HTTPONLY = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Each v1 call has a bound of its own, checked before a byte is read (v1.py).
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 * 1024 * 1024

TURKU_DEFAULT_FREQUENCY = OPTIONS.default_frequency
TURKU_DEFAULT_RETENTION = OPTIONS.default_retention
TURKU_DEFAULT_HIGH_WATER_MARK = OPTIONS.default_high_water_mark
TURKU_LOG_LEVEL = OPTIONS.log_level
TURKU_MIGRATE_ON_START = OPTIONS.migrate_on_start
TURKU_SESSION_SLOTS = OPTIONS.session_slots
TURKU_RECORD_RETENTION_DAYS = OPTIONS.record_retention_days

"""``update_config``: machines register, and say what they want backed up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from turku_core import credentials, fields
from turku_core.api import announcements, due, filters, logins, placement
from turku_core.api.models import KeyKind, Machine, RegistrationKey, Source
from turku_core.api.refusals import Refused
from turku_core.fields import FieldError, join, optional, required
from turku_core.protocol.messages import MachineConfig, MachineLogin, SourceSettings

log = logging.getLogger(__name__)

PLACE = "machine.sources"


def update_config(request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Register the machine, or take over its configuration.

    A source that isn't valid is left as it was; everything else takes effect, and then the answer
    says what is wrong with it.

    Raises:
        Refused: A newcomer without a valid registration key, or a known UUID with another secret;
            or an SSH key that a relation's unit did not announce.
        NotYet: A relation's unit has not announced the machine, or too many came with its key.
        FieldError: A field isn't valid; when it is one of the machine's own, nothing is changed.
    """
    login = MachineLogin.from_json(request)
    known = Machine.objects.filter(uuid=login.uuid).exists()
    key = None if known else logins.registration_key_of(request, KeyKind.MACHINE, now)
    if known:
        logins.machine_of(login, waits_if_withdrawn=True)
    body = fields.mapping(required(request, "machine"), "machine")
    config = MachineConfig.from_json({**body, "sources": None})
    version = optional(body, "version", _version, "", "machine")
    wanted, errors = _read_sources(body.get("sources"))
    with transaction.atomic():
        machine = _save_machine(login, key, config, version)
        sources = _save_sources(machine, wanted, errors, now)
        _place_and_schedule(machine, sources, now)
    if errors:
        raise FieldError("; ".join(map(str, errors.values())), "the rest has taken effect")
    return {}


def _version(value: object, field: str) -> str:
    return fields.text(value, field, 64)


def _read_sources(
    value: object,
) -> tuple[dict[str, SourceSettings] | None, dict[str, FieldError]]:
    """Check each source by itself.

    Returns:
        The valid ones (None when the machine said nothing of its sources), and what is wrong with
        each of the others, both by name.
    """
    if value is None:
        return None, {}
    sources = fields.mapping(value, PLACE)
    if len(sources) > fields.SOURCES_MAX:
        raise FieldError(PLACE, f"must have at most {fields.SOURCES_MAX} sources")
    valid: dict[str, SourceSettings] = {}
    errors: dict[str, FieldError] = {}
    for name, source in sources.items():
        try:
            fields.name(name, f"{PLACE}, source name")
            valid[name] = _read_source(source, join(PLACE, name))
        except FieldError as error:
            errors[name] = error
    return valid, errors


def _read_source(value: object, place: str) -> SourceSettings:
    source = SourceSettings.from_json(value, place)
    source = dataclasses.replace(
        source,
        frequency=source.frequency or settings.TURKU_DEFAULT_FREQUENCY,
        retention=source.retention or settings.TURKU_DEFAULT_RETENTION,
    )
    for field, text in (
        ("path", source.path),
        *(("filter", rule) for rule in source.filter),
        *(("exclude", rule) for rule in source.exclude),
    ):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise FieldError(join(place, field), "must be UTF-8 text; choose the folder above it")
    try:
        filters.splice(source.filter, filters.stored_rules)
    except FieldError as error:
        raise FieldError(join(place, error.field), error.expected) from error
    return source


def _save_machine(
    login: MachineLogin, key: RegistrationKey | None, config: MachineConfig, version: str
) -> Machine:
    """Make or change the machine's row, and lock it.

    Raises:
        FieldError: Another active machine uses the same SSH key.
        Refused: Somebody else has registered the UUID in the same moment, or the SSH key isn't the
            one that was announced.
        NotYet: The machine has to be announced first.
    """
    values = {
        "unit_name": config.unit_name,
        "environment_name": config.environment_name or "",
        "service_name": config.service_name or "",
        "comment": config.comment,
        "published": config.published,
        "ssh_public_key": config.ssh_public_key.line,
        "ssh_key_fingerprint": config.ssh_public_key.fingerprint,
        "version": version,
    }
    secret_hash = credentials.hash_secret(login.secret)
    try:
        with transaction.atomic():
            if key is not None:
                announcements.permit_registration(key, login.uuid, config.ssh_public_key)
            machine, is_new = Machine.objects.get_or_create(
                uuid=login.uuid,
                defaults={**values, "secret_hash": secret_hash, "registration_key": key},
            )
            if is_new:
                log.info("machine %s (%s) has registered", login.uuid, config.unit_name)
                return machine
            machine = Machine.objects.select_for_update(no_key=True).get(pk=machine.pk)
            logins.check_secret(login.secret, machine.secret_hash)
            if not machine.active:
                raise Refused
            changed = [name for name, value in values.items() if getattr(machine, name) != value]
            if "ssh_key_fingerprint" in changed:
                announcements.permit_ssh_key(machine, config.ssh_public_key)
            for name in changed:
                setattr(machine, name, values[name])
            if changed:
                machine.save(update_fields=changed)
            return machine
    except IntegrityError as error:
        log.warning(
            "machine %s (%s) has the SSH key of another active machine, %s",
            login.uuid,
            config.unit_name,
            config.ssh_public_key.fingerprint,
        )
        raise FieldError(
            "machine.ssh_public_key",
            "another active machine uses this key. A copied machine needs an identity of its own: "
            "remove the identity and the SSH key below /var/lib/turku-agent on the copy, and run "
            "turku-update-config there again",
        ) from error


def _save_sources(
    machine: Machine,
    wanted: Mapping[str, SourceSettings] | None,
    errors: Mapping[str, FieldError],
    now: datetime,
) -> list[Source]:
    """Make the sources what the machine wants, but leave those in `errors` as they are."""
    known = {source.name: source for source in machine.sources.select_related("storage")}
    if wanted is not None:
        for name, source_settings in wanted.items():
            if name in known:
                _change_source(known[name], source_settings, now)
            else:
                known[name] = Source.objects.create(
                    machine=machine, name=name, since=now, **_columns(source_settings)
                )
        for name, source in known.items():
            if source.published and name not in wanted and name not in errors:
                source.published = False
                source.save(update_fields=["published"])
    for source in known.values():
        source.machine = machine
    return list(known.values())


def _columns(source: SourceSettings) -> dict[str, Any]:
    return {
        **dataclasses.asdict(source),
        "filter": list(source.filter),
        "exclude": list(source.exclude),
        "snapshot_mode": source.snapshot_mode or "",
        "published": True,
    }


def _change_source(source: Source, source_settings: SourceSettings, now: datetime) -> None:
    values = _columns(source_settings)
    changed = [name for name, value in values.items() if getattr(source, name) != value]
    if not changed:
        return
    if "frequency" in changed or "published" in changed:
        # What another schedule, or none, let pass was not missed.
        source.since = now
    for name in changed:
        setattr(source, name, values[name])
    source.problem = ""
    source.save(update_fields=[*changed, "since", "problem"])


def _place_and_schedule(machine: Machine, sources: list[Source], now: datetime) -> None:
    for source in sources:
        if machine.published and source.published and placement.is_homeless(source):
            placed = placement.place(machine, source, now)
            source.save(update_fields=["storage", "problem"])
            if not placed:
                log.warning("machine %s, source %s: %s", machine, source.name, source.problem)
        due.refresh(source, now)
    due.refresh_machine(machine)

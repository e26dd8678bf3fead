"""Telling the API who this machine is and what is to be backed up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from turku_core import __version__
from turku_core.agent.identity import Identity
from turku_core.agent.settings import Settings
from turku_core.agent.sources import LocalSource
from turku_core.errors import TryAgainLater
from turku_core.protocol.client import ApiRefused, Client
from turku_core.protocol.messages import MachineConfig

logger = logging.getLogger(__name__)

FIRST_PAUSE = 2.0
LONGEST_PAUSE = 15.0


def machine_config(
    settings: Settings, identity: Identity, sources: Mapping[str, LocalSource]
) -> MachineConfig:
    """Return what the machine says of itself."""
    return MachineConfig(
        unit_name=settings.unit_name,
        ssh_public_key=identity.public_key(),
        environment_name=settings.environment_name,
        service_name=settings.service_name,
        published=settings.published,
        sources={name: source.settings for name, source in sources.items()},
    )


def update_config_request(
    settings: Settings, identity: Identity, config: MachineConfig
) -> dict[str, Any]:
    """Return the body of an ``update_config``.

    The registration key goes along whenever there is one, as fielded agents do it; the API looks
    at it only when it doesn't know the machine.
    """
    machine = {**config.to_json(), **identity.login(), "version": __version__}
    request: dict[str, Any] = {"machine": machine}
    if settings.registration_key is not None:
        request["auth"] = settings.registration_key.to_json()
    return request


def pauses(seconds: float) -> Iterator[float]:
    """Yield the pauses between tries, in seconds: growing ones, together `seconds` long."""
    pause = FIRST_PAUSE
    while seconds > 0:
        yield min(pause, seconds)
        seconds -= pause
        pause = min(pause * 1.5, LONGEST_PAUSE)


def update_config_within(
    seconds: float,
    client: Client,
    settings: Settings,
    identity: Identity,
    sources: Mapping[str, LocalSource],
) -> None:
    """Do as `update_config`; while the API can't do it yet, try again for as long as `seconds`.

    Raises:
        TurkuError: The call failed; when it is a `TryAgainLater`, to the last.
    """
    for pause in pauses(seconds):
        try:
            return update_config(client, settings, identity, sources)
        except TryAgainLater as error:
            logger.info("%s Trying again in %.0f s.", error, pause)
            # A signal ends the program with an exception, so also this pause.
            time.sleep(pause)
    return update_config(client, settings, identity, sources)


def update_config(
    client: Client,
    settings: Settings,
    identity: Identity,
    sources: Mapping[str, LocalSource],
) -> None:
    """Register the machine if it is new, and send its sources.

    Raises:
        TurkuError: The call failed; nothing was changed then.
    """
    config = machine_config(settings, identity, sources)
    try:
        client.call("update_config", update_config_request(settings, identity, config))
    except ApiRefused as error:
        if settings.registration_key is None:
            raise ApiRefused(
                "The API doesn't know this machine, and no registration key is configured: put "
                "api_auth_name and api_auth_secret into a file in config.d."
            ) from error
        raise ApiRefused(
            "The API refused this machine: the registration key in api_auth_name and "
            "api_auth_secret is wrong or disabled, or the machine's own secret is no longer "
            "accepted. Ask the API's administrator for a key (turku-api on an API unit)."
        ) from error

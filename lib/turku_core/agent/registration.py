"""Telling the API who this machine is and what is to be backed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turku_core import __version__
from turku_core.agent.identity import Identity
from turku_core.agent.settings import Settings
from turku_core.agent.sources import LocalSource
from turku_core.protocol.client import ApiRefused, Client
from turku_core.protocol.messages import MachineConfig


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

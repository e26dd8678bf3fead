"""What the API was last told of the sources, so that it keeps what can't be read at the moment.

An ``update_config`` says all there is: a source that isn't in it is unpublished. One bad file must
neither do that to its sources nor keep the good ones of other files from being backed up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from turku_core import fields
from turku_core.agent.settings import Locations
from turku_core.agent.sources import HookSettings, LocalSource, LocalSources
from turku_core.configuration import write_durably
from turku_core.protocol.messages import SourceSettings

logger = logging.getLogger(__name__)


def sources_to_send(loaded: LocalSources, locations: Locations) -> Mapping[str, LocalSource]:
    """Return the sources that are valid, and of the others what the API was last told of them.

    A source that was never sent in a valid form is left out.
    """
    before = _read(_file(locations))
    kept = {
        name: source
        for name, source in before.items()
        if name in loaded.invalid or _is_from(source, loaded.unread)
    }
    return {**loaded.sources, **kept}


def note_sent(sources: Mapping[str, LocalSource], locations: Locations) -> None:
    """Keep what the API was told."""
    values = {
        name: {"from": source.origin, "source": source.settings.to_json()}
        for name, source in sources.items()
    }
    write_durably(_file(locations), json.dumps(values, indent=2) + "\n", 0o600)


def _file(locations: Locations) -> Path:
    return locations.state / "sent.json"


def _is_from(source: LocalSource, files: tuple[str, ...]) -> bool:
    return any(source.origin == file or source.origin.startswith(f"{file}, ") for file in files)


def _read(path: Path) -> dict[str, LocalSource]:
    try:
        listed = fields.mapping(json.loads(path.read_bytes()), "sent")
        return {
            name: LocalSource(
                name,
                SourceSettings.from_json(fields.required(each, "source"), name),
                HookSettings(),
                str(each["from"]),
            )
            for name, each in listed.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s can't be read: %s", path, error)
        return {}

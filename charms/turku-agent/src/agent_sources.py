"""The machine's sources from all their places, each checked, and none named twice.

Principals drop files into ``sources.d``; they are theirs. What the charm's own places say, the
option and the relations, each unit writes to files of its own beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_machine import Claim, Stated
from turku_charm.api_relation import write_if_changed
from turku_core import fields
from turku_core.agent.sources import check_sources, load_sources, source_files
from turku_core.configuration import read_file, read_text
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError
from turku_core.relations import PrincipalSources

OPTION = "option"
"""The key of the option's place."""

_OPTION_LABEL = "option sources"


@dataclass(frozen=True)
class Place:
    """What a place says at the moment.

    Attributes:
        key: Tells the unit's places apart.
        label: The place in words.
        values: The sources by name, not checked yet; None when it says nothing that can be
            understood, so that what it said before still holds.
        origins: Where each source, and each key of it, was read, as far as it is known.
        problems: A sentence for each thing that isn't valid.
        remarks: A sentence for each thing that is worth knowing, and nobody's fault.
    """

    key: str
    label: str
    values: Mapping[str, Any] | None
    origins: Mapping[str, object] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def option_place(text: str) -> Place:
    """Read the option ``sources``."""
    try:
        values, origins = read_text(Path(_OPTION_LABEL), text)
    except ConfigurationError as error:
        return Place(OPTION, _OPTION_LABEL, None, problems=(str(error),))
    return Place(OPTION, _OPTION_LABEL, values, origins)


def relation_place(key: str, principal: str, databag: Mapping[str, str]) -> Place:
    """Read what a principal's unit says over the relation ``sources``."""
    label = f"relation sources of {principal}"
    try:
        stated = PrincipalSources.from_databag(databag)
    except FieldError as error:
        return Place(key, label, None, problems=(f"{label}: {error}.",))
    return Place(key, label, None if stated is None else stated.sources)


@dataclass(frozen=True)
class Resolved:
    """The places together: what of them holds, and a sentence for each thing that doesn't."""

    places: Mapping[str, Stated]
    problems: tuple[str, ...]


def resolve(
    places: Sequence[Place], former: Mapping[str, Stated], taken: Mapping[str, str]
) -> Resolved:
    """Decide what of the places holds.

    A source that isn't valid any more stays as it was, and so do all of a place's when it can't be
    understood: a slip of the pen must not end a backup. A name that is taken already is refused.

    Args:
        places: In the order in which they may take names.
        former: What held before, by the places' keys.
        taken: The names that others have defined, and where.
    """
    names = dict(taken)
    problems: list[str] = []
    held = {}
    for place in places:
        problems += place.problems
        before = former[place.key].sources if place.key in former else {}
        wanted: dict[str, Mapping[str, Any]] = dict(before)
        if place.values is not None:
            checked = check_sources(place.values, place.origins, place.label)
            problems += checked.problems
            wanted = {name: place.values[name] for name in checked.sources}
            wanted |= {name: before[name] for name in checked.invalid & before.keys()}
        sources = {}
        for name, source in wanted.items():
            if name in names:
                problems.append(_conflict(name, str(place.origins.get(name, place.label)), names))
                continue
            names[name] = place.label
            sources[name] = source
        held[place.key] = Stated(place.label, sources)
    return Resolved(held, tuple(problems))


def _conflict(name: str, here: str, names: Mapping[str, str]) -> str:
    return (
        f"{here}: source {fields.shown(name)} is defined in {names[name]} as well: give one of "
        "them another name; until then the latter counts."
    )


def names_of_others(claim: Claim, claims: Iterable[Claim]) -> dict[str, str]:
    """Return the names that the machine's other agent units have taken, and where.

    Units of one application have the same option, so it takes no name from itself.
    """
    taken = {}
    for other in claims:
        if other.unit == claim.unit:
            continue
        for key, place in other.places.items():
            if key != OPTION:
                taken.update(dict.fromkeys(place.sources, place.label))
            elif other.application != claim.application:
                label = f"{place.label} of {other.application}"
                taken.update(dict.fromkeys(place.sources, label))
    return taken


@dataclass(frozen=True)
class Files:
    """The folder ``sources.d``, which principals and agent units share."""

    folder: Path

    def option_file(self, claim: Claim) -> Path:
        """Return the file of the option, which all units of an application write alike."""
        return self.folder / f"charm-{claim.application}.json"

    def relations_file(self, claim: Claim) -> Path:
        """Return the file of what a unit's relations say."""
        return self.folder / f"charm-{claim.file_stem}.json"

    def names_of_principals(self, claims: Iterable[Claim]) -> tuple[dict[str, str], list[str]]:
        """Return the names that files of others define, and where; and a sentence for each clash.

        A file without a ``path`` for a name adds to what another says, which is allowed.
        """
        ours = {
            path
            for claim in claims
            for path in (self.option_file(claim), self.relations_file(claim))
        }
        names: dict[str, str] = {}
        problems = []
        for path in source_files(self.folder):
            if path in ours:
                continue
            try:
                values, origins = read_file(path)
            except ConfigurationError:
                continue  # `problems` says so
            for name, value in values.items():
                if not isinstance(value, dict) or "path" not in value:
                    continue
                where = str(origins.get(name, path))
                if name in names:
                    problems.append(
                        f"{where}: source {fields.shown(name)} is defined in {names[name]} as "
                        "well: give one of them another name."
                    )
                names[name] = where
        return names, problems

    def problems(self) -> tuple[str, ...]:
        """Return a sentence, with file and line, for each thing in the folder that isn't valid."""
        return load_sources(self.folder).problems

    def write(self, claim: Claim) -> None:
        """Write what a unit's places say to its files, and nothing to anyone else's."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        relations: dict[str, Mapping[str, Any]] = {}
        for key, place in claim.places.items():
            if key != OPTION:
                relations |= place.sources
        option = claim.places[OPTION].sources if OPTION in claim.places else {}
        self._write(self.option_file(claim), option)
        self._write(self.relations_file(claim), relations)

    def remove(self, claim: Claim, others: Iterable[Claim]) -> None:
        """Take a unit's files away; the option's only with the last unit of its application."""
        self.relations_file(claim).unlink(missing_ok=True)
        if all(other.application != claim.application for other in others):
            self.option_file(claim).unlink(missing_ok=True)

    def _write(self, path: Path, sources: Mapping[str, Mapping[str, Any]]) -> None:
        if sources:
            write_if_changed(path, json.dumps(sources, indent=2, sort_keys=True) + "\n", 0o644)
        else:
            path.unlink(missing_ok=True)

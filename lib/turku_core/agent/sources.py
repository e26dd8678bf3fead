"""The machine's sources: what is backed up, as `sources.d` says it, checked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turku_core import fields
from turku_core.configuration import read_file
from turku_core.errors import ConfigurationError
from turku_core.fields import FieldError
from turku_core.protocol.messages import SourceSettings

HOOK_SECONDS = 3600
"""How long a hook may run when the source doesn't say."""

_HOOK_SECONDS_MAX = 7 * 24 * 3600
_KNOWN_KEYS = frozenset(SourceSettings.__dataclass_fields__) | {
    "run_before_backup",
    "run_after_backup",
    "run_before_restore",
    "run_after_restore",
    "hook_timeout",
}


@dataclass(frozen=True)
class HookSettings:
    """The programs that the machine runs around a source's backups and restores.

    Attributes:
        timeout: Seconds that each of them may take.
    """

    run_before_backup: Path | None = None
    run_after_backup: Path | None = None
    run_before_restore: Path | None = None
    run_after_restore: Path | None = None
    timeout: float = HOOK_SECONDS


@dataclass(frozen=True)
class LocalSource:
    """A source of this machine: what the API is told of it, and what stays here."""

    name: str
    settings: SourceSettings
    hooks: HookSettings
    origin: str

    @property
    def path(self) -> Path:
        """The tree's top; bytes that aren't UTF-8 are surrogates (PEP 383)."""
        return Path(self.settings.path)


@dataclass(frozen=True)
class LocalSources:
    """The sources that are valid, and a sentence for each thing that isn't.

    Attributes:
        sources: By name.
        problems: The sentences, each with its file and line.
        invalid: The names of the sources that aren't valid.
        unread: The files that can't be read, so that nobody knows which sources they hold.
    """

    sources: Mapping[str, LocalSource]
    problems: tuple[str, ...]
    invalid: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()

    def checked(self) -> Mapping[str, LocalSource]:
        """Return the sources when all of them are valid.

        Raises:
            ConfigurationError: Some aren't. What the API knows then stays as it is: sending the
                rest would tell it that the others are gone.
        """
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))
        return self.sources


def load_sources(folder: Path) -> LocalSources:
    """Read `sources.d`: files of ``{NAME: {path: ..., ...}}``, merged in name order.

    A file or a source that isn't valid doesn't hide the others: a machine goes on backing up what
    it understands.
    """
    values: dict[str, Any] = {}
    origins: dict[str, Any] = {}
    problems = []
    unread = []
    for path in source_files(folder):
        try:
            file_values, file_origins = read_file(path)
        except ConfigurationError as error:
            problems.append(str(error))
            unread.append(str(path))
            continue
        origins.update(file_origins)
        for name, value in file_values.items():
            known = values.get(name)
            if isinstance(known, dict) and isinstance(value, dict):
                known.update(value)
            else:
                values[name] = value
    checked = check_sources(values, origins, folder)
    return LocalSources(
        checked.sources, (*problems, *checked.problems), checked.invalid, tuple(unread)
    )


def check_sources(
    values: Mapping[str, Any], origins: Mapping[str, object], where: object
) -> LocalSources:
    """Check sources that were read from one place or merged from several.

    Args:
        values: Each source by its name, as a file has it.
        origins: Where it was read, and where each of its keys was (under ``NAME/KEY``).
        where: What messages name when that isn't known.
    """
    sources = {}
    problems = []
    for name, value in values.items():
        try:
            sources[name] = _source(name, value, str(origins.get(name, where)))
        except FieldError as error:
            place = _nearest(origins, name, error.field) or where
            problems.append(f"{place}: source {fields.shown(name)}: {_in_source(name, error)}.")
    invalid = frozenset(values) - frozenset(sources)
    return LocalSources(sources, tuple(problems), invalid)


def source_files(folder: Path) -> list[Path]:
    """Return the files of `sources.d` in the order in which they are merged."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix in (".json", ".yaml", ".yml") and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []


def _source(name: str, value: object, origin: str) -> LocalSource:
    fields.name(name, "name")
    source = fields.mapping(value, name)
    for key in source:
        if key not in _KNOWN_KEYS:
            raise FieldError(fields.join(name, key), "is not a setting of a source")
    return LocalSource(name, SourceSettings.from_json(source, name), _hooks(source, name), origin)


def _hooks(source: Mapping[str, Any], place: str) -> HookSettings:
    def hook(key: str) -> Path | None:
        return fields.optional(source, key, _program, None, place)

    return HookSettings(
        run_before_backup=hook("run_before_backup"),
        run_after_backup=hook("run_after_backup"),
        run_before_restore=hook("run_before_restore"),
        run_after_restore=hook("run_after_restore"),
        timeout=fields.optional(source, "hook_timeout", _seconds, float(HOOK_SECONDS), place),
    )


def _program(value: object, field: str) -> Path:
    return Path(fields.absolute_path(value, field))


def _seconds(value: object, field: str) -> float:
    return fields.number(value, field, 1, _HOOK_SECONDS_MAX)


def _in_source(name: str, error: FieldError) -> str:
    """Return the error's words with the field as the file names it."""
    field = error.field.removeprefix(f"{name}.")
    return error.expected if field == name else f"{field} {error.expected}"


def _nearest(origins: Mapping[str, Any], name: str, field: str) -> Any:
    """Return where the field stands, or the source when the field has no line of its own."""
    key = field.removeprefix(f"{name}.").partition("[")[0]
    return origins.get(f"{name}/{key}") or origins.get(name)

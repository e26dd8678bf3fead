"""Reading *.d folders of JSON and YAML files, and writing files that survive a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turku_core.errors import ConfigurationError

if TYPE_CHECKING:
    import yaml

FILE_BYTES_MAX = 4 * 1024 * 1024
"""A configuration file larger than this is a mistake."""

_YAML_ERRORS = (
    RecursionError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)
"""What PyYAML's constructors raise for a value that isn't of the type that its tag says."""

_SUFFIXES = (".json", ".yaml", ".yml")

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""The names of files that `write_durably` is writing, or was when it was killed."""


@dataclass(frozen=True)
class Origin:
    """Where a value was read: a file and, when the format tells, a line in it (from 1)."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}" if self.line else str(self.path)


@dataclass(frozen=True)
class Merged:
    """The files of a folder, merged in name order: a later file's key replaces an earlier one's.

    A value that is a mapping in both is merged key by key, so that two files may each add to
    ``sources`` or ``volumes``.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    def origin(self, *keys: str) -> str:
        """Return where the value under `keys` was read, for an error message.

        The nearest enclosing value that is known is named when the value itself isn't.
        """
        for length in range(len(keys), 0, -1):
            found = self.origins.get("/".join(keys[:length]))
            if found is not None:
                return str(found)
        return "the configuration"


def read_folder(folder: Path) -> Merged:
    """Read and merge every ``*.json``, ``*.yaml`` and ``*.yml`` file of `folder`, in name order.

    A folder that isn't there is an empty one. Names that begin with a dot are passed over.

    Raises:
        ConfigurationError: A file can't be read or isn't a JSON or YAML mapping; the message
            names the file and, where it is known, the line.
    """
    merged = Merged()
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix in _SUFFIXES and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return merged
    except OSError as error:
        raise ConfigurationError(f"{folder} can't be read: {error.strerror}.") from error
    for path in paths:
        _merge(merged, *read_file(path))
    return merged


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Read one JSON or YAML file that holds a mapping.

    Returns:
        The mapping, and where each key was read; a nested key is written ``outer/inner``.

    Raises:
        ConfigurationError: As for `read_folder`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigurationError(f"{path} is larger than {FILE_BYTES_MAX} bytes.")
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: the file is not UTF-8 text.") from error
    return read_text(path, text)


def read_text(path: Path, text: str) -> tuple[dict[str, Any], dict[str, Origin]]:
    """Read a JSON or YAML mapping as `read_file` does, when its text is at hand already.

    Args:
        path: What the text is called in messages and origins; ``.json`` at its end means JSON.
        text: The content.
    """
    if not text.strip():
        return {}, {}
    values, origins = _parse_json(path, text) if path.suffix == ".json" else _parse_yaml(path, text)
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold a mapping of names to values.")
    for key in values:
        if not isinstance(key, str):
            raise ConfigurationError(f"{path}: the key {key!r} must be text; put it in quotes.")
    return values, origins


def _merge(merged: Merged, values: Mapping[str, Any], origins: Mapping[str, Origin]) -> None:
    for key, value in values.items():
        known = merged.values.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            known.update(value)
        else:
            merged.values[key] = value
    merged.origins.update(origins)


def _parse_json(path: Path, text: str) -> tuple[Any, dict[str, Origin]]:
    try:
        values = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}, line {error.lineno}: this is not valid JSON: {error.msg}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: this is not valid JSON: {error}.") from error
    return values, _json_origins(path, text, values)


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name!r} stands twice")
        values[name] = value
    return values


def _json_origins(path: Path, text: str, values: Any) -> dict[str, Origin]:
    """Find the lines of keys; the standard parser doesn't tell them.

    Keys are looked for in the order of the document, so a name that also appears inside an
    earlier value could be placed a few lines early; it is only for messages.
    """
    origins: dict[str, Origin] = {}
    position = 0

    def walk(mapping: Mapping[str, Any], prefix: str) -> None:
        nonlocal position
        for key, value in mapping.items():
            found = re.compile(re.escape(json.dumps(key)) + r"\s*:").search(text, position)
            if found is None:
                found = re.compile(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:").search(
                    text, position
                )
            if found is not None:
                position = found.end()
                line = text.count("\n", 0, found.start()) + 1
                origins[prefix + key] = Origin(path, line)
            else:
                origins[prefix + key] = Origin(path)
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}/")

    if isinstance(values, dict):
        walk(values, "")
    return origins


def _parse_yaml(path: Path, text: str) -> tuple[Any, dict[str, Origin]]:
    # Imported late: a machine with JSON files only never pays for it (see the idle check-in).
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_aliases(path, text)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigurationError(f"{where}: this is not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: this is not valid YAML: {error}.") from error
    except _YAML_ERRORS as error:
        raise ConfigurationError(f"{path}: this is not valid YAML: {error}.") from error
    origins: dict[str, Origin] = {}
    _yaml_origins(path, node, "", origins)
    return values, origins


def _refuse_aliases(path: Path, text: str) -> None:
    """Refuse anchors' aliases: a few lines of them can unfold into gigabytes."""
    import yaml

    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            raise ConfigurationError(
                f"{path}, line {token.start_mark.line + 1}: aliases (*name) are not supported."
            )


def _yaml_origins(
    path: Path, node: yaml.Node | None, prefix: str, origins: dict[str, Origin]
) -> None:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        line = key.start_mark.line + 1
        if name in seen:
            raise ConfigurationError(f"{path}, line {line}: the key {name!r} stands twice.")
        seen.add(name)
        origins[prefix + name] = Origin(path, line)
        _yaml_origins(path, value, f"{prefix}{name}/", origins)


def write_durably(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a whole file so that, after a crash at any moment, either the old or the new is there.

    The content goes to a temporary file beside `path`, which is synced, renamed over `path`, and
    whose folder is synced. The temporary name begins with a dot and ends in ``.tmp``; one that a
    killed process left behind is never read, and `remove_left_overs` removes it.

    Args:
        path: The file; its folder must exist.
        content: Text is written as UTF-8.
        mode: The file's permissions, set before it has its name.

    Raises:
        OSError: As from the system calls; `path` is then as it was.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    temporary, descriptor = _open_temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.rename(temporary, path)
            # Said at once: a program that another thread starts just now inherits it for a moment.
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def _open_temporary(path: Path) -> tuple[Path, int]:
    """Make a temporary file beside `path`, and lock it: it is no left-over while it is locked."""
    while True:
        temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # it was removed as a left-over before it was locked


def remove_left_overs(folder: Path) -> int:
    """Remove what a killed `write_durably` has left in `folder`: it may be half a secret.

    What is being written at the moment stays. A folder that isn't there has none.

    Returns:
        How many files were removed.
    """
    try:
        names = [name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
    except FileNotFoundError:
        return 0
    removed = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            removed += _remove_left_over(folder / name)
    return removed


def _remove_left_over(path: Path) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return 1
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` (files made, renamed, removed) durable."""
    with _opened_folder(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ensure_folder(folder: Path) -> None:
    """Make `folder` and its parents as far as they aren't there, for their owner alone to change.

    Whatever the umask is: one of 0 must not let others put files beside ours.
    """
    if not folder.is_dir():
        ensure_folder(folder.parent)
        folder.mkdir(mode=0o755, exist_ok=True)


def ensure_private_folder(folder: Path) -> bool:
    """Make `folder` (and its parents) if it isn't there, readable by its owner alone (0700).

    Returns:
        Whether anything was changed.
    """
    changed = False
    if not folder.is_dir():
        ensure_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            sync_folder(folder.parent)
        changed = True
    if folder.stat().st_mode & 0o777 != 0o700:
        folder.chmod(0o700)
        changed = True
    return changed

"""JSON files that a program of ours writes for itself, with a checksum that damage shows in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turku_core import fields

_BYTES_MAX = 8 * 1024 * 1024
"""More than any of them has: a dry run's 1,000 changes of 1,024 characters, 6 bytes each."""
_CHECKSUM = "(checksum)"
"""Its key in a file; nothing else of ours has such a name."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises OSError, ValueError.

    One with a checksum that isn't its own has been damaged: that is a ValueError too.
    """
    with path.open("rb") as file:
        raw = file.read(_BYTES_MAX)
    return loads(raw, path.name)


def loads(raw: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that a file of ours holds. Raises ValueError as `read_json` does."""
    values = dict(fields.mapping(json.loads(raw.decode("utf-8")), name))
    claimed = values.pop(_CHECKSUM, None)
    if claimed is not None and claimed != _checksum(values):
        raise ValueError("its checksum isn't that of its content")
    return values


def dumps(values: Mapping[str, Any]) -> str:
    """Return JSON as our files hold it: with a checksum, since damage may be valid JSON too."""
    return json.dumps({**values, _CHECKSUM: _checksum(values)}, indent=1, sort_keys=True) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

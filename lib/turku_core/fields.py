"""The one place that says what a valid name, path, host, key, filter is.

Everything that an agent, a storage unit, the API or a file supplies passes through here on the
receiving side. Each function takes a value of any type and the name of the field it came from, and
returns it as a typed, safe value, or raises `FieldError`, whose message names the field and what
was expected. Nothing here reads a clock, a file or the network.
"""

from __future__ import annotations

import ipaddress
import math
import re
import uuid as uuid_module
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from turku_core.credentials import KeyFormatError, PublicKey

Value = TypeVar("Value")
Default = TypeVar("Default")

NAME_CHARACTERS_MAX = 64
TEXT_CHARACTERS_MAX = 1024
PATH_BYTES_MAX = 4095
RULES_MAX = 1000
RULE_BYTES_MAX = 4096
SOURCES_MAX = 1000
HOST_KEYS_MAX = 32
SECRET_CHARACTERS = (8, 256)
LARGE_NUMBER = 2**53
"""Numbers beyond this lose precision in JSON; no size or time of ours comes near."""

LOG_LEVELS = ("debug", "info", "warning", "error")

SNAPSHOT_MODES = ("borg", "btrfs", "link-dest", "none")

_SHOWN_MAX = 60
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_BANDWIDTH = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?(?:[BbKkMmGgTt](?:i?[Bb])?)?")
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,127}")
_PATTERN_RULE = re.compile(
    r"!|clear"
    r"|(?:[-+PRHS],?[!/srpx]*|(?:exclude|include|hide|show|protect|risk)(?:,[!/srpx]+)?)[ _].+",
    re.DOTALL,
)
"""The rules of rsync(1), FILTER RULES, that read no file: so without the modifier C as well."""
_MERGE_RULE = re.compile(r"(?:merge|\.)[ _]\s*(?P<name>\S+)\s*")
_FILE_RULE = re.compile(r"(?:merge|dir-merge)(?:[ _,].*)?|[.:].*", re.DOTALL)


class FieldError(ValueError):
    """A field is missing or not valid.

    Attributes:
        field: The field's place, such as ``machine.sources.docs.path``.
        expected: What would have been valid, as the rest of a sentence.
    """

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: {expected}")
        self.field = field
        self.expected = expected


def shown(value: object) -> str:
    """Return a value as it may stand in a message: quoted, in ASCII, cut to a bearable length."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."


def required(values: Mapping[str, Any], key: str, place: str = "") -> Any:
    """Return ``values[key]``, or say that it is missing."""
    if key not in values:
        raise FieldError(join(place, key), "is missing")
    return values[key]


def join(place: str, key: str) -> str:
    """Return the name of a field inside another: ``machine`` and ``uuid`` make ``machine.uuid``."""
    return f"{place}.{key}" if place else key


def mapping(value: object, field: str) -> dict[str, Any]:
    """Return a JSON object with text for keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FieldError(field, "must be an object of names and values")
    return value


def boolean(value: object, field: str) -> bool:
    """Return true or false; nothing else means either."""
    if not isinstance(value, bool):
        raise FieldError(field, f"must be true or false, not {shown(value)}")
    return value


def integer(value: object, field: str, low: int = 0, high: int = LARGE_NUMBER) -> int:
    """Return a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FieldError(field, f"must be a whole number from {low} to {high}, not {shown(value)}")
    return value


def number(value: object, field: str, low: float = 0, high: float = LARGE_NUMBER) -> float:
    """Return a finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FieldError(field, f"must be a number, not {shown(value)}")
    # Compared before it is converted: a JSON integer may be larger than any float.
    if not low <= value <= high or not math.isfinite(value):
        raise FieldError(field, f"must be a number from {low} to {high}, not {shown(value)}")
    return float(value)


def parse_moment(value: str) -> datetime | None:
    """Return an ISO 8601 time with its hyphens, with or without an offset, or None.

    A form without hyphens would be a snapshot's id. Python before 3.11 doesn't read a ``Z``.
    """
    if value[4:5] != "-":
        return None
    try:
        return datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
    except ValueError:
        return None


def moment(value: object, field: str) -> datetime:
    """Return an ISO 8601 time with its offset from UTC, from 1970 on.

    The last year is left out, for in another zone it may end in a year that nobody can write.
    """
    found = parse_moment(text(value, field, 64))
    if found is None or found.tzinfo is None or not 1970 <= found.year <= 9998:
        raise FieldError(
            field, f"must be an ISO 8601 time with its offset from UTC, not {shown(value)}"
        )
    return found


def text(value: object, field: str, length_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Return text for people: any printable characters on one line, possibly none."""
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, not {shown(value)}")
    if len(value) > length_max:
        raise FieldError(field, f"must be at most {length_max} characters long")
    if not all(character.isprintable() for character in value):
        raise FieldError(field, f"must be one line of printable text, not {shown(value)}")
    return value


def long_text(value: object, field: str, length_max: int = 65536) -> str:
    """Return text that may have several lines, such as an error; it must be valid Unicode."""
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, not {shown(value)}")
    if len(value) > length_max:
        raise FieldError(field, f"must be at most {length_max} characters long")
    if not all(character.isprintable() or character in "\n\t" for character in value):
        raise FieldError(field, "must be printable text")
    return value


def uuid(value: object, field: str) -> str:
    """Return a UUID in its canonical form: lower case, with hyphens (RFC 4122)."""
    if isinstance(value, str) and len(value) == 36:
        try:
            canonical = str(uuid_module.UUID(value))
        except ValueError:
            canonical = ""
        if canonical == value.lower():
            return canonical
    raise FieldError(
        field, f"must be a UUID such as 6ba7b810-9dad-41d1-80b4-00c04fd430c8, not {shown(value)}"
    )


def name(value: object, field: str) -> str:
    """Return a name that may become a file name, an rsync module and part of an archive's name.

    Letters, digits and ``_ . @ + -``, beginning with a letter, a digit or ``_``, at most 64 of
    them. So it holds no slash, is never ``.`` or ``..`` and never looks like an option.
    """
    if (
        isinstance(value, str)
        and len(value) <= NAME_CHARACTERS_MAX
        and _NAME.fullmatch(value) is not None
    ):
        return value
    raise FieldError(
        field,
        f"must be a name of 1 to {NAME_CHARACTERS_MAX} letters, digits and _ . @ + -, beginning "
        f"with a letter, a digit or _, not {shown(value)}",
    )


def label(value: object, field: str) -> str:
    """Return a machine's unit, service or environment name: one line of text, never a path.

    Fielded machines use host names, Juju's ``unit/0`` and free words here, so more is allowed than
    in `name`; whoever makes a file name of it must change the slashes (see the catalogue's links).
    """
    result = text(value, field, 200)
    if not result.strip() or result != result.strip():
        raise FieldError(field, f"must be a name without spaces around it, not {shown(value)}")
    return result


def secret(value: object, field: str) -> str:
    """Return a secret: 8 to 256 printable ASCII characters. The value is never in the message."""
    low, high = SECRET_CHARACTERS
    if (
        isinstance(value, str)
        and low <= len(value) <= high
        and all("\x21" <= character <= "\x7e" for character in value)
    ):
        return value
    raise FieldError(field, f"must be {low} to {high} printable ASCII characters without spaces")


def host(value: object, field: str) -> str:
    """Return a host name (RFC 1123, underscores allowed) or an IP address, without brackets."""
    # An IPv6 zone (%eth0) means nothing on another host, and may hold any character.
    if isinstance(value, str) and 0 < len(value) <= 253 and "%" not in value:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            labels = value.removesuffix(".").split(".")
            # A last label of digits alone would be a mistyped address (RFC 1123, 2.1).
            if all(_LABEL.fullmatch(part) for part in labels) and not labels[-1].isdigit():
                return value.lower()
    raise FieldError(field, f"must be a host name or an IP address, not {shown(value)}")


def port(value: object, field: str) -> int:
    """Return a TCP port."""
    return integer(value, field, 1, 65535)


def listen_address(value: object, field: str) -> str:
    """Return an IP address and a port to listen on, such as ``127.0.0.1:9520`` or ``[::1]:9520``.

    No host name: what it stands for might be another address, or none, when the system boots.
    """
    if isinstance(value, str):
        address, separator, digits = value.rpartition(":")
        bracketed = address.startswith("[") and address.endswith("]")
        try:
            found = ipaddress.ip_address(address[1:-1] if bracketed else address)
        except ValueError:
            found = None
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= 5
        if (
            found is not None
            and bracketed == (found.version == 6)
            and "%" not in address
            and separator
            and is_number
            and 1 <= int(digits) <= 65535
        ):
            return f"[{found}]:{int(digits)}" if bracketed else f"{found}:{int(digits)}"
    raise FieldError(
        field, f"must be an address and a port such as 127.0.0.1:9520, not {shown(value)}"
    )


def user(value: object, field: str) -> str:
    """Return a Unix user name, as useradd(8) accepts it."""
    if isinstance(value, str) and _USER.fullmatch(value):
        return value
    raise FieldError(field, f"must be a user name, not {shown(value)}")


def public_key(value: object, field: str) -> PublicKey:
    """Return one SSH public key."""
    if not isinstance(value, str):
        raise FieldError(field, f"must be an SSH public key, not {shown(value)}")
    try:
        return PublicKey.parse(value)
    except KeyFormatError as error:
        raise FieldError(field, str(error)) from error


def public_keys(value: object, field: str) -> tuple[PublicKey, ...]:
    """Return a list of at least one SSH public key."""
    keys = items(value, field, public_key, HOST_KEYS_MAX)
    if not keys:
        raise FieldError(field, "must list at least one SSH public key")
    return keys


def absolute_path(value: object, field: str) -> str:
    """Return an absolute path without ``..``; bytes that aren't UTF-8 are surrogates (PEP 383)."""
    if isinstance(value, str) and value.startswith("/") and _is_plain_path(value):
        return value
    raise FieldError(
        field, f"must be an absolute path without '..' and control characters, not {shown(value)}"
    )


def relative_path(value: object, field: str) -> str:
    """Return a path inside a source, without a leading slash; ``.`` is the source's top."""
    if isinstance(value, str) and _is_plain_path(value):
        stripped = value.strip("/")
        if stripped:
            return stripped
    raise FieldError(
        field,
        f"must be a path inside the source, without '..' and control characters, "
        f"not {shown(value)}",
    )


def _is_plain_path(value: str) -> bool:
    try:
        length = len(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False
    return (
        0 < length <= PATH_BYTES_MAX
        and not any(character < " " or character == "\x7f" for character in value)
        and ".." not in value.split("/")
    )


def bandwidth(value: object, field: str) -> str:
    """Return a limit in the form of rsync's ``--bwlimit``; no text or 0 means no limit."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and (value == "" or _BANDWIDTH.fullmatch(value)):
        return value
    raise FieldError(
        field, f"must be a rate as rsync's --bwlimit takes it, such as 2.5m, not {shown(value)}"
    )


def exclude_rule(value: object, field: str) -> str:
    """Return one pattern for rsync's ``--exclude``, on one line."""
    return _rule_text(value, field)


def filter_rule(value: object, field: str) -> str:
    """Return one rule for rsync's ``--filter`` that reads no file.

    ``merge`` and ``dir-merge`` (also ``.`` and ``:``) would make rsync read files that the sender
    of the rule names. The API's own filter sets are spliced in before a rule comes here; see
    `filter_set_name`.
    """
    rule = _rule_text(value, field)
    if _FILE_RULE.fullmatch(rule):
        raise FieldError(field, f"must not read rules from a file, as {shown(rule)} does")
    if not _PATTERN_RULE.fullmatch(rule):
        raise FieldError(
            field,
            f"must be an rsync filter rule such as '- *.tmp' or '+ /keep/', not {shown(rule)}",
        )
    return rule


def filter_rule_or_set(value: object, field: str) -> str:
    """Return a filter rule as an agent may send it to the API: `filter_rule` or ``merge NAME``."""
    rule = _rule_text(value, field)
    return rule if filter_set_name(rule) is not None else filter_rule(rule, field)


def filter_set_name(rule: str) -> str | None:
    """Return NAME of a rule ``merge NAME``, which means a filter set kept by the API, or None."""
    found = _MERGE_RULE.fullmatch(rule)
    if found is None:
        return None
    try:
        return name(found["name"], "filter")
    except FieldError:
        return None


def _rule_text(value: object, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise FieldError(field, f"must be an rsync rule, not {shown(value)}")
    try:
        length = len(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        length = RULE_BYTES_MAX + 1
    if length > RULE_BYTES_MAX or any(character in value for character in "\0\r\n"):
        raise FieldError(
            field, f"must be one line of at most {RULE_BYTES_MAX} bytes, not {shown(value)}"
        )
    return value


def snapshot_mode(value: object, field: str) -> str:
    """Return a snapshot mode; ``attic`` is the old name of ``borg``."""
    mode = "borg" if value == "attic" else value
    if isinstance(mode, str) and mode in SNAPSHOT_MODES:
        return mode
    raise FieldError(field, f"must be one of {', '.join(SNAPSHOT_MODES)}, not {shown(value)}")


def log_level(value: object, field: str) -> str:
    """Return from which level on something is logged."""
    if isinstance(value, str) and value in LOG_LEVELS:
        return value
    raise FieldError(field, f"must be one of {', '.join(LOG_LEVELS)}, not {shown(value)}")


def snapshot_id(value: object, field: str) -> str:
    """Return the name of a snapshot: ours (``20261122T102538Z``) or one of the old layout."""
    if isinstance(value, str) and _SNAPSHOT_ID.fullmatch(value) and not value.endswith("."):
        return value
    raise FieldError(field, f"must be a snapshot's name, not {shown(value)}")


def items(
    value: object,
    field: str,
    item: Callable[[object, str], Value],
    count_max: int = RULES_MAX,
) -> tuple[Value, ...]:
    """Return a list whose every item passes `item`; a message names the item's number, from 0."""
    if not isinstance(value, (list, tuple)):
        raise FieldError(field, f"must be a list, not {shown(value)}")
    if len(value) > count_max:
        raise FieldError(field, f"must have at most {count_max} items")
    return tuple(item(each, f"{field}[{index}]") for index, each in enumerate(value))


def optional(
    values: Mapping[str, Any],
    key: str,
    check: Callable[[Any, str], Value],
    default: Default,
    place: str = "",
) -> Value | Default:
    """Return ``values[key]`` checked, or `default` when it is missing or null."""
    value = values.get(key)
    return default if value is None else check(value, join(place, key))

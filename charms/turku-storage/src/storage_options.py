"""The charm's options, checked, and what they come to in the storage unit's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from turku_core import fields

AUTO = "auto"


@dataclass(frozen=True)
class StorageOptions:
    """The options of ``charmcraft.yaml``.

    Raises:
        ValueError: One isn't valid; the message is a sentence with its name and an example.
    """

    snapshot_mode: str
    high_water_mark: int
    slots: int
    expiry_floor: int
    expiry_grace_days: int
    verify_interval_days: int
    whole_drill_interval_days: int
    public_address: str
    log_level: str

    def __post_init__(self) -> None:
        _check("snapshot-mode", self.snapshot_mode, _mode, "btrfs")
        _check("high-water-mark", self.high_water_mark, _integer(1, 100), "80")
        _check("slots", self.slots, _integer(1, 1000), "10")
        _check("expiry-floor", self.expiry_floor, _integer(1, 1000), "3")
        _check("expiry-grace-days", self.expiry_grace_days, _integer(0, 36500), "7")
        _check("verify-interval-days", self.verify_interval_days, _integer(1, 36500), "30")
        days = self.whole_drill_interval_days
        _check("whole-drill-interval-days", days, _integer(1, 36500), "180")
        _check("log-level", self.log_level, _level, "warning")
        if self.public_address:
            _check("public-address", self.public_address, fields.host, "storage.example.com")

    @property
    def unit_mode(self) -> str:
        """The mode of volumes that have none of their own."""
        return "borg" if self.snapshot_mode == AUTO else self.snapshot_mode

    @property
    def btrfs_volume_mode(self) -> str | None:
        """The mode of the volume on LVM, which is a btrfs of our own; None: the unit's."""
        return "btrfs" if self.snapshot_mode == AUTO else None


def _check(
    option: str, value: object, check: Callable[[object, str], object], example: str
) -> None:
    try:
        check(value, option)
    except fields.FieldError as error:
        raise ValueError(
            f"The option {option} {error.expected}; for example {option}={example}."
        ) from error


def _integer(low: int, high: int) -> Callable[[object, str], int]:
    return lambda value, where: fields.integer(value, where, low, high)


def _mode(value: object, where: str) -> str:
    modes = (AUTO, *fields.SNAPSHOT_MODES)
    if value not in modes:
        raise fields.FieldError(
            where, f"must be one of {', '.join(modes)}, not {fields.shown(value)}"
        )
    return str(value)


def _level(value: object, where: str) -> str:
    if value not in fields.LOG_LEVELS:
        raise fields.FieldError(
            where, f"must be one of {', '.join(fields.LOG_LEVELS)}, not {fields.shown(value)}"
        )
    return str(value)

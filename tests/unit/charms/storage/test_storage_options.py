"""The charm's options: what is valid, what is said of what isn't, what they come to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage_options import StorageOptions

DEFAULTS = StorageOptions("auto", 80, 10, 3, 7, 30, 180, "", "warning")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("snapshot-mode", "zfs", "must be one of auto, borg, btrfs, link-dest, none, not 'zfs'"),
        ("high-water-mark", 101, "must be a whole number from 1 to 100, not 101"),
        ("high-water-mark", 0, "must be a whole number from 1 to 100, not 0"),
        ("slots", 0, "must be a whole number from 1 to 1000, not 0"),
        ("expiry-floor", 0, "must be a whole number from 1 to 1000, not 0"),
        ("expiry-grace-days", -1, "must be a whole number from 0 to 36500, not -1"),
        ("verify-interval-days", 0, "must be a whole number from 1 to 36500, not 0"),
        ("whole-drill-interval-days", 0, "must be a whole number from 1 to 36500, not 0"),
        ("public-address", "-oProxyCommand=x", "must be a host name or an IP address, not"),
        ("public-address", "host with spaces", "must be a host name or an IP address, not"),
        ("log-level", "loud", "must be one of debug, info, warning, error, not 'loud'"),
    ],
)
def test_an_option_that_is_not_valid_is_named_with_what_would_be(
    option: str, value: str | int, words: str
) -> None:
    with pytest.raises(ValueError) as raised:
        replace(DEFAULTS, **{option.replace("-", "_"): value})  # type: ignore[arg-type] # on purpose
    sentence = str(raised.value)
    assert sentence.startswith(f"The option {option} {words}")
    assert f"; for example {option}=" in sentence


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("snapshot_mode", "link-dest"),
        ("high_water_mark", 100),
        ("slots", 1000),
        ("expiry_grace_days", 0),
        ("public_address", "2001:db8::7"),
        ("public_address", "storage-1.example.com"),
        ("log_level", "debug"),
    ],
)
def test_what_the_options_take(option: str, value: str | int) -> None:
    made = replace(DEFAULTS, **{option: value})  # type: ignore[arg-type] # one of its fields
    assert getattr(made, option) == value


def test_auto_is_btrfs_on_our_own_btrfs_and_borg_elsewhere() -> None:
    assert (DEFAULTS.btrfs_volume_mode, DEFAULTS.unit_mode) == ("btrfs", "borg")
    chosen = replace(DEFAULTS, snapshot_mode="link-dest")
    assert (chosen.btrfs_volume_mode, chosen.unit_mode) == (None, "link-dest")

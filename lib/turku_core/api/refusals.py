"""Why a call isn't answered; v1.py turns each into its status."""

from __future__ import annotations


class Refused(Exception):
    """The caller isn't who it says, or isn't known (403); one answer for both."""


class TooMany(Exception):
    """Too many bad credentials come from the caller's address (429)."""


class NotYet(Exception):
    """Nothing is wrong, but what the call needs comes later (503); the message says what."""


class NotHere(Exception):
    """The storage unit doesn't have that machine or source (404)."""

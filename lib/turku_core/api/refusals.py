"""Why a call isn't answered; v1.py turns each into its status."""

from __future__ import annotations


class Refused(Exception):
    """The caller isn't who it says, or isn't known (403); one answer for both."""


class NotHere(Exception):
    """The storage unit doesn't have that machine or source (404)."""

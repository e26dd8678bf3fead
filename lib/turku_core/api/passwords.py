"""Checking administrators' passwords without letting a stranger burn the processors.

A password's hash is slow on purpose, and anyone can ask for it to be computed by filling in the
login form. Machines and storage units have random secrets, whose hash is fast; the only slow ones
are here.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from turku_core.api import limits

_one_at_a_time = threading.Lock()


class OneAtATime(ModelBackend):
    """Checks one password at a time in each worker; who comes meanwhile is refused at once.

    A flood of logins so takes one thread of each worker and leaves the others to the machines. From
    one address a few wrong ones are looked at, and then one now and again: people choose passwords
    that can be guessed.
    """

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> User | None:
        """Return the user whose name and password these are, or None.

        Raises:
            PermissionDenied: Another password is being checked, or too many wrong ones have come
                from the address.
        """
        address = None
        if request is not None:
            address = limits.subscriber(str(request.META.get("REMOTE_ADDR")))
        if address is not None and not limits.logins.has(address, time.monotonic()):
            raise PermissionDenied("Too many logins have failed; try again in a minute.")
        if not _one_at_a_time.acquire(blocking=False):
            raise PermissionDenied("Another login is being checked; try again.")
        try:
            user = super().authenticate(request, username, password, **kwargs)
            if user is None and address is not None:
                limits.logins.spend(address, time.monotonic())
            return user
        finally:
            _one_at_a_time.release()

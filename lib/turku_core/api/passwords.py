"""Checking administrators' passwords without letting a stranger burn the processors.

A password's hash is slow on purpose, and anyone can ask for it to be computed by filling in the
login form. Machines and storage units have random secrets, whose hash is fast; the only slow ones
are here.
"""

from __future__ import annotations

import threading
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

_one_at_a_time = threading.Lock()


class OneAtATime(ModelBackend):
    """Checks one password at a time in each worker; who comes meanwhile is refused at once.

    A flood of logins so takes one thread of each worker and leaves the others to the machines.
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
            PermissionDenied: Another password is being checked.
        """
        if not _one_at_a_time.acquire(blocking=False):
            raise PermissionDenied("Another login is being checked; try again.")
        try:
            return super().authenticate(request, username, password, **kwargs)
        finally:
            _one_at_a_time.release()

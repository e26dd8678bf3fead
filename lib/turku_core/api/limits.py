"""How much bad credentials may cost, counted by all workers of an API unit together.

Whoever shows good credentials is let in, whatever else comes from its address: thousands of
machines may be behind one address, and some of them be wrong, or hostile. What is limited is the
rest. An address that has shown more bad credentials than its budget is answered 429 instead of
403, its failures are no longer logged one by one, and those of its callers that haven't shown good
credentials before are looked at by a few threads of each worker only, so that they can't keep all
of them busy. A secret's 256 random bits need no limit against guessing. Administrators' passwords
do: see `passwords.py`.

The numbers are in memory of a fixed size, shared by the processes forked after this module was
loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import logging
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from turku_core.api.refusals import Refused, TooMany

log = logging.getLogger(__name__)

FAILURES_AT_ONCE = 600
FAILURES_PER_SECOND = 20
"""6,000 machines behind one address, all of them wrong, that call every five minutes."""

LOGINS_AT_ONCE = 10
LOGINS_PER_SECOND = 1 / 30

DOUBTFUL_AT_ONCE = 2
"""Calls in each worker from addresses without a budget by callers that aren't known."""

RETRY_SECONDS = 60
"""After how long who is turned away is asked to come back; also between two lines of the log."""

_ADDRESSES = 4096
_CALLERS = 131072
_IPV6_BITS = 64
"""What one subscriber has of IPv6 (RFC 6177): one address more costs nothing there."""

_key = secrets.token_bytes(32)
"""So that nobody can choose what falls together, and nothing is learnt from the memory."""


def _digest(*words: str) -> int:
    """Return 128 bits that stand for some words until the next start."""
    hashed = hashlib.blake2b(key=_key, digest_size=16)
    for word in words:
        raw = word.encode("utf-8", "surrogatepass")
        hashed.update(struct.pack("=Q", len(raw)) + raw)
    return int.from_bytes(hashed.digest(), "big")


class Budgets:
    """For each address a number of failures, which comes back with time.

    Two addresses that share a place push each other out, and so begin anew.

    Args:
        at_once: How many failures a budget has.
        per_second: How many come back each second.
    """

    _PLACE = struct.Struct("=Qddd")

    def __init__(self, at_once: float, per_second: float) -> None:
        self._at_once = at_once
        self._per_second = per_second
        size = _ADDRESSES * self._PLACE.size
        self._file = os.memfd_create("budgets")
        os.truncate(self._file, size)
        self._memory = mmap.mmap(self._file, size)
        self._lock = threading.Lock()

    def has(self, address: str, now: float) -> bool:
        """Say whether an address has a failure left; `now` is of the monotonic clock."""
        with self._alone():
            return self._read(address, now)[1] >= 1

    def spend(self, address: str, now: float) -> bool:
        """Take a failure from an address; say it in the log when that was the last one.

        Returns:
            Whether there was one to take.
        """
        with self._alone():
            owner, left, told = self._read(address, now)
            after = max(0.0, left - 1)
            is_news = after < 1 and now - told >= RETRY_SECONDS
            self._PLACE.pack_into(
                self._memory, self._offset(owner), owner, after, now, now if is_news else told
            )
        if is_news:
            log.warning(
                "%s has shown too many bad credentials: until they are fewer, the next ones are "
                "answered 429 and not logged",
                address,
            )
        return left >= 1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep out other threads, and other processes: the lock of one that dies is released."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _offset(self, owner: int) -> int:
        return owner % _ADDRESSES * self._PLACE.size

    def _read(self, address: str, now: float) -> tuple[int, float, float]:
        """Return who an address is, what it has left, and when the log was last told of it."""
        wanted = _digest(address) >> 64
        owner, left, at, told = self._PLACE.unpack_from(self._memory, self._offset(wanted))
        if owner != wanted:
            return wanted, self._at_once, float("-inf")
        passed = max(0.0, now - at)
        return owner, min(self._at_once, left + passed * self._per_second), told


class Known:
    """Callers whose credentials were good; the most recent ones, in a memory that forgets."""

    _PLACE = struct.Struct("=Q")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _CALLERS * self._PLACE.size)

    def remember(self, caller: int) -> None:
        """Note that the caller's credentials were good."""
        self._PLACE.pack_into(self._memory, *self._place(caller))

    def has(self, caller: int) -> bool:
        """Say whether these very credentials were good; it is no proof that they still are."""
        offset, mark = self._place(caller)
        return bool(self._PLACE.unpack_from(self._memory, offset)[0] == mark)

    def _place(self, caller: int) -> tuple[int, int]:
        return caller % _CALLERS * self._PLACE.size, caller >> 64


_failures = Budgets(FAILURES_AT_ONCE, FAILURES_PER_SECOND)
_known = Known()
_doubtful = threading.BoundedSemaphore(DOUBTFUL_AT_ONCE)
logins = Budgets(LOGINS_AT_ONCE, LOGINS_PER_SECOND)
"""The budgets for administrators' passwords."""


def subscriber(address: str) -> str:
    """Return what is counted for an address: itself, or the network of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_BITS), strict=False))


@contextlib.contextmanager
def counted(address: str, payload: Mapping[str, Any]) -> Iterator[None]:
    """Answer a call in this context, so that it is counted if its credentials are bad.

    Args:
        address: Where it comes from.
        payload: Its object; nothing of it has been checked.

    Raises:
        TooMany: Its credentials are bad, or nobody has time to look at them, and its address has
            no budget left.
        Refused: They are bad.
    """
    caller = _caller_of(payload)
    if caller is None:
        yield
        return
    source = subscriber(address)
    waits_for_a_thread = not (_failures.has(source, time.monotonic()) or _known.has(caller))
    if waits_for_a_thread and not _doubtful.acquire(blocking=False):
        raise TooMany
    try:
        yield
    except Refused as error:
        if _failures.spend(source, time.monotonic()):
            raise
        raise TooMany from error
    finally:
        if waits_for_a_thread:
            _doubtful.release()
    _known.remember(caller)


def _caller_of(payload: Mapping[str, Any]) -> int | None:
    """Return what stands for who a call says it is of, with its secret; None if it says nothing."""
    for role, name in (("storage", "name"), ("machine", "uuid")):
        said = payload.get(role)
        if isinstance(said, dict):
            who, secret = said.get(name), said.get("secret")
            if isinstance(who, str) and isinstance(secret, str):
                return _digest(role, who, secret)
    return None

"""Administrators' passwords."""

from __future__ import annotations

import threading

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User, UserManager
from django.test import Client

from turku_core.api import limits
from turku_core.api.limits import Budgets


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test's failures count in another."""
    monkeypatch.setattr(limits, "logins", Budgets(limits.LOGINS_AT_ONCE, 1e-9))


def test_an_administrator_logs_in_with_the_right_password_only(db: None) -> None:
    user = User.objects.create_superuser("admin", password="correct horse")
    assert authenticate(username="admin", password="correct horse") == user
    assert authenticate(username="admin", password="wrong") is None
    assert authenticate(username="nobody", password="wrong") is None


def test_prior_art_09_a_flood_of_logins_computes_one_slow_hash_at_a_time(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, go_on = threading.Event(), threading.Event()
    count = 0

    def encode(*_: object, **__: object) -> str:
        nonlocal count
        count += 1
        computing.set()
        assert go_on.wait(30)
        return "pbkdf2_sha256$1$x$x"

    monkeypatch.setattr(PBKDF2PasswordHasher, "encode", encode)
    # An unknown name: the database is not asked by two threads, and the hash is computed anyway.
    monkeypatch.setattr(UserManager, "get_by_natural_key", find_nobody)

    first = threading.Thread(target=authenticate, kwargs={"username": "x", "password": "y"})
    first.start()
    assert computing.wait(30)
    for _ in range(50):
        assert authenticate(username="x", password="y") is None
    assert count == 1
    go_on.set()
    first.join()
    assert authenticate(username="x", password="y") is None
    assert count == 2


def find_nobody(manager: object, name: str) -> User:
    """Know no user."""
    raise User.DoesNotExist


def test_the_login_form_refuses_in_its_own_words(db: None) -> None:
    answer = Client().post("/admin/login/", {"username": "admin", "password": "wrong"})
    assert answer.status_code == 200
    assert "Please enter the correct username and password" in answer.content.decode()


def test_from_one_address_ten_wrong_passwords_are_looked_at_and_then_not_even_the_right_one(
    db: None,
) -> None:
    User.objects.create_superuser("admin", password="correct horse")

    def log_in(password: str, address: str) -> bool:
        browser = Client(REMOTE_ADDR=address)
        answer = browser.post("/admin/login/", {"username": "admin", "password": password})
        return answer.status_code == 302

    # Right ones cost nothing.
    assert all(log_in("correct horse", "192.0.2.1") for _ in range(3))
    assert not any(log_in("wrong", "192.0.2.1") for _ in range(limits.LOGINS_AT_ONCE))
    assert not log_in("correct horse", "192.0.2.1")
    assert log_in("correct horse", "192.0.2.2")

"""Administrators' passwords."""

from __future__ import annotations

import threading

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User, UserManager
from django.test import Client


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

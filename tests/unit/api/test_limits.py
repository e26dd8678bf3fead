"""Rate limits: what bad credentials may cost, and whom they must never cost anything."""

from __future__ import annotations

import itertools
import logging
import random
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from tests.support.api_world import World, make_public_key
from turku_core.api import limits, logins, v1
from turku_core.api.limits import Budgets, Known, subscriber
from turku_core.api.models import Machine, RegistrationKey


@pytest.fixture(autouse=True)
def few(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an address have three failures, of which none comes back while a test lasts."""
    monkeypatch.setattr(limits, "_failures", Budgets(3, 1e-9))
    monkeypatch.setattr(limits, "_known", Known())


def stranger() -> dict[str, Any]:
    return {"machine": {"uuid": str(uuid.uuid4()), "secret": "wrong-secret"}}


def exhaust(world: World) -> None:
    while world.call("agent_ping_checkin", stranger()).status == 403:
        pass


def test_bad_credentials_are_403_and_from_a_number_on_429(world: World) -> None:
    answers = [world.call("agent_ping_checkin", stranger()) for _ in range(5)]
    assert [answer.status for answer in answers] == [403, 403, 403, 429, 429]
    assert "try again" in answers[-1].text


def test_a_429_says_when_to_come_back(world: World) -> None:
    exhaust(world)
    response = world.client.post(
        "/v1/agent_ping_checkin", stranger(), content_type="application/json"
    )
    assert (response.status_code, response["Retry-After"]) == (429, "60")


def test_good_credentials_are_let_in_whatever_else_comes_from_their_address(world: World) -> None:
    known, unit = world.agent("web/0"), world.unit()
    never_seen = world.agent("web/1")
    limits._known = Known()
    exhaust(world)
    for agent in (known, never_seen):
        assert world.call("agent_ping_checkin", agent.login).status == 200
    assert unit.update().status == 200
    newcomer = world.agent("web/2", register=False)
    assert newcomer.update(auth=world.auth()).status == 200
    wrong = {"machine": {**known.login["machine"], "secret": "not-the-secret"}}
    assert world.call("agent_ping_checkin", wrong).status == 429
    assert world.call("agent_ping_checkin", known.login).status == 200


def test_who_was_let_in_before_needs_none_of_the_few_threads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, other = world.agent("web/0"), world.agent("web/1")
    monkeypatch.setattr(limits, "_known", Known())
    assert world.call("agent_ping_checkin", known.login).status == 200
    exhaust(world)
    none = threading.BoundedSemaphore(1)
    none.acquire()
    monkeypatch.setattr(limits, "_doubtful", none)
    assert world.call("agent_ping_checkin", known.login).status == 200
    assert world.call("agent_ping_checkin", other.login).status == 429


def test_the_few_threads_are_given_back_whatever_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = world.agent()
    monkeypatch.setattr(limits, "_known", Known())
    exhaust(world)
    for _ in range(limits.DOUBTFUL_AT_ONCE + 1):
        assert world.call("agent_ping_checkin", stranger()).status == 429
        assert world.call("agent_restore_report", {**agent.login, "order": 1}).status == 400
    assert world.call("agent_ping_checkin", agent.login).status == 200


def test_another_address_has_a_budget_of_its_own(world: World) -> None:
    exhaust(world)
    response = world.client.post(
        "/v1/agent_ping_checkin",
        stranger(),
        content_type="application/json",
        REMOTE_ADDR="192.0.2.7",
    )
    assert response.status_code == 403


def test_calls_without_credentials_are_answered_all_the_same(world: World) -> None:
    exhaust(world)
    assert world.call("health", {}).status == 200
    assert world.call("agent_ping_checkin", {"machine": {}}).status == 400


def test_the_log_says_once_that_an_address_is_over_its_budget(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(10):
        world.call("agent_ping_checkin", stranger())
    messages = [record.getMessage() for record in caplog.records]
    assert sum("127.0.0.1 has shown too many bad credentials" in one for one in messages) == 1
    assert sum("403" in one for one in messages) == 3
    assert not any("429: " in one for one in messages)


def test_a_budget_comes_back_with_time() -> None:
    budgets = Budgets(2, 0.5)
    for _ in range(3):
        budgets.spend("192.0.2.1", 100.0)
    assert not budgets.has("192.0.2.1", 100.0)
    assert not budgets.has("192.0.2.1", 101.9)
    assert budgets.has("192.0.2.1", 102.1)
    budgets.spend("192.0.2.1", 102.1)
    assert not budgets.has("192.0.2.1", 102.1)
    # Never more than it began with, and nothing by a clock that goes back.
    assert not budgets.has("192.0.2.1", 50.0)
    for _ in range(2):
        budgets.spend("192.0.2.1", 10_000.0)
    assert not budgets.has("192.0.2.1", 10_000.0)


IN_THREE_PROCESSES = """
import os
from turku_core.api.limits import Budgets

budgets = Budgets(100_000, 0.0)
forked = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        for _ in range(20_000):
            budgets.spend("192.0.2.1", 0.0)
        os._exit(0)
    forked.append(child)
for child in forked:
    assert os.waitpid(child, 0)[1] == 0
left = 0
while budgets.spend("192.0.2.1", 0.0):
    left += 1
print(left)
"""


def test_processes_and_threads_that_count_in_the_same_instant_all_count() -> None:
    budgets = Budgets(40_000, 0.0)

    def spend() -> int:
        return sum(budgets.spend("192.0.2.1", 0.0) for _ in range(20_000))

    with ThreadPoolExecutor(3) as pool:
        taken = sum(one.result() for one in [pool.submit(spend) for _ in range(3)])
    assert taken == 40_000
    done = subprocess.run(
        [sys.executable, "-c", IN_THREE_PROCESSES], capture_output=True, text=True, check=True
    )
    assert done.stdout == "40000\n"


def test_a_million_addresses_need_no_more_memory_than_one() -> None:
    budgets = Budgets(2, 1.0)
    for number in range(10_000):
        budgets.spend(f"2001:db8:{number:x}::/64", 1.0)
    assert len(budgets._memory) == limits._ADDRESSES * Budgets._PLACE.size


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_an_ipv6_address_counts_with_its_network(address: str, counted: str) -> None:
    assert subscriber(address) == counted


def test_known_credentials_are_those_very_ones() -> None:
    known = Known()
    good = limits._caller_of({"machine": {"uuid": "u", "secret": "s"}})
    assert good is not None
    known.remember(good)
    assert known.has(good)
    for other in ({"uuid": "u", "secret": "t"}, {"uuid": "us", "secret": ""}):
        caller = limits._caller_of({"machine": other})
        assert caller is not None and not known.has(caller)
    as_unit = limits._caller_of({"storage": {"name": "u", "secret": "s"}})
    assert as_unit is not None and not known.has(as_unit)


def _register(world: World, key_name: str, count: int) -> None:
    key = RegistrationKey.objects.get(name=key_name)
    for number in range(count):
        machine = world.agent(f"old/{number}").row
        # By the world's clock; Django notes its own.
        Machine.objects.filter(pk=machine.pk).update(
            registration_key=key, registered_at=world.now - timedelta(minutes=1)
        )


def test_a_key_made_by_hand_lets_in_so_many_in_ten_minutes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "NEWCOMERS_MAX", 3)
    _register(world, "machines", 2)
    third = world.agent("web/3")
    Machine.objects.filter(pk=third.row.pk).update(registered_at=world.now)
    fourth = world.agent("web/4", register=False)
    answer = fourth.update(auth=world.auth())
    assert (answer.status, "have to wait" in answer.text) == (503, True)
    assert not Machine.objects.filter(uuid=fourth.uuid).exists()
    assert third.update(comment="known machines don't wait").status == 200
    world.pass_time(minutes=9, seconds=1)
    assert fourth.update(auth=world.auth()).status == 200


def test_the_key_of_a_relation_has_no_such_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "NEWCOMERS_MAX", 1)
    _register(world, "machines", 1)
    RegistrationKey.objects.filter(name="machines").update(from_relation=True)
    fourth = world.agent("web/4", register=False)
    # It has to be announced, which is the bound there.
    assert "announced" in fourth.update(auth=world.auth()).text


def test_machines_registered_by_a_clock_in_the_future_keep_nobody_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "NEWCOMERS_MAX", 1)
    _register(world, "machines", 1)
    Machine.objects.update(registered_at=world.now + timedelta(days=3650))
    assert world.agent("web/1", register=False).update(auth=world.auth()).status == 200


def test_large_requests_are_taken_apart_one_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    parse = v1._parse

    def spy(body: bytes) -> dict[str, Any]:
        seen.append((len(body) > v1.SMALL, v1._one_large_at_a_time.locked()))
        return parse(body)

    monkeypatch.setattr(v1, "_parse", spy)
    agent = world.agent()
    many = {f"s{n}": {"path": "/srv", "comment": "x" * 1000} for n in range(100)}
    assert agent.update(sources=many).status == 200
    world.call("agent_ping_checkin", agent.login)
    assert seen[-2:] == [(True, True), (False, False)]
    assert not v1._one_large_at_a_time.locked()


def test_a_random_fleet_is_never_kept_out(world: World) -> None:
    chance = random.Random(5)
    agents = [world.agent(f"web/{number}") for number in range(5)]
    for _, agent in itertools.product(range(20), agents):
        assert world.call("agent_ping_checkin", agent.login).status == 200
        for _ in range(chance.randrange(4)):
            assert world.call("agent_ping_checkin", stranger()).status in (403, 429)
        key = {"name": "machines", "secret": "not-the-registration-key"}
        newcomer = {
            **stranger()["machine"],
            "unit_name": "new",
            "ssh_public_key": make_public_key("n"),
        }
        answer = world.call("update_config", {"auth": key, "machine": newcomer})
        assert answer.status in (403, 429)

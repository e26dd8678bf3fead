"""The network between machines: what a filter lets through and counts, cuts, and a slow line."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.runner.machines import Machine
from tests.model.runner.model import Model
from tests.model.runner.network import Flow


def wait_for_listener(model: Model, machine: Machine, port: int) -> None:
    """Wait until something listens at a port of a machine."""
    model.wait(lambda _: f":{port} " in machine.run(["ss", "-Hltn"]), 20, f"for port {port}")


@pytest.fixture(scope="module")
def model(image: Path) -> Iterator[Model]:
    """A model with two machines; on the second, ports 7001 and 7002 answer with a word."""
    with Model(image) as made:
        made.add_machine()
        second = made.machines[made.add_machine()]
        for port in (7001, 7002):
            answer = ["systemd-socket-activate", "-l", str(port), "--accept", "--inetd"]
            second.run(["systemd-run", "--quiet", *answer, "echo", "hello"])
            wait_for_listener(made, second, port)
        yield made


@pytest.fixture(autouse=True)
def everything_as_before(model: Model) -> Iterator[None]:
    yield
    model.network.allow_all()
    model.network.mend()


def asks(machine: Machine, address: str, port: int, seconds: int = 1) -> str:
    """Return what a machine is told at another's port; nothing when it can't be reached."""
    command = ["bash", "-c", f"cat </dev/tcp/{address}/{port}"]
    return machine.run(["timeout", str(seconds), *command], check=False).strip()


def test_only_what_is_allowed_passes_and_everything_is_counted(model: Model) -> None:
    one, two = model.machines["0"], model.machines["1"]
    assert asks(one, two.address, 7001, 10) == "hello"
    allowed = Flow(one.address, two.address, 7001)
    model.network.allow_only([allowed])
    assert asks(one, two.address, 7001, 10) == "hello"
    assert asks(one, two.address, 7002) == ""
    asks(two, one.address, 22)
    one.run(["sh", "-c", f"echo x | nc -u -w 1 {two.address} 53"], check=False)
    assert " 1 received" not in one.run(["ping", "-c1", "-W1", two.address], check=False)
    outside = ["timeout", "1", "bash", "-c", f"</dev/tcp/{one.address}/22"]
    subprocess.run(model.network.inside(outside), check=False)

    traffic = model.network.traffic()
    assert traffic.passed == {allowed: 1}
    assert set(traffic.dropped) == {
        Flow(one.address, two.address, 7002),
        Flow(two.address, one.address, 22),
        Flow(one.address, two.address, 53, "udp"),
        Flow(one.address, two.address, 0, "icmp"),
        Flow(model.network.own_address, one.address, 22),
    }

    model.network.allow_only([])
    assert model.network.traffic().passed == {} == model.network.traffic().dropped
    assert asks(one, two.address, 7001) == ""
    model.network.allow_all()
    assert asks(one, two.address, 7002, 10) == "hello"


def test_a_connection_from_before_goes_on_if_it_is_allowed(model: Model) -> None:
    one, two = model.machines["0"], model.machines["1"]
    # It holds the connection open, and sends its word only when the filter is there.
    script = f"(until [ -e /root/go ]; do sleep 0.1; done; echo late) | nc -N {two.address} 7003"
    two.run(["systemd-run", "-q", "sh", "-c", "nc -l -p 7003 >/root/heard"])
    wait_for_listener(model, two, 7003)
    one.run(["systemd-run", "-q", "sh", "-c", script])
    model.wait(lambda _: ":7003" in two.run(["ss", "-Htn", "state", "established"]), 20)
    model.network.allow_only([Flow(one.address, two.address, 7003)])
    one.run(["touch", "/root/go"])
    model.wait(lambda _: two.run(["cat", "/root/heard"]) == "late\n", 20, "for the late word")
    assert model.network.traffic().passed == {}


def test_a_machine_that_is_cut_off_hears_and_says_nothing_until_it_is_mended(model: Model) -> None:
    one, two = model.machines["0"], model.machines["1"]
    model.network.cut_off([two.address])
    assert asks(one, two.address, 7001) == ""
    assert asks(two, one.address, 22) == ""
    assert "state UP" in two.run(["ip", "link", "show", "host0"])
    model.network.mend()
    assert asks(one, two.address, 7001, 10) == "hello"


def test_a_slow_line_is_as_slow_as_it_was_told(model: Model) -> None:
    one, two = model.machines["0"], model.machines["1"]

    def seconds_for(kilobytes: int) -> float:
        two.run(["systemd-run", "-q", "--unit=sink", "sh", "-c", "nc -l -p 7004 >/dev/null"])
        wait_for_listener(model, two, 7004)
        began = time.monotonic()
        send = f"head -c {kilobytes}K /dev/zero | nc -N {two.address} 7004"
        one.run(["sh", "-c", send], seconds_max=120)
        return time.monotonic() - began

    model.network.slow_down(two.interface(), "1mbit")
    slow = seconds_for(400)
    model.network.speed_up(two.interface())
    fast = seconds_for(400)
    assert slow > 2.5
    assert fast < slow / 2

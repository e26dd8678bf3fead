"""Which loopback ports are tunnels of this user."""

from __future__ import annotations

import os
import socket

import pytest

from turku_core.storage.listeners import NotATunnel, find_tunnel, parse_table, read_listeners

HEADER = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout"
)


def row(address: str, port: int, uid: int, state: str = "0A") -> str:
    """Return a line as the kernel writes it."""
    return (
        f"   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000"
        f" {uid:5d}        0 9196 1 000000004d315fca 100 0 0 10 0"
    )


V4_LOOPBACK = "0100007F"
V6_LOOPBACK = "00000000000000000000000001000000"


def test_the_kernels_own_table_is_read() -> None:
    found = list(parse_table([HEADER, row(V4_LOOPBACK, 39305, 997), row(V6_LOOPBACK, 39305, 997)]))
    assert [(str(each.address), each.port, each.uid) for each in found] == [
        ("127.0.0.1", 39305, 997),
        ("::1", 39305, 997),
    ]


def test_connections_and_lines_that_make_no_sense_are_no_listeners() -> None:
    lines = [row(V4_LOOPBACK, 1, 0, "01"), "", "x", row("XYZ", 1, 0), row("0100", 1, 0)]
    assert list(parse_table(lines)) == []


def test_a_big_endian_host_is_read_too() -> None:
    [found] = parse_table([row("7F000001", 80, 5)], little_endian=False)
    assert str(found.address) == "127.0.0.1"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(V4_LOOPBACK, 7, 5), row(V6_LOOPBACK, 7, 5)], "[::1]"),
        ([row(V6_LOOPBACK, 7, 5)], "[::1]"),
        ([row(V4_LOOPBACK, 7, 6), row(V6_LOOPBACK, 7, 5)], "[::1]"),
    ],
)
def test_a_tunnel_of_this_user_is_found_where_it_is(rows: list[str], expected: str) -> None:
    assert find_tunnel(parse_table(rows), 7, 5) == expected


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(V4_LOOPBACK, 7, 0)],
        [row(V4_LOOPBACK, 8, 5)],
        [row("00000000", 7, 5)],
        [row("0101A8C0", 7, 5)],
        [row("0" * 32, 7, 5)],
    ],
)
def test_a_local_service_or_another_users_port_is_refused(rows: list[str]) -> None:
    with pytest.raises(NotATunnel):
        find_tunnel(parse_table(rows), 7, 5)


def test_a_real_listener_of_this_process_is_found_with_its_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert find_tunnel(read_listeners(), port, os.geteuid()) == "127.0.0.1"
        with pytest.raises(NotATunnel):
            find_tunnel(read_listeners(), port, os.geteuid() + 1)

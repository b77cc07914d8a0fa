"""DNS messages, and a resolver that answers, is silent, or talks nonsense."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.upstream import answered
from vmrunner.network import lookup

HERE = IPv4Address("127.0.0.1")


@contextmanager
def resolver(reply: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """Its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((str(HERE), 0))

        def serve() -> None:
            while True:
                try:
                    query, client = server.recvfrom(4096)
                    if said := reply(query):
                        server.sendto(said, client)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def refused(query: bytes) -> bytes:
    return query[:2] + struct.pack("!HHHHH", 0x8185, 1, 0, 0, 0) + query[12:]


def test_addresses_of_names() -> None:
    with resolver(lambda query: answered(query)[1]) as port:
        names = ("ok.test", "app.localtest.test", "nothing.test")
        found = lookup.addresses(HERE, names, ipv6=True, patience=5, port=port)
        assert found == {
            "ok.test": [ip_address("198.18.0.10")],
            "app.localtest.test": [ip_address("127.0.0.1"), ip_address("::1")],
            "nothing.test": [],
        }
        four = lookup.addresses(HERE, names, ipv6=False, patience=5, port=port)
        assert four["app.localtest.test"] == [ip_address("127.0.0.1")]


@pytest.mark.parametrize(
    "reply", [refused, lambda _: None, lambda _: b"echo", lambda query: query, lambda _: b""]
)
def test_who_does_not_say_is_not_believed(reply: Callable[[bytes], bytes | None]) -> None:
    with resolver(reply) as port:
        assert lookup.addresses(HERE, ("a.test",), ipv6=False, patience=0.2, port=port) == {}


def test_nobody_is_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind((str(HERE), 0))
        port = unused.getsockname()[1]
    assert lookup.addresses(HERE, ("a.test",), ipv6=False, patience=5, port=port) == {}


@pytest.mark.parametrize("name", ["a..test", "", f"{'x' * 64}.test", "ü.test"])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with resolver(lambda query: answered(query)[1]) as port:
        assert lookup.addresses(HERE, (name,), ipv6=False, patience=0.2, port=port) == {}


def test_an_alias_leads_to_its_addresses() -> None:
    asked = lookup.query(7, "a.test", 1)
    alias = struct.pack("!HHHIH", 0xC00C, 5, 1, 60, 2) + struct.pack("!H", 0xC00E)
    address = struct.pack("!HHHIH", 0xC00E, 1, 1, 60, 4) + bytes([198, 18, 0, 7])
    message = asked[:2] + struct.pack("!HHHHH", 0x8180, 1, 2, 0, 0) + asked[12:] + alias + address
    assert lookup.answer(message) == (7, [ip_address("198.18.0.7")])


@given(st.binary(max_size=80), st.integers(0, 80))
def test_nonsense_is_a_value_error(message: bytes, cut: int) -> None:
    whole = answered(lookup.query(7, "ok.test", 1))[1]
    for each in (message, whole[:cut], whole[:cut] + message):
        try:
            lookup.answer(each)
        except ValueError:
            continue

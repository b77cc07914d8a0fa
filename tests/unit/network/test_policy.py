"""Destinations of an allowlist: what is read, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from vmrunner.network.policy import CLOSED, CLOSED6, Destination


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deb.debian.org:443", Destination("deb.debian.org", (443,))),
        ("Deb.Debian.org:443,80,80", Destination("deb.debian.org", (80, 443))),
        ("192.0.2.7:3142", Destination(IPv4Network("192.0.2.7/32"), (3142,))),
        ("192.0.2.0/24:123/udp", Destination(IPv4Network("192.0.2.0/24"), (123,), "udp")),
        ("mirror:80/tcp", Destination("mirror", (80,))),
        ("[2001:db8::7]:443", Destination(IPv6Network("2001:db8::7/128"), (443,))),
        ("[2001:DB8::/32]:443,80/udp", Destination(IPv6Network("2001:db8::/32"), (80, 443), "udp")),
    ],
)
def test_what_is_read(text: str, expected: Destination) -> None:
    assert Destination.parse(text) == expected
    assert bool(expected.name) is isinstance(expected.host, str)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deb.debian.org",  # no port
        "deb.debian.org:",
        "deb.debian.org:0",
        "deb.debian.org:65536",
        "deb.debian.org:https",
        "deb.debian.org:443/icmp",
        "-a:1",
        "a b:1",
        "a;drop:1",
        "a/b:1",
        'a"}:1',
        "192.0.2.300:1",
        "192.0.2.7/24:1",  # not a network's first address
        "192.0.2.0/33:1",
        "deb.debian.org/24:1",
        "2001:db8::1:443",  # no brackets
        "[2001:db8::1]",
        "[2001:db8::1/32]:443",
        "[2001:db8::/129]:443",
        "[fe80::1%eth0]:443",
        "[192.0.2.7]:443",
        "[::1::]:443",
        "[]:443",
        "a:1\n",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Destination.parse(text)


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.31.255.255",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "127.0.0.1",
        "224.0.0.251",
    ],
)
def test_what_is_not_the_internet(address: str) -> None:
    assert any(IPv4Address(address) in block for block in CLOSED)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "223.255.255.255", "192.169.0.1"]
)
def test_what_is(address: str) -> None:
    assert not any(IPv4Address(address) in block for block in CLOSED)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "::",
            "::1",
            "::ffff:10.1.2.3",
            "::10.1.2.3",
            "64:ff9b::a01:203",
            "64:ff9b:1::a01:203",
            "100::1",
            "100:0:0:1::1",
        ),
        *(
            "2001::1",
            "2001:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:1ff::1",
            "2002:a01:203::1",
        ),
        *(
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "1fff::1",
            "4000::1",
            "e000::1",
        ),
    ],
)
def test_what_is_not_the_internet_in_ipv6(address: str) -> None:
    assert any(IPv6Address(address) in block for block in CLOSED6)


@pytest.mark.parametrize(
    "address",
    [
        "2001:200::1",
        "2001:4860:4860::8888",
        "2003::1",
        "2606:4700::1",
        "2a00:1450::1",
        "3fff:ffff::1",
    ],
)
def test_what_is_in_ipv6(address: str) -> None:
    assert not any(IPv6Address(address) in block for block in CLOSED6)

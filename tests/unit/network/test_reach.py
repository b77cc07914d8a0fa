"""A forge that no machine could reach is one sentence, before any job waits for it."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from vmrunner.errors import ConfigError, ForgeUnreachable
from vmrunner.network import reach
from vmrunner.network.forge import ForgeAddresses

SUBNET = IPv4Network("10.87.0.0/24")


@pytest.mark.parametrize(
    ("host", "addresses", "ipv6", "said"),
    [
        ("forge.example", ["127.0.1.1"], False, "forge.example is 127.0.1.1 on this host"),
        ("forge.example", ["::1"], True, "itself, or nothing"),
        ("localhost", ["127.0.0.1", "::1"], True, "localhost is 127.0.0.1, ::1 on this host"),
        ("127.0.0.1", ["127.0.0.1"], False, "The forge's address is 127.0.0.1: to a machine"),
        ("0.0.0.0", ["0.0.0.0"], False, "itself, or nothing"),  # noqa: S104 -- not bound
        ("::", ["::"], True, "itself, or nothing"),
        ("forge.example", ["169.254.7.7", "fe80::1"], True, "itself, or nothing"),
        ("forge.example", ["224.0.0.1"], False, "itself, or nothing"),
        ("forge.example", ["2001:db8::7"], False, "machines have no IPv6"),
        ("2001:db8::7", ["2001:db8::7"], False, "machines have no IPv6"),
        ("forge.example", ["127.0.1.1", "2001:db8::7"], False, "machines have no IPv6"),
        ("forge.example", ["10.87.0.9"], False, "own network 10.87.0.0/24"),
    ],
)
def test_what_no_machine_reaches(host: str, addresses: list[str], ipv6: bool, said: str) -> None:
    found = reach.misled(host, [ip_address(each) for each in addresses], SUBNET, ipv6=ipv6)
    assert found
    assert said in found.sentence
    assert found.sentence.endswith(".")
    assert found.hint


@pytest.mark.parametrize(
    ("addresses", "ipv6"),
    [
        (["192.0.2.7"], False),
        (["192.0.2.7", "2001:db8::7"], False),
        (["2001:db8::7"], True),
        (["127.0.1.1", "192.0.2.7"], False),
        (["192.168.5.7"], False),
        (["10.87.1.9"], False),
        (["10.87.0.1"], False),  # the host itself, on the machines' network
    ],
)
def test_what_machines_may_reach(addresses: list[str], ipv6: bool) -> None:
    found = [ip_address(each) for each in addresses]
    assert reach.misled("forge.example", found, SUBNET, ipv6=ipv6) is None


def known(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """The resolver's answer to any name."""

    def answer(_host: str, port: int, family: int, _kind: int) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr("socket.getaddrinfo", answer)


def test_the_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    unknown = reach.fault("https://nowhere.example", SUBNET, ipv6=False)
    assert isinstance(unknown, ForgeUnreachable)
    assert unknown.sentence == (
        "The forge's name nowhere.example is not known on this host: Name or service not known."
    )
    known(monkeypatch, "127.0.1.1", "127.0.1.1")
    loopback = reach.fault("https://forge.example/git", SUBNET, ipv6=False)
    assert isinstance(loopback, ConfigError)
    assert "forge.example is 127.0.1.1 on this host" in loopback.sentence
    known(monkeypatch, "192.0.2.7")
    assert reach.fault("https://forge.example", SUBNET, ipv6=False) is None


def test_a_literal_address_needs_no_dns() -> None:
    found = reach.fault("http://[::1]:3000", SUBNET, ipv6=True)
    assert found
    assert "The forge's address is ::1" in found.sentence
    assert reach.fault("http://192.0.2.7:3000/git", SUBNET, ipv6=False) is None


def test_machines_are_told_only_what_means_the_same_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "127.0.1.1", "::1", "fe80::1%eth0", "192.0.2.7", "2001:db8::7")
    told = ForgeAddresses("https://forge.example:3000/git", tmp_path, ipv6=True)()
    assert [(str(at.address), at.port) for at in told] == [
        ("192.0.2.7", 3000),
        ("2001:db8::7", 3000),
    ]

"""Addresses: each machine has its own, in both families the same number; and the forge's, of the
families that machines have.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import Addresses, gateway, paired
from vmrunner.network.forge import ForgeAddresses


@pytest.mark.parametrize(
    ("four", "prefix", "six"),
    [
        ("10.87.0.9/24", "fd87::/64", "fd87::9/64"),
        ("10.87.3.9/16", "2001:db8:1:2:3:4:5:0/112", "2001:db8:1:2:3:4:5:309/112"),
        ("192.168.5.250/29", "fd87::/80", "fd87::2/80"),
    ],
)
def test_both_addresses_of_a_machine_have_the_same_number(four: str, prefix: str, six: str) -> None:
    assert paired(IPv4Interface(four), IPv6Network(prefix)) == IPv6Interface(six)
    assert paired(IPv4Interface(four), None) is None


def test_what_is_taken_has_a_pair_where_there_is_ipv6(tmp_path: Path) -> None:
    subnet, prefix = IPv4Network("10.87.0.0/29"), IPv6Network("fd87::/64")
    both = Addresses(tmp_path, subnet, prefix)
    taken = [both.take(MachineId.new("m", "0a0b0c0d")) for _ in range(5)]
    pairs = {both.beside(address) for address in taken}
    assert len(pairs) == 5
    assert gateway(prefix) not in {pair.ip for pair in pairs if pair}
    assert Addresses(tmp_path, subnet).beside(taken[0]) is None


def test_an_address_is_free_when_the_host_has_forgotten_its_machine(tmp_path: Path) -> None:
    addresses = Addresses(tmp_path, IPv4Network("10.87.0.0/29"))
    one, two = MachineId("m", "0a0b0c0d"), MachineId("m", "0a0b0c0e")
    first, second = addresses.take(one).ip, addresses.take(two).ip
    vacated: list[IPv4Address] = []

    addresses.release(MachineId("m", "0a0b0c0f"), vacated.extend)
    addresses.sweep({str(one), str(two)}, vacated.extend)
    assert vacated == [], "who has none, and who lives"
    addresses.release(one, vacated.extend)
    assert vacated == [first]

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        addresses.sweep((), killed)
    addresses.sweep((), vacated.extend)
    assert vacated == [first, second]
    addresses.sweep((), vacated.extend)
    assert vacated == [first, second], "nothing went: nobody is asked"


def test_a_forges_addresses_are_of_the_families_that_machines_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def answer(_host: str, port: int, family: int, _kind: int) -> list[Any]:
        asked.append(family)
        found = (
            ["fe80::1%eth0", "2001:db8::7", "203.0.113.10"]
            if family == socket.AF_UNSPEC
            else ["203.0.113.10"]
        )
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr("socket.getaddrinfo", answer)
    both, one = (
        ForgeAddresses("https://forge.example", tmp_path, ipv6=ipv6) for ipv6 in (True, False)
    )
    assert [str(at.address) for at in both()] == ["203.0.113.10", "2001:db8::7"], (
        "what is pinned is the first"
    )
    assert [str(at.address) for at in one()] == ["203.0.113.10"], "though both are remembered"
    (tmp_path / "forge-addresses.json").unlink()
    assert [str(at.address) for at in one()] == ["203.0.113.10"]
    assert asked == [socket.AF_UNSPEC, socket.AF_INET]

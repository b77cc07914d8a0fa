"""libvirt's own network with IPv6: a gateway that answers, and nobody who advertises a router or
hands out addresses.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.forge.gitea import until
from tests.net.place import PROBE, ip, written
from vmrunner.hypervisor.network import network_drift, network_xml, remove_network
from vmrunner.model.machine import MachineId
from vmrunner.network.firewall import Firewall
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.names import bridge_name, network_name
from vmrunner.network.policy import Bounds, Destination, Policy, Reach

MANAGER, SUBNET = "six", IPv4Network("10.84.0.0/24")
GUEST = "vmr-six-guest"  # a namespace
# It asks for a router (RFC 4861) and for an address (RFC 8415, a solicitation), and prints each
# IPv6 packet that it gets.
LISTENER = """
import socket, struct, time
SOLICITATION = bytes.fromhex("01000001 0001000a 00030001 525400000001 0003000c 00000001 00000000 00000000")
six = socket.AF_INET6
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
raw.bind(("eth0", 0))
raw.settimeout(0.2)
ends = time.monotonic() + 4
asked = socket.socket(six, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
asked.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
scope = socket.if_nametoindex("eth0")
client = socket.socket(six, socket.SOCK_DGRAM)
client.bind(("::", 546))
while time.monotonic() < ends:
    asked.sendto(struct.pack("!BBHI", 133, 0, 0, 0), ("ff02::2", 0, 0, scope))
    client.sendto(SOLICITATION, ("ff02::1:2", 547, 0, scope))
    try:
        content, (_, _, direction, *_) = raw.recvfrom(2048)
    except TimeoutError:
        continue
    if direction != 4:
        print("router" if content[20] == 58 and content[54] == 134 else "dhcp" if content[20] == 17 else "other")
"""  # noqa: E501 — a program keeps its lines


# The status of an answer about a name's IPv6 addresses, and how many there are (RFC 1035).
ASKER = """
import socket, struct, sys
server, name = sys.argv[1:]
asked = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + bytes([0, 0, 28, 0, 1])
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(2)
client.sendto(struct.pack("!HHHHHH", 4711, 0x100, 1, 0, 0, 0) + asked, (server, 53))
_, flags, _, answers, *_ = struct.unpack("!HHHHHH", client.recv(2048)[:12])
print(flags & 15, answers)
"""  # noqa: E501 — a program keeps its lines


@contextmanager
def joined(
    connection: Any, prefix: IPv6Network, more: str = "", options: Sequence[str] = ()
) -> Iterator[None]:
    """The network, and a namespace on its bridge."""
    remove_network(connection, MANAGER)
    described = network_xml(MANAGER, SUBNET, options, prefix)
    connection.networkDefineXML(
        re.sub("<dnsmasq:option .*?/>", more, described) if more else described
    ).create()
    ip("netns", "add", GUEST)
    try:
        ip("link", "add", "vmr-six", "type", "veth", "peer", "name", "eth0", "netns", GUEST)
        ip("link", "set", "vmr-six", "master", bridge_name(MANAGER), "up")
        for address in (f"{prefix[9]}/{prefix.prefixlen}", "fe80::9/64"):
            ip("-n", GUEST, "addr", "add", address, "dev", "eth0", "nodad")
        ip("-n", GUEST, "addr", "add", f"{SUBNET[9]}/{SUBNET.prefixlen}", "dev", "eth0")
        ip("-n", GUEST, "link", "set", "eth0", "up")
        yield
    finally:
        ip("netns", "del", GUEST)
        remove_network(connection, MANAGER)


def inside(*words: str) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", GUEST, sys.executable, *words],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(IPv6Network("fd84::/64"), id="fd84::/64", marks=pytest.mark.long),
        pytest.param(IPv6Network("2001:db8:84::/112"), id="2001:db8:84::/112"),
    ],
)
def test_a_gateway_and_nobody_who_advertises(prefix: IPv6Network) -> None:
    with closing(libvirt.open("qemu:///system")) as connection:
        with joined(connection, prefix):
            assert network_drift(connection, MANAGER, SUBNET, (), prefix) == []
            tried = json.dumps([["ping", str(prefix[1])]])
            until(
                lambda: json.loads(inside(str(PROBE), "try", tried)) == [True],
                30,
                "the gateway answers",
            )
            assert set(inside("-c", LISTENER).split()) <= {"other"}
        if prefix.prefixlen != 64:
            return  # of narrower ones dnsmasq advertises none anyway
        with joined(connection, prefix, "<dnsmasq:option value='cache-size=0'/>"):
            until(
                lambda: "router" in inside("-c", LISTENER).split(),
                30,
                "without that option there are router advertisements",
            )


def test_names_resolve_into_the_sets_of_both_families(tmp_path: Path) -> None:
    """By libvirt's own dnsmasq, which asks one of ours."""
    prefix, upstream = IPv6Network("fd84::/64"), "127.0.0.84"
    names = {"deb.example": "2a00:84::7", "rebound.example": "fd77::10"}
    command = [
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--bind-interfaces",
        "--pid-file=",
    ]
    command += [
        f"--listen-address={upstream}",
        *(f"--address=/{name}/{address}" for name, address in names.items()),
    ]
    policies = (
        Policy(Reach.NONE, Reach.NONE),
        Policy("pool-p", Reach.ALLOWLIST, (Destination.parse("deb.example:80"),)),
    )
    firewall = Firewall(
        MANAGER,
        SUBNET,
        policies,
        Bounds(9, 9, 9, 16),
        ForgeAddresses("", tmp_path),
        tmp_path,
        prefix,
    )
    with ExitStack() as stack:
        connection = stack.enter_context(closing(libvirt.open("qemu:///system")))
        resolver = stack.enter_context(subprocess.Popen(command))
        stack.callback(resolver.kill)
        stack.enter_context(written(Path("/etc/resolv.conf"), f"nameserver {upstream}\n"))
        firewall.ensure()
        stack.callback(firewall.remove)
        stack.enter_context(joined(connection, prefix, options=firewall.dns_options))

        firewall.admit(MachineId(MANAGER, "00000009"), SUBNET[9], "pool-p")

        def asked(name: str) -> str:
            return inside("-c", ASKER, str(SUBNET[1]), name).strip()

        def held() -> bool:
            listed = subprocess.run(
                ["nft", "list", "set", "inet", network_name(MANAGER), "to6-deb.example"],
                capture_output=True,
                text=True,
                check=True,
            )
            return names["deb.example"] in listed.stdout

        assert not held()
        until(lambda: asked("deb.example") == "0 1", 30, "the resolver answers")
        assert held()
        assert asked("rebound.example").endswith(" 0"), "a name that leads to a private address"

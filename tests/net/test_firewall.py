"""The firewall's rules, with real packets from stand-in machines: every cell in every mode, and each blocked one opens without its rule."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.net import frames
from tests.net.place import (
    ADDRESSES,
    BRIDGE,
    CGNAT,
    GATEWAY,
    HOST_PUBLIC,
    INTERNET,
    LAN,
    MANAGER,
    METADATA,
    MIRROR,
    ONE,
    SUBNET,
    TWO,
    WORLD,
    ask,
    each_rule_alone,
    ip,
    laid_out,
)
from vmrunner.errors import HypervisorError
from vmrunner.forge.addresses import ForgeAddresses
from vmrunner.hypervisor.firewall import Firewall
from vmrunner.model import MachineId
from vmrunner.policy import Bounds, Destination, Policy, Reach, pool_policy

FORGE, FORGE_PORT = "203.0.113.10", 3000  # the rig's Gitea, an address of this very host
NOWHERE = "0.0.0.0"  # noqa: S104 — as one asks DHCP
TABLE = f"vmr-{MANAGER}"
BOUNDS = Bounds(connections=100, new_connections=1000, dns_queries=1000)
ALLOWED = tuple(Destination.parse(text) for text in (f"{MIRROR}:443", "deb.example:80", "192.168.77.0/24:443"))
POLICIES = (
    Policy(Reach.NONE, Reach.NONE),
    Policy(pool_policy("internet"), Reach.INTERNET),
    Policy(pool_policy("allowlist"), Reach.ALLOWLIST, ALLOWED),
    Policy(pool_policy("none"), Reach.NONE),
    Policy(pool_policy("mirror"), Reach.INTERNET, ALLOWED),
)
A, B = (str(ADDRESSES[machine]) for machine in (ONE, TWO))

CELLS: dict[str, tuple[list[Any], set[str]]] = {
    # What a machine tries, and the policies under which it gets through.
    "the forge": (["tcp", FORGE, FORGE_PORT], {"internet", "allowlist", "none", "mirror"}),
    "our resolver": (["udp", GATEWAY, 53], {"internet", "allowlist", "mirror"}),
    "our resolver over TCP": (["tcp", GATEWAY, 53], {"internet", "allowlist", "mirror"}),
    "the internet": (["tcp", INTERNET, 443], {"internet", "mirror"}),
    "the internet by UDP": (["udp", INTERNET, 443], {"internet", "mirror"}),
    "the internet by ICMP": (["ping", INTERNET], {"internet", "mirror"}),
    "an allowed address": (["tcp", MIRROR, 443], {"internet", "allowlist", "mirror"}),
    "another port of it": (["tcp", MIRROR, 80], {"internet", "mirror"}),
    "another protocol of it": (["udp", MIRROR, 443], {"internet", "mirror"}),
    "an allowed private network": (["tcp", LAN, 443], {"allowlist", "mirror"}),
    "another port of the forge's host": (["tcp", FORGE, 8080], set()),
    "the gateway by TCP": (["tcp", GATEWAY, 8080], set()),
    "the gateway by UDP": (["udp", GATEWAY, 8080], set()),
    "the gateway by ICMP": (["ping", GATEWAY], set()),
    "the host's other address": (["tcp", HOST_PUBLIC, 8080], set()),
    "the host's other address by ICMP": (["ping", HOST_PUBLIC], set()),
    "the LAN": (["tcp", LAN, 80], set()),
    "the LAN by UDP": (["udp", LAN, 80], set()),
    "the LAN by ICMP": (["ping", LAN], set()),
    "the metadata service": (["tcp", METADATA, 80], set()),
    "carrier-grade NAT": (["tcp", CGNAT, 80], set()),
    "another resolver": (["udp", INTERNET, 53], set()),
    "another resolver over TCP": (["tcp", INTERNET, 53], set()),
    "a resolver of the host": (["udp", HOST_PUBLIC, 53], set()),
    "a neighbour by TCP": (["tcp", B, 8080], set()),
    "a neighbour by UDP": (["udp", B, 8080], set()),
    "a neighbour by ICMP": (["ping", B], set()),
}
MODES = ("internet", "allowlist", "none", "mirror")


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    with each_rule_alone(), laid_out():
        yield


@pytest.fixture
def firewall(tmp_path: Path) -> Iterator[Firewall]:
    made = build(tmp_path)
    yield made
    made.remove()


def build(folder: Path, policies: tuple[Policy, ...] = POLICIES, bounds: Bounds = BOUNDS) -> Firewall:
    return Firewall(MANAGER, SUBNET, policies, bounds, ForgeAddresses(f"http://forge.example:{FORGE_PORT}", folder), folder)


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], check=True, capture_output=True, text=True).stdout


def admit(firewall: Firewall, mode: str) -> None:
    firewall.ensure()
    for machine, address in ADDRESSES.items():
        firewall.forget(machine)
        firewall.admit(machine, address, pool_policy(mode))


def without(family: str, chain: str, said: str) -> None:
    """Delete the rules of a chain that say this."""
    listed = nft("-a", "list", "chain", family, TABLE, chain)
    handles = [found[1] for line in listed.splitlines() if said in line and (found := re.search(r"# handle (\d+)$", line))]
    assert handles, f"no rule of {chain} says {said!r}:\n{listed}"
    for handle in handles:
        nft("delete", "rule", family, TABLE, chain, "handle", handle)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_machine_reaches(firewall: Firewall, mode: str) -> None:
    admit(firewall, mode)
    answers = dict(zip(CELLS, ask(ONE, [cell for cell, _ in CELLS.values()]), strict=True))
    assert answers == {name: mode in modes for name, (_, modes) in CELLS.items()}
    assert firewall.dropped()[ONE] > 0
    assert firewall.dropped()[TWO] == 0


def host_is_open() -> None:
    without("inet", "to-host", "goto judge")


def closed_is_open() -> None:
    nft("flush", "set", "inet", TABLE, "closed")


def ports_are_not_isolated() -> None:
    for machine in ADDRESSES:
        ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "off")


def both_are_gone() -> None:
    for family in ("bridge", "inet"):
        nft("delete", "table", family, TABLE)


@pytest.mark.parametrize(
    ("mode", "remove", "cells"),
    [
        ("internet", host_is_open, [name for name in CELLS if "host" in name or "gateway" in name]),
        ("internet", closed_is_open, [name for name in CELLS if "LAN" in name or name in ("the metadata service", "carrier-grade NAT")]),
        ("internet", lambda: without("inet", "public", "dport { 53, 853 }"), ["another resolver", "another resolver over TCP"]),
        ("internet", ports_are_not_isolated, [name for name in CELLS if "neighbour" in name]),
        (
            "allowlist",
            lambda: without("inet", "pool-allowlist", "goto refused"),
            [name for name, (_, modes) in CELLS.items() if "allowlist" not in modes and "neighbour" not in name],
        ),
        (
            "none",
            lambda: without("inet", "pool-none", "goto refused"),
            [name for name, (_, modes) in CELLS.items() if "none" not in modes and "neighbour" not in name],
        ),
    ],
    ids=["the host", "private ranges", "resolvers", "neighbours", "allowlist", "none"],
)
def test_each_blocked_cell_opens_without_its_rule(firewall: Firewall, mode: str, remove: Callable[[], None], cells: list[str]) -> None:
    admit(firewall, mode)
    remove()
    try:
        assert dict(zip(cells, ask(ONE, [CELLS[name][0] for name in cells]), strict=True)) == dict.fromkeys(cells, True)
    finally:
        for machine in ADDRESSES:
            ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "on")


def test_a_rule_that_was_changed_is_seen_and_comes_back(firewall: Firewall) -> None:
    admit(firewall, "internet")
    assert firewall.drift() == ""
    # Not `nft flush ruleset`: libvirtd would miss its own tables until it is restarted.
    for change in (host_is_open, closed_is_open, lambda: nft("delete", "table", "inet", TABLE), both_are_gone):
        change()
        assert firewall.drift()
        known = firewall.ensure()
        for machine in ADDRESSES.keys() - known:
            firewall.admit(machine, ADDRESSES[machine], pool_policy("internet"))
        assert firewall.drift() == ""
        assert ask(ONE, [CELLS[name][0] for name in ("the forge", "the gateway by TCP", "the LAN")]) == [True, False, False]


def test_foreign_rules_that_accept_everything_open_nothing(firewall: Firewall) -> None:
    """As firewalld, ufw, docker and libvirt itself write them, before and after ours."""
    admit(firewall, "allowlist")
    chains = "".join(
        f"chain {hook}{number} {{ type filter hook {hook} priority {priority}; policy accept\n accept\n }}\n"
        for hook in ("input", "forward")
        for number, priority in enumerate((-400, -11, -10, 0, 300))
    )
    subprocess.run(["nft", "-f", "-"], input=f"table inet foreign {{\n{chains}}}\n", text=True, check=True)
    try:
        answers = dict(zip(CELLS, ask(ONE, [cell for cell, _ in CELLS.values()]), strict=True))
        assert answers == {name: "allowlist" in modes for name, (_, modes) in CELLS.items()}
    finally:
        nft("delete", "table", "inet", "foreign")


def hostile() -> dict[str, tuple[str, str]]:
    """Frames that the first machine sends, and where nobody may see them: on the host's side of the bridge, or at the neighbour's."""
    mac, host = ONE.mac, Path(f"/sys/class/net/{BRIDGE}/address").read_text().strip()
    ip4, ip6, arp, tag = 0x0800, 0x86DD, 0x0806, 0x8100
    everyone = frames.BROADCAST
    return {
        "another mac": (BRIDGE, frames.ethernet("52:54:00:ff:ff:ff", host, ip4, frames.udp(A, GATEWAY, "another mac"))),
        "another address": (BRIDGE, frames.ethernet(mac, host, ip4, frames.udp("10.86.0.99", GATEWAY, "another address"))),
        "a neighbours address": (BRIDGE, frames.ethernet(mac, host, ip4, frames.udp(B, GATEWAY, "a neighbours address"))),
        "a neighbour altogether": (BRIDGE, frames.ethernet(TWO.mac, host, ip4, frames.udp(B, GATEWAY, "a neighbour altogether"))),
        "no address": (BRIDGE, frames.ethernet(mac, everyone, ip4, frames.udp(NOWHERE, "255.255.255.255", "no address", (68, 67)))),
        "arp for the gateway": (BRIDGE, frames.ethernet(mac, everyone, arp, frames.arp(2, mac, GATEWAY, GATEWAY, "arp for the gateway"))),
        "arp with another mac": (BRIDGE, frames.ethernet(mac, everyone, arp, frames.arp(2, TWO.mac, A, A, "arp with another mac"))),
        "arp from another mac": (BRIDGE, frames.ethernet(TWO.mac, everyone, arp, frames.arp(2, mac, A, A, "arp from another mac"))),
        "ipv6": (BRIDGE, frames.ethernet(mac, "33:33:00:00:00:01", ip6, frames.ipv6("ipv6"))),
        "router advertisement": (BRIDGE, frames.ethernet(mac, "33:33:00:00:00:01", ip6, frames.ipv6("router advertisement", 134))),
        "vlan": (BRIDGE, frames.ethernet(mac, host, tag, frames.vlan(7, ip4, frames.udp(A, GATEWAY, "vlan")))),
        "dhcp offer": (TWO.tap, frames.ethernet(mac, everyone, ip4, frames.udp(A, "255.255.255.255", "dhcp offer", (67, 68)))),
        "multicast": (TWO.tap, frames.ethernet(mac, "01:00:5e:00:00:fb", ip4, frames.udp(A, "224.0.0.251", "multicast", (5353, 5353)))),
        "broadcast": (TWO.tap, frames.ethernet(mac, everyone, ip4, frames.udp(A, "10.86.0.255", "broadcast"))),
        "arp to a neighbour": (TWO.tap, frames.ethernet(mac, everyone, arp, frames.arp(1, mac, A, B, "arp to a neighbour"))),
        "straight to a neighbour": (TWO.tap, frames.ethernet(mac, TWO.mac, ip4, frames.udp(A, B, "straight to a neighbour"))),
    }


def seen(sent: dict[str, tuple[str, str]]) -> dict[str, set[str]]:
    """The first machine sends all of this; which marks arrived on the host's side of the bridge, and at the neighbour."""
    listeners = {
        where: subprocess.Popen([*inside, sys.executable, "-m", "tests.net.sniff", interface, "2.5"], stdout=subprocess.PIPE, text=True)
        for where, inside, interface in ((BRIDGE, [], BRIDGE), (TWO.tap, ["ip", "netns", "exec", str(TWO)], "eth0"))
    }
    for listener in listeners.values():
        assert listener.stdout
        assert listener.stdout.readline() == "listening\n"
    ask(ONE, [["frame", content] for _, content in sent.values()])
    return {where: set(json.loads(listener.communicate(timeout=30)[0])) for where, listener in listeners.items()}


def test_forged_frames_arrive_nowhere(firewall: Firewall) -> None:
    admit(firewall, "internet")
    sent, host = hostile(), Path(f"/sys/class/net/{BRIDGE}/address").read_text().strip()
    honest = {"honest": (BRIDGE, frames.ethernet(ONE.mac, host, 0x0800, frames.udp(A, GATEWAY, "honest")))}
    arrived = seen(sent | honest)
    assert "honest" in arrived[BRIDGE], "the listener can hear"
    assert {name for name, (where, _) in sent.items() if name in arrived[where]} == set()
    assert firewall.dropped()[ONE] >= sum(where == BRIDGE for where, _ in sent.values())

    without("bridge", "frames", "drop")
    ports_are_not_isolated()
    try:
        arrived = seen(sent)
    finally:
        for machine in ADDRESSES:
            ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "on")
        ip("neigh", "flush", "dev", BRIDGE)  # the host has believed the lies
    assert {name for name, (where, _) in sent.items() if name not in arrived[where]} == set(), "each arrives without its rule"


def test_nobody_outside_reaches_a_machine(firewall: Firewall) -> None:
    admit(firewall, "internet")
    ask_world = ["ip", "netns", "exec", WORLD, sys.executable, "-m", "tests.net.probe", json.dumps([["tcp", A, 8080], ["ping", A]])]

    def answers() -> Any:
        return json.loads(subprocess.run(ask_world, check=True, capture_output=True, text=True).stdout)

    assert answers() == [False, False]
    without("inet", "through-host", "drop")
    without("inet", "pool-internet", "goto refused")  # for the way back, to the world's private address
    assert answers() == [True, True]


def test_a_name_is_open_as_long_as_it_resolves_to_it(firewall: Firewall) -> None:
    """The element is what dnsmasq adds; tests with real machines have the real one do it."""
    admit(firewall, "allowlist")
    cell = [["tcp", INTERNET, 80], ["tcp", INTERNET, 443]]
    assert ask(ONE, cell) == [False, False]
    nft("add", "element", "inet", TABLE, "to-deb.example", f"{{ {INTERNET} }}")
    assert ask(ONE, cell) == [True, False]
    assert "nftset=/deb.example/4#inet#vmr-fw#to-deb.example" in firewall.dns_options
    nft("flush", "set", "inet", TABLE, "closed")
    assert firewall.drift()
    firewall.ensure()
    assert ask(ONE, cell) == [True, False], "new rules keep what was resolved"


def test_bounds(tmp_path: Path) -> None:
    firewall = build(tmp_path, bounds=Bounds(connections=3, new_connections=10_000, dns_queries=5))
    try:
        admit(firewall, "internet")
        many = ask(ONE, [["udp", INTERNET, 443]] * 10)
        assert 1 <= sum(many) <= 3, "connections of a machine at the same time"
        assert ask(TWO, [["udp", INTERNET, 443]]) == [True], "and the neighbour has its own"
        queries = ask(TWO, [["udp", GATEWAY, 53]] * 60)
        assert 5 <= sum(queries) <= 30, "DNS queries a second, and a burst of four times as many"
    finally:
        firewall.remove()
    firewall = build(tmp_path, bounds=replace(BOUNDS, new_connections=5))
    try:
        admit(firewall, "internet")
        assert 5 <= sum(ask(ONE, [["udp", INTERNET, 443]] * 60)) <= 20, "new connections a second, and a burst of twice as many"
    finally:
        firewall.remove()


def test_an_address_that_comes_again_follows_its_new_machine(firewall: Firewall) -> None:
    admit(firewall, "internet")
    stranger = MachineId(MANAGER, "00000009")  # its process died before it could say that it is gone
    firewall.forget(ONE)
    firewall.admit(stranger, IPv4Address(A), pool_policy("none"))
    firewall.admit(ONE, IPv4Address(A), pool_policy("allowlist"))
    assert ask(ONE, [["tcp", MIRROR, 443], ["tcp", INTERNET, 443]]) == [True, False]


def test_a_machine_of_a_pool_that_is_no_more_keeps_the_forge(firewall: Firewall, tmp_path: Path) -> None:
    admit(firewall, "internet")
    fewer = build(tmp_path, policies=tuple(policy for policy in POLICIES if policy.name != pool_policy("internet")))
    assert fewer.ensure() == set(ADDRESSES)
    assert ask(ONE, [["tcp", FORGE, FORGE_PORT], ["tcp", INTERNET, 443]]) == [True, False]


def test_a_machine_that_nobody_admitted_has_no_network(firewall: Firewall) -> None:
    firewall.ensure()
    assert not any(ask(ONE, [cell for cell, _ in CELLS.values()]))


def test_what_nft_refuses_is_one_sentence(firewall: Firewall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrunner.hypervisor.firewall._PLACES", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HypervisorError, match="The program nft is not installed"):
        firewall.ensure()
    monkeypatch.undo()
    denied = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-m", "tests.net.denied"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CAP_NET_ADMIN" in denied.stdout, denied.stderr

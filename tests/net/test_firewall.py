"""The firewall's rules, with real packets from stand-in machines: every cell in every mode, and each blocked one opens without its rule."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.net.place import (
    ADDRESSES,
    BRIDGE,
    CGNAT,
    FORGE,
    FORGE_PORT,
    GATEWAY,
    HOST_PUBLIC,
    INTERNET,
    LAN,
    MANAGER,
    METADATA,
    MIRROR,
    ONE,
    PROBE,
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
from vmrunner.isolation import network
from vmrunner.isolation.ears import Ears
from vmrunner.model import MachineId
from vmrunner.policy import Bounds, Destination, Policy, Reach, pool_policy

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


def seen(names: list[str]) -> tuple[set[str], set[str]]:
    """The first machine sends these forged frames; which arrived on the host's side of the bridge, and which at the neighbour."""
    listener = subprocess.Popen(
        ["ip", "netns", "exec", str(TWO), sys.executable, str(PROBE), "listen", "8081", GATEWAY], stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout
    assert listener.stdout.readline() == f"{B} {TWO.mac}\n"
    with closing(Ears(BRIDGE)) as ears:
        ask(ONE, [["ping", GATEWAY]])  # for its MAC
        # The neighbour's first: a lie about its MAC, once believed, leads the bridge astray.
        lies = [name for name in names if name in network._AT_THE_HOST]
        for part in ([name for name in names if name not in lies], lies):
            ask(ONE, [["spoof", name, GATEWAY, B, TWO.mac] for name in part])
        time.sleep(0.5)
    listener.kill()
    return ears.marks, set(listener.communicate()[0].splitlines())


def test_forged_frames_arrive_nowhere(firewall: Firewall) -> None:
    admit(firewall, "internet")
    names = ["honest", *network._AT_THE_HOST, *network._AT_THE_NEIGHBOUR]
    at_host, at_neighbour = seen(names)
    assert "honest" in at_host, "the listener can hear"
    assert at_host.isdisjoint(network._AT_THE_HOST)
    assert at_neighbour == set()
    assert firewall.dropped()[ONE] >= len(network._AT_THE_HOST)

    without("bridge", "frames", "drop")
    ports_are_not_isolated()
    try:
        at_host, at_neighbour = seen(names)
    finally:
        for machine in ADDRESSES:
            ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "on")
        ip("neigh", "flush", "dev", BRIDGE)  # the host has believed the lies
    assert set(network._AT_THE_HOST) <= at_host, "each arrives without its rule"
    assert set(network._AT_THE_NEIGHBOUR) <= at_neighbour


def test_nobody_outside_reaches_a_machine(firewall: Firewall) -> None:
    admit(firewall, "internet")
    ask_world = ["ip", "netns", "exec", WORLD, sys.executable, str(PROBE), "try", json.dumps([["tcp", A, 8080], ["ping", A]])]

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

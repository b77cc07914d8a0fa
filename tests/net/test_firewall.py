"""The firewall's rules, with real packets from stand-in machines: every cell in every mode, and
each blocked one opens without its rule.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.net.place import (
    ADDRESSES,
    BOTH_FORGE,
    BRIDGE,
    CGNAT,
    FORGE,
    FORGE6,
    FORGE_PORT,
    GATEWAY,
    GATEWAY6,
    HOST_PUBLIC,
    HOST_PUBLIC6,
    INTERNET,
    INTERNET6,
    LAN,
    LAN6,
    MANAGER,
    METADATA,
    MIRROR,
    MIRROR6,
    NAT64,
    ONE,
    PREFIX,
    PROBE,
    SIX_TO_FOUR,
    SUBNET,
    TEREDO,
    TWO,
    WORLD,
    address6,
    ask,
    each_rule_alone,
    ip,
    laid_out,
)
from vmrunner.doctor.isolation import network
from vmrunner.doctor.isolation.ears import Ears
from vmrunner.errors import HypervisorError
from vmrunner.model.machine import MachineId
from vmrunner.network import leftovers
from vmrunner.network.firewall import Firewall
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.policy import Bounds, Destination, Policy, Reach, pool_policy

TABLE = f"vmr-{MANAGER}"
BOUNDS = Bounds(connections=100, new_connections=1000, dns_queries=1000, dns_waiting=256)
ALLOWED = tuple(
    Destination.parse(text) for text in (f"{MIRROR}:443", "deb.example:80", "192.168.77.0/24:443")
)
ALLOWED6 = tuple(Destination.parse(text) for text in (f"[{MIRROR6}]:443", "[fd77::/64]:443"))
POLICIES = (
    Policy(Reach.NONE, Reach.NONE),
    Policy(pool_policy("internet"), Reach.INTERNET),
    Policy(pool_policy("allowlist"), Reach.ALLOWLIST, ALLOWED),
    Policy(pool_policy("none"), Reach.NONE),
    Policy(pool_policy("mirror"), Reach.INTERNET, ALLOWED),
    Policy(pool_policy("cached"), Reach.INTERNET, host_ports=(8080,)),
)
A, B = (str(ADDRESSES[machine]) for machine in (ONE, TWO))
A6, B6 = (address6(ADDRESSES[machine]) for machine in (ONE, TWO))

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
CELLS6: dict[str, tuple[list[Any], set[str]]] = {
    "the forge, IPv6": (["tcp", FORGE6, FORGE_PORT], {"internet", "allowlist", "none", "mirror"}),
    "the internet, IPv6": (["tcp", INTERNET6, 443], {"internet", "mirror"}),
    "the internet by UDP, IPv6": (["udp", INTERNET6, 443], {"internet", "mirror"}),
    "the internet by ICMP, IPv6": (["ping", INTERNET6], {"internet", "mirror"}),
    "an allowed address, IPv6": (["tcp", MIRROR6, 443], {"internet", "allowlist", "mirror"}),
    "another port of it, IPv6": (["tcp", MIRROR6, 80], {"internet", "mirror"}),
    "another protocol of it, IPv6": (["udp", MIRROR6, 443], {"internet", "mirror"}),
    "an allowed private network, IPv6": (["tcp", LAN6, 443], {"allowlist", "mirror"}),
    "another port of the forge's host, IPv6": (["tcp", FORGE6, 8080], set()),
    "the gateway's resolver, IPv6": (["udp", GATEWAY6, 53], set()),
    "the gateway's resolver over TCP, IPv6": (["tcp", GATEWAY6, 53], set()),
    "the gateway by TCP, IPv6": (["tcp", GATEWAY6, 8080], set()),
    "the gateway by UDP, IPv6": (["udp", GATEWAY6, 8080], set()),
    "the gateway by ICMP, IPv6": (["ping", GATEWAY6], set()),
    "the host's other address, IPv6": (["tcp", HOST_PUBLIC6, 8080], set()),
    "the host's other address by ICMP, IPv6": (["ping", HOST_PUBLIC6], set()),
    "a resolver of the host, IPv6": (["udp", HOST_PUBLIC6, 53], set()),
    "the LAN, IPv6": (["tcp", LAN6, 80], set()),
    "the LAN by UDP, IPv6": (["udp", LAN6, 80], set()),
    "the LAN by ICMP, IPv6": (["ping", LAN6], set()),
    "a way to IPv4 by NAT64": (["tcp", NAT64, 80], set()),
    "a way to IPv4 by 6to4": (["tcp", SIX_TO_FOUR, 80], set()),
    "a way to IPv4 by Teredo": (["udp", TEREDO, 80], set()),
    "another resolver, IPv6": (["udp", INTERNET6, 53], set()),
    "another resolver over TCP, IPv6": (["tcp", INTERNET6, 53], set()),
    "a neighbour by TCP, IPv6": (["tcp", B6, 8080], set()),
    "a neighbour by UDP, IPv6": (["udp", B6, 8080], set()),
    "a neighbour by ICMP, IPv6": (["ping", B6], set()),
}
Cells = dict[str, tuple[list[Any], set[str]]]
MODES = ("internet", "allowlist", "none", "mirror")


@pytest.fixture(scope="module", autouse=True, params=[None, PREFIX], ids=["ipv4", "both"])
def ipv6(request: pytest.FixtureRequest) -> Iterator[IPv6Network | None]:
    """The place, without IPv6 and with it; everything that is said of IPv4 is the same in both."""
    with each_rule_alone(), laid_out(ipv6=request.param is not None):
        yield request.param


@pytest.fixture
def cells(ipv6: IPv6Network | None) -> Cells:
    return CELLS | CELLS6 if ipv6 else CELLS


@pytest.fixture
def firewall(tmp_path: Path, ipv6: IPv6Network | None) -> Iterator[Firewall]:
    made = build(tmp_path, ipv6=ipv6)
    yield made
    made.remove()


def build(
    folder: Path,
    policies: tuple[Policy, ...] = POLICIES,
    bounds: Bounds = BOUNDS,
    ipv6: IPv6Network | None = None,
) -> Firewall:
    if ipv6:
        policies = tuple(
            replace(policy, allow=policy.allow + ALLOWED6) if policy.allow else policy
            for policy in policies
        )
    name = BOTH_FORGE if ipv6 else "forge.example"
    forge = ForgeAddresses(f"http://{name}:{FORGE_PORT}", folder, ipv6=ipv6 is not None)
    return Firewall(MANAGER, SUBNET, policies, bounds, forge, folder, ipv6)


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], check=True, capture_output=True, text=True).stdout


def admit(firewall: Firewall, mode: str) -> None:
    firewall.ensure()
    for machine, address in ADDRESSES.items():
        firewall.forget(machine)
        firewall.admit(machine, address, pool_policy(mode))
        # Who was asked for in vain a moment ago is asked for again only after a second, which is
        # longer than the probe waits.
        ip("-n", str(machine), "neigh", "flush", "dev", "eth0")
    ip("neigh", "flush", "dev", BRIDGE)


def without(family: str, chain: str, said: str) -> None:
    """Delete the rules of a chain that say this."""
    listed = nft("-a", "list", "chain", family, TABLE, chain)
    handles = [
        found[1]
        for line in listed.splitlines()
        if said in line and (found := re.search(r"# handle (\d+)$", line))
    ]
    assert handles, f"no rule of {chain} says {said!r}:\n{listed}"
    for handle in handles:
        nft("delete", "rule", family, TABLE, chain, "handle", handle)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_machine_reaches(firewall: Firewall, cells: Cells, mode: str) -> None:
    admit(firewall, mode)
    answers = dict(zip(cells, ask(ONE, [cell for cell, _ in cells.values()]), strict=True))
    assert answers == {name: mode in modes for name, (_, modes) in cells.items()}
    assert firewall.dropped()[ONE] > 0
    assert firewall.dropped()[TWO] == 0


def test_what_the_host_offers_is_one_port_of_the_gateway(firewall: Firewall, cells: Cells) -> None:
    admit(firewall, "cached")
    answers = dict(zip(cells, ask(ONE, [cell for cell, _ in cells.values()]), strict=True))
    assert {name for name, opened in answers.items() if opened} == {
        "the gateway by TCP",
        *(name for name, (_, modes) in cells.items() if "internet" in modes),
    }
    # It is bounded like everything else that a machine reaches.
    assert "goto permitted" in next(
        line
        for line in nft("list", "chain", "inet", TABLE, pool_policy("cached")).splitlines()
        if f"ip daddr {GATEWAY} " in line
    )


def host_is_open() -> None:
    without("inet", "to-host", "goto judge")


def closed_is_open() -> None:
    for name in re.findall(r"set (closed6?) ", nft("list", "table", "inet", TABLE)):
        nft("flush", "set", "inet", TABLE, name)


def ports_are_not_isolated() -> None:
    for machine in ADDRESSES:
        ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "off")


def both_are_gone() -> None:
    for family in ("bridge", "inet"):
        nft("delete", "table", family, TABLE)


@pytest.mark.parametrize(
    ("mode", "remove", "which"),
    [
        ("internet", host_is_open, "host|gateway"),
        (
            "internet",
            closed_is_open,
            "the LAN|the metadata service|carrier-grade NAT|a way to IPv4",
        ),
        ("internet", lambda: without("inet", "public", "dport { 53, 853 }"), "another resolver"),
        ("internet", ports_are_not_isolated, "neighbour"),
        (
            "allowlist",
            lambda: without("inet", "pool-allowlist", "goto refused"),
            "^(?!a neighbour)",
        ),
        ("none", lambda: without("inet", "pool-none", "goto refused"), "^(?!a neighbour)"),
    ],
    ids=["the host", "private ranges", "resolvers", "neighbours", "allowlist", "none"],
)
def test_each_blocked_cell_opens_without_its_rule(
    firewall: Firewall, cells: Cells, mode: str, remove: Callable[[], None], which: str
) -> None:
    admit(firewall, mode)
    remove()
    names = [
        name for name, (_, modes) in cells.items() if mode not in modes and re.search(which, name)
    ]
    try:
        assert dict(
            zip(names, ask(ONE, [cells[name][0] for name in names]), strict=True)
        ) == dict.fromkeys(names, True)
    finally:
        for machine in ADDRESSES:
            ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "on")


def test_a_rule_that_was_changed_is_seen_and_comes_back(firewall: Firewall) -> None:
    admit(firewall, "internet")
    assert firewall.drift() == ""
    # Not `nft flush ruleset`: libvirtd would miss its own tables until it is restarted.
    for change in (
        host_is_open,
        closed_is_open,
        lambda: nft("delete", "table", "inet", TABLE),
        both_are_gone,
    ):
        change()
        assert firewall.drift()
        known = firewall.ensure()
        for machine in ADDRESSES.keys() - known:
            firewall.admit(machine, ADDRESSES[machine], pool_policy("internet"))
        assert firewall.drift() == ""
        assert ask(
            ONE, [CELLS[name][0] for name in ("the forge", "the gateway by TCP", "the LAN")]
        ) == [True, False, False]


def test_foreign_rules_that_accept_everything_open_nothing(
    firewall: Firewall, cells: Cells
) -> None:
    """As firewalld, ufw, docker and libvirt itself write them, before and after ours."""
    admit(firewall, "allowlist")
    chains = "".join(
        f"chain {hook}{number} "
        f"{{ type filter hook {hook} priority {priority}; policy accept\n accept\n }}\n"
        for hook in ("input", "forward")
        for number, priority in enumerate((-400, -11, -10, 0, 300))
    )
    subprocess.run(
        ["nft", "-f", "-"], input=f"table inet foreign {{\n{chains}}}\n", text=True, check=True
    )
    try:
        answers = dict(zip(cells, ask(ONE, [cell for cell, _ in cells.values()]), strict=True))
        assert answers == {name: "allowlist" in modes for name, (_, modes) in cells.items()}
    finally:
        nft("delete", "table", "inet", "foreign")


HONEST6 = ("honest ipv6", "honest solicitation", "honest advertisement")
SIXES = (*HONEST6, *network._AT_THE_HOST6, *network._AT_THE_NEIGHBOUR6)
AT_THE_HOST = (*network._AT_THE_HOST, *network._AT_THE_HOST6)


def seen(names: list[str]) -> tuple[set[str], set[str]]:
    """The first machine sends these forged frames; which arrived on the host's side of the bridge,
    and which at the neighbour.
    """
    listener = subprocess.Popen(
        ["ip", "netns", "exec", str(TWO), sys.executable, str(PROBE), "listen", "8081", GATEWAY],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert listener.stdout
    assert listener.stdout.readline() == f"{B} {TWO.mac}\n"
    with closing(Ears(BRIDGE)) as ears:
        ask(ONE, [["ping", GATEWAY]])  # for its MAC
        # The neighbour's first: a lie about its MAC, once believed, leads the bridge astray.
        lies = [name for name in names if name in AT_THE_HOST]
        for part in ([name for name in names if name not in lies], lies):
            ask(
                ONE,
                [
                    ["spoof", name, *((GATEWAY6, B6) if name in SIXES else (GATEWAY, B)), TWO.mac]
                    for name in part
                ],
            )
        time.sleep(0.5)
    listener.kill()
    return ears.marks, set(listener.communicate()[0].splitlines())


def test_forged_frames_arrive_nowhere(firewall: Firewall, ipv6: IPv6Network | None) -> None:
    admit(firewall, "internet")
    honest = {"honest", *(HONEST6 if ipv6 else ())}
    to_host = AT_THE_HOST if ipv6 else network._AT_THE_HOST
    to_neighbour = network._AT_THE_NEIGHBOUR + (network._AT_THE_NEIGHBOUR6 if ipv6 else ())
    names = [*honest, *to_host, *to_neighbour]
    at_host, at_neighbour = seen(names)
    assert honest <= at_host, "the listener can hear"
    assert at_host.isdisjoint(to_host)
    assert at_neighbour == set()
    assert firewall.dropped()[ONE] >= len(to_host)

    without("bridge", "frames", "drop")
    ports_are_not_isolated()
    try:
        at_host, at_neighbour = seen(names)
    finally:
        for machine in ADDRESSES:
            ip("link", "set", machine.tap, "type", "bridge_slave", "isolated", "on")
        ip("neigh", "flush", "dev", BRIDGE)  # the host has believed the lies
    assert set(to_host) <= at_host, "each arrives without its rule"
    assert set(to_neighbour) <= at_neighbour


def test_nobody_outside_reaches_a_machine(firewall: Firewall, ipv6: IPv6Network | None) -> None:
    admit(firewall, "internet")
    tries = [
        cell
        for address in (A, *([A6] if ipv6 else []))
        for cell in (["tcp", address, 8080], ["ping", address])
    ]
    ask_world = ["ip", "netns", "exec", WORLD, sys.executable, str(PROBE), "try", json.dumps(tries)]

    def answers() -> Any:
        return json.loads(
            subprocess.run(ask_world, check=True, capture_output=True, text=True).stdout
        )

    assert answers() == [False] * len(tries)
    without("inet", "through-host", "drop")
    # For the way back, to the world's private address.
    without("inet", "pool-internet", "goto refused")
    assert answers() == [True] * len(tries)


def test_allow_opens_a_port_of_this_host_too(tmp_path: Path) -> None:
    own = tuple(Destination.parse(f"{address}:8080") for address in (HOST_PUBLIC, GATEWAY))
    firewall = build(tmp_path, (Policy(pool_policy("own"), Reach.ALLOWLIST, own),))
    try:
        admit(firewall, "own")
        tries = [["tcp", HOST_PUBLIC, 8080], ["tcp", GATEWAY, 8080], ["udp", HOST_PUBLIC, 53]]
        assert ask(ONE, tries) == [True, True, False]
    finally:
        firewall.remove()


def test_a_name_is_open_as_long_as_it_resolves_to_it(firewall: Firewall) -> None:
    """The element is what dnsmasq adds; tests with real machines have the real one do it."""
    admit(firewall, "allowlist")
    cell = [["tcp", INTERNET, 80], ["tcp", INTERNET, 443]]
    assert ask(ONE, cell) == [False, False]
    nft("add", "element", "inet", TABLE, "to-deb.example", f"{{ {INTERNET} }}")
    assert ask(ONE, cell) == [True, False]
    assert any(
        option.startswith("nftset=/deb.example/4#inet#vmr-fw#to-deb.example")
        for option in firewall.dns_options
    )
    nft("flush", "set", "inet", TABLE, "closed")
    assert firewall.drift()
    firewall.ensure()
    assert ask(ONE, cell) == [True, False], "new rules keep what was resolved"


def test_names_in_ipv6(firewall: Firewall, ipv6: IPv6Network | None) -> None:
    if ipv6 is None:
        assert "nftset=/deb.example/4#inet#vmr-fw#to-deb.example" in firewall.dns_options
        return
    admit(firewall, "allowlist")
    cell = [["tcp", INTERNET6, 80], ["tcp", INTERNET6, 443]]
    assert ask(ONE, cell) == [False, False]
    nft("add", "element", "inet", TABLE, "to6-deb.example", f"{{ {INTERNET6} }}")
    assert ask(ONE, cell) == [True, False]
    assert (
        "nftset=/deb.example/4#inet#vmr-fw#to-deb.example,6#inet#vmr-fw#to6-deb.example"
        in firewall.dns_options
    )
    nft("flush", "set", "inet", TABLE, "closed6")
    firewall.ensure()
    assert ask(ONE, cell) == [True, False], "new rules keep what was resolved"


def test_machines_that_run_get_and_lose_ipv6_with_the_rules(
    firewall: Firewall, tmp_path: Path, ipv6: IPv6Network | None
) -> None:
    if ipv6 is None:
        return
    cell = [["tcp", INTERNET6, 443], ["tcp", INTERNET, 443]]
    admit(build(tmp_path), "internet")
    assert ask(ONE, cell) == [False, True]
    assert firewall.ensure() == set(ADDRESSES)
    assert ask(ONE, cell) == [True, True]
    elsewhere = build(tmp_path, ipv6=IPv6Network("fd99::/64"))
    elsewhere.ensure()
    assert ask(ONE, cell) == [False, True], "the address is another one now"
    elsewhere.admit(
        MachineId(MANAGER, "00000008"), IPv4Address("10.83.0.11"), "none"
    )  # as if the subnet had been that
    for machine in (ONE, TWO, MachineId(MANAGER, "00000008")):
        elsewhere.forget(machine)
    for family in ("bridge", "inet"):
        assert "fd99" not in nft("list", "table", family, TABLE)
    admit(firewall, "internet")
    build(tmp_path).ensure()
    assert ask(ONE, cell) == [False, True]


def test_bounds(tmp_path: Path, ipv6: IPv6Network | None) -> None:
    firewall = build(
        tmp_path,
        bounds=Bounds(connections=3, new_connections=10_000, dns_queries=5, dns_waiting=256),
        ipv6=ipv6,
    )
    try:
        admit(firewall, "internet")
        many = ask(
            ONE, [["udp", at, 443] for at in (INTERNET, INTERNET6 if ipv6 else INTERNET)] * 5
        )
        assert 1 <= sum(many) <= 3, "connections of a machine at the same time"
        assert ask(TWO, [["udp", INTERNET, 443]]) == [True], "and the neighbour has its own"
        queries = ask(TWO, [["udp", GATEWAY, 53]] * 60)
        assert 5 <= sum(queries) <= 30, "DNS queries a second, and a burst of four times as many"
    finally:
        firewall.remove()
    firewall = build(tmp_path, bounds=replace(BOUNDS, new_connections=5), ipv6=ipv6)
    try:
        admit(firewall, "internet")
        assert 5 <= sum(ask(ONE, [["udp", INTERNET, 443]] * 60)) <= 20, (
            "new connections a second, and a burst of twice as many"
        )
    finally:
        firewall.remove()


def test_nothing_of_a_machine_is_left_in_either_family(
    firewall: Firewall, ipv6: IPv6Network | None
) -> None:
    admit(firewall, "internet")
    cells = ["our resolver", "the internet", "the internet by UDP"]
    six = ["the internet, IPv6", "the internet by UDP, IPv6"] if ipv6 else []
    tried = [(CELLS | CELLS6)[name][0] for name in cells + six]
    for machine in ADDRESSES:
        assert all(ask(machine, tried))

    def left(machine: MachineId, *addresses: str) -> list[bool]:
        table = nft("list", "table", "inet", TABLE) + nft("list", "table", "bridge", TABLE)
        known = subprocess.run(
            ["ip", "neigh", "show", "dev", BRIDGE], check=True, capture_output=True, text=True
        )
        return [
            any(word in table for word in (machine.mac, machine.tap, f"{addresses[0]} ")),
            any(f"{address} " in known.stdout for address in addresses),
            *(leftovers.connections([ip_address(each)]) > 0 for each in addresses),
        ]

    one, two = ((A, A6), (B, B6)) if ipv6 else ((A,), (B,))
    assert all(left(ONE, *one))
    # A machine is gone before it is forgotten: this one's last packets would count as dropped.
    ip("link", "set", ONE.tap, "down")
    try:
        firewall.forget(ONE)
        leftovers.remove(BRIDGE, [ip_address(each) for each in one])
        assert not any(left(ONE, *one)), left(ONE, *one)
        assert all(left(TWO, *two)), "its neighbour keeps all of its own"
    finally:
        ip("link", "set", ONE.tap, "up")


def test_an_address_that_comes_again_follows_its_new_machine(firewall: Firewall) -> None:
    admit(firewall, "internet")
    # Its process died before it could say that it is gone.
    stranger = MachineId(MANAGER, "00000009")
    firewall.forget(ONE)
    firewall.admit(stranger, IPv4Address(A), pool_policy("none"))
    firewall.admit(ONE, IPv4Address(A), pool_policy("allowlist"))
    reached = [["tcp", MIRROR, 443], ["tcp", INTERNET, 443]]
    assert ask(ONE, reached) == [True, False]
    firewall.forget(stranger)
    assert ask(ONE, reached) == [True, False], "the address is no longer the stranger's"


def test_what_was_dropped_of_one_machine_is_not_the_next_ones(firewall: Firewall) -> None:
    refused = [["tcp", INTERNET, 443]]
    firewall.ensure()
    firewall.admit(ONE, IPv4Address(A), pool_policy("none"))
    ask(ONE, refused)
    assert firewall.dropped()[ONE] > 0
    # Its process died before it could say that it is gone; what came on its way was dropped, too.
    firewall.admit(TWO, IPv4Address(A), pool_policy("none"))
    assert firewall.dropped()[TWO] == 0
    # It was forgotten, and a last packet of it came after that.
    firewall.forget(TWO)
    firewall.forget(ONE)
    ask(ONE, refused)
    firewall.admit(TWO, IPv4Address(A), pool_policy("none"))
    assert firewall.dropped()[TWO] == 0


def test_a_machine_of_a_pool_that_is_no_more_keeps_the_forge(
    firewall: Firewall, tmp_path: Path, ipv6: IPv6Network | None
) -> None:
    admit(firewall, "internet")
    fewer = build(
        tmp_path,
        policies=tuple(policy for policy in POLICIES if policy.name != pool_policy("internet")),
        ipv6=ipv6,
    )
    assert fewer.ensure() == set(ADDRESSES)
    assert ask(ONE, [["tcp", FORGE, FORGE_PORT], ["tcp", INTERNET, 443]]) == [True, False]


def test_a_machine_that_nobody_admitted_has_no_network(firewall: Firewall, cells: Cells) -> None:
    firewall.ensure()
    assert not any(ask(ONE, [cell for cell, _ in cells.values()]))


def test_what_nft_refuses_is_one_sentence(
    firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrunner.network.firewall._PLACES", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HypervisorError, match="The program nft is not installed"):
        firewall.ensure()
    monkeypatch.undo()
    denied = subprocess.run(
        [
            "setpriv",
            "--bounding-set=-net_admin",
            "--inh-caps=-net_admin",
            sys.executable,
            "-m",
            "tests.net.denied",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CAP_NET_ADMIN" in denied.stdout, denied.stderr

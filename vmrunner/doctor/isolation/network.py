"""The network: two machines, and from inside one of them a try at everything that it must not
reach, and that it must.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import Any

from vmrunner.doctor.isolation.companion import Companion
from vmrunner.doctor.isolation.ears import Ears
from vmrunner.doctor.isolation.lab import Cell, Lab
from vmrunner.network.addresses import gateway, paired
from vmrunner.network.forge import forge_host
from vmrunner.network.names import bridge_name
from vmrunner.network.policy import CLOSED, Policy, Reach

# Addresses for documentation: nobody has them, and they are routed like any other.
_PUBLIC, _RESOLVER = "192.0.2.1", "192.0.2.53"
_PUBLIC6 = "2001:db8::1"  # one, too
_PORT = 8080  # of the neighbour
_ON_THE_WAY = 0.5  # seconds that a frame takes from one machine to the other's words
_MOST_PORTS = 100
_TUNNEL, _BURST = 20, 4  # times the bound for a second; the burst that the rules permit
_MOST_QUERIES = 10_000
_AT_THE_HOST = (
    "another mac",
    "another address",
    "a neighbours address",
    "a neighbour altogether",
    "no address",
    "arp for the gateway",
    "arp with another mac",
    "arp from another mac",
    "ipv6",
    "router advertisement",
    "vlan",
)
_AT_THE_NEIGHBOUR = (
    "dhcp offer",
    "multicast",
    "broadcast",
    "arp to a neighbour",
    "straight to a neighbour",
)
_AT_THE_HOST6 = (
    "another ipv6 address",
    "a link-local address",
    "a neighbours ipv6 address",
    "ipv6 from another mac",
    "advertisement for the gateway",
    "advertisement for a neighbour",
    "advertisement without a mac",
    "advertisement with another mac",
    "advertisement behind a header",
    "advertisement as a fragment",
    "solicitation with another mac",
    "solicitation with two macs",
    "router advertisement of its own",
    "redirect",
    "mld query",
)
_AT_THE_NEIGHBOUR6 = (
    "dhcpv6 offer",
    "ipv6 multicast",
    "solicitation of a neighbour",
    "straight to a neighbour by ipv6",
)
_PRIVATE6 = (
    "fd00::77",
    "fe80::77%",
    "fec0::77",
    "64:ff9b::a00:4d",
    "64:ff9b:1::a00:4d",
    "2001:0:a00:4d::77",
    "2002:a00:4d::77",
    "100::77",
    "5f00::77",
)
"""What is not the internet in IPv6; the fourth to seventh lead to 10.0.0.77 where somebody
translates them.
"""
# IPV6_FREEBIND: a gateway without machines yet waits for a neighbour that might have its address.
_FREEBIND = 78


@dataclass(frozen=True)
class _Try:
    group: str
    what: str
    command: list[Any]
    allowed: bool = False
    # A packet that leaves the host for it has got through, answer or not.
    goes_to: IPv4Address | IPv6Address | None = None
    # A frame that arrives with it has got through: at the host, or for the group `neighbour` there.
    mark: str = ""


class Matrix:
    """What is tried under one policy."""

    def __init__(self, lab: Lab, policy: Policy) -> None:
        self._lab, self._policy = lab, policy
        self._subnet, self._ipv6 = lab.settings.libvirt.subnet, lab.settings.network.ipv6
        self._forge = lab.forge()
        self._gateway = str(gateway(self._subnet))
        self._gateways = (self._gateway, *([str(gateway(self._ipv6))] if self._ipv6 else []))

    def cells(self) -> Iterator[Cell]:
        """All of it.

        Raises HypervisorError without root, MachineError where a machine does not do its part.
        """
        with ExitStack() as stack:
            ears = stack.enter_context(closing(Ears(bridge_name(self._lab.settings.manager))))
            neighbour = stack.enter_context(
                closing(_Neighbour(self._lab, self._policy, self._gateway))
            )
            port = _own_ports(stack, self._gateways)
            tries = [
                *self._allowed(),
                *self._closed(),
                *self._at_host(port),
                *self._near(neighbour),
            ]
            answers = self._lab.answers(
                "probe_network.py",
                "try",
                json.dumps([each.command for each in tries]),
                policy=self._policy.name,
            )
            heard = {"spoofing": ears.marks, "neighbour": neighbour.marks()}
        for each, answered in zip(tries, answers, strict=True):
            got = answered or each.goes_to in ears.left or each.mark in heard.get(each.group, ())
            yield Cell(self._policy.name, each.group, each.what, bool(got), each.allowed)
        for each in self._alone():
            (got,) = self._lab.answers(
                "probe_network.py", "try", json.dumps([each.command]), policy=self._policy.name
            )
            yield Cell(self._policy.name, each.group, each.what, got, each.allowed)

    def _alone(self) -> Iterator[_Try]:
        """What uses up the bounds that the rest needs, and has a machine of its own."""
        name, bounds = forge_host(self._lab.settings.forge_url), self._lab.settings.network
        if not name or _is_address(name) or self._policy.reach is Reach.NONE:
            return
        many, waiting = _TUNNEL * bounds.dns_queries, bounds.dns_waiting
        if many <= _MOST_QUERIES:
            yield _Try(
                "DNS",
                f"{many} queries at once, as a tunnel would",
                ["tunnel", self._gateway, name, many],
            )
        # Else the other bound would close this one.
        if 2 * waiting <= _BURST * bounds.dns_queries:
            yield _Try(
                "DNS",
                f"{waiting} queries beside as many that nobody answers",
                ["unanswered", self._gateway, name, waiting],
            )

    def _allowed(self) -> Iterator[_Try]:
        for at in self._forge:  # it has to answer: a refusal may be another firewall's of this host
            yield _Try(
                "forge", f"{at.address} port {at.port}", ["connect", str(at.address), at.port], True
            )
        name, reach = forge_host(self._lab.settings.forge_url), self._policy.reach
        if name and not _is_address(name):
            yield _Try(
                "DNS",
                f"our resolver, for {name}",
                ["dns", self._gateway, name],
                reach is not Reach.NONE,
            )
        publics: list[IPv4Address | IPv6Address] = [
            IPv4Address(_PUBLIC),
            *([IPv6Address(_PUBLIC6)] if self._ipv6 else []),
        ]
        for public in publics:
            yield _Try(
                "internet",
                f"{public} port 443",
                ["tcp", str(public), 443],
                reach is Reach.INTERNET,
                public,
            )
        yield _Try(
            "DNS",
            f"another resolver, {_RESOLVER}",
            ["dns", _RESOLVER, name or "forge.example"],
            False,
            IPv4Address(_RESOLVER),
        )
        for port in self._policy.host_ports:
            yield _Try(
                "host",
                f"the gateway, TCP port {port}, which is offered",
                ["tcp", self._gateway, port],
                True,
            )
        cache = self._lab.settings.cache.listen_port
        if cache in self._policy.host_ports:
            yield _Try("cache", "for a machine without a job", ["cache", self._gateway, cache])
        for to in self._policy.allow:
            if not isinstance(to.host, str) and to.protocol == "tcp":
                address: IPv4Address | IPv6Address = to.host[0]
                yield _Try(
                    "allowed",
                    f"{address} port {to.ports[0]}",
                    ["tcp", str(address), to.ports[0]],
                    True,
                    address,
                )

    def _closed(self) -> Iterator[_Try]:
        """One address of each range that is not the internet; those that never leave a machine, or
        are multicast, are left out.
        """
        metadata = IPv4Address("169.254.169.254")
        forge = {at.address for at in self._forge}
        for block in CLOSED:
            address = metadata if metadata in block else block[77]
            if (
                block[0].is_loopback
                or block[0].is_multicast
                or str(block).startswith("0.")
                or address in forge
            ):
                continue
            if not _is_allowed(self._policy, address):
                yield _Try(
                    "private", f"{address} port 80", ["tcp", str(address), 80], False, address
                )
        for text in _PRIVATE6 if self._ipv6 else ():
            six = IPv6Address(text.rstrip("%"))
            if six not in forge and not _is_allowed(self._policy, six):
                yield _Try("private", f"{six} port 80", ["tcp", text, 80], False, six)

    def _at_host(self, port: int) -> Iterator[_Try]:
        open_anyway = {(str(at.address), at.port) for at in self._forge}
        open_anyway |= {(self._gateway, port) for port in (53, *self._policy.host_ports)}
        for address in self._gateways:
            at = "the gateway" if address == self._gateway else f"the gateway, {address},"
            yield _Try("host", f"{at} by ICMP", ["ping", address])
            yield _Try(
                "host",
                f"{at.rstrip(',')}, TCP port {port}, opened for this",
                ["tcp", address, port],
            )
            yield _Try(
                "host",
                f"{at.rstrip(',')}, UDP port {port}, opened for this",
                ["udp", address, port],
            )
        addresses = sorted(
            {
                *self._gateways,
                *_addresses(),
                *(_addresses6(bridge_name(self._lab.settings.manager)) if self._ipv6 else ()),
            }
        )
        for kind in ("tcp", "udp"):
            for number in sorted(_listening(kind))[:_MOST_PORTS]:
                for address in addresses:
                    if (address, number) not in open_anyway:
                        yield _Try(
                            "host",
                            f"{address}, {kind.upper()} port {number}",
                            [kind, address, number],
                        )
        yield _Try("host", "a shared folder, or a socket to the host", ["shared"])

    def _near(self, neighbour: _Neighbour) -> Iterator[_Try]:
        six = paired(IPv4Interface(f"{neighbour.address}/{self._subnet.prefixlen}"), self._ipv6)
        forged = ((_AT_THE_HOST, _AT_THE_NEIGHBOUR), (_AT_THE_HOST6, _AT_THE_NEIGHBOUR6))
        of_both = zip(
            ("", " over IPv6"),
            (neighbour.address, *([str(six.ip)] if six else [])),
            self._gateways,
            forged,
            strict=False,
        )
        for over, address, its_gateway, (at_the_host, at_the_neighbour) in of_both:
            yield _Try("neighbour", f"TCP{over}", ["tcp", address, _PORT])
            yield _Try("neighbour", f"UDP{over}", ["udp", address, _PORT])
            yield _Try("neighbour", f"ICMP{over}", ["ping", address])
            for group, names in (("spoofing", at_the_host), ("neighbour", at_the_neighbour)):
                for name in names:
                    yield _Try(
                        group, name, ["spoof", name, its_gateway, address, neighbour.mac], mark=name
                    )


class _Neighbour(Companion):
    """The other machine: it answers on a port, and says which marked frames it has seen."""

    def __init__(self, lab: Lab, policy: Policy, gateway: str) -> None:
        super().__init__(lab, "probe_network.py", "listen", str(_PORT), gateway, policy=policy.name)
        self.address, _, self.mac = self.first.partition(" ")

    def marks(self) -> set[str]:
        """Those that it has seen so far."""
        time.sleep(_ON_THE_WAY)
        return set(self.lines())


def _own_ports(stack: ExitStack, addresses: Sequence[str]) -> int:
    """A port of the gateway that somebody listens on for sure, on TCP and UDP, at each of its
    addresses; returns its number.
    """
    port = 0
    for address in addresses:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listener = stack.enter_context(
                socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            )
            if ":" in address:
                listener.setsockopt(socket.IPPROTO_IPV6, _FREEBIND, 1)
            listener.bind((address, port))
            port = int(listener.getsockname()[1])
            if kind is socket.SOCK_STREAM:
                listener.listen()
            else:
                threading.Thread(target=_answer, args=(listener,), daemon=True).start()
    return port


def _answer(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.sendto(b"here", listener.recvfrom(2048)[1])


def _is_address(name: str) -> bool:
    return ":" in name or name.replace(".", "").isdigit()


def _is_allowed(policy: Policy, address: IPv4Address | IPv6Address) -> bool:
    return any(not isinstance(to.host, str) and address in to.host for to in policy.allow)


def _listening(kind: str) -> set[int]:
    """The ports that something on this host listens on (proc(5)); of UDP those that are bound and
    connected to nobody.
    """
    wanted, found = {"tcp": "0A", "udp": "07"}[kind], set()
    for path in (Path("/proc/net", kind), Path("/proc/net", f"{kind}6")):
        with suppress(OSError):
            for line in path.read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, port = local.split(":")
                if state == wanted and address not in {
                    "0100007F",
                    "00000000000000000000000001000000",
                }:
                    found.add(int(port, 16))
    return found


def _addresses() -> set[str]:
    """This host's IPv4 addresses, loopback aside (/proc/net/fib_trie names each before its line
    `/32 host LOCAL`).
    """
    found, last = set(), ""
    for line in Path("/proc/net/fib_trie").read_text(encoding="ascii").splitlines():
        words = line.split()
        if words and words[0] in {"|--", "+--"}:
            last = words[1]
        elif words[:2] == ["/32", "host"] and words[-1] == "LOCAL" and not last.startswith("127."):
            found.add(last)
    return found


def _addresses6(bridge: str) -> set[str]:
    """This host's IPv6 addresses, loopback aside (/proc/net/if_inet6, with the scope 20 for
    link-local ones: only the bridge's is near).
    """
    found = set()
    with suppress(OSError):  # a kernel without IPv6
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            digits, _, _, scope, _, name = line.split()
            address = IPv6Address(bytes.fromhex(digits))
            if not address.is_loopback and (scope != "20" or name == bridge):
                found.add(f"{address}%" if scope == "20" else str(address))
    return found
